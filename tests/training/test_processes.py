"""Several processes on a CPU, as launchers start them: they find each other and do together what one does alone."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from modeling_jmnat.data.preparation import PreparationArguments, prepare
from modeling_jmnat.training.presets import accelerate_config
from tests.helpers.tiny_runs import MODEL, prepare_tiny_data
from tests.helpers.translation_samples import SCRIPTS, command_line, load_script, save_translators


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_tiny_data(tmp_path_factory.mktemp("tiny"))


def launched(options, *launchers):
    """What the commands print that are started at once, each by a launcher; all must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    commands = [[sys.executable, "-m", *map(str, launcher), *command_line(options)] for launcher in launchers]
    running = [subprocess.Popen(command, **output) for command in commands]
    try:
        printed = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(running), printed
    return "".join(out for out, _ in printed)


def run(processes, script, capsys, **options):
    """What the command prints, with torchrun where there are several processes."""
    if processes == 1:
        capsys.readouterr()
        load_script(script).main(command_line(options))
        return capsys.readouterr().out
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", processes, SCRIPTS / f"{script}.py")
    return launched(options, launcher)


def agent(config, *options):
    """A launcher of the training command by `accelerate launch`."""
    launch = ("accelerate.commands.launch", "--config_file", accelerate_config(config), *options)
    return (*launch, "-m", "modeling_jmnat.commands", "train")


def test_two_processes_on_one_or_two_machines_equal_one_with_twice_the_batch(data, tmp_path, capsys):
    options = {
        **{name: value for name, value in MODEL.items() if name != "normalize_before"},
        "data": data,
        "dropout": 0.0,
        "max_steps": 3,
        "eval_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    half = {**options, "per_device_train_batch_size": 4}
    run(1, "train_jmnat", capsys, **options, output_dir=tmp_path / "alone", per_device_train_batch_size=8)
    launched({**half, "output_dir": tmp_path / "cpu"}, agent("cpu", "--main_process_port", "0"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = ("--main_process_ip", "127.0.0.1", "--main_process_port", probe.getsockname()[1])
    agents = [agent("two_machines", "--num_processes", 2, *place, "--machine_rank", rank) for rank in (0, 1)]
    launched({**half, "output_dir": tmp_path / "machines"}, *agents)
    one = load_file(tmp_path / "alone" / "model.safetensors")
    for folder in ("cpu", "machines"):
        two = load_file(tmp_path / folder / "model.safetensors")
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)


def test_two_processes_distil_the_same_text_as_one(tmp_path, capsys):
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
