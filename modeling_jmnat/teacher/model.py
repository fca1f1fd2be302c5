"""The autoregressive teacher: a stock Transformers encoder-decoder of a preset's widths.

The student learns from the teacher's translations (sequence-level distillation, section 5 of the paper). The teacher
is a standard model: `M2M100ForConditionalGeneration` for presets with layer norm before each block (its sinusoidal
positions equal the student's), `MarianMTModel` for those with layer norm after it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    GenerationConfig,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..configuration_jmnat import JMNatConfig
from ..inference.loading import NO_FOREIGN_CODE, check_languages, load_teacher_tokenizer, refuse_student
from ..tokenization_jmnat import JMNatTokenizer
from ..utils.fingerprints import shown, tokenizer_fingerprint

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

FREE_FIELDS = ("dropout", "attention_dropout", "activation_dropout")  # student and teacher may differ in these


def build_teacher(
    model_section: JMNatConfig | Mapping, tokenizer: PreTrainedTokenizerBase, num_beams: int = 5
) -> PreTrainedModel:
    """A randomly initialised autoregressive model with the widths of a preset's model section.

    Fields that only the student has (positional attention, loss weights, ...) are ignored.
    The embedding matrix is shared by encoder, decoder and output projection; decoding starts from `</s>`.

    Args:
        model_section: fields of `JMNatConfig`, as a mapping or as the configuration itself.
        tokenizer: provides the vocabulary size and the ids of special tokens.
        num_beams: default beam size, saved in the generation configuration.

    Raises:
        ValueError: the configuration has special ids that differ from the tokenizer's.
    """
    if isinstance(model_section, JMNatConfig):
        config = model_section
    else:
        ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        config = JMNatConfig(**{**ids, **model_section, "vocab_size": len(tokenizer)})
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name) != getattr(config, name):
            raise ValueError(
                f"{name} is {getattr(tokenizer, name)} in the tokenizer and {getattr(config, name)} in the model: "
                "they must be the same"
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
        max_length=config.max_target_length + 1,  # including the start token
        num_beams=num_beams,
        early_stopping=num_beams > 1,
    )
    return model


def num_positions(config: JMNatConfig) -> int:
    """Number of positions of a teacher for a student with this configuration; targets have a start token as well."""
    return max(config.max_position_embeddings, config.max_target_length) + 2


def can_start(directory: str | Path, model_section: Mapping, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a student can start from a teacher's weights: it is as `build_teacher` makes it for this preset.

    Args:
        directory: a saved teacher, or its name on the Hub.

    Raises:
        ValueError: there is no such model, it is not autoregressive, it is multilingual without languages, or it has
            another tokenizer of this package, because it was trained on other data.
    """
    theirs, config = load_teacher_tokenizer(directory), AutoConfig.from_pretrained(directory, **NO_FOREIGN_CODE)
    refuse_student(directory, config)
    try:
        generation_config = GenerationConfig.from_pretrained(directory)
    except OSError:  # the teacher has none
        generation_config = GenerationConfig.from_model_config(config)
    check_languages(directory, theirs, generation_config, "teacher_languages")
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


def same_tokenizer(teacher: PreTrainedTokenizerBase, data: PreTrainedTokenizerBase) -> bool:
    """Whether teacher and data share their token ids; otherwise the teacher must be given text.

    Raises:
        ValueError: both are `JMNatTokenizer`s and differ, so the teacher was trained on other data.
    """
    theirs, ours = tokenizer_fingerprint(teacher), tokenizer_fingerprint(data)
    if theirs == ours:
        return True
    if isinstance(teacher, JMNatTokenizer) and isinstance(data, JMNatTokenizer):
        raise ValueError(
            f"the teacher's tokenizer (hash {shown(theirs)}) is not the data's (hash {shown(ours)}): prepare the data "
            "with the teacher's folder as --tokenizer"
        )
    return False
