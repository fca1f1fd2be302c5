"""Whether all files of an export are there, and whether its graphs were made of the weights beside them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from ..configuration_jmnat import JMNatConfig
from ..modeling_jmnat import JMNatForConditionalGeneration
from ..utils.fingerprints import weights_digest
from ..utils.model_files import weight_files

GRAPHS_FOLDER = "onnx"  # inside a model's folder
SETTINGS = ("config.json", "generation_config.json")


def with_settings(folder: Path, names: Sequence[str] = SETTINGS) -> Path:
    """The folder of graphs; ValueError if it lacks one of these files, because some would be read as defaults."""
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}: export the model again with `jmnat export-onnx`")
    return folder


def check_weights(graph: Path, digest: str | None, config: JMNatConfig) -> None:
    """Refuse a graph in the folder `onnx` of a model whose weights have changed since the export.

    Args:
        digest: `weights_digest` of the exported weights; None if the graph has none, which is not checked.

    Raises:
        ValueError: naming the graph and the weights.
    """
    if graph.parent.name != GRAPHS_FOLDER or digest is None:
        return
    files = [path for path in weight_files(graph.parent.parent) if path.suffix == ".safetensors"]
    if not files:
        return
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    with torch.device("meta"):
        tied = JMNatForConditionalGeneration(config).all_tied_weights_keys
    tensors |= {name: tensors[source] for name, source in tied.items() if source in tensors}
    if weights_digest(tensors) != digest:
        raise ValueError(
            f"{graph} and {files[0].name} do not belong to the same model: export them again with `jmnat export-onnx`"
        )
