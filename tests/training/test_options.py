"""The options of training say what the classes they belong to have, and reading them needs no PyTorch."""

import inspect
import subprocess
import sys
from dataclasses import MISSING, dataclass, fields
from typing import get_args

import pytest
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

from modeling_jmnat import DataCollatorForJMNat, JMNatConfig, JMNatTrainingArguments
from modeling_jmnat.teacher.command import TeacherArguments
from modeling_jmnat.training.arguments import TeacherTrainingArguments
from modeling_jmnat.training.command import RunArguments, parse_command
from modeling_jmnat.training.options import (
    FREE_MODEL_FIELDS,
    InheritedOptions,
    MaskingOptions,
    ModelOptions,
    StudentOptions,
    TeacherOptions,
)

LIGHT = """
import sys
import modeling_jmnat.training.command, modeling_jmnat.teacher.command
from modeling_jmnat.training.presets import preset_names, read_preset
assert all(read_preset(name).training for name in preset_names())
print([name for name in ("torch", "transformers", "datasets", "accelerate") if name in sys.modules])
"""


def test_options_and_presets_are_read_without_torch():
    command = [sys.executable, "-c", LIGHT]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def annotations_of(cls) -> dict:
    return {name: kind for base in reversed(cls.__mro__) for name, kind in inspect.get_annotations(base).items()}


def default_of(item):
    return item.default if item.default is not MISSING else item.default_factory()


def test_model_options_are_those_of_the_configuration():
    config = {item.name: item.default for item in fields(JMNatConfig)}
    theirs, ours = annotations_of(JMNatConfig), annotations_of(ModelOptions)
    for item in fields(ModelOptions):
        assert (item.default, type(item.default)) == (config[item.name], type(config[item.name])), item.name
        kinds = set(get_args(theirs[item.name]) or [theirs[item.name]])
        if float in kinds:
            kinds.discard(int)
        assert set(get_args(ours[item.name]) or [ours[item.name]]) == kinds, item.name
    of_the_data = {"vocab_size", "split_sentences", "is_encoder_decoder", "tie_word_embeddings", "layer_norm_eps"}
    of_the_data |= {"position_offset", "output_bias"}  # a teacher that gives its weights gives them, too
    own = {name for name in inspect.get_annotations(JMNatConfig) if not name.endswith("_token_id")}
    assert own - {item.name for item in fields(ModelOptions)} == of_the_data
    assert {item.name for item in fields(ModelOptions)} > FREE_MODEL_FIELDS


def test_masking_options_are_those_of_the_collator():
    parameters = inspect.signature(DataCollatorForJMNat).parameters
    ours = annotations_of(MaskingOptions)
    assert set(parameters) - set(ours) == {"tokenizer", "ngram_size", "seed"}
    for item in fields(MaskingOptions):
        parameter = parameters[item.name]
        assert (ours[item.name], item.default) == (parameter.annotation, parameter.default), item.name


def test_inherited_options_are_those_of_transformers():
    defaults = {item.name: default_of(item) for item in fields(TrainingArguments)}
    kinds = {}
    for action in HfArgumentParser(TrainingArguments)._actions:
        kind = bool if action.nargs == "?" else action.type
        kinds[action.dest] = tuple(map(str, action.choices)) if action.choices else kind
    for item in fields(InheritedOptions):
        kind = item.type if item.default is not None else next(iter(get_args(item.type)))
        kind = get_args(kind) or kind
        assert (kind, item.default) == (kinds[item.name], defaults[item.name]), item.name


@pytest.mark.parametrize(
    ("arguments", "options"), [(JMNatTrainingArguments, StudentOptions), (TeacherTrainingArguments, TeacherOptions)]
)
def test_arguments_have_our_defaults_and_no_field_besides(tmp_path, arguments, options):
    made = arguments(output_dir=str(tmp_path), use_cpu=True)
    for item in fields(options):
        assert getattr(made, item.name) == default_of(item), item.name
    names = [{item.name for item in fields(cls)} for cls in (arguments, options, Seq2SeqTrainingArguments)]
    assert names[0] == names[1] | names[2]
    assert not names[1] & {item.name for item in fields(InheritedOptions)}
    assert next(iter(inspect.signature(arguments).parameters)) == "output_dir"


def test_every_option_has_its_help():
    ours = (RunArguments, ModelOptions, MaskingOptions, StudentOptions, TeacherArguments, TeacherOptions)
    for options in (*ours, InheritedOptions):
        for item in fields(options):
            assert item.metadata["help"].endswith((".", "...")), item.name


def test_another_system_has_its_options_and_settings_above_the_preset():
    """The hooks by which a system other than JM-NAT is trained by the same command."""

    @dataclass
    class MoreRun(RunArguments):
        guide: str | None = None

    @dataclass
    class MoreModel(ModelOptions):
        crf_rank: int = 32

    argv = ["--preset", "multi30k_tiny", "--data", "d", "--output_dir", "o", "--guide", "g", "--crf_rank", "8"]
    settings = {"target_mask": "all", "source_mask_ratio": 0.0}
    found = parse_command([*argv, "--source_mask_ratio", "0.3"], "", MoreRun, MoreModel, settings)
    assert (found.run.guide, found.model["crf_rank"], found.model["d_model"]) == ("g", 8, 128)
    assert (found.masking["target_mask"], found.masking["source_mask_ratio"]) == ("all", 0.3)
    assert parse_command(argv[:-4], "").masking["target_mask"] == "consecutive"
