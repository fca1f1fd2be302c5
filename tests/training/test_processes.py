"""Several processes on a CPU, as torchrun starts them: they find each other and do together what one does alone."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from modeling_jmnat.data.preparation import PreparationArguments, prepare
from tests.helpers.tiny_runs import MODEL, prepare_tiny_data
from tests.helpers.translation_samples import SCRIPTS, command_line, load_script, save_translators


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_tiny_data(tmp_path_factory.mktemp("tiny"))


def run(processes, script, capsys, **options):
    """What the command prints."""
    if processes == 1:
        capsys.readouterr()
        load_script(script).main(command_line(options))
        return capsys.readouterr().out
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(SCRIPTS / f"{script}.py"), *command_line(options)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_two_processes_train_as_one_with_twice_the_batch(data, tmp_path, capsys):
    options = {
        **{name: value for name, value in MODEL.items() if name != "normalize_before"},
        "data": data,
        "dropout": 0.0,
        "max_steps": 3,
        "eval_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        run(processes, "train_jmnat", capsys, **options, output_dir=folder, per_device_train_batch_size=8 // processes)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "2"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)


def test_two_processes_distil_what_one_does(tmp_path, capsys):
    save_translators(tmp_path)
    files = {}
    for number, name in enumerate(("train_source", "train_target", "validation_source", "validation_target")):
        files[name] = str(tmp_path / name)
        (tmp_path / name).write_text("".join(f"ab cd e{number}\nf gh\n{'ij ' * (i % 5 + 1)}\n" for i in range(12)))
    tokenizer = str(tmp_path / "teacher")
    prepare(PreparationArguments(output_dir=str(tmp_path / "data"), tokenizer=tokenizer, **files))
    options = {"teacher": tmp_path / "teacher", "data": tmp_path / "data", "num_beams": 2, "shards": 4}
    options["backend"] = "transformers"
    printed = [run(n, "distill", capsys, **options, output_dir=tmp_path / str(n)) for n in (1, 2)]
    assert [text.count('"kept"') for text in printed] == [1, 1]
    for side in ("src", "tgt"):
        texts = [(tmp_path / folder / f"distilled.{side}").read_text() for folder in ("1", "2")]
        assert texts[0] == texts[1] != ""
