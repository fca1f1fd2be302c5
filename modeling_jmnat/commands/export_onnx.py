"""Write a trained JM-NAT model as ONNX graphs, which translate faster on a CPU than PyTorch.

jmnat export-onnx MODEL --int8
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..utils.command_line import command, parse_arguments


@dataclass
class ExportArguments:
    """Which model to export, and where."""

    model: str = field(metadata={"help": "A trained JM-NAT model: a folder, or a name on the Hub."})
    output: str | None = field(
        default=None,
        metadata={"help": "Folder for graphs, configuration and tokenizer. Default: the folder onnx in the model's."},
    )
    int8: bool = field(
        default=False,
        metadata={
            "help": "Also write graphs with 8-bit weights, which are faster and about three times smaller. "
            "With them, a translation may depend on the other sentences of its batch and on padding."
        },
    )
    for_browsers: bool = field(
        default=False,
        metadata={
            "help": "Also write browser_translator.onnx for onnxruntime-web, which has no optional inputs: options "
            "are required inputs, with defaults in browser_translator.json, and the passes are further outputs."
        },
    )


@command
def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv.insert(0, "--model")
    (arguments,) = parse_arguments(argv, ExportArguments, __doc__)
    from transformers.utils import logging

    from ..inference.loading import is_jmnat_itself, load_translator
    from ..inference.onnx_runtime import GRAPHS_FOLDER
    from ..onnx_export import exporter

    export_onnx = exporter()
    if arguments.output is None and not Path(arguments.model).is_dir():
        raise ValueError(f"model {arguments.model} is not a folder: give --output DIR for the graphs")
    logging.disable_progress_bar()
    model, tokenizer = load_translator(arguments.model, device="cpu", dtype="float32")
    if not is_jmnat_itself(model.config):
        raise ValueError(f"{arguments.model} is a {model.config.model_type} model: only JM-NAT can be exported")
    output = Path(arguments.output or Path(arguments.model) / GRAPHS_FOLDER)
    sizes = export_onnx(model, output, arguments.int8, tokenizer, arguments.for_browsers)
    print(
        json.dumps({"output": str(output), "megabytes": {name: round(size / 1e6, 2) for name, size in sizes.items()}})
    )
