"""A file or folder that one command writes is refused to a second one before it begins to work."""

import importlib

import pytest

from modeling_jmnat.utils.locks import file_lock, folder_lock

TEXT = ["--source", "text", "--reference", "text", "--model", "nowhere"]
COMMANDS = {
    "translate": ["--model", "nowhere", "--output", "OUT"],
    "evaluate": [*TEXT, "--output", "OUT"],
    "tune": [*TEXT, "--output", "OUT"],
    "tables": ["--results", "OUT"],
    "benchmark": ["--random_weights", "tiny", "--output", "OUT"],
    "benchmark_gpu": ["--random_weights", "tiny", "--output", "OUT"],
    "benchmark_training": ["--output", "OUT"],
    "finetune_example": ["--model", "hub_card/de-en", "--use_cpu", "True", "--output_dir", "OUT"],
}
FILES = ("translate", "evaluate", "tune")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_command_is_refused(name, tmp_path, capsys):
    output = tmp_path / "out"
    words = [str(output) if word == "OUT" else word for word in COMMANDS[name]]
    lock = file_lock if name in FILES else folder_lock
    with lock(output, "output"), pytest.raises(SystemExit) as ended:
        importlib.import_module(f"modeling_jmnat.commands.{name}").main(words)
    assert ended.value.code == 1
    assert f"={output} is in use by another process" in capsys.readouterr().err
