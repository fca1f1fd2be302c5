"""Decoding of JM-NAT (section 4.4): candidate lengths, a canvas of `<mask>`, k passes, choice of the best candidate.

The loop asks three methods of its model, `encode_for_generation`, `prepare_decoding` and `predict_tokens`, so that
every backend shares it. B sentences, C length candidates, R = B C rows (less when rows have stopped), T positions.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.utils import ModelOutput

from .configuration_jmnat import OPTION_NAMES, JMNatOptions, resolve_options

MOST_KEPT = 0.75  # candidates given up leave a batch of several sentences when at most so many of its rows stay

# What Trainer and pipelines hand to `generate` beside its arguments; it has no meaning here.
IGNORED_ARGUMENTS = (
    "labels",
    "decoder_input_ids",
    "decoder_attention_mask",
    "masked_positions",
    "encoder_targets",
    "loss_denominators",
    "synced_gpus",
    "use_cache",
)


class JMNatPass(NamedTuple):
    """One pass over all candidates; positions beyond a candidate's length hold `<pad>`."""

    canvas: torch.LongTensor  # (B, C, T) what the decoder read
    tokens: torch.LongTensor  # (B, C, T) the candidate after the pass
    log_probs: torch.FloatTensor  # (B, C, T) of these tokens


@dataclass
class JMNatGenerateOutput(ModelOutput):
    """Result of `generate(..., return_dict_in_generate=True)`; R is B num_return_sequences, best first.

    Args:
        sequences: (R, T') ids up to and with the first `</s>`, padded on the right.
        sequences_scores: (R,) log-probability / (T + length_offset)**length_normalization, or the reranker's score.
        token_scores: (R, T') log-probabilities, 0 at padding.
        lengths: (R,) T of the candidate, `</s>` included.
        num_passes: (B,) most passes that any candidate of the sentence took.
        history: with `output_history`, one `JMNatPass` per pass.
        candidate_lengths: (B, C) the lengths tried, most probable first.
        best_candidates: (B, num_return_sequences) index of each returned sequence among the candidates.
    """

    sequences: torch.LongTensor | None = None
    sequences_scores: torch.FloatTensor | None = None
    token_scores: torch.FloatTensor | None = None
    lengths: torch.LongTensor | None = None
    num_passes: torch.LongTensor | None = None
    history: tuple[JMNatPass, ...] | None = None
    candidate_lengths: torch.LongTensor | None = None
    best_candidates: torch.LongTensor | None = None


class RestrictedVocabulary(NamedTuple):
    """The part of the vocabulary that is predicted with a shortlist."""

    ids: torch.LongTensor  # (N,)
    weight: torch.Tensor  # (N, D) rows of the output projection

    def predict(self, states: torch.Tensor, suppressed: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Decoder states (.., D) -> most probable ids (..) and their log-probabilities among `ids`."""
        logits = states @ self.weight.T
        if suppressed is not None:
            logits = logits.masked_fill(suppressed[self.ids], -math.inf)
        best, index = logits.max(dim=-1)
        return self.ids[index], best.float() - logits.float().logsumexp(dim=-1)


@dataclass
class JMNatDecodingState:
    """What all passes share. Tensors over sources have B rows, each serving R/B consecutive canvas rows.

    Args:
        attend_mask: (R, 1, 1 or T, T) bool for self- and positional attention.
        encoder_attend_mask: (B, 1, 1, S) bool.
        key_values: per layer, keys and values of cross-attention, (B, H, S, D/H) each.
        position_probs: per layer, probabilities of positional attention (R, H, T, T).
        positions: their embeddings (1, T, D).
        vocabulary: what is predicted; None: all tokens.
    """

    attend_mask: torch.Tensor
    encoder_attend_mask: torch.Tensor | None = None
    key_values: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    position_probs: list[torch.Tensor] | None = None
    positions: torch.Tensor | None = None
    vocabulary: RestrictedVocabulary | None = None

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
            vocabulary=self.vocabulary,
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


def remask_order(log_probs: torch.Tensor, lengths: torch.Tensor, set_size: int = 1) -> torch.Tensor:
    """Positions (R, T) of each row in the order in which they are masked again, see `RemaskOrder`."""
    return RemaskOrder(lengths, log_probs.shape[1], set_size)(log_probs)


def unlikely_lengths(log_probs: torch.Tensor, options: JMNatOptions) -> torch.Tensor | None:
    """Which of C lengths, of log_probs (B, C) falling, are less probable than `length_threshold` times the first.

    Returns:
        (B, C) bool, None where every length is tried. As many as are to be returned are never unlikely.
    """
    if options.length_threshold == 0.0 or log_probs.shape[1] <= options.num_return_sequences:
        return None
    unlikely = log_probs < log_probs[:, :1] + math.log(options.length_threshold)
    unlikely[:, : options.num_return_sequences] = False
    return unlikely


def first_end(tokens: torch.Tensor, lengths: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """Number of tokens (..) up to and with the first `</s>` of (.., T), all of a row's tokens where it has none."""
    positions = torch.arange(tokens.shape[-1], device=tokens.device)
    ends = torch.where(tokens == eos_token_id, positions + 1, tokens.shape[-1] + 1).amin(dim=-1)
    return torch.minimum(ends, lengths)


class MaskPredict:
    """The passes over one batch of canvases. Rows that stop leave the batch: `rows` are those that still go on.

    Args:
        model: anything with `config`, `prepare_decoding` and `predict_tokens`.
        options: resolved options.
        lengths: (B, C) target lengths.
        suppressed: (V,) bool, True at ids that are never predicted, or None.
        num_positions: T, at least the longest length; None asks the device for that length. With it, candidates that
            are given up stay in the batch, so that no step waits for the device.
        unlikely: (B, C) bool, True at lengths that are not tried, or None.
        vocabulary: (N,) the only ids that are predicted, or None.

    After `run`, `tokens` and `log_probs` are (B, C, T), `num_passes` and `pruned` (B, C).
    """

    def __init__(
        self,
        model,
        options: JMNatOptions,
        lengths: torch.Tensor,
        suppressed: torch.Tensor | None,
        num_positions: int | None = None,
        unlikely: torch.Tensor | None = None,
        vocabulary: torch.Tensor | None = None,
    ):
        self.model = model
        self.options = options
        self.suppressed = suppressed
        self.vocabulary = vocabulary
        self.mask_token_id = model.config.mask_token_id
        self.shape = lengths.shape
        self.lengths = lengths.flatten()  # (R,)
        self.rows = torch.arange(self.lengths.shape[0], device=lengths.device)
        self.rows_leave = num_positions is None
        self.idle_rows = False  # whether some of `rows` may have been given up and stay nonetheless
        self.pruned = torch.zeros_like(self.lengths, dtype=torch.bool) if unlikely is None else unlikely.flatten()
        if unlikely is not None and self.rows_leave:
            self.rows = self.rows[~self.pruned]
        if num_positions is None:
            shortest, self.longest = torch.stack(self.lengths[self.rows].aminmax()).tolist()
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
        self.order = RemaskOrder(self.lengths[self.rows], self.longest, set_size)
        # Of the rows that still go on; written back when they leave.
        self.now = (self.tokens[self.rows], self.log_probs[self.rows])

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
        num_sources = self.shape[0]
        if num_sources == 1 or self.rows.numel() == self.lengths.numel():
            self.state = self.model.prepare_decoding(states, source_mask, self.target_mask[self.rows])
        else:
            self.state = self.model.prepare_decoding(states, source_mask, self.target_mask)
            self.select(self.rows)
        if self.vocabulary is not None:
            weight = self.model.output_weight(self.vocabulary)
            self.state.vocabulary = RestrictedVocabulary(self.vocabulary, weight)

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
        """Give up candidates that are too far behind after pass `iteration` + 1; False where nothing was looked at."""
        options = self.options
        num_kept = options.num_return_sequences
        only_best = options.prune_candidates == iteration + 1
        if not only_best and (options.prune_threshold == 0.0 or self.nothing_left_to_prune()):
            return False
        self.write_back(iteration)
        scores = candidate_scores(self.log_probs, self.lengths, options).masked_fill(self.pruned, -math.inf)
        scores = scores.view(self.shape)
        best = scores.topk(num_kept, dim=1)
        pruned = torch.ones_like(scores, dtype=torch.bool)
        if not only_best:
            pruned = scores < best.values[:, :1] + math.log(options.prune_threshold)
        self.pruned = pruned.scatter(1, best.indices, False).flatten() | self.pruned
        return True

    def nothing_left_to_prune(self) -> bool:
        """Whether every sentence is known to be down to the candidates that are to be returned."""
        stops = self.options.early_stop or self.options.confidence_threshold is not None  # by other rules than pruning
        return not stops and self.rows.numel() <= self.options.num_return_sequences * self.shape[0]

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


def candidate_scores(log_probs: torch.Tensor, lengths: torch.Tensor, options: JMNatOptions) -> torch.Tensor:
    """Sum of log_probs (.., T), which are 0 at padding, / (T + length_offset)**length_normalization."""
    divisors = (lengths + options.length_offset).to(log_probs.dtype) ** options.length_normalization
    return log_probs.sum(dim=-1) / divisors


def reranker_scores(reranker, input_ids, attention_mask, candidates: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Mean log-probability of candidates (B, C, T), padded, under an autoregressive seq2seq model: (B, C).

    An object with a method `score(input_ids, attention_mask, candidate_ids)` (B source rows, B C candidate rows) is
    asked for it; any other is run with teacher forcing and must share the vocabulary.
    """
    batch_size, num_candidates, _ = candidates.shape
    flat = candidates.flatten(0, 1)
    if hasattr(reranker, "score"):
        return reranker.score(input_ids, attention_mask, flat).view(batch_size, num_candidates)
    encoder_outputs = reranker.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
    states = encoder_outputs[0].repeat_interleave(num_candidates, dim=0)
    labels = flat.masked_fill(flat == pad_token_id, -100)
    logits = reranker(
        encoder_outputs=(states,),
        attention_mask=attention_mask.repeat_interleave(num_candidates, dim=0),
        labels=labels,
    ).logits
    valid = labels != -100
    log_probs = logits.float().log_softmax(dim=-1).gather(2, labels.clamp(min=0)[:, :, None]).squeeze(2)
    return (log_probs * valid).sum(dim=1).div(valid.sum(dim=1)).view(batch_size, num_candidates)


class JMNatGenerationMixin(GenerationMixin):
    """`generate` for models that predict all target tokens at once."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor=None,
        stopping_criteria=None,
        streamer=None,
        target_lengths: torch.Tensor | None = None,
        reranker=None,
        shortlist=None,
        **kwargs,
    ) -> torch.LongTensor | JMNatGenerateOutput:
        """Translate in exactly `num_iterations` passes over the candidates of the most probable lengths.

        Options come from the keyword arguments, then from `generation_config`, then from the model's own, then from
        the defaults; `JMNatGenerationConfig` explains them. The result of a sentence depends on nothing else in
        its batch.

        Args:
            inputs: (B, S) source ids, also as `input_ids`; or `inputs_embeds`, or `encoder_outputs`.
            target_lengths: (B,) lengths to use instead of the predicted ones; C candidates form a window around them.
            reranker: an autoregressive seq2seq model that chooses among the candidates (noisy parallel decoding).
            shortlist: an object whose `ids(input_ids)` gives the only tokens (N,) that are predicted for a batch, such
                as `shortlist.Shortlist`. These depend on all its sentences, and so may a translation.

        Returns:
            (B num_return_sequences, L) ids padded on the right, or a `JMNatGenerateOutput` with
            `return_dict_in_generate=True` or `output_history=True`.

        Raises:
            ValueError: an option out of its range, an unknown or unsupported argument.
        """
        if logits_processor or stopping_criteria or streamer:
            raise ValueError(
                "logits_processor, stopping_criteria and streamer are not supported: all words are predicted at once"
            )
        kwargs = {name: value for name, value in kwargs.items() if name not in IGNORED_ARGUMENTS}
        input_ids = kwargs.pop("input_ids", inputs)
        source = {name: kwargs.pop(name, None) for name in ("attention_mask", "inputs_embeds", "encoder_outputs")}
        options = self._resolve_generation_options(generation_config, kwargs)
        if input_ids is None and reranker is not None:
            raise ValueError("reranker needs input_ids: inputs_embeds or encoder_outputs alone are not enough")
        if input_ids is None and shortlist is not None:
            raise ValueError("shortlist needs input_ids: inputs_embeds or encoder_outputs alone are not enough")

        states, source_mask, length_log_probs = self.encode_for_generation(input_ids, **source)
        if reranker is not None:  # it chooses among all candidates
            options = replace(options, length_threshold=0.0, prune_threshold=0.0)
        lengths, unlikely = self._choose_lengths(length_log_probs, options, target_lengths)
        vocabulary = None if shortlist is None else shortlist.ids(input_ids)
        output, ends = self._decode(
            options, lengths, states, source_mask, input_ids, reranker, unlikely=unlikely, vocabulary=vocabulary
        )
        width = int(ends.max())
        if not (options.return_dict_in_generate or options.output_history):
            return output.sequences[:, :width]
        output.sequences, output.token_scores = output.sequences[:, :width], output.token_scores[:, :width]
        return output

    def _decode(
        self,
        options: JMNatOptions,
        lengths: torch.Tensor,
        states,
        source_mask: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        reranker=None,
        num_positions: int | None = None,
        unlikely: torch.Tensor | None = None,
        vocabulary: torch.Tensor | None = None,
    ) -> tuple[JMNatGenerateOutput, torch.Tensor]:
        """All passes and the choice: the output, T wide, and the numbers (R,) of tokens in its sequences.

        With `num_positions` = T and no rule that stops rows, no step waits for the device.
        """
        suppressed = self._suppressed_tokens(options, lengths.device)
        decoding = MaskPredict(self, options, lengths, suppressed, num_positions, unlikely, vocabulary)
        copied = None
        if self.config.decoder_input == "source_copy":
            copied = self.copy_source(input_ids, source_mask, decoding.target_mask)
        decoding.run(states, source_mask, copied)
        return self._finish_decoding(decoding, lengths, source_mask, input_ids, reranker)

    def _finish_decoding(
        self, decoding: MaskPredict, lengths: torch.Tensor, source_mask=None, input_ids=None, reranker=None
    ) -> tuple[JMNatGenerateOutput, torch.Tensor]:
        """Score the candidates and choose, see `_decode`."""
        options = decoding.options
        ends = first_end(decoding.tokens, lengths, self.config.eos_token_id)  # (B, C)
        texts = decoding.tokens.masked_fill(decoding.positions >= ends[..., None], self.config.pad_token_id)
        if reranker is None:
            scores = candidate_scores(decoding.log_probs, lengths, options)
        else:
            scores = reranker_scores(reranker, input_ids, source_mask.long(), texts, self.config.pad_token_id)
        return self._best_candidates(decoding, lengths, ends, texts, scores.to(lengths.device))

    def _best_candidates(self, decoding: MaskPredict, lengths, ends, texts, scores):
        """The `num_return_sequences` candidates with the highest scores (B, C) of each sentence, best first."""
        options = decoding.options
        scores = scores.masked_fill(decoding.pruned, -math.inf)
        scores, best = scores.topk(options.num_return_sequences, dim=1)  # (B, num_return_sequences)
        sentence = torch.arange(best.shape[0], device=best.device)[:, None]
        ends = ends[sentence, best].flatten()
        token_scores = decoding.log_probs[sentence, best].flatten(0, 1)
        output = JMNatGenerateOutput(
            sequences=texts[sentence, best].flatten(0, 1),
            sequences_scores=scores.flatten(),
            token_scores=token_scores.masked_fill(decoding.positions >= ends[:, None], 0.0),
            lengths=lengths[sentence, best].flatten(),
            num_passes=decoding.num_passes.amax(dim=1),
            history=tuple(decoding.history) if options.output_history else None,
            candidate_lengths=lengths,
            best_candidates=best,
        )
        return output, ends

    def _resolve_generation_options(self, generation_config, kwargs: dict[str, Any]) -> JMNatOptions:
        """Merge and check; whatever is left in `kwargs` is a mistake and is named."""
        kwargs = dict(kwargs)
        num_beams = kwargs.pop("num_beams", None)
        if num_beams is not None:  # what Seq2SeqTrainer and pipelines call the width of the search
            kwargs.setdefault("num_length_candidates", num_beams)
        max_new_tokens = kwargs.pop("max_new_tokens", None)
        if max_new_tokens is not None:  # nothing comes before the new tokens
            kwargs["max_length"] = max_new_tokens
        unset = (None, False)
        unknown = [name for name in kwargs if name not in OPTION_NAMES and not any(kwargs[name] is x for x in unset)]
        if unknown:
            raise ValueError(
                f"generate got {', '.join(sorted(unknown))}, which it does not know; options are "
                f"{', '.join(OPTION_NAMES)}, target_lengths, reranker and shortlist"
            )
        sources = [kwargs, generation_config, self.generation_config]
        options = resolve_options(*(source for source in sources if source is not None))
        options.check()
        if self.config.decoder_input == "source_copy" and options.num_iterations > 1:
            raise ValueError(
                f"num_iterations={options.num_iterations} must be 1 with decoder_input='source_copy': "
                "the basic NAT has no masks to refine"
            )
        return options

    def _choose_lengths(
        self, length_log_probs, options: JMNatOptions, target_lengths
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, C) candidate lengths, from 2 (one token and `</s>`) to the longest allowed, and which are unlikely."""
        unlikely = None
        num_candidates = options.num_length_candidates
        longest = length_log_probs.shape[1] - 1
        if options.max_length is not None:
            longest = min(longest, options.max_length)
        if num_candidates > longest:
            raise ValueError(f"num_length_candidates={num_candidates} is more than the {longest} lengths there are")
        if target_lengths is None:
            best = length_log_probs[:, : longest + 1].topk(num_candidates, dim=1)
            lengths, unlikely = best.indices, unlikely_lengths(best.values, options)
        else:
            target_lengths = torch.as_tensor(target_lengths, device=length_log_probs.device).long()
            if target_lengths.shape != length_log_probs.shape[:1]:
                raise ValueError(
                    f"target_lengths has shape {tuple(target_lengths.shape)}, "
                    f"it must hold one length for each of {length_log_probs.shape[0]} sentences"
                )
            # The length itself first, then its neighbours: +1, -1, +2, -2, ...
            steps = [(i + 1) // 2 * (1 if i % 2 else -1) for i in range(num_candidates)]
            lengths = target_lengths[:, None] + torch.tensor(steps, device=target_lengths.device)
        return lengths.clamp(min=2, max=max(longest, 2)), unlikely

    def _suppressed_tokens(self, options: JMNatOptions, device) -> torch.Tensor | None:
        """(V,) bool, True at ids that are never predicted; None when there are none."""
        ids = options.suppress_tokens
        if ids is None:
            ids = [self.config.pad_token_id, self.config.mask_token_id, self.config.bos_token_id]
        ids = [i for i in ids if i is not None]
        if not ids:
            return None
        if min(ids) < 0 or max(ids) >= self.config.vocab_size:
            raise ValueError(f"suppress_tokens={ids} must lie in [0, {self.config.vocab_size})")
        suppressed = torch.zeros(self.config.vocab_size, dtype=torch.bool, device=device)
        for i in ids:  # one by one: a list of indices would be copied to the device, which waits for it
            suppressed[i].fill_(True)
        return suppressed

    def adjust_generation_fn(self, generation_config, *args, **kwargs):
        """Load our own class of generation config; the inherited method would read the base class and drop options."""
        names = ("from_auto_class", "from_pipeline", "pretrained_model_name_or_path")
        kwargs.update(zip(names, args, strict=False))
        path = kwargs.pop("pretrained_model_name_or_path", None)
        if generation_config is not None:
            self.generation_config = self.generation_config_class.from_dict(generation_config.to_dict())
            return
        if path is None:
            return
        for name in ("from_auto_class", "from_pipeline", "trust_remote_code"):
            kwargs.pop(name, None)
        try:
            self.generation_config = self.generation_config_class.from_pretrained(path, **kwargs)
        except OSError:  # no such file: the defaults, made from the model's config, stay
            return
