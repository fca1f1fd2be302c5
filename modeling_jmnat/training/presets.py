"""Recipes as files: `presets/NAME.yaml` with the sections model, masking, training and teacher.

`presets/accelerate/NAME.yaml` are settings of `accelerate launch` for several devices. This prints the path of one:

    python -m modeling_jmnat.training.presets NAME

Importing this module and `read_preset` load neither PyTorch nor Transformers.
"""

import inspect
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Union, get_args, get_origin

from .options import MaskingOptions, ModelOptions, StudentOptions, TeacherOptions

PRESETS = Path(__file__).with_name("presets")
PLAIN_TYPES = (bool, int, float, str, NoneType)
SECTIONS = ("model", "masking", "training", "teacher")


@dataclass(frozen=True)
class Preset:
    """One recipe.

    Args:
        name: the file's name without its ending.
        model: fields of `ModelOptions`.
        masking: fields of `MaskingOptions`.
        training: fields of `JMNatTrainingArguments`.
        teacher: fields of `TeacherTrainingArguments` that differ from `training` for the autoregressive teacher.
    """

    name: str
    model: dict = field(default_factory=dict)
    masking: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    teacher: dict = field(default_factory=dict)

    def teacher_training(self) -> dict:
        """All training fields of the teacher: those of `training` that apply to a teacher, overridden by its own."""
        student, teacher = ({item.name for item in fields(options)} for options in (StudentOptions, TeacherOptions))
        shared = {name: value for name, value in self.training.items() if name not in student - teacher}
        return {**shared, **self.teacher}


def preset_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def accelerate_config(name: str) -> Path:
    """The settings of `accelerate launch` of that name, such as fsdp2; ValueError for an unknown one."""
    folder = PRESETS / "accelerate"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"{name!r} is not one of {', '.join(sorted(path.stem for path in folder.glob('*.yaml')))}")
    return path


def read_preset(name_or_file: str | Path) -> Preset:
    """Read a recipe by its name or from a YAML file; only `load_preset` checks its fields.

    Raises:
        ValueError: no such recipe, not YAML, or an unknown section.
        OSError: the file cannot be read.
    """
    path = preset_path(name_or_file)
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no sections: it needs some of {', '.join(SECTIONS)}")
    sections = {}
    for section, values in content.items():
        if section not in SECTIONS:
            raise ValueError(f"{path}: section {section!r} is not one of {', '.join(SECTIONS)}")
        if not isinstance(values, dict):
            raise ValueError(f"{path}: section {section} must hold fields with values, not {values!r}")
        sections[section] = {name: _number(value) for name, value in values.items()}
    return Preset(path.stem, **sections)


def load_preset(name_or_file: str | Path) -> Preset:
    """Read a recipe as `read_preset` does, and check its fields; those of training need Transformers.

    Raises:
        ValueError: as `read_preset`, or a field is unknown or has a value of the wrong type.
        OSError: the file cannot be read.
    """
    preset, path = read_preset(name_or_file), preset_path(name_or_file)
    types = section_types()
    for section in SECTIONS:
        for name, value in getattr(preset, section).items():
            if name not in types[section]:
                raise ValueError(f"{path}: {name!r} is not a field of section {section}")
            if not _fits(value, types[section][name]):
                wanted = inspect.formatannotation(types[section][name])
                raise ValueError(f"{path}: {section}.{name}={value!r} is not of the type {wanted}")
    return preset


def preset_path(name_or_file: str | Path) -> Path:
    """The YAML file of a recipe; ValueError for an unknown name."""
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml"):
        return path
    path = PRESETS / f"{name_or_file}.yaml"
    if not path.is_file():
        raise ValueError(f"preset {name_or_file!r} is not one of {', '.join(preset_names())}, nor a .yaml file")
    return path


def section_types() -> dict[str, dict]:
    """The fields that each section may hold, and their types."""
    from .arguments import JMNatTrainingArguments, TeacherTrainingArguments

    owners = (ModelOptions, MaskingOptions, JMNatTrainingArguments, TeacherTrainingArguments)
    types = {}
    for section, owner in zip(SECTIONS, owners, strict=True):
        annotations = [inspect.get_annotations(cls) for cls in reversed(owner.__mro__)]
        # Not the types of `fields(owner)`, because HfArgumentParser changes them.
        types[section] = {name: kind for annotation in annotations for name, kind in annotation.items()}
    for section in ("training", "teacher"):
        del types[section]["output_dir"]
    return types


def _fits(value, annotation) -> bool:
    """Whether the value fits the annotation of its field; only plain types and lists of them are checked."""
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


if __name__ == "__main__":
    try:
        print(accelerate_config(" ".join(sys.argv[1:])))
    except ValueError as error:
        sys.exit(f"error: {error}")
