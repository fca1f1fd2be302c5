"""JM-NAT behind a Hugging Face Inference Endpoint: `publish.py` writes this file beside the weights.

The endpoint loads it from the model's folder, makes one `EndpointHandler` and calls it with the body of each request.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import pipeline

INT8_GRAPHS = ("translator_int8.onnx", "onnx/translator_int8.onnx")  # as export_onnx.py and publish.py --onnx write
LARGEST = {"num_iterations": 100, "crf_beam": 64}  # what one request may ask for: time grows with them


class EndpointHandler:
    """Translates with the 8-bit ONNX graph of the folder on a machine without a GPU, otherwise with PyTorch.

    The graph needs the packages modeling-jmnat and onnxruntime; PyTorch runs the code that lies in the folder.

    Args:
        path: the model's folder.
    """

    def __init__(self, path: str = ""):
        self.backend = "torch"
        if not torch.cuda.is_available() and any((Path(path) / name).is_file() for name in INT8_GRAPHS):
            try:
                import onnxruntime  # noqa: F401

                from modeling_jmnat.inference.loading import load_translator
                from modeling_jmnat.pipeline import JMNatTranslationPipeline
            except ImportError:
                pass
            else:
                self.backend = "onnx_int8"
                self.pipeline: Any = JMNatTranslationPipeline(*load_translator(path, backend=self.backend))
        if self.backend == "torch":
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.pipeline = pipeline("translation", model=str(path), device=device, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list:
        """The pipeline's records for `data["inputs"]`, a text or a list of texts.

        Args:
            data: `inputs`, and `parameters` with options of the pipeline and of `generate`; those in
                `generate_parameters`, where `InferenceClient` puts them, count as well.

        Raises:
            ValueError: what cannot be translated, in one sentence, which the endpoint answers as `{"error": ...}` with
                status 400.
        """
        parameters = data.get("parameters") or {} if isinstance(data, dict) and "inputs" in data else None
        further = parameters.get("generate_parameters") or {} if isinstance(parameters, dict) else None
        if not (isinstance(parameters, dict) and isinstance(further, dict)):
            raise ValueError('the request must be {"inputs": text or list of texts, "parameters": {option: value}}')
        options = {**parameters, **further}
        options.pop("generate_parameters", None)
        for name, largest in LARGEST.items():
            if isinstance(options.get(name), int) and options[name] > largest:
                raise ValueError(f"{name}={options[name]} must be at most {largest} in a request")
        try:
            return self.pipeline(data["inputs"], **options)
        except (TypeError, ValueError) as error:
            raise ValueError(" ".join(str(error).split())) from None
