"""The passes of decoding (section 4.4): what is masked again, which rows go on, what all passes share.

The loop asks two methods of its model, `prepare_decoding` and `predict_tokens`, so that every backend shares it. B
sentences, C length candidates, R = B C rows (less when rows have stopped), T positions.
"""

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .configuration_jmnat import JMNatOptions

MOST_KEPT = 0.75  # candidates given up leave a batch of several sentences when at most so many of its rows stay


class JMNatPass(NamedTuple):
    """One pass over all candidates; positions beyond a candidate's length hold `<pad>`."""

    canvas: torch.LongTensor  # (B, C, T) what the decoder read
    tokens: torch.LongTensor  # (B, C, T) the candidate after the pass
    log_probs: torch.FloatTensor  # (B, C, T) of these tokens


@dataclass
class JMNatDecodingState:
    """What all passes share. Tensors over sources have B rows, each serving R/B consecutive canvas rows.

    Args:
        attend_mask: (R, 1, 1 or T, T) bool for self- and positional attention.
        encoder_attend_mask: (B, 1, 1, S) bool.
        key_values: per layer, keys and values of cross-attention, (B, H, S, D/H) each.
        position_probs: per layer, probabilities of positional attention (R, H, T, T).
        positions: their embeddings (1, T, D).
    """

    attend_mask: torch.Tensor
    encoder_attend_mask: torch.Tensor | None = None
    key_values: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    position_probs: list[torch.Tensor] | None = None
    positions: torch.Tensor | None = None

    def select(self, rows: torch.Tensor, sources: torch.Tensor | None) -> "JMNatDecodingState":
        """Keep canvas rows `rows`; `sources` are the source rows that then serve them, evenly and in order.

        None: the same as before.
        """
        encoder_attend_mask, key_values = self.encoder_attend_mask, self.key_values
        if sources is not None:
            encoder_attend_mask = encoder_attend_mask[sources]
            key_values = [(key[sources], value[sources]) for key, value in key_values]
        return JMNatDecodingState(
            attend_mask=self.attend_mask[rows],
            encoder_attend_mask=encoder_attend_mask,
            key_values=key_values,
            position_probs=None if self.position_probs is None else [probs[rows] for probs in self.position_probs],
            positions=self.positions,
        )


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
    """In which order the positions of rows are masked again; what does not change between passes is kept.

    With `set_size` n = 1 that is by rising probability. With n > 1 each token takes along the n consecutive tokens
    that begin with it (the last n of the row, where it stands closer to the end): first itself, then its nearest.

    Args:
        lengths: (R,) numbers of tokens.
        num_positions: T.
    """

    def __init__(self, lengths: torch.Tensor, num_positions: int, set_size: int = 1):
        positions = torch.arange(num_positions, device=lengths.device)[None]
        self.set_size = set_size
        self.positions = positions.expand(lengths.shape[0], -1)
        self.padding = positions >= lengths[:, None]
        if set_size > 1:
            begin = torch.minimum(positions, lengths[:, None] - set_size).clamp(min=0)
            members = begin[:, :, None] + torch.arange(set_size, device=lengths.device)  # (R, T, n)
            inside = (members < lengths[:, None, None]) & ~self.padding[:, :, None]
            self.never = num_positions * set_size
            self.distances = (members - positions[:, :, None]).abs().masked_fill(~inside, self.never).flatten(1)
            self.members = members.clamp(max=num_positions - 1).flatten(1)  # (R, T n)

    def select(self, rows: torch.Tensor) -> "RemaskOrder":
        kept = copy.copy(self)
        for name in ("positions", "padding", "distances", "members"):
            if hasattr(self, name):
                setattr(kept, name, getattr(self, name)[rows])
        return kept

    def __call__(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the present tokens (R, T) -> positions (R, T), padding last."""
        order = log_probs.masked_fill(self.padding, math.inf).argsort(dim=1, stable=True)
        if self.set_size == 1:
            return order
        rank = torch.empty_like(order).scatter_(1, order, self.positions) * self.set_size
        keys = rank.repeat_interleave(self.set_size, dim=1) + self.distances
        keys = torch.full_like(rank, self.never).scatter_reduce_(1, self.members, keys, "amin")
        return keys.argsort(dim=1, stable=True)


class MaskPredict:
    """The passes over one batch of canvases. Rows that stop leave the batch: `rows` are those that still go on.

    Args:
        model: anything with `config`, `prepare_decoding` and `predict_tokens`.
        options: resolved options.
        lengths: (B, C) target lengths.
        suppressed: (V,) bool, True at ids that are never predicted, or None.
        num_positions: T, at least the longest length; None asks the device for that length. With it, candidates that
            are given up stay in the batch, so that no step waits for the device.

    After `run`, `tokens` and `log_probs` are (B, C, T), `num_passes` and `pruned` (B, C).
    """

    def __init__(
        self,
        model,
        options: JMNatOptions,
        lengths: torch.Tensor,
        suppressed: torch.Tensor | None,
        num_positions: int | None = None,
    ):
        self.model = model
        self.options = options
        self.suppressed = suppressed
        self.mask_token_id = model.config.mask_token_id
        self.shape = lengths.shape
        self.lengths = lengths.flatten()  # (R,)
        self.rows = torch.arange(self.lengths.shape[0], device=lengths.device)
        self.rows_leave = num_positions is None
        self.idle_rows = False  # whether some of `rows` may have been given up and stay nonetheless
        self.pruned = torch.zeros_like(self.lengths, dtype=torch.bool)
        if num_positions is None:
            shortest, self.longest = torch.stack(self.lengths.aminmax()).tolist()
        else:
            shortest, self.longest = 0, num_positions
        self.positions = torch.arange(self.longest, device=lengths.device)[None]
        self.target_mask = self.positions < self.lengths[:, None]  # (R, T)
        self.tokens = torch.where(self.target_mask, self.mask_token_id, model.config.pad_token_id)
        self.log_probs = torch.zeros(self.tokens.shape, dtype=torch.float32, device=lengths.device)
        self.num_passes = torch.zeros_like(self.lengths)
        self.history: list[JMNatPass] = []
        self.source_of_row = torch.arange(self.shape[0], device=lengths.device).repeat_interleave(self.shape[1])
        self.served_by = torch.arange(self.shape[0], device=lengths.device)  # the source in each row of the state
        # All positions that `choose` returns are really chosen: nothing has to be kept where they are predicted.
        self.all_chosen = shortest == self.longest and options.confidence_threshold is None
        set_size = model.config.ngram_size if options.remask_adjacent else 1
        self.order = RemaskOrder(self.lengths, self.longest, set_size)
        # Of the rows that still go on; written back when they leave.
        self.now = (self.tokens.clone(), self.log_probs.clone())

    def run(self, states: torch.Tensor, source_mask: torch.Tensor, first_canvas: torch.Tensor | None = None) -> None:
        """Decode from encoder states (B, S, D); `first_canvas` (R, T) takes the place of `<mask>` everywhere."""
        self.prepare(states, source_mask)
        for iteration in range(self.options.num_iterations):
            before, _ = self.now
            self.one_pass(iteration, first_canvas)
            if iteration + 1 == self.options.num_iterations:
                break
            going_on = self.going_on(iteration, before)
            if going_on is not None and not bool(going_on.all()):
                self.keep(going_on, iteration)
                if self.rows.numel() == 0:
                    break
        self.write_back(iteration)
        only_best_after = self.options.prune_candidates
        if only_best_after is not None and iteration < only_best_after <= self.options.num_iterations:
            self.prune(only_best_after - 1)  # all rows had stopped before, or no pass follows
        self.by_sentence()

    def one_pass(self, iteration: int, first_canvas: torch.Tensor | None = None) -> None:
        """Mask again what pass `iteration` + 1 is to predict, and predict it."""
        before, _ = self.now
        positions, chosen = self.choose(iteration)
        if iteration == 0:
            canvas = before if first_canvas is None else first_canvas[self.rows]
        else:
            canvas = before.scatter(1, positions, self.where(chosen, self.mask_token_id, before, positions))
        if self.options.update_all:
            positions, chosen = self.everywhere()
        self.predict(canvas, positions, chosen)
        if self.options.output_history:
            self.record(canvas)

    def by_sentence(self) -> None:
        """After the last pass: results (R, ..) -> (B, C, ..)."""
        for name in ("tokens", "log_probs", "num_passes", "pruned"):
            setattr(self, name, getattr(self, name).unflatten(0, self.shape))

    def prepare(self, states: torch.Tensor, source_mask: torch.Tensor) -> None:
        """What all passes share, for the rows there are."""
        self.state = self.model.prepare_decoding(states, source_mask, self.target_mask)

    def everywhere(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        chosen = self.target_mask[self.rows]
        return self.positions.expand_as(chosen), None if self.all_chosen else chosen

    def choose(self, iteration: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Positions (R, M) to be masked before pass `iteration` + 1, and which of them really are; None: all."""
        if iteration == 0:
            return self.everywhere()
        options, (_, log_probs) = self.options, self.now
        most = num_remasked(self.longest, iteration, options.num_iterations, options.remask_schedule)
        order = self.order(log_probs)[:, :most]
        if self.all_chosen:
            return order, None
        counts = num_remasked(self.lengths[self.rows], iteration, options.num_iterations, options.remask_schedule)
        chosen = self.positions[:, :most] < counts[:, None]
        if options.confidence_threshold is not None:
            chosen = chosen & (log_probs.gather(1, order) < math.log(options.confidence_threshold))
        return order, chosen

    def where(self, chosen: torch.Tensor | None, new, old: torch.Tensor, positions: torch.Tensor):
        """`new` where `chosen` (R, M), else what `old` (R, T) holds at `positions`."""
        return new if chosen is None else torch.where(chosen, new, old.gather(1, positions))

    def predict(self, canvas: torch.Tensor, positions: torch.Tensor, chosen: torch.Tensor | None) -> None:
        """One decoder pass over canvas (R, T); the tokens `chosen` among `positions` are replaced."""
        predicted = self.model.predict_tokens(canvas, positions, self.state, self.suppressed)
        self.now = tuple(
            old.scatter(1, positions, self.where(chosen, new, old, positions))
            for old, new in zip(self.now, predicted, strict=True)
        )

    def write_back(self, iteration: int) -> None:
        """Store what the rows that still go on have come to after pass `iteration` + 1."""
        rows, now = self.rows, self.now
        if self.idle_rows:
            active = (~self.pruned[rows]).nonzero().flatten()
            rows, now = rows[active], tuple(value[active] for value in now)
        if rows.numel():
            self.tokens[rows], self.log_probs[rows] = now
            self.num_passes.index_fill_(0, rows, iteration + 1)  # assigning would wait for the device

    def record(self, canvas: torch.Tensor) -> None:
        """Append a pass to the history; rows that have stopped stay as they were."""
        self.write_back(len(self.history))
        seen = self.tokens.clone()
        seen[self.rows] = canvas
        entries = (seen, self.tokens.clone(), self.log_probs.clone())
        self.history.append(JMNatPass(*(entry.unflatten(0, self.shape) for entry in entries)))

    def going_on(self, iteration: int, before: torch.Tensor) -> torch.Tensor | None:
        """(R,) bool, False for rows that stop after this pass; None when no rule can stop one."""
        options, (tokens, log_probs), rules = self.options, self.now, []
        if options.early_stop and iteration > 0:
            rules.append((tokens != before).any(dim=1))
        if options.confidence_threshold is not None:  # log_probs are 0 at padding
            rules.append((log_probs < math.log(options.confidence_threshold)).any(dim=1))
        if self.prune(iteration) and self.rows_leave:
            kept = ~self.pruned[self.rows]
            # Of several sentences, rows that stay have to be moved, which pays where enough of them leave.
            if self.shape[0] == 1 or int(kept.sum()) <= MOST_KEPT * kept.numel():
                rules.append(kept)
            else:
                self.idle_rows = True
        return torch.stack(rules).all(dim=0) if rules else None

    def prune(self, iteration: int) -> bool:
        """Give up all but the best candidates where pass `iteration` + 1 is `prune_candidates`; False elsewhere."""
        options = self.options
        if options.prune_candidates != iteration + 1:
            return False
        num_kept = max(options.num_return_sequences, min(options.prune_to, options.num_length_candidates))
        self.write_back(iteration)
        scores = self.scores()
        best = scores.sort(dim=1, descending=True, stable=True).indices  # of equal ones the more probable length
        pruned = torch.ones_like(scores, dtype=torch.bool)
        self.pruned = pruned.scatter(1, best[:, :num_kept], False).flatten() | self.pruned
        return True

    def scores(self, scores: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C) by which candidates are compared: `candidate_scores`, or what is given, and the weighted consensus.

        -inf at those given up.
        """
        options, pruned = self.options, self.pruned.view(self.shape)
        lengths = self.lengths.view(self.shape)
        if scores is None:
            scores = candidate_scores(self.log_probs.reshape(*self.shape, -1), lengths, options)
        if options.consensus_weight and options.num_length_candidates > 1:
            tokens = self.tokens.reshape(*self.shape, -1)
            ends = first_end(tokens, lengths, self.model.config.eos_token_id)
            scores = scores + options.consensus_weight * consensus(tokens, ends, ~pruned)
        return scores.masked_fill(pruned, -math.inf)

    def keep(self, going_on: torch.Tensor, iteration: int) -> None:
        """Let rows leave. Sources stay shared where each has as many rows left, else each row gets its own."""
        self.write_back(iteration)
        kept = going_on.nonzero().flatten()
        self.rows = self.rows[kept]
        self.now = tuple(value[kept] for value in self.now)
        self.order = self.order.select(kept)
        if self.rows.numel():
            self.select(kept)

    def select(self, kept: torch.Tensor) -> None:
        """Reduce the state to its canvas rows `kept`, which are `rows` now."""
        needed, counts = self.source_of_row[self.rows].unique_consecutive(return_counts=True)
        if not bool((counts == counts[0]).all()):
            needed = self.source_of_row[self.rows]
        if torch.equal(needed, self.served_by):
            self.state = self.state.select(kept, None)
            return
        # Any row of the state that holds the source does.
        holder = torch.zeros_like(self.source_of_row)
        holder[self.served_by] = torch.arange(self.served_by.shape[0], device=holder.device)
        self.state = self.state.select(kept, holder[needed])
        self.served_by = needed


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
    """How much candidates say the same, as in minimum Bayes risk decoding (Kumar and Byrne, 2004).

    Of two candidates the share of their tokens that the other has, too, the same of their pairs of neighbouring
    tokens, and the mean of both; of this the mean over the other candidates.

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
    shares = 0.0
    for counts, found in ((ends, same), (ends - 1, same[..., :-1, :-1] & same[..., 1:, 1:])):
        found = found.any(dim=-1).sum(dim=-1)  # (B, C, C), how many of the first are in the second
        counts = (counts[:, :, None] + counts[:, None, :]).clamp(min=1)
        shares = shares + (found + found.transpose(1, 2)) / counts
    others = voters[:, None, :] & ~torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
    return (shares * others).sum(dim=-1) / (2 * others.sum(dim=-1).clamp(min=1))
