"""The autoregressive teacher: a stock Transformers encoder-decoder of a preset's widths, and its batched decoding.

The student learns from the teacher's translations (sequence-level distillation, section 5 of the paper), so the
teacher is deliberately ordinary: `M2M100ForConditionalGeneration` where the preset puts layer norm before each block
(its sinusoidal positions equal the student's), `MarianMTModel` where it comes after.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..configuration_jmnat import JMNatConfig
from ..hub.fairseq_tokenizer import CONVERTED_OPTIONS
from ..inference.loading import check_languages, load_teacher_tokenizer, refuse_student
from ..tokenization_jmnat import JMNatTokenizer
from ..utils.id_batches import length_sorted_batches, pad_batch

# A hypothesis may have MAX_LENGTH_FACTOR * S + MAX_LENGTH_MARGIN tokens before `</s>`, S being its source's tokens.
MAX_LENGTH_FACTOR = 1.5
MAX_LENGTH_MARGIN = 10

SHARED_FIELDS = (
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_layers",
    "decoder_attention_heads",
    "decoder_ffn_dim",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "activation_function",
    "scale_embedding",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)

FREE_FIELDS = ("dropout", "attention_dropout", "activation_dropout")  # in which student and teacher may differ


def build_teacher(
    model_section: JMNatConfig | Mapping, tokenizer: PreTrainedTokenizerBase, num_beams: int = 5
) -> PreTrainedModel:
    """A randomly initialised autoregressive model with the widths of a preset's model section.

    Fields that only the student has (positional attention, loss weights, ...) have no meaning here and are left out.
    The embedding matrix is shared by encoder, decoder and output projection; decoding starts from `</s>`.

    Args:
        model_section: fields of `JMNatConfig`, as a mapping or as the configuration itself.
        tokenizer: gives the vocabulary size and the special tokens' ids.
        num_beams: written to the generation configuration.

    Raises:
        ValueError: the vocabulary's special ids differ from the configuration's.
    """
    if isinstance(model_section, JMNatConfig):
        config = model_section
    else:
        config = JMNatConfig(**{**model_section, "vocab_size": len(tokenizer)})
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name) != getattr(config, name):
            raise ValueError(
                f"{name} is {getattr(tokenizer, name)} in the tokenizer and {getattr(config, name)} in the model"
            )
    fields = {name: getattr(config, name) for name in SHARED_FIELDS}
    fields.update(
        vocab_size=len(tokenizer),
        max_position_embeddings=num_positions(config),
        decoder_start_token_id=config.eos_token_id,
        init_std=config.init_std or config.d_model**-0.5,
    )
    if config.normalize_before:
        model = M2M100ForConditionalGeneration(M2M100Config(encoder_layerdrop=0.0, decoder_layerdrop=0.0, **fields))
    else:
        model = MarianMTModel(MarianConfig(forced_eos_token_id=None, **fields))
    if config.init_std is None:
        _xavier_init(model)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.eos_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        max_length=config.max_target_length + 1,  # the start token is counted
        num_beams=num_beams,
        early_stopping=num_beams > 1,
    )
    return model


def num_positions(config: JMNatConfig) -> int:
    """Positions of the teacher of a student with this configuration; its targets begin with a start token."""
    return max(config.max_position_embeddings, config.max_target_length) + 2


def can_start(directory: str | Path, model_section: Mapping, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a teacher is one that `build_teacher` makes for a preset and a tokenizer: its weights fit a student.

    Args:
        directory: a saved teacher, or its name on the Hub.

    Raises:
        ValueError: no such folder, a model that is not autoregressive, one that was trained on other data with a
            tokenizer of this package, or a multilingual one without languages.
    """
    theirs, config = load_teacher_tokenizer(directory), AutoConfig.from_pretrained(directory)
    refuse_student(directory, config)
    try:
        generation_config = GenerationConfig.from_pretrained(directory)
    except OSError:  # it has none
        generation_config = GenerationConfig.from_model_config(config)
    check_languages(directory, theirs, generation_config)
    if not same_tokenizer(theirs, tokenizer):
        return False
    ours = build_teacher(model_section, tokenizer).config
    names = {"model_type", "vocab_size", *SHARED_FIELDS} - set(FREE_FIELDS)
    return all(getattr(config, name, None) == getattr(ours, name) for name in names)


@torch.no_grad()
def _xavier_init(model: PreTrainedModel) -> None:
    """fairseq's initialisation: Xavier-uniform linear layers; embeddings with std D**-0.5 come from `init_std`."""
    output_projection = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not output_projection:  # tied to the embeddings
            nn.init.xavier_uniform_(module.weight)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what maps text to ids: equal for two tokenizers that give the same ids."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        for name in ("truncation", "padding"):  # left behind by the last call
            state.pop(name, None)
    else:
        state = tokenizer.get_vocab()
    options = {name: tokenizer.init_kwargs.get(name) for name in ("moses_source_lang", "moses_target_lang")}
    options.update({name: value for name in CONVERTED_OPTIONS if (value := tokenizer.init_kwargs.get(name))})
    return hashlib.sha256(json.dumps([state, options], sort_keys=True).encode("utf-8")).hexdigest()


def same_tokenizer(teacher: PreTrainedTokenizerBase, data: PreTrainedTokenizerBase) -> bool:
    """True where teacher and data share their token ids, False where the teacher must be talked to in text.

    Raises:
        ValueError: both are `JMNatTokenizer`s and differ: the teacher belongs to other data.
    """
    if tokenizer_digest(teacher) == tokenizer_digest(data):
        return True
    if isinstance(teacher, JMNatTokenizer) and isinstance(data, JMNatTokenizer):
        raise ValueError(
            f"the teacher's tokenizer (hash {tokenizer_digest(teacher)[:12]}) is not the data's (hash "
            f"{tokenizer_digest(data)[:12]}): prepare the data with --tokenizer and the teacher's folder"
        )
    return False


def max_source_length(model: PreTrainedModel) -> int:
    """Tokens that the model has positions for (1,024 where its configuration sets no bound)."""
    return getattr(model.config, "max_position_embeddings", None) or 1024


def distillation_batch_tokens(device: torch.device | str) -> int:
    """Padded source tokens times beams that one decoding batch holds."""
    return 131_072 if torch.device(device).type == "cuda" else 16_384


def decode(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    num_beams: int = 5,
    batch_tokens: int | None = None,
    advance: Callable[[int], object] | None = None,
    **generate_kwargs,
) -> list[list[int]]:
    """Translate `sources` (lists of ids that end in `</s>`) and return target ids without special start and padding.

    Sentences are sorted by length into batches with count * beams * longest source <= `batch_tokens`. Results are in
    input order; the closing `</s>`, where one was generated, is kept out. `num_beams=1` is greedy search. `advance` is
    called with the number of sentences after each batch. Other keyword arguments go to `model.generate`.

    Raises:
        ValueError: `num_beams` or `batch_tokens` below 1, or a source that is empty or too long for the model.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams={num_beams} must be at least 1")
    if batch_tokens is not None and batch_tokens < 1:
        raise ValueError(f"batch_tokens={batch_tokens} must be at least 1")
    for number, source in enumerate(sources, start=1):
        if not len(source):
            raise ValueError(f"source {number} has no tokens: even an empty line has its </s>")
        if len(source) > max_source_length(model):
            raise ValueError(f"source {number} has {len(source)} tokens, the model allows {max_source_length(model)}")
    batch_tokens = batch_tokens or distillation_batch_tokens(model.device)
    results: list[list[int]] = [[]] * len(sources)
    was_training = model.training
    model.eval()
    try:
        for indices, sequences in _decode_batches(model, sources, num_beams, batch_tokens, generate_kwargs):
            for index, sequence in zip(indices, sequences, strict=True):
                results[index] = sequence
            if advance is not None:
                advance(len(indices))
    finally:
        model.train(was_training)
    return results


def max_target_length(model: PreTrainedModel, source_length: int) -> int:
    """Tokens that a translation may have before `</s>`, by its own source alone: batches do not matter."""
    limit = math.ceil(MAX_LENGTH_FACTOR * source_length) + MAX_LENGTH_MARGIN
    return min(limit, max_source_length(model) - 2)


def length_penalty(generation_config: GenerationConfig) -> float:
    """Exponent of the length in beam search, 1.0 where none is set: for engines that do not read the configuration."""
    value = generation_config.length_penalty
    return 1.0 if value is None else float(value)


def search_options(generation_config: GenerationConfig) -> dict[str, float | int]:
    """What CTranslate2 must be told of a configuration, which it does not read, by the names of its options."""
    return {
        "length_penalty": length_penalty(generation_config),
        "repetition_penalty": generation_config.repetition_penalty or 1.0,
        "no_repeat_ngram_size": generation_config.no_repeat_ngram_size or 0,
    }


class _LengthLimit(LogitsProcessor):
    """Only `</s>` may follow once a row has its own number of tokens: rows of a batch do not lengthen each other."""

    def __init__(self, limits: Sequence[int], num_beams: int, end_ids: Sequence[int], device: torch.device):
        self.smallest = min(limits)
        self.limits = torch.tensor(limits, device=device).repeat_interleave(num_beams)  # (B * beams,)
        self.end_ids = torch.tensor(sorted(end_ids), device=device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        generated = input_ids.shape[1] - 1  # without the start token
        if generated < self.smallest:
            return scores
        full = (generated >= self.limits).unsqueeze(1)  # (B * beams, 1)
        limited = torch.full_like(scores, float("-inf"))
        limited[:, self.end_ids] = scores[:, self.end_ids]
        return torch.where(full, limited, scores)


def _decode_batches(
    model, sources, num_beams, batch_tokens, generate_kwargs
) -> Iterator[tuple[list[int], list[list[int]]]]:
    pad, eos = model.generation_config.pad_token_id, model.generation_config.eos_token_id
    end_ids = set(eos if isinstance(eos, list) else [eos])
    for indices in length_sorted_batches([len(source) for source in sources], batch_tokens, num_beams):
        input_ids, attention_mask = pad_batch([sources[index] for index in indices], pad, model.device)
        limits = [max_target_length(model, len(sources[index])) for index in indices]
        options = {
            "max_length": max(limits) + 2,  # with the start token and `</s>`
            "num_beams": num_beams,
            "do_sample": False,
            "early_stopping": num_beams > 1,
            "logits_processor": LogitsProcessorList([_LengthLimit(limits, num_beams, end_ids, model.device)]),
        }
        if num_beams == 1:
            options["length_penalty"] = 1.0  # belongs to beam search: another value would be warned about
        with torch.inference_mode():
            output = model.generate(
                input_ids=input_ids, attention_mask=attention_mask, **{**options, **generate_kwargs}
            )
        yield indices, [_strip(row, pad, end_ids) for row in output[:, 1:].tolist()]  # without the start token


def _strip(row: list[int], pad: int, end_ids: set[int]) -> list[int]:
    """The tokens before the first `</s>` or padding."""
    for position, token in enumerate(row):
        if token in end_ids or token == pad:
            return row[:position]
    return row
