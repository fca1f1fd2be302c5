"""A small writer of ONNX graphs: nodes, constants, and linear layers in float32 or with dynamic int8 quantisation.

Graphs are written by hand rather than traced, so that nothing unintended runs: one projection for query, key and
value, and vocabulary logits only where needed. Tests compare them with the network of `modeling_jmnat.py`.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import OnnxFunction

MICROSOFT = "com.microsoft"  # operators of ONNX Runtime beyond the standard
OPSETS = (helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1))
IR_VERSION = 11
State = tuple[
    str, int, Sequence[int | str]
]  # that a loop changes: name before it, type, shape (sizes may change, too)
ACTIVATIONS = {"relu": "Relu", "gelu": "Gelu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
GATED = ("swish", "silu")  # one function: x sigmoid(x)


def quantise_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight (N, K) -> int8 (N, K) and a scale (N,) per row, symmetric: weight is about int8 * scale.

    Processors without VNNI instructions add two neighbouring products with activations of up to 255 in 16 bits, with
    saturation. Therefore no pair of neighbours, (0, 1), (2, 3) and so on, sums to more than 128, so that a product is
    the same on every processor.
    """
    pairs = torch.nn.functional.pad(weight, (0, weight.shape[1] % 2)).unflatten(1, (-1, 2))
    largest = torch.maximum(weight.abs().amax(dim=1), pairs.sum(dim=2).abs().amax(dim=1))
    scales = largest.clamp(min=1e-12) / 127  # rounding may add a half to each of two
    return (weight / scales[:, None]).round().to(torch.int8), scales


@functools.cache
def nodes_of(function: OnnxFunction) -> tuple[onnx.GraphProto, dict[str, onnx.FunctionProto]]:
    """The graph of a function, and the functions that it calls by name."""
    model = function.to_model_proto()
    return model.graph, {called.name: called for called in model.functions}


class GraphWriter:
    """Collects nodes; every method that computes something returns the name of its result.

    Args:
        int8: `linear` and `embedding` store int8 weights, with a scale per output column and per row; activations are
            quantised dynamically, with one scale per tensor.
        outside: the writer of the graph around this body of a `Loop`. What depends on nothing in the body is computed
            there, once; except an `If` or `Loop`, whose graphs need not name what they depend on.
    """

    def __init__(self, name: str, int8: bool = False, outside: "GraphWriter | None" = None):
        self.name = name
        self.outside = outside
        self.results: set[str] = set()
        self.prefix = ""
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.shapes: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.weights = self.initializers  # of `linear`, see `loop`
        self.stored: dict[tuple[int, int], tuple[torch.Tensor, str]] = {}
        self.quantised: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self.known: dict[tuple, str | list[str]] = {}

    def input(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        self.results.add(name)
        return name

    def option(self, name: str, default: np.ndarray) -> str:
        """An optional input; it has the default's type and shape, but an axis of size 0 is dynamic."""
        self.initializers[name] = numpy_helper.from_array(default, name)
        return self.input(name, [size or f"{name}_size" for size in default.shape], self.initializers[name].data_type)

    def subgraph(self, name: str, outside: "GraphWriter | None" = None) -> "GraphWriter":
        """A writer for the body of a `Loop` or `If`, which may use results and constants of this graph."""
        inner = GraphWriter(name, self.int8, outside)
        inner.initializers, inner.weights = self.initializers, self.weights
        inner.stored, inner.quantised = self.stored, self.quantised
        inner.prefix = f"{self.prefix}{name}_"
        return inner

    def loop(self, name: str, times: str, body: Callable, *states: State, weights: bool = False) -> list[str]:
        """A `Loop` over `body(graph, iteration, *values)`, which returns the values of the next iteration.

        With `weights` the body holds those of its linear layers itself: ONNX Runtime prepares a weight for its product
        once where this graph or the one around it holds the weight, and at every product where one further out does.

        Args:
            states: two or more.

        Returns:
            Names of the values after the loop.
        """
        graph = self.subgraph(name, outside=self)
        if weights:
            graph.weights = {}
        iteration = graph.input(f"{graph.prefix}iteration", (), TensorProto.INT64)
        going_on = graph.input(f"{graph.prefix}going_on", (), TensorProto.BOOL)
        values = [
            graph.input(f"{graph.prefix}{index}", shape, dtype) for index, (_, dtype, shape) in enumerate(states)
        ]
        outputs = [helper.make_tensor_value_info(graph.add("Identity", going_on), TensorProto.BOOL, ())]
        for result, (_, dtype, shape) in zip(body(graph, iteration, *values), states, strict=True):
            outputs.append(helper.make_tensor_value_info(result, dtype, [None] * len(shape)))
        held = list(graph.weights.values()) if weights else []
        proto = helper.make_graph(graph.nodes, name, graph.inputs, outputs, held, value_info=graph.shapes)
        return self.add("Loop", times, "", *(value for value, _, _ in states), num_results=len(states), body=proto)

    def output(self, name: str, value: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def add(self, operator: str, *inputs: str, domain: str = "", num_results: int = 1, **attributes):
        """Append a node, unless there is one like it; its result's name, or a list of names when there are several."""
        if self.outside is not None and operator not in ("If", "Loop") and self.results.isdisjoint(inputs):
            return self.outside.add(operator, *inputs, domain=domain, num_results=num_results, **attributes)
        key = (operator, inputs, repr(attributes))
        if key not in self.known:
            names = [f"{self.prefix}{operator}_{len(self.nodes)}_{index}" for index in range(num_results)]
            node = helper.make_node(operator, list(inputs), names, names[0], domain=domain, **attributes)
            self.nodes.append(node)
            self.results.update(names)
            self.known[key] = names[0] if num_results == 1 else names
        return self.known[key]

    def shaped(self, value: str, shape: Sequence[int | str], dtype: int) -> str:
        """Declare the shape of a result, if it cannot be inferred; results of the same size can then share memory."""
        self.shapes.append(helper.make_tensor_value_info(value, dtype, shape))
        return value

    def constant(self, value: torch.Tensor, weight: bool = False) -> str:
        """A tensor as it is. A graph stores the same object once: embedding and output projection may share it."""
        constants = self.weights if weight else self.initializers
        key = id(value), id(constants)
        if key not in self.stored:
            name = f"constant_{len(self.stored)}"
            constants[name] = numpy_helper.from_array(value.detach().contiguous().numpy(), name)
            self.stored[key] = (value, name)
        return self.stored[key][1]

    def literal(self, value: np.ndarray) -> str:
        """A small tensor; equal ones are stored once."""
        name = "_".join(map(str, (value.dtype, *value.shape, "is", *value.flat)))
        self.initializers.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def integers(self, *values: int) -> str:
        """An int64 vector."""
        return self.literal(np.array(values, dtype=np.int64))

    def call(self, function: OnnxFunction, *inputs: str | bool | int | float) -> str | list[str]:
        """Append the nodes of an onnxscript function; its result's name, or a list of names when there are several.

        A literal in the function is int64 or float32 as written: it is not cast to the type of the other operand.
        """
        graph, called = nodes_of(function)
        given = (x if isinstance(x, str) else self.literal(torch.tensor(x).numpy()) for x in inputs)
        names = dict(zip((value.name for value in graph.input), given, strict=True))
        self.copy_nodes(graph.node, names, called)
        results = [names[value.name] for value in graph.output]
        return results if len(results) > 1 else results[0]

    def copy_nodes(self, nodes, names: dict[str, str], called: dict[str, onnx.FunctionProto]) -> None:
        """Append the nodes of a function; `names` maps its value names to ours and is extended with its results."""
        for node in nodes:
            inputs = [names.get(name, "") for name in node.input]
            if node.op_type == "Constant":
                results = [self.literal(numpy_helper.to_array(node.attribute[0].t))]
            elif node.op_type == "CastLike":
                results = inputs[:1]
            elif node.op_type in called:
                function = called[node.op_type]
                inner = dict(zip(function.input, inputs, strict=True))
                self.copy_nodes(function.node, inner, called)
                results = [inner[name] for name in function.output]
            else:
                attributes = {each.name: self.copy_attribute(each, names, called) for each in node.attribute}
                results = self.add(node.op_type, *inputs, num_results=len(node.output), **attributes)
            names |= zip(node.output, [results] if isinstance(results, str) else results, strict=True)

    def copy_attribute(self, attribute: onnx.AttributeProto, names: dict[str, str], called):
        """The value of an attribute; branches of an `If` are copied with the names of this graph."""
        if attribute.type != onnx.AttributeProto.GRAPH:
            return helper.get_attribute_value(attribute)
        branch, inner = self.subgraph(f"{attribute.name}_{len(self.nodes)}"), dict(names)
        branch.copy_nodes(attribute.g.node, inner, called)
        outputs = [onnx.ValueInfoProto(name=inner[value.name]) for value in attribute.g.output]  # types are inferred
        return helper.make_graph(branch.nodes, branch.name, [], outputs)

    def size(self, value: str, axis: int) -> str:
        """Size of one axis, int64 of shape (1,)."""
        return self.add("Shape", value, start=axis, end=axis + 1)

    def shape(self, *sizes: str | int) -> str:
        """An int64 vector of sizes that are known (whole numbers) or results of `size`."""
        return self.add("Concat", *(self.integers(x) if isinstance(x, int) else x for x in sizes), axis=0)

    def reshape(self, value: str, *sizes: str | int) -> str:
        known = all(isinstance(size, int) for size in sizes)
        return self.add("Reshape", value, self.integers(*sizes) if known else self.shape(*sizes))

    def linear(self, value: str, weight: torch.Tensor, bias: torch.Tensor | str) -> str:
        """value (n, K) @ weight.T (K, N) + bias (N,); the bias may be the name of a result."""
        bias = bias if isinstance(bias, str) else self.constant(bias)
        if not self.int8:
            return self.add("Gemm", value, self.constant(weight, weight=True), bias, transB=1)
        quantised, scales = quantise_rows(weight.detach())
        inputs = [value, self.constant(quantised.T, weight=True), self.constant(scales), "", bias]
        return self.add("DynamicQuantizeMatMul", *inputs, domain=MICROSOFT)

    def embedding(self, indices: str, table: torch.Tensor, factor: float) -> str:
        """Rows of `table` (V, D), each times `factor`. The same table is stored once."""
        if not self.int8:
            rows = self.add("Gather", self.constant(table), indices, axis=0)
            return self.add("Mul", rows, self.constant(torch.tensor(factor)))
        if id(table) not in self.quantised:
            self.quantised[id(table)] = (table, *quantise_rows(table.detach()))
        _, quantised, scales = self.quantised[id(table)]
        rows = self.add("Gather", self.constant(quantised), indices, axis=0)
        scales = self.add("Gather", self.constant(scales[:, None] * factor), indices, axis=0)
        return self.add("Mul", self.add("Cast", rows, to=TensorProto.FLOAT), scales)

    def layer_norm(self, value: str, norm: torch.nn.LayerNorm) -> str:
        weight, bias = self.constant(norm.weight), self.constant(norm.bias)
        return self.add("LayerNormalization", value, weight, bias, axis=-1, epsilon=norm.eps)

    def activation(self, value: str, name: str) -> str:
        if name in GATED:  # two operators, of which ONNX Runtime makes one
            return self.add("Mul", value, self.add("Sigmoid", value))
        if name not in ACTIVATIONS:
            known = ", ".join([*ACTIVATIONS, *GATED])
            raise ValueError(f"activation_function={name!r} cannot be exported, only {known}")
        return self.add(ACTIVATIONS[name], value)

    def model(self, properties: dict[str, str]) -> onnx.ModelProto:
        """The graph as it is saved, with `properties` as its metadata."""
        initializers = list(self.initializers.values())
        graph = helper.make_graph(
            self.nodes, self.name, self.inputs, self.outputs, initializers, value_info=self.shapes
        )
        model = helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION, producer_name="modeling_jmnat")
        helper.set_model_props(model, properties)
        return model
