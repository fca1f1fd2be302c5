"""Frozen and restarted halves: frozen weights stay the same bit by bit, the others change."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from modeling_jmnat.training.command import parse_command
from modeling_jmnat.training.halves import freeze_half, restart_half
from modeling_jmnat.training.options import HALVES
from tests.helpers.tiny_runs import MODEL, prepare_tiny_data, tiny_model
from tests.helpers.translation_samples import load_script, tiny_tokenizer

OTHER = {"encoder": "decoder", "decoder": "encoder"}


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.mark.parametrize("half", HALVES)
def test_frozen_half_and_embeddings_get_no_gradient(tokenizer, half):
    model = tiny_model(tokenizer)
    freeze_half(model, half)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    expected = {name for name, _ in model.named_parameters() if f".{half}." in name} | {"model.shared.weight"}
    assert frozen == expected
    assert not model.lm_head.weight.requires_grad


@pytest.mark.parametrize("half", HALVES)
def test_restarted_half_is_new_and_the_other_stays(tokenizer, half):
    model = tiny_model(tokenizer)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(9)
    restart_half(model, half)
    for name, parameter in model.named_parameters():
        constant = name.endswith("bias") or "layer_norm" in name  # begin with 0 and 1 anyway
        moved = not torch.equal(parameter, before[name])
        assert moved == (f".{half}." in name and not constant), name
    assert model.lm_head.weight is model.get_encoder().embed_tokens.weight


def test_options_are_checked(tmp_path):
    common = ["--data", "x", "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match="freeze='both' is not one of encoder, decoder"):
        parse_command([*common, "--freeze", "both"], "")
    with pytest.raises(ValueError, match="restart=decoder needs init_from"):
        parse_command([*common, "--restart", "decoder"], "")


def train(*arguments):
    load_script("train_jmnat").main([str(argument) for argument in arguments])


def test_training_changes_only_the_restarted_half(tmp_path, capsys):
    data = prepare_tiny_data(tmp_path)
    training = {"max_steps": 3, "max_tokens": 80, "learning_rate": 0.01, "warmup_steps": 1, "ema_decay": 0.5}
    training |= {"use_cpu": True, "disable_tqdm": True, "save_steps": 2}
    preset = tmp_path / "tiny.yaml"
    preset.write_text(yaml.safe_dump({"model": MODEL, "training": training}))
    common = ["--preset", preset, "--data", data]
    train(*common, "--output_dir", tmp_path / "first")
    frozen = ["--init_from", tmp_path / "first", "--freeze", "encoder", "--restart", "decoder"]
    train(*common, "--output_dir", tmp_path / "second", *frozen)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["finished"]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    for name in first:
        same = torch.equal(first[name], second[name])
        assert same == ("decoder" not in name), name
    with pytest.raises(SystemExit):  # another run than the one in the folder
        train(*common, "--output_dir", tmp_path / "second", *frozen[:4])
    assert "start restart=decoder, and now it is None" in capsys.readouterr().err
