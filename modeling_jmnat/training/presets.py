"""Recipes as files: `presets/NAME.yaml` with the sections model, masking, training and teacher."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Union, get_args, get_origin

from ..configuration_jmnat import JMNatConfig
from .arguments import JMNatTrainingArguments, TeacherTrainingArguments
from .data_collator import DataCollatorForJMNat

PRESETS = Path(__file__).with_name("presets")
PLAIN_TYPES = (bool, int, float, str, NoneType)
SECTIONS = ("model", "masking", "training", "teacher")
# What a recipe may set of `JMNatConfig` (the vocabulary's size comes from the data) and of `DataCollatorForJMNat`.
MODEL_FIELDS = {
    "d_model": "Width of every layer.",
    "encoder_layers": "Encoder layers.",
    "encoder_attention_heads": "Attention heads in the encoder.",
    "encoder_ffn_dim": "Width of the encoder's feed-forward blocks.",
    "decoder_layers": "Decoder layers.",
    "decoder_attention_heads": "Attention heads in the decoder.",
    "decoder_ffn_dim": "Width of the decoder's feed-forward blocks.",
    "dropout": "Dropout after each block.",
    "attention_dropout": "Dropout of attention probabilities.",
    "activation_dropout": "Dropout inside the feed-forward blocks.",
    "activation_function": "relu (the paper), gelu, ...",
    "normalize_before": "Layer norm before each block (easier to train) instead of after it (the paper).",
    "position_embedding_type": "sinusoidal or learned.",
    "scale_embedding": "Multiply token embeddings by the square root of d_model.",
    "positional_attention": "Attention over positions in each decoder layer; false: as Mask-Predict.",
    "exclude_self_attention": "Decoder positions do not attend to themselves; false: as Mask-Predict.",
    "decoder_input": "mask, or source_copy for the basic non-autoregressive model (one pass).",
    "max_position_embeddings": "Longest source in tokens.",
    "max_target_length": "Longest target in tokens.",
    "init_std": "Standard deviation of the initial weights; left out: as fairseq's Transformer.",
    "ngram_size": "n of the n-gram loss, of consecutive masks and of adjacent re-masking.",
    "ngram_alignment": "any, or gold (an n-gram counts at its own place only).",
    "encoder_loss_weight": "Weight of the masked source tokens' loss.",
    "ngram_loss_weight": "Weight of the n-gram loss.",
    "length_loss_weight": "Weight of the length loss.",
    "label_smoothing": "Label smoothing of the target tokens' loss.",
}
# What may be chosen anew for a model that is trained further.
FREE_MODEL_FIELDS = {
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "ngram_size",
    "ngram_alignment",
    "encoder_loss_weight",
    "ngram_loss_weight",
    "length_loss_weight",
    "label_smoothing",
    "init_std",
}
MASKING_FIELDS = {
    "source_mask_ratio": "Share of source tokens that are masked and predicted; 0 switches it off.",
    "target_mask": "consecutive (the paper), random (as Mask-Predict), or all (for one-pass models).",
    "mask_token_prob": "Share of the chosen tokens that become <mask>.",
    "random_token_prob": "Share of the chosen tokens that become a random token; the rest stay.",
    "full_mask_ratio": "Share of sentences whose whole target is masked.",
    "correction_ratio": "Share of visible target tokens replaced by the model's own predictions, to be corrected.",
    "glancing_ratio": "In fully masked targets, show this many reference tokens for each one predicted wrongly.",
    "pad_to_multiple_of": "Pad batches to a multiple of this length (8 suits tensor cores).",
}


@dataclass(frozen=True)
class Preset:
    """One recipe.

    Args:
        name: the file's name without its ending.
        model: see `MODEL_FIELDS`.
        masking: see `MASKING_FIELDS`.
        training: fields of `JMNatTrainingArguments`.
        teacher: fields of `TeacherTrainingArguments` that differ from `training` for the autoregressive teacher.
    """

    name: str
    model: dict = field(default_factory=dict)
    masking: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    teacher: dict = field(default_factory=dict)


def preset_names() -> list[str]:
    """The recipes that come with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name_or_file: str | Path) -> Preset:
    """Read a recipe by its name or from a YAML file.

    Raises:
        ValueError: no such recipe, not YAML, an unknown section or field, or a value of another type; it is named.
        OSError: the file cannot be read.
    """
    path = Path(name_or_file)
    if path.suffix not in (".yaml", ".yml"):
        path = PRESETS / f"{name_or_file}.yaml"
        if not path.is_file():
            raise ValueError(f"preset {name_or_file!r} is not one of {', '.join(preset_names())}, nor a .yaml file")
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no sections: it needs some of {', '.join(SECTIONS)}")
    types = section_types()
    sections = {}
    for section, values in content.items():
        if section not in SECTIONS:
            raise ValueError(f"{path}: section {section!r} is not one of {', '.join(SECTIONS)}")
        if not isinstance(values, dict):
            raise ValueError(f"{path}: section {section} must hold fields with values, not {values!r}")
        sections[section] = {name: _number(value) for name, value in values.items()}
        for name, value in sections[section].items():
            if name not in types[section]:
                raise ValueError(f"{path}: {name!r} is no field of section {section}")
            if not _fits(value, types[section][name]):
                wanted = inspect.formatannotation(types[section][name])
                raise ValueError(f"{path}: {section}.{name}={value!r} is not of the type {wanted}")
    return Preset(path.stem, **sections)


def section_types() -> dict[str, dict]:
    """The fields that each section may hold, and their types."""
    of_model, of_training, of_teacher = (  # not the fields' own types, which HfArgumentParser changes
        {name: kind for cls in reversed(owner.__mro__) for name, kind in inspect.get_annotations(cls).items()}
        for owner in (JMNatConfig, JMNatTrainingArguments, TeacherTrainingArguments)
    )
    of_masking = {name: item.annotation for name, item in inspect.signature(DataCollatorForJMNat).parameters.items()}
    types = {"training": of_training, "teacher": of_teacher}
    for given in types.values():
        del given["output_dir"]
    for section, owner, names in (("model", of_model, MODEL_FIELDS), ("masking", of_masking, MASKING_FIELDS)):
        types[section] = {name: owner[name] for name in names}
    return types


def _fits(value, annotation) -> bool:
    """Whether a value may stand in a field of this type; types other than plain ones are left to their owners."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if any(kind not in PLAIN_TYPES and get_origin(kind) is not list for kind in kinds):
        return True
    for kind in kinds:
        if get_origin(kind) is list:
            fits = isinstance(value, list) and all(_fits(item, *get_args(kind)) for item in value)
        elif isinstance(value, bool):
            fits = kind is bool
        else:
            fits = isinstance(value, (int, float) if kind is float else kind)
        if fits:
            return True
    return False


def _number(value):
    """YAML 1.1 reads 1e-3 (without a point) as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
