"""The steps of a whole translation in ONNX against their twins in PyTorch."""

import math

import pytest
import torch

from modeling_jmnat.configuration_jmnat import JMNatOptions
from modeling_jmnat.passes_jmnat import Positions, RemaskOrder, candidate_scores, consensus, first_end, num_remasked

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="the extra `bench` is not installed")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from onnxscript import opset23 as op  # noqa: E402
from onnxscript import script  # noqa: E402

from modeling_jmnat.onnx_export import decoding_steps as steps  # noqa: E402
from modeling_jmnat.onnx_export.graph_writer import GraphWriter  # noqa: E402

TYPES = {torch.int64: onnx.TensorProto.INT64, torch.float32: onnx.TensorProto.FLOAT, torch.bool: onnx.TensorProto.BOOL}
SENTENCES, CANDIDATES, LONGEST = 3, 4, 9


def graph_of(function, inputs):
    """A graph of a function of tensors and numbers, and what to feed it with."""
    graph, feeds, given = GraphWriter("step"), {}, []
    for index, value in enumerate(inputs):
        if torch.is_tensor(value):
            feeds[f"input_{index}"] = value.numpy()
            value = graph.input(f"input_{index}", value.shape, TYPES[value.dtype])
        given.append(value)
    results = graph.call(function, *given)
    for name in [results] if isinstance(results, str) else results:
        graph.outputs.append(onnx.ValueInfoProto(name=name))
    return graph, feeds


def run(function, *inputs):
    graph, feeds = graph_of(function, inputs)
    session = onnxruntime.InferenceSession(graph.model({}).SerializeToString())
    results = [torch.from_numpy(result) for result in session.run(None, feeds)]
    return results if len(results) > 1 else results[0]


@pytest.fixture
def candidates():
    """Lengths (R,), positions (T,), tokens of few kinds and log-probabilities (R, T), infinite at padding."""
    generator = torch.Generator().manual_seed(71)
    rows = SENTENCES * CANDIDATES
    lengths = torch.randint(2, LONGEST + 1, (rows,), generator=generator)
    lengths[0] = LONGEST
    positions = torch.arange(LONGEST)
    tokens = torch.randint(1, 6, (rows, LONGEST), generator=generator)
    log_probs = -torch.randint(1, 5, (rows, LONGEST), generator=generator) / 4  # some are equal
    padding = positions >= lengths[:, None]
    return lengths, positions, tokens.masked_fill(padding, 1), log_probs.masked_fill(padding, math.inf)


def test_counts_of_remasked_positions(candidates):
    lengths, positions, *_ = candidates
    most, chosen = run(steps.num_remasked, lengths, positions, torch.tensor(4))
    counts = torch.stack([num_remasked(lengths, iteration, 4, "linear") for iteration in range(4)])
    assert torch.equal(chosen.sum(dim=2), counts)
    assert torch.equal(most.flatten(), counts.amax(dim=1))
    of_last = run(steps.of_pass, torch.tensor(3), most, chosen)
    assert of_last[0].tolist() == [2]
    assert torch.equal(of_last[1], chosen[3, :, :2])


@pytest.mark.parametrize("set_size", [1, 2, 3])
def test_order_of_remasking(set_size, candidates):
    lengths, positions, _, log_probs = candidates
    sets = run(steps.neighbour_sets, lengths, positions, set_size)
    for adjacent in (True, False):
        expected = RemaskOrder(lengths, LONGEST, set_size if adjacent else 1)(log_probs)
        for most in (LONGEST, 2):
            found = run(steps.remask_order, log_probs, torch.tensor([most]), torch.tensor(adjacent), *sets, set_size)
            assert torch.equal(found, expected[:, :most])


def test_new_values_are_put_where_they_belong(candidates):
    lengths, _, tokens, _ = candidates
    columns = torch.tensor([[1, 0]]).expand(len(lengths), -1)
    valid = torch.arange(2) < (lengths % 3)[:, None]
    for new in (7, torch.full((len(lengths), 2), 8)):
        expected = Positions(columns, valid).put(tokens, new)
        assert torch.equal(run(steps.put, tokens, columns, valid, new), expected)


@pytest.mark.parametrize(("weight", "min_length"), [(0.0, 0), (2.5, 0), (2.5, 2)])
def test_scores(weight, min_length, candidates):
    lengths, positions, tokens, log_probs = candidates
    options = JMNatOptions(length_offset=1.5, length_normalization=0.7)
    shape = (SENTENCES, CANDIDATES)
    ends = first_end(tokens, lengths, 2)
    assert torch.equal(run(steps.first_end, tokens, lengths, positions, 2), ends)
    assert len(set((lengths - ends).tolist())) > 2  # some texts end before their canvas
    expected = candidate_scores(log_probs.masked_fill(log_probs == math.inf, 0.0), lengths, options).view(shape)
    shares = consensus(tokens.view(*shape, -1), ends.view(shape), torch.ones(shape, dtype=torch.bool))
    assert len(shares.unique()) > 6
    counts = ends.view(shape).amin(dim=1, keepdim=True) >= min_length
    assert bool(counts.all()) == (min_length == 0)
    assert counts.any()
    found = run(
        steps.scores,
        *(tokens, log_probs, lengths, positions, torch.tensor([SENTENCES])),
        *(options.length_offset, options.length_normalization, weight, min_length, 2),
    )
    torch.testing.assert_close(found, expected + weight * counts * shares)


def test_the_best_candidates_in_either_order():
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, -1.0, 5.0, 6.0]])
    best_scores, rows = run(steps.choose_best, scores, torch.tensor([2]), torch.tensor(False))
    assert best_scores.tolist() == [[3.0, 3.0], [6.0, 5.0]]
    assert rows.tolist() == [1, 3, 7, 6]
    _, rows = run(steps.choose_best, scores, torch.tensor([2]), torch.tensor(True))
    assert rows.tolist() == [1, 3, 6, 7]


@script(default_opset=op)
def half(value):
    return value * 0.5


@script()
def halved_or_not(value, halves):
    if halves:
        result = half(value)
        result = result + 1.0
    else:
        result = value + 1.0
    return result * 2.0, op.Size(result) * 2


def test_functions_become_nodes_of_the_graph():
    """Called functions, branches and literals; nothing is left for ONNX Runtime to inline or to cast."""
    value = torch.tensor([1.0, -3.0])
    for halves in (True, False):
        result, size = run(halved_or_not, value, torch.tensor(halves))
        assert torch.equal(result, ((value / 2 if halves else value) + 1) * 2)
        assert size == 4
    graph, _ = graph_of(halved_or_not, (value, torch.tensor(True)))
    assert [node.op_type for node in graph.nodes] == ["If", "Mul", "Size", "Mul"]
    branches = {attribute.name: attribute.g for attribute in graph.nodes[0].attribute}
    assert [node.op_type for node in branches["then_branch"].node] == ["Mul", "Add"]
    assert [node.op_type for node in branches["else_branch"].node] == ["Add"]


def test_a_function_called_again_with_the_same_inputs_adds_nothing():
    graph = GraphWriter("twice")
    value = graph.input("value", (2,))
    assert graph.call(half, value) == graph.call(half, value)
    assert len(graph.nodes) == 1
