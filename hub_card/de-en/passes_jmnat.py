"""Mask-predict decoding (section 4.4 of the paper): k decoder passes over the length candidates of a batch.

`MaskPredict.run` is the algorithm. Each of its objects answers one question:

- `Canvas`: which tokens stand in the candidates, and how probable are they?
- `Repeats`: which of them wrongly repeat their neighbour?
- `Remasking`, with `RemaskOrder`: which positions are masked again before a pass?
- `ActiveRows`: which rows are still in the batch, and what do all their passes share?

A model needs only `prepare_decoding`, `predict_tokens` and, with a CRF, `predict_path`, so that all backends share it.
Shapes: B sentences, C length candidates, R = B C rows, A <= R active rows, S source tokens, T target positions, M
positions to predict, V vocabulary, D width, H heads.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .configuration_jmnat import JMNatOptions
from .losses_jmnat import candidate_scores, consensus, first_end


class JMNatPass(NamedTuple):
    """One pass over all candidates; positions beyond a candidate's length hold `<pad>`."""

    canvas: torch.Tensor  # (B, C, T) the decoder's input
    tokens: torch.Tensor  # (B, C, T) the candidate after the pass
    log_probs: torch.Tensor  # (B, C, T) of these tokens


@dataclass
class JMNatDecodingState:
    """What all passes share. Tensors over sources have B' rows, each for A / B' consecutive rows of the canvas.

    Args:
        attend_mask: (A, 1, 1 or T, T) bool for self- and positional attention.
        encoder_attend_mask: (B', 1, 1, S) bool.
        key_values: per layer, keys and values of cross-attention, (B', H, S, D/H) each.
        position_probs: per layer, probabilities of positional attention (A, H, T, T).
        positions: embeddings of the target positions (1, T, D).
    """

    attend_mask: torch.Tensor
    encoder_attend_mask: torch.Tensor | None = None
    key_values: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    position_probs: list[torch.Tensor] | None = None
    positions: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> "JMNatDecodingState":
        """Keep the canvas rows with the indices `rows` (A',), in ascending order.

        Sources stay shared while all of them have equally many rows; otherwise every row gets its own copy.
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
        """`values` (A, T) with `new`, of shape (A, M) or a single number, at these positions."""
        if self.valid is not None:
            new = torch.where(self.valid, new, values.gather(1, self.columns))
        return values.scatter(1, self.columns, new)


class Canvas(NamedTuple):
    """Candidates, one per row; positions beyond a row's length hold `<pad>` with the log-probability 0."""

    tokens: torch.Tensor  # (A, T)
    log_probs: torch.Tensor  # (A, T) of these tokens
    num_passes: torch.Tensor  # (A,) decoder passes taken so far
    lengths: torch.Tensor  # (A,) numbers of tokens

    @classmethod
    def of_masks(cls, lengths: torch.Tensor, num_positions: int, mask_token_id: int, pad_token_id: int) -> "Canvas":
        """`<mask>` at the first `lengths` (A,) of T = `num_positions` positions."""
        inside = torch.arange(num_positions, device=lengths.device) < lengths[:, None]
        tokens = torch.where(inside, mask_token_id, pad_token_id)
        return cls(tokens, torch.zeros_like(tokens, dtype=torch.float32), torch.zeros_like(lengths), lengths)

    def updated(self, positions: Positions, tokens: torch.Tensor, log_probs: torch.Tensor) -> "Canvas":
        """After a pass that predicted `tokens` with `log_probs` (A, M)."""
        tokens, log_probs = positions.put(self.tokens, tokens), positions.put(self.log_probs, log_probs)
        return Canvas(tokens, log_probs, self.num_passes + 1, self.lengths)

    def select(self, rows: torch.Tensor) -> "Canvas":
        return Canvas(*(values[rows] for values in self))

    def with_rows(self, rows: torch.Tensor, others: "Canvas") -> "Canvas":
        """A copy in which `others`, of A rows, replaces the rows with the indices `rows` (A,)."""
        return Canvas(*(values.index_copy(0, rows, new) for values, new in zip(self, others, strict=True)))

    def without(self, repeats: torch.Tensor, pad_token_id: int) -> "Canvas":
        """Remove the tokens where `repeats` (A, T) is True; a run of equal tokens keeps its highest probability."""
        places = (~repeats).cumsum(dim=1) - 1
        tokens = torch.full_like(self.tokens, pad_token_id).scatter(1, places, self.tokens)
        log_probs = torch.zeros_like(self.log_probs)
        log_probs = log_probs.scatter_reduce(1, places, self.log_probs, "amax", include_self=False)
        return Canvas(tokens, log_probs, self.num_passes, self.lengths - repeats.sum(dim=1))


class Repeats(NamedTuple):
    """Which tokens of a row wrongly repeat the token before."""

    rightful: torch.Tensor  # (B, V) bool, True at tokens that may occur twice in a row in a sentence's translation
    sentences: torch.Tensor  # (A,) indices of the rows' sentences

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (A, T) -> (A, T) bool, True at a token that wrongly equals the one before."""
        same = F.pad(tokens[:, 1:] == tokens[:, :-1], (1, 0))
        return same & ~self.rightful[self.sentences[:, None], tokens]

    def less_probable(self, canvas: Canvas) -> torch.Tensor:
        """(A, T) bool, True at the less probable token of each repeated pair; at the second one in a tie."""
        second = self(canvas.tokens)
        ahead = second & (canvas.log_probs > F.pad(canvas.log_probs[:, :-1], (1, 0)))  # of the one before
        return (second & ~ahead) | F.pad(ahead[:, 1:], (0, 1))


# What is masked again ------------------------------------------------------------------------------------------------


def num_remasked(lengths, iteration: int, num_iterations: int, schedule: str):
    """How many tokens are masked again before pass `iteration` + 1: an int for an int, a tensor for a tensor.

    The share 1 - i/k (`linear`) or cos(pi i / 2k) (`cosine`), rounded down, at least 1. In integer arithmetic, so that
    rounding errors cannot lose a token (T cos 60 degrees is T/2).
    """
    share = num_iterations - iteration, num_iterations
    if schedule == "cosine":
        share = round(math.cos(math.pi * iteration / (2 * num_iterations)) * 2**40), 2**40
    count = lengths * share[0] // share[1]
    return count.clamp(min=1) if torch.is_tensor(count) else max(count, 1)


class RemaskOrder:
    """In which order the positions of rows are masked again.

    With `set_size` n = 1, by ascending probability. With n > 1 (adjacent re-masking), each token is followed by the
    others of the n consecutive tokens that begin with it, the nearest first; near the end of a row these are its last
    n tokens. What does not change between passes is computed once.

    Args:
        lengths: (A,) numbers of tokens.
        num_positions: T.
        fixed: (A, T) bool, True at tokens that every pass keeps; None: there are none.
    """

    def __init__(self, lengths: torch.Tensor, num_positions: int, set_size: int = 1, fixed=None):
        positions = torch.arange(num_positions, device=lengths.device)[None]
        self.lengths, self.num_positions, self.set_size = lengths, num_positions, set_size
        self.positions = positions.expand(lengths.shape[0], -1)
        beyond = positions >= lengths[:, None]
        self.padding = beyond if fixed is None else beyond | fixed  # never masked again
        if set_size > 1:
            begin = torch.minimum(positions, lengths[:, None] - set_size).clamp(min=0)
            members = begin[:, :, None] + torch.arange(set_size, device=lengths.device)  # (A, T, n)
            inside = ((members < lengths[:, None, None]) & ~self.padding[:, :, None]).flatten(1)
            self.never = num_positions * set_size
            self.members = members.clamp(max=num_positions - 1).flatten(1)  # (A, T n)
            inside &= ~self.padding.gather(1, self.members)
            self.distances = (members - positions[:, :, None]).abs().flatten(1).masked_fill(~inside, self.never)

    def __call__(self, log_probs: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probabilities of the current tokens (A, T) -> positions (A, T): those in `first`, others, padding."""
        order = log_probs.masked_fill(self.padding, math.inf).argsort(dim=1, stable=True)
        if first is not None:
            order = order.gather(1, (~first | self.padding).gather(1, order).byte().argsort(dim=1, stable=True))
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
        equal_lengths: whether all lengths are known to be T, so that every row has equally many positions to predict.
        repeats: `Repeats` of the same rows; None: no rule needs them.
        fixed: as for `RemaskOrder`; the schedule counts only the other tokens.
    """

    def __init__(self, options, lengths, num_positions, set_size, equal_lengths, repeats=None, fixed=None):
        self.options, self.lengths, self.set_size, self.repeats = options, lengths, set_size, repeats
        self.fixed, self.order = fixed, RemaskOrder(lengths, num_positions, set_size, fixed)
        self.num_free = (~self.order.padding).sum(dim=1)  # (A,)
        self.all_valid = equal_lengths and options.confidence_threshold is None and fixed is None

    def select(self, rows: torch.Tensor) -> "Remasking":
        """Of the rows `rows` (A',)."""
        repeats = None if self.repeats is None else Repeats(self.repeats.rightful, self.repeats.sentences[rows])
        fixed = None if self.fixed is None else self.fixed[rows]
        return self.of_lengths(self.lengths[rows], repeats, self.all_valid, fixed)

    def of_lengths(self, lengths: torch.Tensor, repeats, equal_lengths: bool = False, fixed=None) -> "Remasking":
        """Of rows with other lengths."""
        return Remasking(self.options, lengths, self.order.num_positions, self.set_size, equal_lengths, repeats, fixed)

    def every_position(self) -> Positions:
        return Positions(self.order.positions, None if self.all_valid else ~self.order.padding)

    def __call__(self, iteration: int, canvas: Canvas) -> Positions:
        """The positions that pass `iteration` + 1 predicts, given the canvas after the previous pass."""
        if iteration == 0:
            return self.every_position()
        options, log_probs = self.options, canvas.log_probs
        threshold = options.confidence_threshold  # tokens at or above it are final
        first = self.repeats.less_probable(canvas) if self.repeats and options.remask_repeats else None
        if first is not None and threshold is not None:
            first &= log_probs < math.log(threshold)
        schedule = (iteration, options.num_iterations, options.remask_schedule)
        most = num_remasked(self.order.num_positions, *schedule)
        columns = self.order(log_probs, first)[:, :most]
        if self.all_valid:
            return Positions(columns, None)
        counts = torch.minimum(num_remasked(self.num_free, *schedule), self.num_free)  # 0 if the whole row is fixed
        valid = self.order.positions[:, :most] < counts[:, None]
        if threshold is not None:
            valid = valid & (log_probs.gather(1, columns) < math.log(threshold))
        return Positions(columns, valid)


# Which rows continue -------------------------------------------------------------------------------------------------


class ActiveRows:
    """The rows that still take passes; the others have left the batch, and their results are kept.

    Args:
        canvas: of all R rows.
        remasking: for the same rows.
        state: the result of `prepare_decoding` for them.
    """

    def __init__(self, canvas: Canvas, remasking: Remasking, state):
        self.canvas, self.remasking, self.state = canvas, remasking, state  # of the active rows
        self.numbers: torch.Tensor | None = None  # (A,) indices of the active rows; None: all are active
        self.left = canvas  # R rows; active ones are out of date here

    @property
    def any_left(self) -> bool:
        return self.canvas.tokens.shape[0] > 0

    def active(self, values: torch.Tensor) -> torch.Tensor:
        """Select the active rows' values (A,) from those of all rows (R,)."""
        return values if self.numbers is None else values[self.numbers]

    def all_rows(self, canvas: Canvas | None = None) -> Canvas:
        """R rows: the active ones as they are now (or as in `canvas`), the others as they left."""
        canvas = self.canvas if canvas is None else canvas
        return canvas if self.numbers is None else self.left.with_rows(self.numbers, canvas)

    def keep(self, going_on: torch.Tensor) -> None:
        """Remove the rows where `going_on` (A,) is False from the batch."""
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
    """k passes over a batch of canvases that start as all `<mask>`.

    Args:
        model: anything with `config`, `prepare_decoding` and `predict_tokens`.
        options: resolved options.
        lengths: (B, C) target lengths.
        states, source_mask: the encoder's output, (B, S, D), and (B, S) bool.
        suppressed: (V,) bool, True at ids that are never predicted, or None.
        num_positions: T, at least the longest length; None asks the device for that length. If it is given, no row
            leaves the batch, so that no step waits for the device.
        rightful: (B, V), see `Repeats`; None: no rule needs it.
        canvas: (R, T) initial rows, whose tokens other than `<mask>` and `<pad>` are kept; None: all `<mask>`.

    `candidates` are all R rows; `given_up` (B, C) is True at those that `prune_candidates` has dropped.
    """

    def __init__(
        self, model, options: JMNatOptions, lengths: torch.Tensor, states, source_mask: torch.Tensor, suppressed,
        num_positions: int | None = None, rightful: torch.Tensor | None = None, canvas: torch.Tensor | None = None
    ):  # fmt: skip
        self.model, self.options, self.lengths, self.suppressed = model, options, lengths, suppressed
        self.sources = states, source_mask
        self.rows_leave = num_positions is None
        shortest, longest = torch.stack(lengths.aminmax()).tolist() if self.rows_leave else (0, num_positions)
        self.positions = torch.arange(longest, device=lengths.device)  # (T,)
        self.target_mask = self.positions < lengths.flatten()[:, None]  # (R, T)
        self.given_up = torch.zeros_like(lengths, dtype=torch.bool)
        self.history: list[JMNatPass] = []
        self.repeats = None
        if rightful is not None:
            self.repeats = Repeats(rightful, torch.arange(lengths.numel(), device=lengths.device) // lengths.shape[1])
        masks = Canvas.of_masks(lengths.flatten(), longest, model.config.mask_token_id, model.config.pad_token_id)
        rows, fixed = masks, None
        if canvas is not None:
            rows, fixed = masks._replace(tokens=canvas[:, :longest]), canvas[:, :longest] != masks.tokens
        set_size = model.config.ngram_size if options.remask_adjacent else 1
        remasking = Remasking(options, masks.lengths, longest, set_size, shortest == longest, self.repeats, fixed)
        self.rows = ActiveRows(rows, remasking, model.prepare_decoding(*self.sources, self.target_mask))

    def run(self, first_tokens: torch.Tensor | None = None, after_pass=None) -> None:
        """All passes; `first_tokens` (R, T) replace the first canvas; `after_pass` is called with self after each."""
        for iteration in range(self.options.num_iterations):
            self.one_pass(iteration, first_tokens)
            is_last = iteration + 1 == self.options.num_iterations or not self.rows.any_left
            if is_last:
                self.finish(iteration)
            if after_pass is not None:
                after_pass(self)
            if is_last:
                break

    def one_pass(self, iteration: int, first_tokens: torch.Tensor | None = None) -> None:
        """Mask the least probable tokens, predict them, and stop the rows that need no further pass."""
        if self.options.delete_repeats and 0 < iteration == self.options.num_iterations - 1:
            self.delete_repeats()
        rows, before = self.rows, self.rows.canvas
        positions = rows.remasking(iteration, before)
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

    def delete_repeats(self, kept: torch.Tensor | None = None) -> None:
        """Merge repeats in the active rows, except where `kept` (A,) is True, and continue with the shorter rows."""
        rows, repeats = self.rows, self.rows.remasking.repeats
        if repeats is None:
            return
        found = repeats(rows.canvas.tokens)
        if kept is not None:
            found = found & ~kept[:, None]
        elif self.rows_leave and not bool(found.any()):
            return
        rows.canvas = rows.canvas.without(found, self.model.config.pad_token_id)
        rows.remasking = rows.remasking.of_lengths(rows.canvas.lengths, repeats)
        target_mask = self.positions < rows.all_rows().lengths[:, None]
        state = self.model.prepare_decoding(*self.sources, target_mask)
        rows.state = state if rows.numbers is None else state.select(rows.numbers)

    def predict(self, masked: torch.Tensor, positions: Positions) -> Canvas:
        """One decoder pass over the canvas `masked` (A, T)."""
        predict, arguments = self.model.predict_tokens, (masked, positions.columns, self.rows.state, self.suppressed)
        if self.model.config.crf_rank and (beam := self.options.crf_beam) > 1:
            wanted = positions.put(torch.zeros_like(masked, dtype=torch.bool), True)
            predict, arguments = self.model.predict_path, (*arguments, wanted, beam)
        return self.rows.canvas.updated(positions, *predict(*arguments))

    def stop_rows(self, iteration: int, before: Canvas) -> None:
        """Stop the rows that a rule stops, and drop candidates if it is time, after pass `iteration` + 1."""
        options, after = self.options, self.rows.canvas
        going_on = []  # (A,) bool each, False at rows that stop
        if options.early_stop and iteration > 0:
            going_on.append((after.tokens != before.tokens).any(dim=1))
        if options.confidence_threshold is not None:
            going_on.append((after.log_probs < math.log(options.confidence_threshold)).any(dim=1))
        if options.prune_candidates == iteration + 1:
            self.give_up_candidates()
            going_on.append(self.rows.active(~self.given_up.flatten()))
        if going_on:
            self.keep(torch.stack(going_on).all(dim=0))

    def keep(self, going_on: torch.Tensor) -> None:
        if self.rows_leave:
            self.rows.keep(going_on)

    def give_up_candidates(self) -> None:
        """Drop all but the `prune_to` best candidates of each sentence."""
        options = self.options
        num_kept = max(options.num_return_sequences, min(options.prune_to, options.num_length_candidates))
        best = self.scores().sort(dim=1, descending=True, stable=True).indices  # ties: the more probable length
        self.given_up.logical_or_(torch.ones_like(self.given_up).scatter(1, best[:, :num_kept], False))

    def finish(self, iteration: int) -> None:
        """After the last pass, `iteration` + 1: drop candidates if pruning was due in a later pass."""
        if (after := self.options.prune_candidates) is not None and iteration < after <= self.options.num_iterations:
            self.give_up_candidates()

    @property
    def candidates(self) -> Canvas:
        """All R rows as they are now."""
        return self.rows.all_rows()

    def texts(self) -> Canvas:
        """The `candidates`; with `collapse_repeats`, their repeats are removed."""
        candidates = self.candidates
        if self.repeats is None or not self.options.collapse_repeats:
            return candidates
        return candidates.without(self.repeats(candidates.tokens), self.model.config.pad_token_id)

    def record(self, masked: torch.Tensor) -> None:
        """Append a pass to the history; rows that have stopped stay as they were."""
        read = self.rows.all_rows(self.rows.canvas._replace(tokens=masked))
        after = self.candidates
        entries = (values.unflatten(0, self.lengths.shape) for values in (read.tokens, after.tokens, after.log_probs))
        self.history.append(JMNatPass(*entries))

    def scores(self, scores: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C) `scores` or `candidate_scores`, plus the weighted consensus; -inf at candidates given up."""
        options = self.options
        tokens, log_probs, _, lengths = (values.unflatten(0, self.lengths.shape) for values in self.texts())
        scores = candidate_scores(log_probs, lengths, options) if scores is None else scores
        if options.consensus_weight and options.num_length_candidates > 1:
            ends = first_end(tokens, lengths, self.model.config.eos_token_id)
            is_long = (ends >= options.consensus_min_length) | self.given_up
            counts = is_long.all(dim=1, keepdim=True)  # (B, 1)
            scores = scores + options.consensus_weight * counts * consensus(tokens, ends, ~self.given_up)
        return scores.masked_fill(self.given_up, -math.inf)
