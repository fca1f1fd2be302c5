"""Mask-predict decoding (section 4.4 of the paper): k decoder passes over the length candidates of a batch.

`MaskPredict.run` is the algorithm. The objects that it uses each answer one question:

- `Canvas`: which tokens stand in the candidates, and how probable are they?
- `Remasking`, with `RemaskOrder`: which positions are masked again before a pass?
- `StoppingRules`: which rows need no further pass?
- `ActiveRows`: which rows are still in the batch, and what do all their passes share?

The algorithm asks two methods of its model, `prepare_decoding` and `predict_tokens`, so that every backend shares it.
Shapes: B sentences, C length candidates, R = B C rows, A <= R active rows, S source tokens, T target positions, M
positions to predict, V vocabulary, D width, H heads.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from .configuration_jmnat import JMNatOptions


class JMNatPass(NamedTuple):
    """One pass over all candidates; positions beyond a candidate's length hold `<pad>`."""

    canvas: torch.Tensor  # (B, C, T) what the decoder read
    tokens: torch.Tensor  # (B, C, T) the candidate after the pass
    log_probs: torch.Tensor  # (B, C, T) of these tokens


@dataclass
class JMNatDecodingState:
    """What all passes share. Tensors over sources have B' rows, each of which serves A / B' consecutive canvas rows.

    Args:
        attend_mask: (A, 1, 1 or T, T) bool for self- and positional attention.
        encoder_attend_mask: (B', 1, 1, S) bool.
        key_values: per layer, keys and values of cross-attention, (B', H, S, D/H) each.
        position_probs: per layer, probabilities of positional attention (A, H, T, T).
        positions: their embeddings (1, T, D).
    """

    attend_mask: torch.Tensor
    encoder_attend_mask: torch.Tensor | None = None
    key_values: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    position_probs: list[torch.Tensor] | None = None
    positions: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> "JMNatDecodingState":
        """Keep the canvas rows `rows` (A',), which rise.

        Sources stay shared where each then serves as many rows as the others; else every row gets a copy of its own.
        """
        selected = replace(self, attend_mask=self.attend_mask[rows])
        if self.position_probs is not None:
            selected.position_probs = [probs[rows.to(probs.device)] for probs in self.position_probs]
        if self.encoder_attend_mask is None or self.key_values is None:
            return selected
        num_sources = len(self.encoder_attend_mask)
        source_of_row = rows // (len(self.attend_mask) // num_sources)
        sources, counts = source_of_row.unique_consecutive(return_counts=True)
        if not bool((counts == counts[0]).all()):
            sources = source_of_row
        if not torch.equal(sources, torch.arange(num_sources, device=sources.device)):
            selected.encoder_attend_mask = self.encoder_attend_mask[sources]
            selected.key_values = [(k[sources.to(k.device)], v[sources.to(v.device)]) for k, v in self.key_values]
        return selected


# What stands in the candidates ---------------------------------------------------------------------------------------


class Positions(NamedTuple):
    """Positions in rows of a canvas. `valid` is False where a row has fewer than M; None: all are valid."""

    columns: torch.Tensor  # (A, M)
    valid: torch.Tensor | None  # (A, M)

    def put(self, values: torch.Tensor, new: torch.Tensor | int) -> torch.Tensor:
        """`values` (A, T) with `new`, (A, M) or one number, at these positions."""
        if self.valid is not None:
            new = torch.where(self.valid, new, values.gather(1, self.columns))
        return values.scatter(1, self.columns, new)

    def without(self, rows: torch.Tensor) -> "Positions":
        """No position in the rows where `rows` (A,) is True."""
        others = ~rows[:, None]
        return Positions(self.columns, others.expand_as(self.columns) if self.valid is None else self.valid & others)


class Canvas(NamedTuple):
    """Rows of candidates; positions beyond a row's length hold `<pad>` with the log-probability 0."""

    tokens: torch.Tensor  # (A, T)
    log_probs: torch.Tensor  # (A, T) of these tokens
    num_passes: torch.Tensor  # (A,) decoder passes that the row has taken

    @classmethod
    def of_masks(cls, target_mask: torch.Tensor, mask_token_id: int, pad_token_id: int) -> "Canvas":
        """`<mask>` at every position where target_mask (A, T) is True."""
        tokens = torch.where(target_mask, mask_token_id, pad_token_id)
        return cls(tokens, torch.zeros_like(tokens, dtype=torch.float32), torch.zeros_like(tokens[:, 0]))

    def updated(self, positions: Positions, tokens: torch.Tensor, log_probs: torch.Tensor) -> "Canvas":
        """After a pass that predicted `tokens` with `log_probs` (A, M)."""
        return Canvas(
            positions.put(self.tokens, tokens), positions.put(self.log_probs, log_probs), self.num_passes + 1
        )

    def select(self, rows: torch.Tensor) -> "Canvas":
        return Canvas(*(values[rows] for values in self))

    def with_rows(self, rows: torch.Tensor, others: "Canvas") -> "Canvas":
        """The rows numbered `rows` (A,) replaced by `others`, which has A rows."""
        return Canvas(*(values.index_copy(0, rows, new) for values, new in zip(self, others, strict=True)))


# What is masked again ------------------------------------------------------------------------------------------------


def remasked_share(iteration: int, num_iterations: int, schedule: str) -> tuple[int, int]:
    """Numerator and denominator of the share of tokens that are masked again before pass `iteration` + 1.

    `linear` is 1 - i/k, `cosine` cos(pi i / 2k). Whole numbers, so that no rounding error can take one token away
    (T cos 60 degrees is T/2).
    """
    if schedule == "linear":
        return num_iterations - iteration, num_iterations
    return round(math.cos(math.pi * iteration / (2 * num_iterations)) * 2**40), 2**40


def num_remasked(lengths, iteration: int, num_iterations: int, schedule: str):
    """How many tokens are masked again before pass `iteration` + 1: an int for an int, a tensor for a tensor.

    The share of `remasked_share`, rounded down; at least 1.
    """
    numerator, denominator = remasked_share(iteration, num_iterations, schedule)
    count = lengths * numerator // denominator
    return count.clamp(min=1) if torch.is_tensor(count) else max(count, 1)


class RemaskOrder:
    """In which order the positions of rows are masked again.

    With `set_size` n = 1 that is by rising probability. With n > 1 (adjacent re-masking) each token takes along the n
    consecutive tokens that begin with it (the last n of the row, where it stands closer to the end): first itself,
    then its nearest. What does not change between passes is computed once.

    Args:
        lengths: (A,) numbers of tokens.
        num_positions: T.
    """

    def __init__(self, lengths: torch.Tensor, num_positions: int, set_size: int = 1):
        positions = torch.arange(num_positions, device=lengths.device)[None]
        self.lengths, self.num_positions, self.set_size = lengths, num_positions, set_size
        self.positions = positions.expand(lengths.shape[0], -1)
        self.padding = positions >= lengths[:, None]
        if set_size > 1:
            begin = torch.minimum(positions, lengths[:, None] - set_size).clamp(min=0)
            members = begin[:, :, None] + torch.arange(set_size, device=lengths.device)  # (A, T, n)
            inside = (members < lengths[:, None, None]) & ~self.padding[:, :, None]
            self.never = num_positions * set_size
            self.distances = (members - positions[:, :, None]).abs().masked_fill(~inside, self.never).flatten(1)
            self.members = members.clamp(max=num_positions - 1).flatten(1)  # (A, T n)

    def __call__(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the present tokens (A, T) -> positions (A, T), padding last."""
        order = log_probs.masked_fill(self.padding, math.inf).argsort(dim=1, stable=True)
        if self.set_size == 1:
            return order
        rank = torch.empty_like(order).scatter_(1, order, self.positions) * self.set_size
        keys = rank.repeat_interleave(self.set_size, dim=1) + self.distances
        keys = torch.full_like(rank, self.never).scatter_reduce_(1, self.members, keys, "amin")
        return keys.argsort(dim=1, stable=True)


class Remasking:
    """Which positions each pass predicts: all of them in the first, then the least probable ones.

    Args:
        lengths: (A,) numbers of tokens.
        num_positions: T.
        set_size: n of adjacent re-masking, 1 without it.
        equal_lengths: whether all lengths are known to be T; then no row has fewer positions to predict than another.
    """

    def __init__(
        self, options: JMNatOptions, lengths: torch.Tensor, num_positions: int, set_size: int, equal_lengths: bool
    ):
        self.options, self.lengths, self.set_size = options, lengths, set_size
        self.order = RemaskOrder(lengths, num_positions, set_size)
        self.all_valid = equal_lengths and options.confidence_threshold is None

    def select(self, rows: torch.Tensor) -> "Remasking":
        """Of the rows `rows` (A',)."""
        num_positions = self.order.num_positions
        return Remasking(self.options, self.lengths[rows], num_positions, self.set_size, self.all_valid)

    def every_position(self) -> Positions:
        return Positions(self.order.positions, None if self.all_valid else ~self.order.padding)

    def __call__(self, iteration: int, log_probs: torch.Tensor) -> Positions:
        """What pass `iteration` + 1 predicts, by the log-probabilities (A, T) after the one before."""
        if iteration == 0:
            return self.every_position()
        options = self.options
        schedule = (iteration, options.num_iterations, options.remask_schedule)
        most = num_remasked(self.order.num_positions, *schedule)
        columns = self.order(log_probs)[:, :most]
        if self.all_valid:
            return Positions(columns, None)
        valid = self.order.positions[:, :most] < num_remasked(self.lengths, *schedule)[:, None]
        if options.confidence_threshold is not None:  # tokens at or above it are final
            valid = valid & (log_probs.gather(1, columns) < math.log(options.confidence_threshold))
        return Positions(columns, valid)


# Which rows go on ----------------------------------------------------------------------------------------------------


class StoppingRules:
    """Which rows need no further pass: `early_stop` and `confidence_threshold`."""

    def __init__(self, options: JMNatOptions):
        self.early_stop = options.early_stop
        self.threshold = options.confidence_threshold

    def going_on(self, iteration: int, before: Canvas, after: Canvas) -> torch.Tensor | None:
        """(A,) bool, False at rows that stop after pass `iteration` + 1, which led from `before` to `after`.

        None where no rule applies.
        """
        going_on = []
        if self.early_stop and iteration > 0:
            going_on.append((after.tokens != before.tokens).any(dim=1))
        if self.threshold is not None:
            going_on.append((after.log_probs < math.log(self.threshold)).any(dim=1))
        return torch.stack(going_on).all(dim=0) if going_on else None


class ActiveRows:
    """The rows that still take passes; the others have left the batch, and what they came to is kept.

    Args:
        canvas: of all R rows.
        remasking: for the same rows.
        state: what `prepare_decoding` gave for them.
    """

    def __init__(self, canvas: Canvas, remasking: Remasking, state):
        self.canvas, self.remasking, self.state = canvas, remasking, state  # of the active rows
        self.numbers: torch.Tensor | None = None  # (A,) of the active rows among all; None: all are active
        self.left = canvas  # R rows, those of active ones are out of date

    @property
    def any_left(self) -> bool:
        return self.canvas.tokens.shape[0] > 0

    def active(self, values: torch.Tensor) -> torch.Tensor:
        """Of values (R,) those of the active rows (A,)."""
        return values if self.numbers is None else values[self.numbers]

    def all_rows(self, canvas: Canvas | None = None) -> Canvas:
        """R rows: the active ones as they are now, or as in `canvas`, and the others as they left."""
        canvas = self.canvas if canvas is None else canvas
        return canvas if self.numbers is None else self.left.with_rows(self.numbers, canvas)

    def keep(self, going_on: torch.Tensor) -> None:
        """Let the rows leave where `going_on` (A,) is False."""
        kept = going_on.nonzero().flatten()
        if len(kept) == len(going_on):
            return
        self.left = self.all_rows()
        self.numbers = kept if self.numbers is None else self.numbers[kept]
        self.canvas = self.canvas.select(kept)
        if self.any_left:
            self.remasking, self.state = self.remasking.select(kept), self.state.select(kept)


# The algorithm -------------------------------------------------------------------------------------------------------


class MaskPredict:
    """k passes over one batch of canvases, which begin as `<mask>` everywhere.

    Args:
        model: anything with `config`, `prepare_decoding` and `predict_tokens`.
        options: resolved options.
        lengths: (B, C) target lengths.
        states, source_mask: what the encoder made of the sources, (B, S, D) and (B, S).
        suppressed: (V,) bool, True at ids that are never predicted, or None.
        num_positions: T, at least the longest length; None asks the device for that length. With it no row leaves the
            batch, so that no step waits for the device.

    `candidates` are all R rows; `given_up` (B, C) is True at those that `prune_candidates` has left behind.
    """

    def __init__(
        self,
        model,
        options: JMNatOptions,
        lengths: torch.Tensor,
        states,
        source_mask: torch.Tensor,
        suppressed: torch.Tensor | None,
        num_positions: int | None = None,
    ):
        self.model, self.options, self.lengths, self.suppressed = model, options, lengths, suppressed
        self.rows_leave = num_positions is None
        if num_positions is None:
            shortest, longest = torch.stack(lengths.aminmax()).tolist()
        else:
            shortest, longest = 0, num_positions
        self.positions = torch.arange(longest, device=lengths.device)  # (T,)
        self.target_mask = self.positions < lengths.flatten()[:, None]  # (R, T)
        self.given_up = torch.zeros_like(lengths, dtype=torch.bool)
        self.rules = StoppingRules(options)
        self.history: list[JMNatPass] = []
        canvas = Canvas.of_masks(self.target_mask, model.config.mask_token_id, model.config.pad_token_id)
        set_size = model.config.ngram_size if options.remask_adjacent else 1
        remasking = Remasking(options, lengths.flatten(), longest, set_size, shortest == longest)
        self.rows = ActiveRows(canvas, remasking, model.prepare_decoding(states, source_mask, self.target_mask))

    def run(self, first_tokens: torch.Tensor | None = None) -> None:
        """All passes; `first_tokens` (R, T) take the place of `<mask>` in the first one."""
        for iteration in range(self.options.num_iterations):
            self.one_pass(iteration, first_tokens)
            if not self.rows.any_left:
                break
        self.finish(iteration)

    def one_pass(self, iteration: int, first_tokens: torch.Tensor | None = None) -> None:
        """Mask the least probable tokens, predict them, and let rows go that need no further pass."""
        rows, before = self.rows, self.rows.canvas
        positions = rows.remasking(iteration, before.log_probs)
        masked = positions.put(before.tokens, self.model.config.mask_token_id)
        if first_tokens is not None and iteration == 0:
            masked = first_tokens
        if self.options.update_all:  # every position is predicted, whichever are masked
            positions = rows.remasking.every_position()
        rows.canvas = self.predict(masked, positions)
        if self.options.output_history:
            self.record(masked)
        if iteration + 1 < self.options.num_iterations:
            self.stop_rows(iteration, before)

    def predict(self, masked: torch.Tensor, positions: Positions) -> Canvas:
        """One decoder pass over the canvas `masked` (A, T)."""
        predicted = self.model.predict_tokens(masked, positions.columns, self.rows.state, self.suppressed)
        return self.rows.canvas.updated(positions, *predicted)

    def stop_rows(self, iteration: int, before: Canvas) -> None:
        """Let rows go that a rule stops, and candidates that are given up, after pass `iteration` + 1."""
        going_on = self.rules.going_on(iteration, before, self.rows.canvas)
        if self.options.prune_candidates == iteration + 1:
            self.give_up_candidates()
            kept = self.rows.active(~self.given_up.flatten())
            going_on = kept if going_on is None else going_on & kept
        if going_on is not None:
            self.keep(going_on)

    def keep(self, going_on: torch.Tensor) -> None:
        if self.rows_leave:
            self.rows.keep(going_on)

    def give_up_candidates(self) -> None:
        """Give up all but the `prune_to` best candidates of each sentence."""
        options = self.options
        num_kept = max(options.num_return_sequences, min(options.prune_to, options.num_length_candidates))
        best = self.scores().sort(dim=1, descending=True, stable=True).indices  # of equals the more probable length
        self.given_up.logical_or_(torch.ones_like(self.given_up).scatter(1, best[:, :num_kept], False))

    def finish(self, iteration: int) -> None:
        """After the last pass, `iteration` + 1: give candidates up where that was still to come."""
        prune_after = self.options.prune_candidates
        if prune_after is not None and iteration < prune_after <= self.options.num_iterations:
            self.give_up_candidates()

    @property
    def candidates(self) -> Canvas:
        """All R rows as they are now."""
        return self.rows.all_rows()

    def record(self, masked: torch.Tensor) -> None:
        """Append a pass to the history; rows that have stopped stay as they were."""
        read = self.rows.all_rows(self.rows.canvas._replace(tokens=masked))
        after = self.candidates
        entries = (values.unflatten(0, self.lengths.shape) for values in (read.tokens, after.tokens, after.log_probs))
        self.history.append(JMNatPass(*entries))

    def scores(self, scores: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C) by which candidates are compared; -inf at those given up.

        Their `candidate_scores`, or `scores` in their place, and the weighted consensus.
        """
        options, shape, candidates = self.options, self.lengths.shape, self.candidates
        if scores is None:
            scores = candidate_scores(candidates.log_probs.unflatten(0, shape), self.lengths, options)
        if options.consensus_weight and options.num_length_candidates > 1:
            tokens = candidates.tokens.unflatten(0, shape)
            ends = first_end(tokens, self.lengths, self.model.config.eos_token_id)
            scores = scores + options.consensus_weight * consensus(tokens, ends, ~self.given_up)
        return scores.masked_fill(self.given_up, -math.inf)


# How candidates are compared -----------------------------------------------------------------------------------------


def first_end(tokens: torch.Tensor, lengths: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """Number of tokens (..) up to and with the first `</s>` of (.., T), all of a row's tokens where it has none."""
    positions = torch.arange(tokens.shape[-1], device=tokens.device)
    ends = torch.where(tokens == eos_token_id, positions + 1, tokens.shape[-1] + 1).amin(dim=-1)
    return torch.minimum(ends, lengths)


def length_divisors(lengths: torch.Tensor, options: JMNatOptions) -> torch.Tensor:
    """(T + length_offset)**length_normalization."""
    return (lengths + options.length_offset).float() ** options.length_normalization


def candidate_scores(log_probs: torch.Tensor, lengths: torch.Tensor, options: JMNatOptions) -> torch.Tensor:
    """Sum of log_probs (.., T), which are 0 at padding, divided by `length_divisors`."""
    return log_probs.sum(dim=-1) / length_divisors(lengths, options)


def consensus(tokens: torch.Tensor, ends: torch.Tensor, voters: torch.Tensor) -> torch.Tensor:
    """Agreement of each candidate with the others, as in minimum Bayes risk decoding (Kumar and Byrne, 2004).

    Mean, over the other candidates, of the unigram and bigram overlap (Dice coefficient) with this one.

    Args:
        tokens: (B, C, T).
        ends: (B, C) numbers of tokens.
        voters: (B, C) bool, the candidates that the others are compared with.

    Returns:
        (B, C) in [0, 1]; 0 where there is no other voter.
    """
    inside = torch.arange(tokens.shape[-1], device=tokens.device) < ends[..., None]
    same = tokens[:, :, None, :, None] == tokens[:, None, :, None, :]  # (B, C, C, T, T)
    same &= inside[:, :, None, :, None] & inside[:, None, :, None, :]
    shares = torch.zeros((), device=tokens.device)
    for counts, found in ((ends, same), (ends - 1, same[..., :-1, :-1] & same[..., 1:, 1:])):
        found = found.any(dim=-1).sum(dim=-1)  # (B, C, C), how many of the first are in the second
        counts = (counts[:, :, None] + counts[:, None, :]).clamp(min=1)
        shares = shares + (found + found.transpose(1, 2)) / counts
    others = voters[:, None, :] & ~torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
    return (shares * others).sum(dim=-1) / (2 * others.sum(dim=-1).clamp(min=1))
