"""The terms of the training loss (Eq. 8 of the paper and its length term), and the scores and choice of candidates.

The functions are pure, compute in float32 whatever the input's dtype, and do not loop over sentences or n-grams.
Shapes: B sentences, C length candidates, T target positions, V vocabulary, N masked positions of the whole batch,
L length classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .configuration_jmnat import JMNatOptions

NGRAM_ALIGNMENTS = ("any", "gold")


# Preference for a length that no predicted class maps to, in log-probability.
NOT_PREDICTED = -1e6
# Models may pad their vocabulary to a multiple of 8 (fairseq) or of up to 64 (for speed on a GPU).
VOCABULARY_PADDING = 64
# Elements of logits that a reranker computes at once; larger batches are scored in several parts.
MAX_LOGITS = 2**27
# Elements of logits per block: on a CPU a block should fit its cache, on a GPU it should keep the device busy.
BLOCK = {"cpu": 2**18}
LARGE_BLOCK = 2**28


class _ChosenLogProbs(torch.autograd.Function):
    """See `chosen_log_probs`. Backward recomputes the softmax, so that no log-probabilities have to be kept."""

    @staticmethod
    def blocks(logits: torch.Tensor):
        rows = max(1, BLOCK.get(logits.device.type, LARGE_BLOCK) // logits.shape[1])
        return (slice(begin, begin + rows) for begin in range(0, len(logits), rows))

    @staticmethod
    def forward(ctx, logits, tokens):
        chosen = logits.new_empty(tokens.shape, dtype=torch.float32)
        means = logits.new_empty(len(logits), dtype=torch.float32)
        for block in _ChosenLogProbs.blocks(logits):
            log_probs = logits[block].log_softmax(dim=1, dtype=torch.float32)
            chosen[block] = log_probs.gather(1, tokens[block])
            means[block] = log_probs.mean(dim=1)
        ctx.save_for_backward(logits, tokens)
        return chosen, means

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_chosen, grad_means):
        logits, tokens = ctx.saved_tensors
        grad = torch.empty_like(logits)
        # d log p_v / d logit_w = [v = w] - p_w
        weights = (grad_chosen.sum(dim=1) + grad_means).neg_().unsqueeze(1)
        spread = grad_means.div(logits.shape[1]).unsqueeze(1)
        for block in _ChosenLogProbs.blocks(logits):
            probs = logits[block].softmax(dim=1, dtype=torch.float32)
            torch.addcmul(spread[block], probs, weights[block], out=probs)
            grad[block] = probs.scatter_add_(1, tokens[block], grad_chosen[block])
        return grad, None


def chosen_log_probs(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (N, K) of `tokens` (N, K) under softmax of logits (N, V), and their means (N,) over all V.

    Same result as `log_softmax` and `gather`, in less memory and time. Normalised logits are left unchanged.
    """
    return _ChosenLogProbs.apply(logits, tokens)


def smoothed_nll(target_log_probs: torch.Tensor, mean_log_probs: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Sum of `(1 - smoothing) * -log p(target) + smoothing * mean over V of -log p`, from both log-probabilities."""
    if smoothing == 0.0:
        return -target_log_probs.sum()
    return -(1.0 - smoothing) * target_log_probs.sum() - smoothing * mean_log_probs.sum()


def label_smoothed_nll(logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """`torch.nn.functional.cross_entropy(..., label_smoothing=smoothing, reduction="sum")`.

    Args:
        logits: (N, V).
        targets: (N,), token ids; no padding.
    """
    log_probs, means = chosen_log_probs(logits, targets.unsqueeze(1))
    return smoothed_nll(log_probs, means, smoothing)


def length_nll(length_logits: torch.Tensor, target_lengths: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Sum over sentences of the negative log-likelihood of the target length (section 4.4).

    With `smoothing`, it averages over all lengths from 1, weighted by a normalised Gaussian around the target length
    with that standard deviation: separate classes do not express that near lengths are nearly right.

    Args:
        length_logits: (B, L), one class per number of target tokens; class 0 is impossible (the dtype's minimum).
        target_lengths: (B,), `</s>` included; a sentence without a target has length 0 and adds nothing.
    """
    if not smoothing:
        return F.cross_entropy(length_logits.float(), target_lengths, ignore_index=0, reduction="sum")
    lengths = torch.arange(1, length_logits.shape[1], device=length_logits.device)
    distances = (lengths - target_lengths[:, None]).float() / smoothing
    weights = (-0.5 * distances.square()).softmax(dim=1) * (target_lengths > 0)[:, None]
    return -(weights * length_logits[:, 1:].log_softmax(dim=1, dtype=torch.float32)).sum()


def reference_log_probs(
    logits: torch.Tensor, labels: torch.Tensor, masked_positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of all reference tokens at every masked position: entry [b, t, s] = log p_{b,t}(y_{b,s}).

    Args:
        logits: (N, V), the rows of the masked positions in row-major order.
        labels: (B, T), -100 at padding.
        masked_positions: (B, T) bool with N True entries.

    Returns:
        (B, T, T) float32; 0 in rows that are not masked and in columns of padding, which must not be read. The
        diagonal holds the log-probabilities of the targets. Also (N,), each row's mean log-probability over V.

    Raises:
        ValueError: `masked_positions` has another shape than `labels`.
    """
    if labels.shape != masked_positions.shape:
        raise ValueError(
            f"masked_positions has shape {tuple(masked_positions.shape)} but must have that of labels, "
            f"{tuple(labels.shape)}"
        )
    batch_size, length = labels.shape
    num_masked = logits.shape[0]
    if num_masked == 0:
        none = logits.float().sum(dim=1)  # (0,)
        return none.new_zeros(batch_size, length, length) + none.sum(), none
    references = labels.clamp(min=0)
    # With the total given, repeat_interleave does not synchronise with the device.
    references = references.repeat_interleave(masked_positions.sum(dim=1), dim=0, output_size=num_masked)
    token_log_probs, means = chosen_log_probs(logits, references)  # (N, T), (N,)
    row_of_position = (masked_positions.flatten().cumsum(dim=0) - 1).clamp(min=0)
    token_log_probs = token_log_probs.index_select(0, row_of_position).view(batch_size, length, length)
    unused = ~masked_positions.unsqueeze(2) | (labels == -100).unsqueeze(1)
    return token_log_probs.masked_fill(unused, 0.0), means  # (B, T, T), (N,)


def ngram_loss(
    token_log_probs: torch.Tensor,
    labels: torch.Tensor,
    masked_positions: torch.Tensor,
    ngram_size: int = 2,
    alignment: str = "any",
) -> torch.Tensor:
    """Expected number of reference n-grams that the decoder misses (Eq. 6-7), per sentence.

    A holds the positions t for which t..t+n-1 are all masked, q_t(g) is the product of the n probabilities of g's
    tokens there, C(g) the number of times that g starts in A of the reference. Summed over distinct n-grams g:

        L_gram = |A| - sum_g min(C(g), sum_{t in A} q_t(g))

    The bound is |A|, not the paper's number of masked sets, because the matches exceed that where sets touch.

    Args:
        token_log_probs: (B, T, T), entry [b, t, s] = log p_{b,t}(y_{b,s}), see `reference_log_probs`.
        labels: (B, T), -100 at padding.
        masked_positions: (B, T) bool.
        ngram_size: n >= 1.
        alignment: "any" counts an n-gram wherever in A the decoder predicts it; "gold" is the literal Eq. 6, where an
            n-gram counts only at its own position.

    Returns:
        (B,) float32 in [0, |A|]; 0 where A is empty.

    Raises:
        ValueError: `ngram_size` below 1 or an unknown `alignment`.
    """
    if ngram_size < 1:
        raise ValueError(f"ngram_size={ngram_size} must be at least 1")
    if alignment not in NGRAM_ALIGNMENTS:
        raise ValueError(f"alignment={alignment!r} is not one of {', '.join(NGRAM_ALIGNMENTS)}")
    num_starts = labels.shape[1] - ngram_size + 1
    if num_starts < 1:
        return token_log_probs.new_zeros(labels.shape[0], dtype=torch.float32)

    predicted = masked_positions & (labels != -100)
    # W = T - n + 1 possible starts; every tensor below is a sum or conjunction of n shifted views.
    windows = [slice(i, i + num_starts) for i in range(ngram_size)]
    starts = torch.stack([predicted[:, window] for window in windows]).all(dim=0)  # (B, W), True for t in A
    num_ngrams = starts.sum(dim=1).float()

    if alignment == "gold":
        gold_log_probs = token_log_probs.float().diagonal(dim1=1, dim2=2)  # (B, T)
        start_log_probs = torch.stack([gold_log_probs[:, window] for window in windows]).sum(dim=0)
        return num_ngrams - start_log_probs.masked_fill(~starts, float("-inf")).exp().sum(dim=1)

    pairs = starts.unsqueeze(2) & starts.unsqueeze(1)  # (B, W, W)
    log_probs = token_log_probs.new_zeros((), dtype=torch.float32)
    for window in windows:
        log_probs = log_probs + token_log_probs[:, window, window].float()
    # Filled before exp, so that values outside A, even infinite ones, reach neither the sum nor its gradient.
    expected = log_probs.masked_fill(~pairs, float("-inf")).exp().sum(dim=1)  # (B, W): sum over t in A of q_t(g_s)

    counts, is_first = _count_ngrams(labels, pairs, starts, windows)
    # Each distinct n-gram counts once, at its first start.
    matches = torch.minimum(expected, counts.float()).masked_fill(~is_first, 0.0)
    return num_ngrams - matches.sum(dim=1)


def _count_ngrams(
    labels: torch.Tensor, pairs: torch.Tensor, starts: torch.Tensor, windows: list[slice]
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each start s in A: the count C(g_s) of its n-gram (B, W), and whether s is that n-gram's first start (B, W).

    Args:
        pairs: (B, W, W) bool, True where both starts are in A.
        starts: (B, W) bool, True for s in A.
        windows: n slices of T positions; slice i selects token i of the W n-grams.
    """
    same_token = labels.unsqueeze(2) == labels.unsqueeze(1)  # (B, T, T)
    same_ngram = pairs
    for window in windows:
        same_ngram = same_ngram & same_token[:, window, window]
    return same_ngram.sum(dim=2), starts & ~same_ngram.tril(diagonal=-1).any(dim=2)


# How candidates are compared in decoding -----------------------------------------------------------------------------


def first_end(tokens: torch.Tensor, lengths: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """Number of tokens (..) up to and including the first `</s>` in (.., T); the row's length if it has none."""
    positions = torch.arange(tokens.shape[-1], device=tokens.device)
    ends = torch.where(tokens == eos_token_id, positions + 1, tokens.shape[-1] + 1).amin(dim=-1)
    return torch.minimum(ends, lengths)


def length_divisors(lengths: torch.Tensor, options: JMNatOptions) -> torch.Tensor:
    """(T + length_offset)**length_normalization."""
    return (lengths + options.length_offset).float() ** options.length_normalization


def candidate_scores(log_probs: torch.Tensor, lengths: torch.Tensor, options: JMNatOptions) -> torch.Tensor:
    """Sum of log_probs (.., T), 0 at padding, divided by `length_divisors`."""
    return log_probs.sum(dim=-1) / length_divisors(lengths, options)


def consensus(tokens: torch.Tensor, ends: torch.Tensor, voters: torch.Tensor) -> torch.Tensor:
    """Agreement of each candidate with the others, as in minimum Bayes risk decoding (Kumar and Byrne, 2004).

    Mean, over the other candidates, of the unigram and bigram overlap (Dice coefficient) with this one.

    Args:
        tokens: (B, C, T).
        ends: (B, C) numbers of tokens.
        voters: (B, C) bool, True at candidates that the others are compared with.

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


class ModelReranker:
    """Scores candidates by an autoregressive sequence-to-sequence model that shares their vocabulary (section 4.4).

    Raises:
        ValueError: the model has no decoder_start_token_id.
    """

    def __init__(self, model: PreTrainedModel, pad_token_id: int):
        self.model, self.pad_token_id = model, pad_token_id
        starts = (getattr(x, "decoder_start_token_id", None) for x in (model.generation_config, model.config))
        self.start = next((start for start in starts if start is not None), None)
        if self.start is None:
            raise ValueError("reranker has no decoder_start_token_id: set it in its generation_config")

    @torch.no_grad()
    def score(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, candidate_ids: torch.Tensor
    ) -> torch.Tensor:
        """Mean log-probability (N,) of candidates (N, T), `</s>` included; -inf for a candidate without tokens.

        Candidates are padded on the right; each source (B, S) has N / B of them, in consecutive rows.
        """
        per_source, remainder = divmod(len(candidate_ids), len(input_ids))
        if remainder or not per_source:
            raise ValueError(
                f"candidate_ids has {len(candidate_ids)} rows but must have a multiple of input_ids' {len(input_ids)}"
            )
        states = self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        labels = candidate_ids.masked_fill(candidate_ids == self.pad_token_id, -100)
        inputs = F.pad(candidate_ids[:, :-1], (1, 0), value=self.start)  # (N, T)
        rows_at_once = max(1, MAX_LOGITS // (candidate_ids.shape[1] * self.model.config.vocab_size))
        scores = []
        for rows in torch.arange(len(candidate_ids), device=candidate_ids.device).split(rows_at_once):
            logits = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states[rows // per_source]),
                attention_mask=attention_mask[rows // per_source],
                decoder_input_ids=inputs[rows],
                decoder_attention_mask=torch.ones_like(inputs[rows]),
                use_cache=False,
            ).logits  # (rows, T, V)
            losses = F.cross_entropy(logits.float().transpose(1, 2), labels[rows], reduction="none")  # (rows, T)
            counts = (labels[rows] != -100).sum(dim=1)
            scores.append((-losses.sum(dim=1) / counts.clamp(min=1)).masked_fill(counts == 0, -torch.inf))
        return torch.cat(scores)


def reranker_scores(reranker, input_ids, attention_mask, candidates: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Scores (B, C) of candidates (B, C, T).

    Args:
        reranker: an autoregressive model, or an object with a method `score` like that of `ModelReranker`.
    """
    if not hasattr(reranker, "score"):
        reranker = ModelReranker(reranker, pad_token_id)
    return reranker.score(input_ids, attention_mask, candidates.flatten(0, 1)).view(candidates.shape[:2])


def check_same_vocabulary(reranker, own: int) -> None:
    """ValueError for no model, or one whose vocabulary size differs by more than padding for speed explains."""
    if not hasattr(reranker, "config"):
        raise ValueError(f"reranker is a {type(reranker).__name__} but must be an autoregressive model")
    if abs((theirs := reranker.config.vocab_size) - own) >= VOCABULARY_PADDING:
        raise ValueError(
            f"reranker has {theirs} tokens and the model {own}: it needs the same vocabulary, or a method `score`"
        )


def check_source_ids(input_ids, vocab_size: int) -> None:
    """ValueError unless the source is a tensor (B, S) of ids of the vocabulary, at least one.

    On a GPU, the ids themselves are not checked, because that would wait for it.
    """
    if not torch.is_tensor(input_ids):
        raise ValueError(
            f"input_ids is a {type(input_ids).__name__} but must be a tensor (B, S) of token ids: give "
            "generate(**tokenizer(text, return_tensors='pt')), or translate text with JMNatTranslationPipeline"
        )
    shape = tuple(input_ids.shape)
    if not input_ids.numel():
        raise ValueError(f"input_ids has shape {shape}: at least one token is needed")
    if len(shape) != 2:
        raise ValueError(f"input_ids has shape {shape} but must have (B, S): give a batch, also of a single sentence")
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise ValueError(f"input_ids has the type {input_ids.dtype} but must hold whole numbers: use input_ids.long()")
    extremes = (int(input_ids.min()), int(input_ids.max())) if input_ids.device.type == "cpu" else ()
    for wrong in (i for i in extremes if not 0 <= i < vocab_size):
        raise ValueError(
            f"input_ids holds {wrong}, but ids must lie in [0, {vocab_size}): use the tokenizer that was saved with "
            "this model"
        )


def check_target_lengths(target_lengths, num_sentences: int) -> torch.Tensor:
    """`target_lengths` as a tensor (B,); ValueError where it has another shape."""
    target_lengths = torch.as_tensor(target_lengths).long()
    if target_lengths.shape != (num_sentences,):
        raise ValueError(
            f"target_lengths has shape {tuple(target_lengths.shape)} "
            f"but must hold one length for each of {num_sentences} sentences"
        )
    return target_lengths


def length_preferences(length_log_probs: torch.Tensor, longest: int, shift: int) -> torch.Tensor:
    """Preferences (B, longest - 1) for the target lengths from 2 to `longest`: the classes (B, L), moved by `shift`.

    A length out of range counts as the nearest one in range. Lengths without a class come last, the nearest first.
    """
    classes = torch.arange(longest + 1, device=length_log_probs.device)
    lengths = (classes + shift).clamp(min=2, max=longest)
    nearest = classes.clamp(min=1 + shift, max=longest + shift)
    preferences = (NOT_PREDICTED - (classes - nearest).abs()).to(length_log_probs).repeat(len(length_log_probs), 1)
    preferences.scatter_reduce_(1, lengths.expand_as(preferences), length_log_probs[:, : longest + 1], "amax")
    return preferences[:, 2:]


@dataclass
class JMNatGenerateOutput(ModelOutput):
    """Result of `generate(..., return_dict_in_generate=True)`; R is B num_return_sequences, best first.

    Args:
        sequences: (R, T') ids up to and including the first `</s>`, padded on the right.
        sequences_scores: (R,) log-probability / (T + length_offset)**length_normalization + consensus_weight *
            consensus. With a reranker, its mean log-probability replaces the model's.
        token_scores: (R, T') log-probabilities, 0 at padding; with a CRF, means of its marginals' and the network's.
        lengths: (R,) T of the candidate, `</s>` included, without deleted or collapsed repeats.
        num_passes: (B,) most passes that any candidate of the sentence took.
        tokens_per_forward: (R,) tokens of each sequence per decoder pass, as text diffusion models report it.
        history: with `output_history`, one `JMNatPass` per pass; `history[-1].tokens` are the final candidates, before
            repeats are collapsed.
        candidate_lengths: (B, C) the lengths that were tried, most probable first.
        best_candidates: (B, num_return_sequences) index of each returned sequence among the candidates.
    """

    sequences: torch.Tensor | None = None
    sequences_scores: torch.Tensor | None = None
    token_scores: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    num_passes: torch.Tensor | None = None
    tokens_per_forward: torch.Tensor | None = None
    history: tuple[Any, ...] | None = None
    candidate_lengths: torch.Tensor | None = None
    best_candidates: torch.Tensor | None = None


def choose_candidates(
    decoding, source_mask=None, input_ids=None, reranker=None
) -> tuple[JMNatGenerateOutput, torch.Tensor]:
    """The `num_return_sequences` best candidates of each sentence, best first, and their lengths in tokens (R,).

    Args:
        decoding: a `MaskPredict` after its last pass.
    """
    options, config, shape = decoding.options, decoding.model.config, decoding.lengths.shape
    tokens, log_probs, num_passes, lengths = (values.unflatten(0, shape) for values in decoding.texts())
    ends = first_end(tokens, lengths, config.eos_token_id)  # (B, C)
    texts = tokens.masked_fill(decoding.positions >= ends[..., None], config.pad_token_id)  # (B, C, T)
    scores = None
    if reranker is not None:
        means = reranker_scores(reranker, input_ids, source_mask.long(), texts, config.pad_token_id)
        scores = (means * (lengths / length_divisors(lengths, options)).to(means)).to(lengths.device)
    scores, best = decoding.scores(scores).sort(dim=1, descending=True, stable=True)  # ties: more probable length
    scores, best = (values[:, : options.num_return_sequences] for values in (scores, best))
    sentence = torch.arange(best.shape[0], device=best.device)[:, None]
    ends = ends[sentence, best].flatten()
    token_scores = log_probs[sentence, best].flatten(0, 1)
    output = JMNatGenerateOutput(
        sequences=texts[sentence, best].flatten(0, 1),
        sequences_scores=scores.flatten(),
        token_scores=token_scores.masked_fill(decoding.positions >= ends[:, None], 0.0),
        lengths=lengths[sentence, best].flatten(),
        num_passes=num_passes.amax(dim=1),
        history=tuple(decoding.history) if options.output_history else None,
        candidate_lengths=decoding.lengths,
        best_candidates=best,
    )
    return output, ends
