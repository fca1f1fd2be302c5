"""Decoding of JM-NAT (section 4.4): candidate lengths, the passes of `passes_jmnat`, choice of the best candidate.

A model with `encode_for_generation`, `prepare_decoding` and `predict_tokens` gets `generate` from here, whatever
computes it. B sentences, C length candidates, T positions.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .configuration_jmnat import OPTION_NAMES, JMNatOptions, resolve_options, saved_generation_config
from .passes_jmnat import JMNatPass, MaskPredict, first_end, length_divisors

# What Trainer and pipelines hand to `generate` beside its arguments; it has no meaning here.
IGNORED_ARGUMENTS = (
    "labels",
    "decoder_input_ids",
    "decoder_attention_mask",
    "masked_positions",
    "loss_denominators",
    "synced_gpus",
    "use_cache",
)
# Fields of a generation config that are obeyed, or that say the same for every model.
UNDERSTOOD_FIELDS = (
    *OPTION_NAMES,
    *("num_beams", "max_new_tokens", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
    *("use_cache", "transformers_version", "_from_model_config"),
)
# Vocabulary logits that a reranker makes at once, in elements: the rows beyond it are scored in further pieces.
MAX_LOGITS = 2**27
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
        lengths: (R,) T of the candidate, `</s>` included.
        num_passes: (B,) most passes that any candidate of the sentence took.
        history: with `output_history`, one `JMNatPass` per pass.
        candidate_lengths: (B, C) the lengths tried, most probable first.
        best_candidates: (B, num_return_sequences) index of each returned sequence among the candidates.
    """

    sequences: torch.Tensor | None = None
    sequences_scores: torch.Tensor | None = None
    token_scores: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    num_passes: torch.Tensor | None = None
    history: tuple[JMNatPass, ...] | None = None
    candidate_lengths: torch.Tensor | None = None
    best_candidates: torch.Tensor | None = None


class ModelReranker:
    """Scores candidates by an autoregressive sequence-to-sequence model that shares their vocabulary (section 4.4).

    Raises:
        ValueError: the model does not tell its decoder_start_token_id.
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
        """Mean log-probability (N,) of candidates (N, T), padded right, `</s>` included; -inf for one without tokens.

        The sources (B, S) have N / B candidates each, in consecutive rows.
        """
        per_source, remainder = divmod(len(candidate_ids), len(input_ids))
        if remainder or not per_source:
            raise ValueError(
                f"candidate_ids has {len(candidate_ids)} rows: give a multiple of the {len(input_ids)} of input_ids"
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
        reranker: an object with a method `score` as `ModelReranker` has it, or an autoregressive model.
    """
    if not hasattr(reranker, "score"):
        reranker = ModelReranker(reranker, pad_token_id)
    return reranker.score(input_ids, attention_mask, candidates.flatten(0, 1)).view(candidates.shape[:2])


def check_generation_config(generation_config: GenerationConfig) -> None:
    """ValueError for what is no configuration, and for what one cannot ask for."""
    if not isinstance(generation_config, GenerationConfig):
        raise ValueError(f"generation_config is a {type(generation_config).__name__}, it must be a GenerationConfig")
    if generation_config.do_sample:
        raise ValueError("do_sample=True is not supported: each pass takes the most probable tokens")
    usual = (GenerationConfig().to_dict(), GenerationConfig._get_default_generation_params())
    for name, value in generation_config.to_dict().items():
        says_nothing = value is None or value is False or any(value == values.get(name) for values in usual)
        if says_nothing or name in UNDERSTOOD_FIELDS:
            continue
        if name in ("target_lengths", "reranker"):
            raise ValueError(f"{name} in generation_config has no effect: give it to generate itself")
        raise ValueError(f"{name}={value!r} in generation_config has no effect: options are {', '.join(OPTION_NAMES)}")


def longest_output(generation_config: GenerationConfig) -> dict[str, int]:
    """`max_new_tokens` of a config, if set, as the option that says the same: nothing comes before new tokens."""
    longest = generation_config.max_new_tokens
    return {} if longest is None else {"max_length": longest}


def unmask_source(input_ids: torch.Tensor | None, encoder_targets: torch.Tensor | None) -> torch.Tensor | None:
    """Put the tokens that a training collator has masked, encoder_targets (B, S), back into input_ids (B, S)."""
    if input_ids is None or encoder_targets is None:
        return input_ids
    if encoder_targets.shape != input_ids.shape:
        raise ValueError(
            f"encoder_targets has shape {tuple(encoder_targets.shape)} and input_ids {tuple(input_ids.shape)}: they "
            "must be equal"
        )
    return torch.where(encoder_targets == -100, input_ids, encoder_targets)


def check_same_vocabulary(of_reranker: int, own: int) -> None:
    """ValueError where the sizes differ by more than rounding up for speed explains."""
    if abs(of_reranker - own) >= VOCABULARY_PADDING:
        raise ValueError(
            f"reranker has {of_reranker} tokens and the model {own}: it needs the same vocabulary, or a method `score`"
        )


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
        input_ids = unmask_source(kwargs.pop("input_ids", inputs), kwargs.pop("encoder_targets", None))
        source = {name: kwargs.pop(name, None) for name in ("inputs_embeds", "encoder_outputs")}
        source["attention_mask"] = attention_mask
        options = self._resolve_generation_options(generation_config, kwargs)
        self._check_inputs(input_ids, reranker)
        output: Any = None
        if reranker is None:
            output = self.generate_at_once(options, input_ids, target_lengths, **source)
        if output is None:
            output = self._generate_by_passes(options, input_ids, target_lengths, reranker, **source)
        return output if options.return_dict_in_generate or options.output_history else output.sequences

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
    ) -> tuple[JMNatGenerateOutput, torch.Tensor]:
        """All passes and the choice: the output, T wide, and the numbers (R,) of tokens in its sequences.

        With `num_positions` = T and no rule that stops rows, no step waits for the device.
        """
        suppressed = self._suppressed_tokens(options, lengths.device)
        decoding = MaskPredict(self, options, lengths, states, source_mask, suppressed, num_positions)
        copied = None
        if self.config.decoder_input == "source_copy":
            copied = self.copy_source(input_ids, source_mask, decoding.target_mask)
        decoding.run(copied)
        return self._choose_candidates(decoding, source_mask, input_ids, reranker)

    def _choose_candidates(
        self, decoding: MaskPredict, source_mask=None, input_ids=None, reranker=None
    ) -> tuple[JMNatGenerateOutput, torch.Tensor]:
        """The `num_return_sequences` best candidates of each sentence, best first, see `_decode`."""
        options, lengths, pad = decoding.options, decoding.lengths, self.config.pad_token_id
        tokens, log_probs, num_passes = (values.unflatten(0, lengths.shape) for values in decoding.candidates)
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
            candidate_lengths=lengths,
            best_candidates=best,
        )
        return output, ends

    def _resolve_generation_options(self, generation_config, kwargs: dict[str, Any]) -> JMNatOptions:
        """Merge and check; whatever is left in `kwargs` is a mistake and is named."""
        kwargs = self._translate_arguments(kwargs)
        sources = [kwargs]
        if generation_config is not None:
            check_generation_config(generation_config)
            sources += [longest_output(generation_config), generation_config]
            if generation_config.num_beams is not None:
                sources.append({"num_length_candidates": generation_config.num_beams})
        options = resolve_options(*sources, longest_output(self.generation_config), self.generation_config)
        options.check()
        if self.config.decoder_input == "source_copy" and options.num_iterations > 1:
            raise ValueError(
                f"num_iterations={options.num_iterations} must be 1 with decoder_input='source_copy': "
                "the basic NAT has no masks to refine"
            )
        return options

    @staticmethod
    def _translate_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `generate` under our own names; ValueError for those that it does not know."""
        kwargs = dict(kwargs)
        num_beams = kwargs.pop("num_beams", None)
        if kwargs.get("num_length_candidates") is None:  # Seq2SeqTrainer and pipelines call the width of the search so
            kwargs["num_length_candidates"] = num_beams
        max_new_tokens = kwargs.pop("max_new_tokens", None)
        if max_new_tokens is not None:  # nothing comes before the new tokens
            kwargs["max_length"] = max_new_tokens
        unset = (None, False)
        unknown = [name for name in kwargs if name not in OPTION_NAMES and not any(kwargs[name] is x for x in unset)]
        if unknown:
            raise ValueError(
                f"generate got {', '.join(sorted(unknown))}, which it does not know; options are "
                f"{', '.join(OPTION_NAMES)}, target_lengths and reranker"
            )
        return kwargs

    def _choose_lengths(self, length_log_probs, options: JMNatOptions, target_lengths) -> torch.Tensor:
        """(B, C) candidate lengths, from 2 (one token and `</s>`) to the longest allowed."""
        num_candidates = options.num_length_candidates
        longest, target_lengths = self._check_lengths(len(length_log_probs), options, target_lengths)
        if target_lengths is None:
            lengths = length_log_probs[:, : longest + 1].topk(num_candidates, dim=1).indices
        else:
            target_lengths = target_lengths.to(length_log_probs.device)
            # The length itself first, then its neighbours: +1, -1, +2, -2, ...
            steps = [(i + 1) // 2 * (1 if i % 2 else -1) for i in range(num_candidates)]
            lengths = target_lengths[:, None] + torch.tensor(steps, device=target_lengths.device)
        return lengths.clamp(min=2, max=max(longest, 2))

    def _check_lengths(
        self, num_sentences: int, options: JMNatOptions, target_lengths
    ) -> tuple[int, torch.Tensor | None]:
        """The longest length allowed, and `target_lengths` as a tensor (B,); ValueError where they cannot be."""
        longest = self.config.max_target_length
        if options.max_length is not None:
            longest = min(longest, options.max_length)
        if options.num_length_candidates > longest:
            raise ValueError(
                f"num_length_candidates={options.num_length_candidates} is more than the {longest} lengths there are"
            )
        if target_lengths is None:
            return longest, None
        target_lengths = torch.as_tensor(target_lengths).long()
        if target_lengths.shape != (num_sentences,):
            raise ValueError(
                f"target_lengths has shape {tuple(target_lengths.shape)}, "
                f"it must hold one length for each of {num_sentences} sentences"
            )
        return longest, target_lengths

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
        for name in ("from_auto_class", "from_pipeline", "trust_remote_code"):
            kwargs.pop(name, None)
        path = kwargs.pop("pretrained_model_name_or_path", None)
        if generation_config is not None:
            self.generation_config = self.generation_config_class.from_dict(generation_config.to_dict())
        elif path is not None:
            saved = saved_generation_config(self.generation_config_class, path, **kwargs)
            if saved is not None:  # otherwise the defaults, made from the model's config, stay
                self.generation_config = saved
