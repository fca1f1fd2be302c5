"""Decoding of JM-NAT (section 4.4): candidate lengths, the passes of `passes_jmnat`, choice of the best candidate.

A model with `encode_for_generation`, `prepare_decoding` and `predict_tokens` gets `generate` from here, whatever
computes it. B sentences, C length candidates, T positions.
"""

import difflib
import functools
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.utils import ModelOutput

from .configuration_jmnat import (
    OPTION_NAMES,
    REPEAT_RULES,
    JMNatOptions,
    resolve_options,
    saved_generation_config,
    under_own_names,
)
from .losses_jmnat import first_end, length_divisors, reranker_scores
from .passes_jmnat import JMNatPass, MaskPredict

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
# Of Transformers' own `generate`: those that are understood here, and what to use in place of the others.
UNDERSTOOD_OPTIONS = (
    *("num_beams", "max_new_tokens", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
    *("use_cache", "transformers_version"),
)
SUBSTITUTES = {
    "did you mean early_stop?": ("early_stopping",),
    "did you mean length_normalization?": ("length_penalty", "exponential_decay_length_penalty"),
    "did you mean num_length_candidates?": ("num_beam_groups", "diversity_penalty"),
    "did you mean suppress_tokens, a list of single ids?": ("bad_words_ids", "begin_suppress_tokens", "sequence_bias"),
    "each pass takes the most probable tokens, nothing is sampled": (
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        "penalty_alpha",
    ),
    "did you mean remask_repeats, delete_repeats or collapse_repeats?": (
        *("no_repeat_ngram_size", "repetition_penalty", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty"),
    ),
    "lengths are chosen before words: set target_lengths, or favour longer ones by length_normalization": (
        *("min_length", "min_new_tokens"),
    ),
    "the scores are part of the output with return_dict_in_generate=True": ("output_scores",),
    "did you mean output_history?": ("output_logits", "output_attentions", "output_hidden_states", "return_history"),
    "num_iterations decides how long decoding takes": ("max_time", "stop_strings"),
    "it is an argument of generate": ("target_lengths", "reranker", "streamer", "generation_config"),
}
# Preference for a length that no prediction leads to, in log-probability.
NOT_PREDICTED = -1e6
# A vocabulary may be rounded up in a model, to a multiple of 8 (fairseq) or of up to 64 (for speed on a GPU).
VOCABULARY_PADDING = 64


@dataclass
class JMNatGenerateOutput(ModelOutput):
    """Result of `generate(..., return_dict_in_generate=True)`; R is B num_return_sequences, best first.

    Args:
        sequences: (R, T') ids up to and with the first `</s>`, padded on the right.
        sequences_scores: (R,) log-probability / (T + length_offset)**length_normalization, with a reranker its mean
            log-probability in place of the model's; and consensus_weight * consensus.
        token_scores: (R, T') log-probabilities, 0 at padding.
        lengths: (R,) T of the candidate, `</s>` included, without the repeats that were deleted or collapsed.
        num_passes: (B,) most passes that any candidate of the sentence took.
        tokens_per_forward: (R,) tokens of each sequence per decoder pass, as text diffusion models report it.
        history: with `output_history`, one `JMNatPass` per pass; `history[-1].tokens` are the final candidates, before
            repeats are collapsed.
        candidate_lengths: (B, C) the lengths tried, most probable first.
        best_candidates: (B, num_return_sequences) index of each returned sequence among the candidates.
    """

    sequences: torch.Tensor | None = None
    sequences_scores: torch.Tensor | None = None
    token_scores: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    num_passes: torch.Tensor | None = None
    tokens_per_forward: torch.Tensor | None = None
    history: tuple[JMNatPass, ...] | None = None
    candidate_lengths: torch.Tensor | None = None
    best_candidates: torch.Tensor | None = None


def check_same_vocabulary(of_reranker: int, own: int) -> None:
    """ValueError where the sizes differ by more than rounding up for speed explains."""
    if abs(of_reranker - own) >= VOCABULARY_PADDING:
        raise ValueError(
            f"reranker has {of_reranker} tokens and the model {own}: it needs the same vocabulary, or a method `score`"
        )


@functools.lru_cache(maxsize=8)
def token_table(ids: tuple[int, ...], vocab_size: int, device: torch.device) -> torch.Tensor:
    """(V,) bool, True at `repeatable_tokens`. It stays on its device: no decoding has to wait for a copy.

    Raises:
        ValueError: an id beyond the vocabulary.
    """
    for i in (min(ids), max(ids)):
        if not 0 <= i < vocab_size:
            raise ValueError(f"repeatable_tokens holds {i}, ids must lie in [0, {vocab_size})")
    table = torch.zeros(vocab_size, dtype=torch.bool)
    table[list(ids)] = True
    return table.to(device)


@functools.cache
def library_defaults() -> dict[str, tuple]:
    """The values of each option of Transformers' own `generate` that ask for nothing."""
    usual = vars(GenerationConfig()), GenerationConfig._get_default_generation_params()
    return {name: (None, False, *(values.get(name) for values in usual)) for name in usual[0] | usual[1]}


def check_option_names(given: dict[str, Any]) -> None:
    """ValueError for options, of arguments or a config, that `generate` does not have; the library's at rest pass."""
    refused = []
    for name, value in sorted(given.items()):
        at_rest = value is None or (isinstance(value, str | Real) and value in library_defaults().get(name, ()))
        if not at_rest and name not in (*OPTION_NAMES, *UNDERSTOOD_OPTIONS):
            refused.append(f"{name}={reprlib.repr(value)} ({substitute(name, OPTION_NAMES)})")
    if refused:
        raise ValueError(f"generate does not support {', '.join(refused)}")


def substitute(name: str, known: Iterable[str]) -> str:
    """What to use in place of an option that is none of the `known`."""
    for sentence, names in SUBSTITUTES.items():
        if name in names:
            return sentence
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "JMNatGenerationConfig explains all options"


def stated_options(generation_config: GenerationConfig | None) -> dict[str, Any]:
    """What a config sets; private fields say nothing about decoding."""
    fields = {} if generation_config is None else vars(generation_config)
    return {name: value for name, value in fields.items() if value is not None and not name.startswith("_")}


def check_target_lengths(target_lengths, num_sentences: int) -> torch.Tensor:
    """`target_lengths` as a tensor (B,); ValueError where it has another shape."""
    target_lengths = torch.as_tensor(target_lengths).long()
    if target_lengths.shape != (num_sentences,):
        raise ValueError(
            f"target_lengths has shape {tuple(target_lengths.shape)}, "
            f"it must hold one length for each of {num_sentences} sentences"
        )
    return target_lengths


class JMNatGenerationMixin(GenerationMixin):
    """`generate` for models that predict all target tokens at once."""

    if TYPE_CHECKING:  # what the model that is mixed in has
        config: Any
        generation_config_class: Any

        def encode_for_generation(
            self, input_ids=None, attention_mask=None, inputs_embeds=None, encoder_outputs=None
        ) -> tuple[Any, torch.Tensor, torch.Tensor]: ...

        def copy_source(self, input_ids, attention_mask, target_mask: torch.Tensor) -> torch.Tensor: ...

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor=None,
        stopping_criteria=None,
        streamer=None,
        target_lengths: torch.Tensor | None = None,
        reranker=None,
        **kwargs,
    ) -> torch.Tensor | JMNatGenerateOutput:
        """Translate in exactly `num_iterations` passes over the candidates of the most probable lengths.

        Options come from the keyword arguments, then from `generation_config`, then from the model's own, then from
        the defaults; `JMNatGenerationConfig` explains them. The result of a sentence depends on nothing else in
        its batch.

        Args:
            inputs: (B, S) source ids, also as `input_ids`; or `inputs_embeds`, or `encoder_outputs`.
            target_lengths: (B,) lengths to use instead of the predicted ones; C candidates form a window around them.
            reranker: an autoregressive seq2seq model that chooses among the candidates (noisy parallel decoding).

        Returns:
            (B num_return_sequences, L) ids padded on the right, or a `JMNatGenerateOutput` with
            `return_dict_in_generate=True` or `output_history=True`.

        Raises:
            ValueError: an option out of its range, an unknown or unsupported argument.
        """
        attention_mask = kwargs.pop("attention_mask", None)
        if torch.is_tensor(generation_config):  # `generate(input_ids, attention_mask, generation_config)`
            attention_mask, generation_config, logits_processor = generation_config, logits_processor, None
        elif generation_config is None and isinstance(logits_processor, GenerationConfig):  # without a mask
            generation_config, logits_processor = logits_processor, None
        if logits_processor or stopping_criteria or streamer:
            raise ValueError(
                "logits_processor, stopping_criteria and streamer are not supported: all words are predicted at once"
            )
        kwargs = {name: value for name, value in kwargs.items() if name not in IGNORED_ARGUMENTS}
        input_ids = kwargs.pop("input_ids", inputs)
        source = {name: kwargs.pop(name, None) for name in ("inputs_embeds", "encoder_outputs")}
        source["attention_mask"] = attention_mask
        options = self._resolve_generation_options(generation_config, kwargs)
        self._check_inputs(input_ids, reranker)
        output: Any = None
        if reranker is None:
            output = self.generate_at_once(options, input_ids, target_lengths, **source)
        if output is None:
            output = self._generate_by_passes(options, input_ids, target_lengths, reranker, **source)
        if not (options.return_dict_in_generate or options.output_history):
            return output.sequences
        num_passes = output.num_passes.repeat_interleave(options.num_return_sequences)
        output.tokens_per_forward = (output.sequences != self.config.pad_token_id).sum(dim=1) / num_passes
        return output

    def _check_inputs(self, input_ids: torch.Tensor | None, reranker) -> None:
        if input_ids is not None and not input_ids.numel():
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}: at least one token is needed")
        if input_ids is None and reranker is not None:
            raise ValueError("reranker needs input_ids: inputs_embeds or encoder_outputs alone are not enough")
        if reranker is not None and not hasattr(reranker, "score"):
            check_same_vocabulary(reranker.config.vocab_size, self.config.vocab_size)

    def generate_at_once(
        self, options: JMNatOptions, input_ids, target_lengths, attention_mask, inputs_embeds, encoder_outputs
    ) -> JMNatGenerateOutput | None:
        """The whole translation, by a backend that can do it in one go; None: pass by pass."""
        return None

    def _generate_by_passes(
        self, options: JMNatOptions, input_ids, target_lengths, reranker, **source
    ) -> JMNatGenerateOutput:
        """Encode once, choose lengths, make the passes, choose among the candidates."""
        states, source_mask, length_log_probs = self.encode_for_generation(input_ids, **source)
        lengths = self._choose_lengths(length_log_probs, options, target_lengths)
        output, ends = self._decode(options, lengths, states, source_mask, input_ids, reranker)
        width = int(ends.max())
        for name in ("sequences", "token_scores"):
            output[name] = output[name][:, :width]
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
        rightful: torch.Tensor | None = None,
    ) -> tuple[JMNatGenerateOutput, torch.Tensor]:
        """All passes and the choice: the output, T wide, and the numbers (R,) of tokens in its sequences.

        With `num_positions` = T and no rule that stops rows, no step waits for the device. `rightful` are the
        `_rightful_repeats` where these are known already.
        """
        suppressed = self._suppressed_tokens(options, lengths.device)
        if rightful is None:
            rightful = self._rightful_repeats(options, source_mask, input_ids)
        decoding = MaskPredict(self, options, lengths, states, source_mask, suppressed, num_positions, rightful)
        copied = None
        if self.config.decoder_input == "source_copy":
            copied = self.copy_source(input_ids, source_mask, decoding.target_mask)
        decoding.run(copied)
        return self._choose_candidates(decoding, source_mask, input_ids, reranker)

    def _choose_candidates(
        self, decoding: MaskPredict, source_mask=None, input_ids=None, reranker=None
    ) -> tuple[JMNatGenerateOutput, torch.Tensor]:
        """The `num_return_sequences` best candidates of each sentence, best first, see `_decode`."""
        options, pad, shape = decoding.options, self.config.pad_token_id, decoding.lengths.shape
        tokens, log_probs, num_passes, lengths = (values.unflatten(0, shape) for values in decoding.texts())
        ends = first_end(tokens, lengths, self.config.eos_token_id)  # (B, C)
        texts = tokens.masked_fill(decoding.positions >= ends[..., None], pad)  # (B, C, T)
        scores = None
        if reranker is not None:
            means = reranker_scores(reranker, input_ids, source_mask.long(), texts, pad)
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

    def _resolve_generation_options(self, generation_config, kwargs: dict[str, Any]) -> JMNatOptions:
        """Merge arguments, the config given and the model's own, which may all ask for the same, and check."""
        if not isinstance(generation_config, GenerationConfig | None):
            kind = type(generation_config).__name__
            raise ValueError(f"generation_config is a {kind}, it must be a GenerationConfig")
        saved = stated_options(self.generation_config)
        if saved.get("num_beams") == 1:  # Seq2SeqTrainer writes the library's default into it
            del saved["num_beams"]
        sources = kwargs, stated_options(generation_config), saved
        for given in sources:
            check_option_names(given)
            for name in ("pad_token_id", "eos_token_id"):
                own, value = getattr(self.config, name), given.get(name)
                if value is not None and own not in (value if isinstance(value, list | tuple) else [value]):
                    raise ValueError(f"{name}={value} is {own} in this model: leave it out")
        options = resolve_options(*map(under_own_names, sources))
        options.check()
        self._check_options(options)
        return options

    def _check_options(self, options: JMNatOptions) -> None:
        """Check against the model; as many candidates remain as there are lengths from 2 to the longest allowed."""
        if self.config.decoder_input == "source_copy" and options.num_iterations > 1:
            raise ValueError(
                f"num_iterations={options.num_iterations} must be 1 with decoder_input='source_copy': "
                "the basic NAT has no masks to refine"
            )
        ids, specials = options.suppress_tokens or (), ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")
        if ids and not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
            raise ValueError(f"suppress_tokens={list(ids)} must lie in [0, {self.config.vocab_size})")
        no_text = {self.config.mask_token_id, *(getattr(self.config, name) for name in specials)} - {None}
        if len(no_text.union(ids)) >= self.config.vocab_size:
            raise ValueError(
                f"suppress_tokens={reprlib.repr(list(ids))} leaves no token that a text could hold: suppress fewer"
            )
        if options.num_length_candidates > self.config.max_target_length:
            raise ValueError(
                f"num_length_candidates={options.num_length_candidates} is more than the "
                f"{self.config.max_target_length} lengths there are"
            )
        longest = self._longest_target(options)
        options.num_length_candidates = min(options.num_length_candidates, longest - 1)
        if options.num_return_sequences > options.num_length_candidates:
            raise ValueError(
                f"num_return_sequences={options.num_return_sequences} is more than the "
                f"{options.num_length_candidates} lengths from 2 to {longest}: allow longer ones by max_length"
            )

    def _longest_target(self, options: JMNatOptions) -> int:
        return min(self.config.max_target_length, options.max_length or self.config.max_target_length)

    def _choose_lengths(self, length_log_probs, options: JMNatOptions, target_lengths) -> torch.Tensor:
        """(B, C) candidate lengths, all different, from 2 (one token and `</s>`) to the longest allowed."""
        longest = self._longest_target(options)
        if target_lengths is None:
            predicted = torch.arange(longest + 1, device=length_log_probs.device)
            shifted = (predicted + options.length_shift).clamp(min=2, max=longest)
            nearest = predicted.clamp(min=1 + options.length_shift, max=longest + options.length_shift)
            preference = (
                (NOT_PREDICTED - (predicted - nearest).abs()).to(length_log_probs).repeat(len(length_log_probs), 1)
            )
            preference.scatter_reduce_(1, shifted.expand_as(preference), length_log_probs[:, : longest + 1], "amax")
            preference = preference[:, 2:]
        else:  # the length itself first, then its neighbours: +1, -1, +2, -2, ...
            target_lengths = check_target_lengths(target_lengths, len(length_log_probs)).to(length_log_probs.device)
            lengths = torch.arange(2, longest + 1, device=target_lengths.device)
            steps = lengths - target_lengths.clamp(min=2, max=longest)[:, None]
            preference = (steps > 0).long() - 2 * steps.abs()
        return preference.topk(options.num_length_candidates, dim=1).indices + 2

    def _rightful_repeats(
        self, options: JMNatOptions, source_mask: torch.Tensor, input_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """(B, V) bool, True at tokens that may stand twice in a row in a sentence's translation; None without rules.

        These are `repeatable_tokens`, special tokens but `</s>`, and those that do so in the source (B, S), if known.
        """
        if not any(getattr(options, rule) for rule in REPEAT_RULES):
            return None
        rightful = self._repeatable_tokens(options, source_mask.device).repeat(len(source_mask), 1)
        if input_ids is None:
            return rightful
        source_mask = source_mask[:, : input_ids.shape[1]]
        twice = (input_ids[:, 1:] == input_ids[:, :-1]) & source_mask[:, 1:] & source_mask[:, :-1]
        return rightful.scatter(1, torch.where(twice, input_ids[:, 1:], self.config.pad_token_id), True)

    def _repeatable_tokens(self, options: JMNatOptions, device: torch.device) -> torch.Tensor:
        """(V,) bool, True at `repeatable_tokens` and special tokens but `</s>`."""
        special = (getattr(self.config, f"{name}_token_id") for name in ("pad", "mask", "bos", "unk"))
        ids = (*(options.repeatable_tokens or ()), *(i for i in special if i is not None))
        return token_table(ids, self.config.vocab_size, device)

    def _suppressed_tokens(self, options: JMNatOptions, device) -> torch.Tensor | None:
        """(V,) bool, True at ids that are never predicted; None when there are none."""
        ids = options.suppress_tokens
        if ids is None:
            ids = [self.config.pad_token_id, self.config.mask_token_id, self.config.bos_token_id]
        ids = [i for i in ids if i is not None]
        if not ids:
            return None
        suppressed = torch.zeros(self.config.vocab_size, dtype=torch.bool, device=device)
        for i in ids:  # one by one: a list of indices would be copied to the device, which waits for it
            suppressed[i].fill_(True)
        return suppressed

    def adjust_generation_fn(self, generation_config, *args, **kwargs):
        """Load our own class of generation config; the inherited method would read the base class and drop options."""
        names = ("from_auto_class", "from_pipeline", "pretrained_model_name_or_path")
        kwargs.update(zip(names, args, strict=False))
        for name in ("from_auto_class", "from_pipeline", "trust_remote_code"):
            kwargs.pop(name, None)
        path = kwargs.pop("pretrained_model_name_or_path", None)
        if generation_config is not None:
            self.generation_config = self.generation_config_class.from_dict(generation_config.to_dict())
        elif path is not None:
            saved = saved_generation_config(self.generation_config_class, path, **kwargs)
            if saved is not None:  # otherwise the defaults, made from the model's config, stay
                self.generation_config = saved
