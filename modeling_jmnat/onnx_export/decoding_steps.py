"""The steps of decoding around the network, as onnxscript functions that `GraphWriter.call` inserts into a graph.

Each function mirrors its namesake in `passes_jmnat.py` or `generation_jmnat.py`, or what its docstring names. Two
things differ: log-probabilities are infinite at padding, so that padding sorts last, and what depends only on the
number of the pass is a table with an entry per pass, computed before the loop over passes.

B sources, C length candidates, P of them that remain, R = B C or B P rows, N candidates returned, k passes, T target
tokens, M positions to predict, n the size of a set of neighbours, H heads. `tokens` and `log_probs` are (R, T),
`lengths` (R,), `positions` 0, 1, .. (T,); sizes of results are (1,), as `TopK` and `Slice` require.
"""

import math

from onnx import TensorProto
from onnxscript import opset23 as op
from onnxscript import script

from ..generation_jmnat import NOT_PREDICTED
from ..inference.onnx_runtime import LOWEST

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
INFINITY = math.inf


@script()
def choose_lengths(length_logits, target_lengths, num_candidates, max_length, length_shift):
    """(B, C), from length logits (B, L); a window around `target_lengths` (B,) where these are not empty; and C (1,).

    The lengths of a sentence are distinct: C is no more than there are from 2 to the longest allowed.
    """
    longest = op.Max(op.Min(max_length, op.Shape(length_logits, start=1) - 1), 2)
    num_candidates = op.Min(num_candidates, longest - 1)
    if op.Size(target_lengths) > 0:
        # The length itself first, then its neighbours: +1, -1, +2, -2, ...
        targets = op.Unsqueeze(op.Max(op.Min(target_lengths, longest), 2), [1])
        steps = op.Range(2, op.Squeeze(longest) + 1, 1) - targets
        preference = op.Cast(op.Cast(steps > 0, to=INT64) - 2 * op.Abs(steps), to=FLOAT)
    else:
        classes = op.Range(0, op.Squeeze(longest) + 1, 1)
        lengths = op.Max(op.Min(classes + length_shift, longest), 2)
        nearest = op.Max(op.Min(classes, longest + length_shift), length_shift + 1)
        never = op.Cast(-op.Abs(classes - nearest), to=FLOAT) + NOT_PREDICTED
        logits = length_logits[:, : longest + 1]
        lengths = op.Expand(lengths, op.Shape(logits))
        never = op.Expand(never, op.Shape(logits))
        preference = op.ScatterElements(never, lengths, logits, axis=1, reduction="max")[:, 2:]
    _, best = op.TopK(preference, num_candidates)
    return best + 2, num_candidates


@script()
def canvas_of_masks(candidate_lengths, mask_token, padding):
    """`Canvas.of_masks` for lengths (B, C): positions, lengths, numbers of the rows (R,), tokens, log_probs."""
    positions = op.Range(0, op.ReduceMax(candidate_lengths, keepdims=0), 1)
    lengths = op.Reshape(candidate_lengths, [-1])
    rows = op.Range(0, op.Size(lengths), 1)
    target_mask = positions < op.Unsqueeze(lengths, [1])
    tokens = op.Where(target_mask, mask_token, padding)
    return positions, lengths, rows, tokens, op.Where(target_mask, LOWEST, INFINITY)


@script()
def plan_stages(num_iterations, prune_after, delete_repeats):
    """Numbers of passes (stages + 1,) between which the rows stay the same, from 0 to the last.

    They change after the first `prune_after` passes (0: never), and before the last one where repeats are deleted.
    """
    prunes = (prune_after > 0) & (prune_after <= num_iterations)
    pruned = op.Where(prunes, prune_after, num_iterations)
    deletes = delete_repeats & (num_iterations > 1)
    deleted = op.Where(deletes, num_iterations - 1, num_iterations)
    some = op.Cast(prunes | deletes, to=INT64)
    both = op.Cast(prunes & deletes & op.Not(op.Equal(pruned, deleted)), to=INT64)
    first = op.Unsqueeze(op.Min(pruned, deleted), [0])
    second = op.Unsqueeze(op.Max(pruned, deleted), [0])
    last = op.Unsqueeze(num_iterations, [0])
    bounds = op.Concat([0], first, second, last, axis=0)
    kept = op.Concat([1], op.Unsqueeze(some, [0]), op.Unsqueeze(both, [0]), [1], axis=0)
    return op.Compress(bounds, op.Cast(kept, to=BOOL), axis=0), some + both + 1


@script()
def plan_stage(stage, bounds, stages, prune_after, prune_to, num_candidates, num_returned, num_iterations, deletes):
    """What `plan_stages` says of a stage.

    Whether it is the last, whether it begins with deleting repeats, its first pass, its number of passes, and how many
    candidates it leaves.
    """
    is_last = op.Equal(stage + 1, stages)
    begin = op.Gather(bounds, stage)
    end = op.Gather(bounds, stage + 1)
    pruned = (prune_after > 0) & (end >= prune_after)
    left = op.Where(pruned, op.Max(op.Min(prune_to, num_candidates), num_returned), num_candidates)
    deletes = deletes & (begin > 0) & op.Equal(begin, num_iterations - 1)
    return is_last, deletes, begin, end - begin, op.Where(is_last, num_returned, left)


@script()
def source_pairs(input_ids, attention_mask):
    """Tokens (B, S - 1) of sources (B, S) that equal the one before, -1 elsewhere."""
    inside = op.Greater(attention_mask[:, 1:] * attention_mask[:, :-1], 0)
    return op.Where(op.Equal(input_ids[:, 1:], input_ids[:, :-1]) & inside, input_ids[:, 1:], -1)


@script()
def wrong_repeats(tokens, repeatable, pairs):
    """`Repeats` (R, T) of tokens (R, T), by `repeatable` (V,) and `source_pairs` (R, S - 1) of the rows' sources."""
    in_source = op.Equal(op.Unsqueeze(tokens, [2]), op.Unsqueeze(pairs, [1]))  # (R, T, S - 1)
    in_source = op.Greater(op.ReduceSum(op.Cast(in_source, to=INT64), [2], keepdims=0), 0)
    same = op.Equal(tokens, op.Concat(tokens[:, :1] * 0 - 1, tokens[:, :-1], axis=1))
    return same & op.Not(op.Gather(repeatable, tokens) | in_source)


@script()
def without_repeats(tokens, log_probs, lengths, positions, repeats, padding):
    """`Canvas.without`: tokens, log_probs and lengths."""
    kept = op.Cast(op.Not(repeats), to=INT64)
    places = op.CumSum(kept, 1) - 1
    shorter = lengths + op.ReduceSum(kept, [1], keepdims=0) - op.Size(positions)
    inside = positions < op.Unsqueeze(shorter, [1])
    nothing = op.Expand(padding, op.Shape(tokens))
    moved = op.Where(inside, op.ScatterElements(nothing, places, tokens, axis=1), padding)
    lowest = op.Expand(-INFINITY, op.Shape(log_probs))
    best = op.ScatterElements(lowest, places, log_probs, axis=1, reduction="max")
    return moved, op.Where(inside, best, INFINITY), shorter


@script()
def rows_without_repeats(tokens, log_probs, lengths, positions, applies, repeatable, pairs, padding):
    """`without_repeats` where the rule applies."""
    if applies:
        repeats = wrong_repeats(tokens, repeatable, pairs)
        new_tokens, new_log_probs, new_lengths = without_repeats(
            tokens, log_probs, lengths, positions, repeats, padding
        )
    else:
        new_tokens = op.Identity(tokens)
        new_log_probs = op.Identity(log_probs)
        new_lengths = op.Identity(lengths)
    return new_tokens, new_log_probs, new_lengths


@script()
def attention_bias(lengths, positions, include_self):
    """`decoder_attend_mask` (R, 1, T, T), as it is added to the scores of self-attention."""
    target_mask = positions < op.Unsqueeze(lengths, [1])
    attend = include_self | op.Not(op.Equal(positions, op.Unsqueeze(positions, [1])))  # (T, T)
    attend = attend | op.Unsqueeze(lengths <= 1, [1, 2])  # a single token, of which repeats have been deleted
    return op.Where(op.Unsqueeze(target_mask, [1, 2]) & op.Unsqueeze(attend, [1]), 0.0, LOWEST)


@script()
def position_probs(query, key, attention_bias, lengths, positions):
    """`PositionalAttention.of_lengths` (layers, R, H, T, T), from its query and key (layers, H, longest, D/H)."""
    num_positions = op.Shape(positions)
    query = query[:, :, :num_positions]
    key = key[:, :, :num_positions]
    scores = op.Unsqueeze(op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2])), [1])  # (layers, 1, H, T, T)
    target_mask = op.Cast(positions < op.Unsqueeze(lengths, [1]), to=FLOAT)
    return op.Softmax(scores + attention_bias, axis=-1) * op.Unsqueeze(target_mask, [1, 3])


@script()
def num_remasked(lengths, positions, num_iterations):
    """How many positions each pass predicts at most (k, 1), and which of T in order these are (k, R, T)."""
    left = op.Unsqueeze(op.Range(num_iterations, 0, -1), [1])  # (k, 1)
    counts = op.Max(lengths * left / num_iterations, 1)  # (k, R)
    return op.ReduceMax(counts, [1]), positions < op.Unsqueeze(counts, [2])


@script()
def of_pass(iteration, most, valid):
    """Select one pass from the results of `num_remasked`: M (1,), and which of the M are masked again (R, M)."""
    most = op.Gather(most, iteration)
    return most, op.Slice(op.Gather(valid, iteration), [0], most, [1])


@script()
def neighbour_sets(lengths, positions, set_size):
    """Attributes of `RemaskOrder`: members (R, T n), distances (R, T, n), positions and never in each row (R, T)."""
    num_positions = op.Shape(positions)
    lengths = op.Unsqueeze(lengths, [1])
    target_mask = positions < lengths
    begin = op.Max(op.Min(positions, lengths - set_size), 0)
    members = op.Unsqueeze(begin, [2]) + op.Range(0, set_size, 1)  # (R, T, n)
    inside = (members < op.Unsqueeze(lengths, [2])) & op.Unsqueeze(target_mask, [2])
    never = num_positions * set_size
    distances = op.Where(inside, op.Abs(members - op.Unsqueeze(positions, [1])), never)
    members = op.Flatten(op.Min(members, num_positions - 1))
    shape = op.Shape(target_mask)
    return members, distances, op.Expand(positions, shape), op.Expand(never, shape)


@script()
def least_probable(log_probs, most):
    """`RemaskOrder` of single positions: the first M (R, M); of equally probable ones the first."""
    _, order = op.TopK(log_probs, most, axis=1, largest=0)
    return order


@script()
def repeats_first(tokens, log_probs, positions, applies, repeatable, pairs):
    """What orders positions (R, T): log_probs, or where the rule applies ranks, of `Repeats.less_probable` first."""
    if applies:
        second = wrong_repeats(tokens, repeatable, pairs)
        before = op.Concat(log_probs[:, :1], log_probs[:, :-1], axis=1)
        ahead = op.Cast(second & (log_probs > before), to=INT64)
        first = op.Cast(second, to=INT64) - ahead + op.Concat(ahead[:, 1:], ahead[:, :1] * 0, axis=1)
        num_positions = op.Shape(log_probs, start=1)
        order = least_probable(log_probs, num_positions)
        rank = op.ScatterElements(order, order, op.Expand(positions, op.Shape(order)), axis=1)
        keys = op.Cast(op.Where(first > 0, rank, rank + num_positions), to=FLOAT)
    else:
        keys = op.Identity(log_probs)
    return keys


@script()
def remask_order(log_probs, most, adjacent, members, distances, positions, never, set_size):
    """`RemaskOrder` of `neighbour_sets`: the first M (R, M)."""
    num_positions = op.Shape(positions, start=1)
    if adjacent:
        order = least_probable(log_probs, num_positions)
        rank = op.ScatterElements(order, order, positions, axis=1) * set_size
        keys = op.Flatten(op.Unsqueeze(rank, [2]) + distances)
        keys = op.ScatterElements(never, members, keys, axis=1, reduction="min")
        first = least_probable(keys, most)
    else:
        first = least_probable(log_probs, most)
    return first


@script()
def put(values, columns, valid, new):
    """`Positions.put`: values (R, T) with `new`, (R, M) or one number, at the columns (R, M) that are valid (R, M)."""
    kept = op.GatherElements(values, columns, axis=1)
    return op.ScatterElements(values, columns, op.Where(valid, new, kept), axis=1)


@script()
def first_end(tokens, lengths, positions, eos_token):
    """Number of tokens (R,) up to and with the first `</s>`, all of a row's tokens where it has none."""
    ends = op.Where(op.Equal(tokens, eos_token), positions + 1, op.Unsqueeze(lengths, [1]))
    return op.ReduceMin(ends, [1], keepdims=0)


@script()
def candidate_scores(log_probs, lengths, positions, length_offset, length_normalization):
    """Sum of the log-probabilities divided by `length_divisors`, (R,)."""
    log_probs = op.Where(positions < op.Unsqueeze(lengths, [1]), log_probs, 0.0)
    divisors = op.Pow(op.Cast(lengths, to=FLOAT) + length_offset, length_normalization)
    return op.ReduceSum(log_probs, [1], keepdims=0) / divisors


@script()
def share_of_same(found, counts):
    """The share (B, P, P) of what two candidates hold, `counts` (B, P), that is `found` (B, P, P, T, T) in both."""
    found = op.ReduceSum(op.ReduceMax(op.Cast(found, to=FLOAT), [4], keepdims=0), [3], keepdims=0)
    counts = op.Max(op.Unsqueeze(counts, [1]) + op.Unsqueeze(counts, [2]), 1)
    return (found + op.Transpose(found, perm=[0, 2, 1])) / op.Cast(counts, to=FLOAT)


@script()
def consensus(tokens, ends, positions):
    """(B, P), of tokens (B, P, T) and ends (B, P), where every candidate votes."""
    inside = positions < op.Unsqueeze(ends, [2])
    same = op.Equal(op.Unsqueeze(tokens, [2, 4]), op.Unsqueeze(tokens, [1, 3]))  # (B, P, P, T, T)
    same = same & (op.Unsqueeze(inside, [2, 4]) & op.Unsqueeze(inside, [1, 3]))
    neighbours = same[:, :, :, :-1, :-1] & same[:, :, :, 1:, 1:]
    shares = share_of_same(same, ends) + share_of_same(neighbours, ends - 1)
    index = op.Range(0, op.Squeeze(op.Shape(ends, start=1)), 1)
    others = op.Cast(op.Not(op.Equal(index, op.Unsqueeze(index, [1]))), to=FLOAT)  # (P, P)
    num_others = op.Max(op.ReduceSum(others, [1], keepdims=0), 1.0)
    return op.ReduceSum(shares * others, [2], keepdims=0) / (2.0 * num_others)


@script()
def by_sentence(values, num_sources):
    """(R,) -> (B, P)."""
    return op.Reshape(values, op.Concat(num_sources, [-1], axis=0))


@script()
def scores(tokens, log_probs, lengths, positions, num_sources, offset, exponent, weight, min_length, eos_token):
    """`MaskPredict.scores` (B, P)."""
    of_candidates = by_sentence(candidate_scores(log_probs, lengths, positions, offset, exponent), num_sources)
    if weight > 0.0:
        ends = by_sentence(first_end(tokens, lengths, positions, eos_token), num_sources)
        tokens = op.Reshape(tokens, op.Concat(op.Shape(ends), op.Shape(positions), axis=0))
        counts = op.ReduceMin(ends, [1], keepdims=1) >= min_length  # (B, 1)
        total = of_candidates + weight * op.Cast(counts, to=FLOAT) * consensus(tokens, ends, positions)
    else:
        total = op.Identity(of_candidates)
    return total


@script()
def choose_best(scores, num_kept, in_order):
    """The best of scores (B, P), best first (B, n), and indices (B n,) of their rows, these too or `in_order`."""
    best_scores, best = op.TopK(scores, num_kept, axis=1)
    ordered, _ = op.TopK(best, num_kept, axis=1, largest=0)
    first_rows = op.Range(0, op.Size(scores), op.Squeeze(op.Shape(scores, start=1)))
    rows = op.Where(in_order, ordered, best) + op.Unsqueeze(first_rows, [1])
    return best_scores, op.Reshape(rows, [-1])


@script()
def cut_off(tokens, log_probs, lengths, positions, rows, candidate_lengths, eos_token, padding):
    """Texts of the candidates chosen: sequences, token scores (B, N, L), lengths, indices among all (B, N)."""
    ends = first_end(tokens, lengths, positions, eos_token)
    width = op.ReduceMax(ends, keepdims=0)  # L
    inside = op.Range(0, width, 1) < op.Unsqueeze(ends, [1])
    num_sources = op.Shape(candidate_lengths, end=1)
    shape = op.Concat(num_sources, [-1], op.Unsqueeze(width, [0]), axis=0)
    sequences = op.Reshape(op.Where(inside, tokens[:, :width], padding), shape)
    token_scores = op.Reshape(op.Where(inside, log_probs[:, :width], 0.0), shape)
    index = by_sentence(op.Mod(rows, op.Shape(candidate_lengths, start=1)), num_sources)
    return sequences, token_scores, by_sentence(lengths, num_sources), index


@script()
def with_pass(history, before, rows, values):
    """History (n, B C, T) and one pass more: `values` (R, T) in these rows, in others what stands in `before`."""
    values = op.Unsqueeze(values, [0])
    index = op.Expand(op.Unsqueeze(rows, [0, 2]), op.Shape(values))
    return op.Concat(history, op.ScatterElements(before, index, values, axis=1), axis=0)


@script()
def record(canvas, tokens, log_probs, rows, masked, new_tokens, new_log_probs):
    """`MaskPredict.record`: rows that no longer take part stay as they were, and their canvas is their last tokens."""
    last = tokens[-1:]
    probable = op.Where(op.IsInf(new_log_probs), 0.0, new_log_probs)  # at padding
    new_canvas = with_pass(canvas, last, rows, masked)
    new_tokens = with_pass(tokens, last, rows, new_tokens)
    return new_canvas, new_tokens, with_pass(log_probs, log_probs[-1:], rows, probable)


@script()
def passes_of(history, candidate_lengths):
    """(k, B, C, T) of a history (k + 1, B C, T), which begins with what stood before the first pass."""
    shape = op.Concat([-1], op.Shape(candidate_lengths), op.Shape(history, start=2), axis=0)
    return op.Reshape(history[1:], shape)
