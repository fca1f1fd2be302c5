"""The command `init`: repeating it changes nothing, and nobody else's folder is replaced."""

import json

import pytest
import torch
from safetensors.torch import load_file

from modeling_jmnat.commands import init
from modeling_jmnat.training import teacher_start
from modeling_jmnat.utils.locks import folder_lock
from tests.helpers.teacher_samples import random_teacher
from tests.helpers.translation_samples import tiny_tokenizer


@pytest.fixture
def teacher(tmp_path):
    tokenizer = tiny_tokenizer()
    for part in (random_teacher(tokenizer), tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def words(teacher, output, **options):
    pairs = {"from": teacher, "output": output, **options}
    return [word for name, value in pairs.items() for word in (f"--{name}", str(value))]


def files_of(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def refused(line, capsys):
    """The sentence with which a command is refused."""
    with pytest.raises(SystemExit) as stopped:
        init.main(line)
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_the_same_command_again_has_nothing_left_to_do(teacher, tmp_path, capsys):
    output = tmp_path / "start"
    init.main(words(teacher, output, decoder_layers=1))
    first, before = capsys.readouterr().out.splitlines()[-1], files_of(output)
    init.main(words(teacher, output, decoder_layers=1))
    again = capsys.readouterr()
    assert again.out == first + "\n"
    assert again.err == f"{output} holds the model of this command: nothing is left to do\n"
    assert files_of(output) == before
    for change in ({}, {"decoder_layers": 1, "seed": 43}, {"decoder_layers": 1, "language_code": "x"}):
        assert f"output={output} exists already: name a new folder" in refused(
            words(teacher, output, **change), capsys
        )
    assert files_of(output) == before


def of_another_vocabulary(teacher, output):
    (teacher / "vocab.json").write_text("{}")


def of_other_weights(teacher, output):
    random_teacher(tiny_tokenizer(), seed=1).save_pretrained(teacher)


def trained_since(teacher, output):
    (output / "model.safetensors").write_bytes((teacher / "model.safetensors").read_bytes())


def made_by_an_earlier_version(teacher, output):
    (output / "made_from.json").unlink()


def something_else(teacher, output):
    (output / "config.json").unlink()


@pytest.mark.parametrize(
    "change", [of_another_vocabulary, of_other_weights, trained_since, made_by_an_earlier_version, something_else]
)
def test_a_folder_that_this_command_did_not_make_is_refused(teacher, tmp_path, capsys, change):
    output = tmp_path / "start"
    init.main(words(teacher, output))
    change(teacher, output)
    before = files_of(output)
    assert f"output={output} exists already: name a new folder" in refused(words(teacher, output), capsys)
    assert files_of(output) == before


def test_a_training_in_the_folder_is_refused_and_what_another_program_writes_is_kept(
    teacher, tmp_path, capsys, monkeypatch
):
    output, tried, copy = tmp_path / "m", [], teacher_start.copy_teacher_weights

    def in_the_midst(*arguments):
        with pytest.raises(ValueError, match=f"output_dir={output} is in use"), folder_lock(output, "output_dir"):
            pass
        tried.append(True)
        output.mkdir()
        (output / "results.json").write_text("a day's work")
        return copy(*arguments)

    monkeypatch.setattr(teacher_start, "copy_teacher_weights", in_the_midst)
    message = refused(words(teacher, output), capsys)
    assert tried
    assert f"error: {output} has been written by another process since this command began" in message
    assert [path.name for path in output.iterdir()] == ["results.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "m"}
    with folder_lock(output, "output_dir"):
        assert f"output={output} is in use by another process" in refused(words(teacher, output), capsys)


def test_the_seed_draws_the_weights_that_the_teacher_lacks(teacher, tmp_path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(1)  # the state of the generator does not matter
        init.main(words(teacher, tmp_path / name, encoder_layers=3, seed=seed))
        weights.append(load_file(tmp_path / name / "model.safetensors")["model.encoder.layers.2.fc1.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    made = json.loads((tmp_path / "a" / "made_from.json").read_text())
    assert made["made_from"]["seed"] == 1
