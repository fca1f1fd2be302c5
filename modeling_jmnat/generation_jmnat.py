"""Decoding of JM-NAT (section 4.4): candidate lengths, the passes of `passes_jmnat`, choice of the best candidate.

Any backend with `encode_for_generation`, `prepare_decoding` and `predict_tokens` gets `generate` from here.
Shapes: B sentences, C length candidates, T positions.
"""

import difflib
import functools
import reprlib
from collections.abc import Iterable
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMixin

from .configuration_jmnat import (
    OPTION_NAMES,
    REPEAT_RULES,
    JMNatOptions,
    resolve_options,
    saved_generation_config,
    under_own_names,
)
from .losses_jmnat import (
    JMNatGenerateOutput,
    check_same_vocabulary,
    check_source_ids,
    check_target_lengths,
    choose_candidates,
    first_end,
    length_preferences,
)
from .passes_jmnat import MaskPredict

# Keys of training batches; with any of them, `decoder_input_ids` is a partly masked reference and not a canvas.
OF_TRAINING = ("labels", "masked_positions", "encoder_targets", "loss_denominators", "correction_positions")
OF_TRAINING += ("glancing_order", "second_mask_order")
IGNORED_ARGUMENTS = ("synced_gpus", "use_cache")  # passed by Trainer and pipelines; without meaning here
# Options of Transformers' own `generate`: those understood here, and what to use instead of the others.
UNDERSTOOD_OPTIONS = (
    *("num_beams", "max_new_tokens", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
    *("use_cache", "transformers_version"),
)
SUBSTITUTES = {
    "did you mean early_stop?": ("early_stopping",),
    "did you mean length_normalization?": ("length_penalty", "exponential_decay_length_penalty"),
    "did you mean num_length_candidates?": ("num_beam_groups", "diversity_penalty", "beam", "beams", "beam_size"),
    "did you mean suppress_tokens, a list of single ids?": ("bad_words_ids", "begin_suppress_tokens", "sequence_bias"),
    "each pass takes the most probable tokens, nothing is sampled": (
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        "penalty_alpha",
    ),
    "did you mean remask_repeats, delete_repeats or collapse_repeats?": (
        *("no_repeat_ngram_size", "repetition_penalty", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty"),
    ),
    "set target_lengths, or favour longer ones by length_normalization": ("min_length", "min_new_tokens"),
    "fix tokens by decoder_input_ids": (
        *("forced_bos_token_id", "forced_eos_token_id", "force_words_ids", "constraints", "prefix_allowed_tokens_fn"),
    ),
    "the scores are part of the output with return_dict_in_generate=True": ("output_scores",),
    "did you mean output_history?": ("output_logits", "output_attentions", "output_hidden_states", "return_history"),
    "num_iterations decides how long decoding takes": ("max_time", "stop_strings"),
    "it is an argument of generate": ("target_lengths", "reranker", "streamer", "decoder_input_ids"),
}
# Preference for a length that no predicted class maps to, in log-probability.
NOT_PREDICTED = -1e6


@functools.lru_cache(maxsize=8)
def token_table(ids: tuple[int, ...], vocab_size: int, device: torch.device) -> torch.Tensor:
    """(V,) bool, True at `ids`. Cached on its device, so that decoding need not wait for a copy.

    Raises:
        ValueError: an id beyond the vocabulary.
    """
    for i in (min(ids), max(ids)):
        if not 0 <= i < vocab_size:
            raise ValueError(f"repeatable_tokens holds {i}, but ids must lie in [0, {vocab_size})")
    table = torch.zeros(vocab_size, dtype=torch.bool)
    table[list(ids)] = True
    return table.to(device)


@functools.cache
def library_defaults() -> dict[str, tuple]:
    """For each option of Transformers' own `generate`, the values that leave it off."""
    usual = vars(GenerationConfig()), GenerationConfig._get_default_generation_params()
    return {name: (None, False, *(values.get(name) for values in usual)) for name in usual[0] | usual[1]}


def check_option_names(given: dict[str, Any]) -> None:
    """ValueError for options that `generate` does not have; options of Transformers that are off are accepted."""
    refused = []
    for name, value in sorted(given.items()):
        at_rest = value is None or (isinstance(value, str | Real) and value in library_defaults().get(name, ()))
        if not at_rest and name not in (*OPTION_NAMES, *UNDERSTOOD_OPTIONS):
            refused.append(f"{name}={reprlib.repr(value)} ({substitute(name, OPTION_NAMES)})")
    if refused:
        raise ValueError(f"generate does not support {', '.join(refused)}")


def substitute(name: str, known: Iterable[str]) -> str:
    """What to use instead of an option that is not among the `known`."""
    for sentence, names in SUBSTITUTES.items():
        if name in names:
            return sentence
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "JMNatGenerationConfig explains all options"


def stated_options(generation_config: GenerationConfig | None) -> dict[str, Any]:
    """The options that a config sets, without its private fields."""
    fields = {} if generation_config is None else vars(generation_config)
    return {name: value for name, value in fields.items() if value is not None and not name.startswith("_")}


def check_canvas(canvas, attention_mask: torch.Tensor | None, config) -> torch.Tensor:
    """`decoder_input_ids` (B, T) as the initial canvas; ValueError for a wrong shape, length, padding or id.

    The length of a row is the number of tokens before its padding. A final `<mask>` becomes `</s>`, which is
    predicted nowhere else, so that no given token is cut off.
    """
    canvas, pad = torch.as_tensor(canvas).long(), config.pad_token_id
    if attention_mask is not None and attention_mask.shape == canvas.shape:
        canvas = canvas.masked_fill(attention_mask == 0, pad)
    if canvas.dim() != 2 or not canvas.numel():
        raise ValueError(f"decoder_input_ids has shape {tuple(canvas.shape)} but must have (B, T)")
    lengths = (canvas != pad).sum(dim=1, keepdim=True)
    if (canvas == pad).logical_and(torch.arange(canvas.shape[1], device=canvas.device) < lengths).any():
        raise ValueError("decoder_input_ids holds padding before other tokens: pad on the right")
    if lengths.min() < 2 or lengths.max() > config.max_target_length:
        raise ValueError(
            f"decoder_input_ids has rows of {int(lengths.min())} to {int(lengths.max())} tokens, "
            f"but each must have 2 to {config.max_target_length}, </s> included"
        )
    if canvas.min() < 0 or canvas.max() >= config.vocab_size:
        raise ValueError(f"decoder_input_ids must lie in [0, {config.vocab_size})")
    last = canvas.gather(1, lengths - 1)
    return canvas.scatter(1, lengths - 1, last.masked_fill(last == config.mask_token_id, config.eos_token_id))


def check_streamer(streamer, options: JMNatOptions, *sources) -> None:
    """ValueError for an object without the methods of a streamer, and for more than one text."""
    if streamer is None:
        return
    if isinstance(streamer, type) or not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise ValueError(f"streamer is a {type(streamer).__name__} but must have the methods put and end")
    num_sentences = max((len(source) for source in sources if torch.is_tensor(source)), default=1)
    if num_sentences > 1 or options.num_return_sequences > 1:
        raise ValueError(
            f"streamer takes one text, not {num_sentences} sentences with num_return_sequences="
            f"{options.num_return_sequences}: give one sentence at a time"
        )


def draft_sender(streamer):
    """A function that sends the leading candidate to `streamer.put_draft`; None for a streamer without it."""
    if not hasattr(streamer, "put_draft"):
        return None

    def send(decoding: MaskPredict) -> None:
        texts, best = decoding.texts(), decoding.scores()[0].argmax()
        end = first_end(texts.tokens[best], texts.lengths[best], decoding.model.config.eos_token_id)
        streamer.put_draft(value=texts.tokens[best, :end][None].cpu())

    return send


class JMNatGenerationMixin(GenerationMixin):
    """`generate` for models that predict all target tokens at once."""

    if TYPE_CHECKING:  # provided by the model class
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
        decoder_input_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor | JMNatGenerateOutput:
        """Translate in exactly `num_iterations` passes over candidates of the most probable lengths.

        Options are taken from the keyword arguments, then from `generation_config`, the model's own generation
        config and the defaults; `JMNatGenerationConfig` explains them. The result of a sentence does not depend on
        the others in its batch.

        Args:
            inputs: (B, S) source ids, also as `input_ids`; or `inputs_embeds`, or `encoder_outputs`.
            target_lengths: (B,) lengths to use instead of the predicted ones; C candidates form a window around them.
            reranker: an autoregressive seq2seq model that chooses among the candidates (noisy parallel decoding).
            decoder_input_ids: (B, T) initial canvas, padded on the right: `<mask>` is predicted, every other token is
                kept (prefix, infilling). A row's length, `</s>` included, is the target length; see `check_canvas`.
            streamer: its `put_draft`, if any, receives the leading candidate after each pass; its `put` the result.

        Returns:
            (B num_return_sequences, L) ids padded on the right, or a `JMNatGenerateOutput` with
            `return_dict_in_generate=True` or `output_history=True`.

        Raises:
            ValueError: an option out of its range, an unknown or unsupported argument.
        """
        if torch.is_tensor(generation_config):  # `generate(input_ids, attention_mask, generation_config)`
            kwargs["attention_mask"], generation_config, logits_processor = generation_config, logits_processor, None
        elif generation_config is None and isinstance(logits_processor, GenerationConfig):  # without a mask
            generation_config, logits_processor = logits_processor, None
        if logits_processor or stopping_criteria:
            raise ValueError(
                "logits_processor and stopping_criteria are not supported: all words are predicted at once"
            )
        training, input_ids = {name: kwargs.pop(name, None) for name in OF_TRAINING}, kwargs.pop("input_ids", inputs)
        targets, given_mask = training["encoder_targets"], kwargs.pop("decoder_attention_mask", None)
        if targets is not None and torch.is_tensor(input_ids):  # the source as it was before masking
            if targets.shape != input_ids.shape:
                raise ValueError(f"encoder_targets has shape {(*targets.shape,)}, input_ids {(*input_ids.shape,)}")
            input_ids = torch.where(targets == -100, input_ids, targets)
        is_canvas = decoder_input_ids is not None and all(value is None for value in training.values())
        canvas = check_canvas(decoder_input_ids, given_mask, self.config) if is_canvas else None
        source = {name: kwargs.pop(name, None) for name in ("attention_mask", "inputs_embeds", "encoder_outputs")}
        kwargs = {name: value for name, value in kwargs.items() if name not in IGNORED_ARGUMENTS}
        options = self._resolve_generation_options(generation_config, kwargs)
        if canvas is not None:
            options = self._options_of_canvas(options, target_lengths)
        self._check_inputs(input_ids, reranker)
        check_streamer(streamer, options, input_ids, *source.values())
        return self._translate(options, input_ids, target_lengths, reranker, canvas, streamer, source)

    def _translate(
        self, options: JMNatOptions, input_ids, target_lengths, reranker, canvas, streamer, source: dict
    ) -> torch.Tensor | JMNatGenerateOutput:
        """`generate` after all checks."""
        output: Any = None
        if reranker is None and canvas is None and not hasattr(streamer, "put_draft"):
            output = self.generate_at_once(options, input_ids, target_lengths, **source)
        if output is None:
            output = self._generate_by_passes(
                options, input_ids, target_lengths, reranker, canvas, draft_sender(streamer), **source
            )
        if output.sequences_scores.isnan().any():
            raise ValueError("the scores are NaN, so weights are not finite or too large for their dtype: load others")
        if streamer is not None:
            if getattr(streamer, "skip_prompt", False):
                streamer.put(output.sequences[:, :0].cpu())  # an empty prompt for it to skip
            streamer.put(output.sequences.cpu())
            streamer.end()
        if not (options.return_dict_in_generate or options.output_history):
            return output.sequences
        num_passes = output.num_passes.repeat_interleave(options.num_return_sequences)
        output.tokens_per_forward = (output.sequences != self.config.pad_token_id).sum(dim=1) / num_passes
        return output

    def _check_inputs(self, input_ids: torch.Tensor | None, reranker) -> None:
        if input_ids is not None:
            check_source_ids(input_ids, self.config.vocab_size)
        if input_ids is None and reranker is not None:
            raise ValueError("reranker needs input_ids: inputs_embeds or encoder_outputs alone are not enough")
        if reranker is not None and not hasattr(reranker, "score"):
            check_same_vocabulary(reranker, self.config.vocab_size)

    def generate_at_once(
        self, options: JMNatOptions, input_ids, target_lengths, attention_mask, inputs_embeds, encoder_outputs
    ) -> JMNatGenerateOutput | None:
        """The whole translation from a backend that computes it in one call; None to decode pass by pass."""
        return None

    def _generate_by_passes(
        self, options: JMNatOptions, input_ids, target_lengths, reranker, canvas=None, after_pass=None, **source
    ) -> JMNatGenerateOutput:
        """Encode once, choose lengths, run the passes, choose among the candidates."""
        states, source_mask, length_log_probs = self.encode_for_generation(input_ids, **source)
        if canvas is None:
            lengths = self._choose_lengths(length_log_probs, options, target_lengths)
        elif len(canvas) != len(length_log_probs):
            raise ValueError(f"decoder_input_ids has {len(canvas)} rows but must have one for each source")
        else:
            canvas = canvas.to(length_log_probs.device)
            lengths = (canvas != self.config.pad_token_id).sum(dim=1, keepdim=True)
        by_passes = {"canvas": canvas, "after_pass": after_pass}
        output, ends = self._decode(options, lengths, states, source_mask, input_ids, reranker, **by_passes)
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
        canvas: torch.Tensor | None = None,
        after_pass=None,
    ) -> tuple[JMNatGenerateOutput, torch.Tensor]:
        """Run all passes and choose: the output, T wide, and the number of tokens (R,) in each of its sequences.

        With `num_positions` = T and no rule that stops rows, no step waits for the device. `rightful` may pass
        `_rightful_repeats` that were computed before.
        """
        suppressed = self._suppressed_tokens(options, lengths.device)
        if rightful is None:
            rightful = self._rightful_repeats(options, source_mask, input_ids)
        sources = states, source_mask
        decoding = MaskPredict(self, options, lengths, *sources, suppressed, num_positions, rightful, canvas)
        copied = None
        if self.config.decoder_input == "source_copy":
            copied = self.copy_source(input_ids, source_mask, decoding.target_mask)
        decoding.run(copied, after_pass)
        return choose_candidates(decoding, source_mask, input_ids, reranker)

    def _resolve_generation_options(self, generation_config, kwargs: dict[str, Any]) -> JMNatOptions:
        """Merge the arguments, the given config and the model's own into checked options."""
        if not isinstance(generation_config, GenerationConfig | None):
            kind = type(generation_config).__name__
            raise ValueError(f"generation_config is a {kind} but must be a GenerationConfig")
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
        """Check options against the model, and limit the candidates to the lengths from 2 to the longest allowed."""
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
                f"{self.config.max_target_length} possible target lengths: choose fewer"
            )
        longest = self._longest_target(options)
        options.num_length_candidates = min(options.num_length_candidates, longest - 1)
        if options.num_return_sequences > options.num_length_candidates:
            raise ValueError(
                f"num_return_sequences={options.num_return_sequences} is more than the "
                f"{options.num_length_candidates} target lengths from 2 to {longest}: raise max_length"
            )

    def _options_of_canvas(self, options: JMNatOptions, target_lengths) -> JMNatOptions:
        """Options for a canvas: one candidate of its length, `</s>` never predicted, no token deleted."""
        if self.config.decoder_input == "source_copy":
            raise ValueError("decoder_input_ids is not supported with decoder_input='source_copy': it has no masks")
        if target_lengths is not None or options.num_return_sequences > 1:
            raise ValueError("decoder_input_ids is one candidate: leave out target_lengths and num_return_sequences")
        options = replace(options, num_length_candidates=1, delete_repeats=False, collapse_repeats=False)
        return replace(options, suppress_tokens=[*self._suppressed_ids(options), self.config.eos_token_id])

    def _longest_target(self, options: JMNatOptions) -> int:
        return min(self.config.max_target_length, options.max_length or self.config.max_target_length)

    def _choose_lengths(self, length_log_probs, options: JMNatOptions, target_lengths) -> torch.Tensor:
        """(B, C) candidate lengths, all different, from 2 (one token and `</s>`) to the longest allowed."""
        longest = self._longest_target(options)
        if target_lengths is None:
            preferences = length_preferences(length_log_probs, longest, options.length_shift)
        else:  # prefer the given length, then its neighbours: +1, -1, +2, -2, ...
            target_lengths = check_target_lengths(target_lengths, len(length_log_probs)).to(length_log_probs.device)
            lengths = torch.arange(2, longest + 1, device=target_lengths.device)
            steps = lengths - target_lengths.clamp(min=2, max=longest)[:, None]
            preferences = (steps > 0).long() - 2 * steps.abs()
        return preferences.topk(options.num_length_candidates, dim=1).indices + 2

    def _rightful_repeats(
        self, options: JMNatOptions, source_mask: torch.Tensor, input_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """(B, V) bool, True at tokens that may occur twice in a row in a sentence's translation; None without rules.

        These are `repeatable_tokens`, special tokens except `</s>`, and tokens repeated in a given source (B, S).
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
        """(V,) bool, True at `repeatable_tokens` and special tokens except `</s>`."""
        special = (getattr(self.config, f"{name}_token_id") for name in ("pad", "mask", "bos", "unk"))
        ids = (*(options.repeatable_tokens or ()), *(i for i in special if i is not None))
        return token_table(ids, self.config.vocab_size, device)

    def _suppressed_ids(self, options: JMNatOptions) -> list[int]:
        usual = self.config.pad_token_id, self.config.mask_token_id, self.config.bos_token_id
        return [i for i in (usual if options.suppress_tokens is None else options.suppress_tokens) if i is not None]

    def _suppressed_tokens(self, options: JMNatOptions, device) -> torch.Tensor | None:
        """(V,) bool, True at ids that are never predicted; None when there are none."""
        ids = self._suppressed_ids(options)
        if not ids:
            return None
        suppressed = torch.zeros(self.config.vocab_size, dtype=torch.bool, device=device)
        for i in ids:  # one by one: a list of indices would be copied to the device, with a wait for it
            suppressed[i].fill_(True)
        return suppressed

    def adjust_generation_fn(self, generation_config, *args, **kwargs):
        """Load our own generation config class; the inherited method reads the base class, which drops options."""
        names = ("from_auto_class", "from_pipeline", "pretrained_model_name_or_path")
        kwargs.update(zip(names, args, strict=False))
        path = kwargs.pop("pretrained_model_name_or_path", None)
        others = {"from_auto_class", "from_pipeline", "trust_remote_code", *self.config.to_dict()}
        kwargs = {name: value for name, value in kwargs.items() if name not in others}  # how to fetch files
        if generation_config is not None:
            self.generation_config = self.generation_config_class.from_dict(generation_config.to_dict())
        elif path is not None:
            saved = saved_generation_config(self.generation_config_class, path, **kwargs)
            if saved is not None:  # otherwise keep the defaults made from the model's config
                self.generation_config = saved
