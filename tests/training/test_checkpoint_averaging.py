"""The average of checkpoints: values, files, refusals, and nothing half-written when the disk is full."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_jmnat.training import checkpoint_averaging
from modeling_jmnat.training.checkpoint_averaging import average_checkpoints
from modeling_jmnat.utils.locks import folder_lock
from tests.helpers.translation_samples import load_script


def write_checkpoint(folder, tensors, tokenizer="{}", **config):
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"d_model": 4, **config}))
    (folder / "generation_config.json").write_text('{"num_iterations": 7}')
    (folder / "tokenizer.json").write_text(tokenizer)
    (folder / "optimizer.pt").write_text("not to be copied")
    return folder


@pytest.fixture
def checkpoints(tmp_path):
    """Three folders with random tensors, an integer tensor that is the same in all, and one in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    folders = []
    for number in range(3):
        tensors = {
            "model.shared.weight": torch.randn(5, 4, generator=generator),
            "bias": torch.randn(5, generator=generator).bfloat16(),
            "positions": torch.arange(3),
        }
        folders.append(write_checkpoint(tmp_path / f"checkpoint-{number}", tensors))
    return folders


def test_mean_of_every_tensor_and_files_of_the_first(checkpoints, tmp_path):
    output = average_checkpoints(checkpoints, tmp_path / "deep" / "average")
    averaged = load_file(output / "model.safetensors")
    inputs = [load_file(folder / "model.safetensors") for folder in checkpoints]
    assert set(averaged) == set(inputs[0])
    for key in ("model.shared.weight", "bias"):
        mean = torch.stack([tensors[key].double() for tensors in inputs]).mean(0)
        assert averaged[key].dtype == inputs[0][key].dtype
        torch.testing.assert_close(averaged[key], mean.to(averaged[key].dtype), rtol=0, atol=0)
    assert torch.equal(averaged["positions"], torch.arange(3))
    assert sorted(path.name for path in output.iterdir()) == [
        "averaging.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    names = json.loads((output / "averaging.json").read_text())["checkpoints"]
    assert names == ["checkpoint-0", "checkpoint-1", "checkpoint-2"]
    assert [path.name for path in output.parent.iterdir()] == ["average"]


def test_sums_do_not_lose_small_values(tmp_path):
    values = [2.0**24, 1.0, 1.0, -(2.0**24)]  # in float32 the two ones would vanish
    folders = [write_checkpoint(tmp_path / str(i), {"w": torch.tensor([value])}) for i, value in enumerate(values)]
    output = average_checkpoints(folders, tmp_path / "average")
    assert load_file(output / "model.safetensors")["w"].item() == 0.5


def test_sharded_checkpoint_equals_a_single_file(checkpoints, tmp_path):
    expected = load_file(average_checkpoints(checkpoints, tmp_path / "single") / "model.safetensors")
    tensors = load_file(checkpoints[1] / "model.safetensors")
    (checkpoints[1] / "model.safetensors").unlink()
    weight_map = {}
    for number, (key, tensor) in enumerate(tensors.items()):
        weight_map[key] = f"model-{number}.safetensors"
        save_file({key: tensor}, checkpoints[1] / weight_map[key])
    (checkpoints[1] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    actual = load_file(average_checkpoints(checkpoints, tmp_path / "sharded") / "model.safetensors")
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_an_earlier_average_is_replaced_and_anything_else_is_not(checkpoints, tmp_path):
    output = average_checkpoints(checkpoints, tmp_path / "average")
    average_checkpoints(checkpoints[:1], output)
    assert torch.equal(
        load_file(output / "model.safetensors")["model.shared.weight"],
        load_file(checkpoints[0] / "model.safetensors")["model.shared.weight"],
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="mine exists and does not hold an earlier average"):
        average_checkpoints(checkpoints, tmp_path / "mine")
    assert not list(tmp_path.glob(".*"))


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["results.json", "checkpoint-4/model.safetensors", "onnx/translator.onnx", "my.txt"])
def test_an_average_with_anything_else_in_it_is_not_replaced(checkpoints, tmp_path, name):
    """Such as a training that was begun in its folder."""
    output = average_checkpoints(checkpoints, tmp_path / "average")
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("made since")
    before = files_of(output)
    first = name.split("/")[0]
    with pytest.raises(ValueError, match=rf"holds more than an earlier average \({first}\), which would be lost"):
        average_checkpoints(checkpoints[:1], output)
    assert files_of(output) == before


@pytest.mark.parametrize("exists", [False, True])
def test_what_is_written_while_averaging_is_kept(checkpoints, tmp_path, exists, monkeypatch):
    output = tmp_path / "average"
    if exists:
        average_checkpoints(checkpoints, output)
    refused, mean = [], checkpoint_averaging._mean

    def in_the_midst(*arguments):
        with pytest.raises(ValueError, match="in use"), folder_lock(output, "output_dir"):  # as a training does
            pass
        refused.append(True)
        output.mkdir(exist_ok=True)
        (output / "results.json").write_text("of another program")
        return mean(*arguments)

    monkeypatch.setattr(checkpoint_averaging, "_mean", in_the_midst)
    with pytest.raises(FileExistsError, match=f"^{output} has been written by another process"):
        average_checkpoints(checkpoints[:1], output)
    assert refused
    assert (output / "results.json").read_text() == "of another program"
    assert (output / "averaging.json").exists() == exists
    assert not list(tmp_path.glob(".*"))


def test_a_folder_in_which_a_training_runs_is_in_use(checkpoints, tmp_path):
    output = average_checkpoints(checkpoints, tmp_path / "average")
    with folder_lock(output, "output_dir"), pytest.raises(ValueError, match="in use by another process"):
        average_checkpoints(checkpoints, output)


def test_the_vocabulary_of_a_teacher_from_the_hub_is_copied(checkpoints, tmp_path):
    """Whose tokenizer is two files of sentencepiece."""
    for name in ("source.spm", "target.spm", "vocab.json"):
        (checkpoints[0] / name).write_text(name)
    output = average_checkpoints(checkpoints, tmp_path / "average")
    assert [(output / name).read_text() for name in ("source.spm", "target.spm")] == ["source.spm", "target.spm"]
    average_checkpoints(checkpoints, output)  # they belong to an average


def other(name, value):
    tensors = {
        "model.shared.weight": torch.zeros(5, 4),
        "bias": torch.zeros(5).bfloat16(),
        "positions": torch.arange(3),
    }
    return {**tensors, name: value}


@pytest.mark.parametrize(
    ("tensors", "options", "sentence"),
    [
        (other("extra", torch.zeros(1)), {}, "checkpoint-0 lacks the tensor extra"),
        ({"bias": torch.zeros(5)}, {}, "other lacks the tensor model.shared.weight"),
        (other("bias", torch.zeros(6)), {}, r"tensor bias has shape \[6\].*and \[5\]"),
        (other("positions", torch.arange(3) + 1), {}, "tensor positions holds torch.int64 values that differ"),
        (
            other("model.shared.weight", torch.full((5, 4), float("nan"))),
            {},
            "model.shared.weight is not finite in one",
        ),
        (other("bias", torch.zeros(5)), {"encoder_attention_heads": 2}, "config field encoder_attention_heads is 2"),
        (other("bias", torch.zeros(5)), {"tokenizer": "[]"}, "checkpoints must share one tokenizer"),
    ],
)
def test_what_cannot_be_averaged_is_named(checkpoints, tmp_path, tensors, options, sentence):
    folder = write_checkpoint(tmp_path / "other", tensors, **options)
    with pytest.raises(ValueError, match=sentence):
        average_checkpoints([checkpoints[0], folder], tmp_path / "average")
    assert not (tmp_path / "average").exists()


def test_bad_folders_are_named(checkpoints, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.safetensors").write_bytes((checkpoints[0] / "model.safetensors").read_bytes()[:-8])
    for folders, sentence in (
        ([], "directories is empty"),
        ([checkpoints[0], checkpoints[0]], "checkpoint-0 is given twice"),
        ([checkpoints[0], tmp_path / "absent"], "absent is not a folder"),
        ([checkpoints[0], tmp_path / "empty"], "empty holds no model.safetensors"),
        ([checkpoints[0], tmp_path / "cut"], "cut/model.safetensors is not a complete safetensors file"),
    ):
        with pytest.raises(ValueError, match=sentence):
            average_checkpoints(folders, tmp_path / "average")
    with pytest.raises(ValueError, match="is one of the checkpoints"):
        average_checkpoints(checkpoints, checkpoints[0])


FULL_DISK = """
import resource, sys
import modeling_jmnat.training.checkpoint_averaging  # older versions of PyTorch write a file when they are imported
from modeling_jmnat.commands.average_checkpoints import main
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""


def test_full_disk_leaves_the_earlier_average_whole(checkpoints, tmp_path):
    """A limit on the file size stands for the full disk; a child process, because the limit cannot be raised again."""
    output = average_checkpoints(checkpoints[:1], tmp_path / "average")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    limit = (output / "model.safetensors").stat().st_size - 64
    arguments = [limit, "--checkpoints", *checkpoints, "--output", output]
    command = [sys.executable, "-c", FULL_DISK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "cannot write model.safetensors" in done.stderr.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert not list(tmp_path.glob(".*"))


def test_a_second_process_is_refused_and_leftovers_of_a_killed_one_are_removed(checkpoints, tmp_path):
    output = average_checkpoints(checkpoints[:1], tmp_path / "average")
    message = f"output_dir={output} is in use by another process: wait until it ends or choose another folder"
    with folder_lock(output, "output_dir", beside=True), pytest.raises(ValueError, match=message):
        average_checkpoints(checkpoints, output)
    assert json.loads((output / "averaging.json").read_text())["checkpoints"] == ["checkpoint-0"]
    (tmp_path / ".unfinished" / "average").mkdir(parents=True)
    (tmp_path / ".unfinished" / "average" / "model.safetensors").write_text("half")
    average_checkpoints(checkpoints, output)
    assert json.loads((output / "averaging.json").read_text())["checkpoints"][-1] == "checkpoint-2"
    assert not list(tmp_path.glob(".*"))
    assert {path.stat().st_mode & 0o777 for path in output.iterdir()} == {output.stat().st_mode & 0o666}


def test_command_prints_one_line_of_json(checkpoints, tmp_path, capsys):
    script = load_script("average_checkpoints")
    script.main(["--checkpoints", *map(str, checkpoints), "--output", str(tmp_path / "average")])
    assert json.loads(capsys.readouterr().out) == {"checkpoints": 3, "output": str(tmp_path / "average")}
    with pytest.raises(SystemExit) as stopped:
        script.main(["--checkpoints", "absent", "--output", str(tmp_path / "other")])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("error: absent is not a folder")
