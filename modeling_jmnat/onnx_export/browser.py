"""The graph of a whole translation for programs that cannot feed overridable initialisers, such as onnxruntime-web."""

import json
from pathlib import Path

import onnx
import torch
from onnx import helper

from ..configuration_jmnat import resolve_options
from ..inference.onnx_runtime import TRANSLATOR, graph_file, translator_inputs
from ..inference.translator_options import OPTIONS_FILE, described
from ..modeling_jmnat import JMNatForConditionalGeneration
from ..utils.atomic_files import atomic_text_file
from .whole_translation import TranslatorWriter

SHAPE_OF_ONE = "shape_of_one"  # the initialiser by which a scalar becomes a vector


def browser_file(int8: bool) -> str:
    return f"browser_{graph_file(TRANSLATOR, int8)}"


BROWSER_FILES = (*map(browser_file, (False, True)), OPTIONS_FILE)


def browser_graph(
    model: JMNatForConditionalGeneration,
    position_tables: dict[str, torch.Tensor],
    int8: bool,
    properties: dict[str, str],
) -> onnx.ModelProto:
    """The graph of `TranslatorWriter` with inputs that must all be fed, and with the passes as outputs."""
    whole = TranslatorWriter(model, position_tables, int8, with_history=True).write().model(properties)
    require_options(whole)
    return whole


def write_options(model: JMNatForConditionalGeneration, folder: Path) -> None:
    """Write the model's current options for `translator_feeds`, one input per line."""
    inputs = described(translator_inputs(model, resolve_options(model.generation_config)))
    lines = [f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in inputs.items()]
    with atomic_text_file(folder / OPTIONS_FILE) as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def require_options(model: onnx.ModelProto) -> None:
    """Turn every option of a translator, in place, into an input that must be fed; single numbers have rank 0."""
    graph = model.graph
    inputs = {value.name for value in graph.input}
    defaults = [tensor for tensor in graph.initializer if tensor.name in inputs]
    kept = [tensor for tensor in graph.initializer if tensor.name not in inputs]
    vectors = {tensor.name: f"{tensor.name}_as_vector" for tensor in defaults if list(tensor.dims) == [1]}
    rename_inputs(graph, vectors)
    for value in graph.input:
        if value.name in vectors:
            value.type.tensor_type.shape.ClearField("dim")
    to_vectors = [helper.make_node("Reshape", [name, SHAPE_OF_ONE], [vector]) for name, vector in vectors.items()]
    nodes = [*to_vectors, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend([*kept, helper.make_tensor(SHAPE_OF_ONE, onnx.TensorProto.INT64, [1], [1])])


def rename_inputs(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename the inputs of the nodes of a graph, including the bodies of its loops and branches."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                rename_inputs(attribute.g, names)
