"""The CRF of `crf_jmnat.py` as nodes of an ONNX graph: the most probable path of a pass, and its marginals.

Two things differ from there. One `Scan` computes sums and best scores over all paths, up to each candidate and behind
it: the rows stand in it twice, as they are and backwards. And a candidate is on the best path if the best path through
it has the highest score of its position, so that nothing has to be traced back.

R rows, T positions, M of them to predict, k candidates, r rank, D width, n blocks of the vocabulary.
"""

import torch
from onnx import TensorProto, helper
from onnxscript import opset23 as op
from onnxscript import script

from ..crf_jmnat import IMPOSSIBLE, DynamicCRF
from ..inference.onnx_runtime import LOWEST, VOCABULARY_BLOCK
from .graph_writer import GraphWriter
from .network import DecoderWriter

FLOAT = TensorProto.FLOAT
BLOCK = VOCABULARY_BLOCK // 2  # of the search for several tokens


@script()
def most_probable(blocks, beam, num_chosen):
    """The k = `beam` (1,) best tokens of logits in blocks (R, M, n, BLOCK), and their emissions, both (R, M, k).

    These are logits beside the best one: what is added to all of a position changes no path. The tokens stand in the
    `num_chosen` (1,) blocks with the best ones, k or all; a search in the whole vocabulary would take longer.
    """
    _, chosen = op.TopK(op.ReduceMax(blocks, [3], keepdims=0), num_chosen)
    inside = op.Reshape(op.GatherND(blocks, op.Unsqueeze(chosen, [3]), batch_dims=2), [0, 0, -1])
    logits, places = op.TopK(inside, beam)
    first_of_block = op.GatherElements(chosen, places / BLOCK, axis=2) * BLOCK
    return first_of_block + places % BLOCK, op.Max(logits - op.ReduceMax(logits, [2]), IMPOSSIBLE)


@script()
def only_the_first(beam):
    """Emissions (k,) of a given token: no path takes another candidate."""
    return op.Where(op.Equal(op.Range(0, op.Squeeze(beam), 1), 0), 0.0, IMPOSSIBLE)


@script()
def of_all_positions(tokens, emissions, canvas, positions, valid, follows, beam):
    """Candidates and emissions (R, T, k): those of the positions (R, M) that are valid (R, M), elsewhere the canvas.

    A token of the canvas (R, T) is repeated. Only the shape of `follows` (R, T) counts.
    """
    of_given = only_the_first(beam)
    shape = op.Concat([1, 1], beam, axis=0)
    valid = op.Unsqueeze(valid, [2])
    given = op.Unsqueeze(op.GatherElements(canvas, positions, axis=1), [2])
    tokens = op.Where(valid, tokens, given)
    emissions = op.Where(valid, emissions, of_given)
    index = op.Expand(op.Unsqueeze(positions, [2]), shape)
    candidates = op.ScatterElements(op.Expand(op.Unsqueeze(canvas, [2]), shape), index, tokens, axis=1)
    of_given = op.Expand(of_given, op.Concat(op.Shape(follows), beam, axis=0))
    return candidates, op.ScatterElements(of_given, index, emissions, axis=1)


@script()
def follows_a_token(self_bias):
    """(R, T) bool, True at tokens but the first of a row; and indices (T,) of the positions before."""
    is_token = op.ReduceMax(self_bias, [1, 2], keepdims=0) > LOWEST
    positions = op.Range(0, op.Squeeze(op.Shape(self_bias, start=3)), 1)
    return is_token & (positions > 0), op.Max(positions - 1, 0)


@script()
def transition_scores(left, right, dynamic, follows):
    """(R, T, k, k) of each candidate after each one of the position before, last axis; 0 where none stands before.

    From embeddings `left` of the position before and `right` (R, T, k, r), and `dynamic` (R, T, r, r).
    """
    scores = op.MatMul(right, op.Transpose(op.MatMul(left, dynamic), perm=[0, 1, 3, 2]))
    return op.Where(op.Unsqueeze(follows, [2, 3]), scores, 0.0)


@script()
def backwards(follows):
    """The positions T - 1, .., 0 (T,) of `follows` (R, T)."""
    return op.Range(op.Squeeze(op.Shape(follows, start=1)) - 1, -1, -1)


@script()
def both_directions(transitions, emissions, follows, beam):
    """Scores (T, k, k, 2R) of the steps to each candidate from each one before, of the rows and then backwards.

    And the totals (k, 2R) before the first step, of which only the first counts. Backwards it leads to the last
    position, with nothing behind it: a score that is the same for all of its candidates. Only the shape of `follows`
    (R, T) counts.
    """
    steps = transitions + op.Unsqueeze(emissions, [3])
    order = op.Concat([0], backwards(follows)[:-1], axis=0)
    back = op.Gather(op.Transpose(steps, perm=[0, 1, 3, 2]), order, axis=1)
    shape = op.Concat(beam, op.Shape(follows, end=1) * 2, axis=0)
    start = op.Expand(op.Unsqueeze(only_the_first(beam), [1]), shape)
    return op.Transpose(op.Concat(steps, back, axis=0), perm=[1, 2, 3, 0]), start


@script()
def path_at(positions, totals, tokens, emissions, blocks, follows, beam):
    """The best path's tokens (R, M) at the positions, and the logarithms of their probabilities.

    From totals (T, 2k, 2R) of sums and best scores, and the network's logits in blocks. A single candidate has the
    network's probability, which the emissions (R, M, k) compare with the best token's. Only the shape of `follows`
    (R, T) counts.
    """
    ahead, behind = op.Split(op.Transpose(totals, perm=[2, 0, 1]), num_outputs=2)
    through = ahead + op.Gather(behind, backwards(follows), axis=1)
    through = op.GatherND(through, op.Unsqueeze(positions, [2]), batch_dims=1)
    sums, bests = op.Split(through, axis=2, num_outputs=2)
    path = op.ArgMax(bests, axis=2)
    best = op.Log(op.ReduceMax(op.Softmax(op.Reshape(blocks, [0, 0, -1]), axis=2), [2]))
    of_network = op.GatherElements(emissions, path, axis=2) + best
    marginals = op.GatherElements(op.LogSoftmax(sums, axis=2), path, axis=2)
    log_probs = op.Where(beam > 1, (marginals + of_network) / 2.0, of_network)
    tokens = op.Squeeze(op.GatherElements(tokens, path, axis=2), [2])
    return tokens, op.Squeeze(log_probs, [2])


def write_path(decoder: DecoderWriter, token_bias: str, valid: str, beam: str) -> tuple[str, str]:
    """As `DecoderWriter.write_tokens`, by the CRF (`DynamicCRF.best_path`).

    Args:
        valid: (R, M) bool, False at positions whose token is given.
        beam: k, (1,).
    """
    graph, crf, positions = decoder.graph, decoder.model.crf, decoder.positions
    beam = graph.add("Min", beam, graph.integers(decoder.config.vocab_size))
    states = decoder.write_states(everywhere=True)
    follows, before = graph.call(follows_a_token, decoder.self_bias)
    blocks = decoder.by_blocks(decoder.write_logits(decoder.pick(states), token_bias), BLOCK)
    num_chosen = graph.add("Min", beam, graph.integers(decoder.model.lm_head.weight.shape[0] // BLOCK))
    tokens, emissions = graph.call(most_probable, blocks, beam, num_chosen)
    at_positions = tokens, emissions, decoder.canvas, positions, valid
    candidates, of_all = graph.call(of_all_positions, *at_positions, follows, beam)
    left, right = write_embeddings(graph, crf, candidates, before)
    dynamic = write_dynamic(decoder, crf, states, before)
    transitions = graph.call(transition_scores, left, right, dynamic, follows)
    totals = write_totals(graph, *graph.call(both_directions, transitions, of_all, follows, beam))
    return graph.call(path_at, positions, totals, tokens, emissions, blocks, follows, beam)


def write_embeddings(graph: GraphWriter, crf: DynamicCRF, candidates: str, before: str) -> list[str]:
    """Of the position before and of candidates (R, T, k), (R, T, k, r) each."""
    table = torch.cat([crf.left.weight, crf.right.weight], dim=1)
    left, right = graph.add("Split", graph.embedding(candidates, table, 1.0), axis=3, num_outputs=2, num_results=2)
    return [graph.add("Gather", left, before, axis=1), right]


def write_dynamic(decoder: DecoderWriter, crf: DynamicCRF, states: str, before: str) -> str:
    """I + f(h_{t-1}, h_t) (R, T, r, r), from the decoder's states at all positions."""
    graph, rank = decoder.graph, crf.rank
    states = decoder.by_rows(states)
    pairs = graph.add("Concat", graph.add("Gather", states, before, axis=1), states, axis=2)
    pairs = pairs if graph.int8 else graph.reshape(pairs, -1, 2 * decoder.d_model)
    bias = crf.dynamic_out.bias + torch.eye(rank).flatten()
    dynamic = graph.add("Relu", decoder.project(pairs, crf.dynamic_in))
    return graph.reshape(graph.linear(dynamic, crf.dynamic_out.weight, bias), decoder.rows, decoder.length, rank, rank)


def write_totals(graph: GraphWriter, steps: str, start: str) -> str:
    """Over all paths to each candidate, logarithms of sums and then best scores (T, 2k, 2R); see `both_directions`."""
    body, names = graph.subgraph("path"), ("sum", "best", "step")
    before_sum, before_best, step = (body.input(f"{body.prefix}{name}", None) for name in names)
    totals = []
    for before, reduce in ((before_sum, "ReduceLogSumExp"), (before_best, "ReduceMax")):
        totals.append(body.add(reduce, body.add("Add", before, step), body.integers(1), keepdims=0))
    outputs = [*totals, body.add("Concat", *totals, axis=0)]
    outputs = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    proto = helper.make_graph(body.nodes, "path", body.inputs, outputs)
    return graph.add("Scan", start, start, steps, num_results=3, body=proto, num_scan_inputs=1)[2]
