"""A damaged file of a model folder is named before anything is loaded, whatever is to be done with the model."""

import functools
import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from modeling_jmnat.inference.loading import load_teacher, load_translator
from modeling_jmnat.training.checkpoint_averaging import average_checkpoints
from modeling_jmnat.training.checkpoints import write_manifest
from modeling_jmnat.utils.hub_folders import fetch_folder
from modeling_jmnat.utils.json_files import read_json
from modeling_jmnat.utils.model_files import check_model_files
from tests.helpers.translation_samples import save_translators

JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def with_index(folder, text):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)


def as_archive(folder, cut):
    """Weights in the format of old models."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    if cut:
        halve(folder / "pytorch_model.bin")


DAMAGES = {
    **{f"{name} cut": (name, lambda folder, name=name: halve(folder / name)) for name in JSON_FILES},
    **{f"{name} []": (name, lambda folder, name=name: (folder / name).write_text("[]")) for name in JSON_FILES},
    "not text": ("config.json", lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe")),
    "tokenizer.json {}": (
        "tokenizer.json lacks model, added",
        lambda folder: (folder / JSON_FILES[3]).write_text("{}"),
    ),
    "weights cut": ("model.safetensors", lambda folder: halve(folder / "model.safetensors")),
    "index cut": ("model.safetensors.index.json", lambda folder: with_index(folder, '{"weight')),
    "index {}": ("model.safetensors.index.json lacks weight_map", lambda folder: with_index(folder, "{}")),
    "shard missing": (
        "model.safetensors.index.json names one.safetensors, which is missing",
        lambda folder: with_index(folder, json.dumps({"weight_map": {"a": "one.safetensors"}})),
    ),
    "archive cut": ("pytorch_model.bin is cut short", lambda folder: as_archive(folder, cut=True)),
}


def test_weights_other_than_a_checkpoints_manifest_says_are_refused(tmp_path):
    folder = save_translators(tmp_path) / "student"
    write_manifest(folder, {})
    load_translator(folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-100] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    sentence = f"^{folder} is damaged: model.safetensors is not as it was written"
    average = functools.partial(average_checkpoints, output_dir=tmp_path / "average")
    for use in (load_translator, lambda folder: fetch_folder(folder, ()), lambda folder: average([folder])):
        with pytest.raises(ValueError, match=sentence):
            use(folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named_by_every_command(tmp_path, damage):
    save_translators(tmp_path)
    named, change = DAMAGES[damage]
    for folder, uses in (
        (tmp_path / "student", [load_translator, lambda folder: fetch_folder(folder, ())]),
        (tmp_path / "teacher", [load_translator, load_teacher]),
    ):
        check_model_files(folder)
        change(folder)
        for use in uses:
            with pytest.raises(ValueError, match=rf"{folder}/{named}") as error:
                use(folder)
            assert "\n" not in str(error.value)
    if named.startswith(("config", "model")):
        with pytest.raises(ValueError, match=named.split()[0]):
            average_checkpoints([shutil.copytree(folder, tmp_path / "copy"), folder], tmp_path / "mean")


def test_forbidden_pickles_are_named(tmp_path):
    save_translators(tmp_path)
    for kind, load in (("student", load_translator), ("teacher", load_teacher)):
        (tmp_path / kind / "model.safetensors").unlink()
        torch.save({"a": subprocess.Popen}, tmp_path / kind / "pytorch_model.bin")
        with pytest.raises(ValueError, match=rf"{kind} cannot be \w+: pytorch_model.bin holds more than tensors"):
            load(tmp_path / kind)


def test_weights_in_an_archive_load(tmp_path):
    save_translators(tmp_path)
    as_archive(tmp_path / "teacher", cut=False)
    load_teacher(tmp_path / "teacher")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is damaged or cut short"),
        ("", "is damaged or cut short"),
        ("3", "must hold a JSON object, not int"),
        ('{"a": 1}', "lacks b, c"),
    ],
)
def test_json_that_cannot_be_used_gets_a_sentence(tmp_path, content, sentence):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/x.json {sentence}.*: mend it$"):
        read_json(tmp_path / "x.json", ("a", "b", "c"), "mend it")
    (tmp_path / "x.json").write_text('{"a": 1, "b": null, "c": 2}')
    assert read_json(tmp_path / "x.json", ("a", "b")) == {"a": 1, "b": None, "c": 2}
