"""The graph of a whole translation for programs that cannot feed overridable initialisers, such as onnxruntime-web."""

import onnx
from onnx import helper

SHAPE_OF_ONE = "shape_of_one"  # the initialiser by which a scalar becomes a vector


def require_options(model: onnx.ModelProto) -> None:
    """Make every option of a translator, in place, an input that must be fed; those of a single number have rank 0."""
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
    """Let the nodes of a graph, and of the bodies of its loops and branches, read values under other names."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                rename_inputs(attribute.g, names)
