"""What the user can mend is one sentence and exit code 1, whichever library found it."""

import os
import signal
import time
from dataclasses import dataclass, field

import pytest
from safetensors import safe_open

from modeling_jmnat.utils.atomic_files import atomic_text_file
from modeling_jmnat.utils.command_line import command, parse_arguments, read_ahead
from modeling_jmnat.utils.signals import handling


def test_damaged_weights_and_missing_libraries_get_one_sentence(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"cut")

    def lacking(argv):
        raise ImportError("needs sentencex:\npip install sentencex")

    for main, sentence in (
        (lambda argv: safe_open(tmp_path / "model.safetensors", "pt"), "a file of weights (.safetensors) cannot be"),
        (lacking, "needs sentencex: pip install sentencex"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command(main)()
        assert stopped.value.code == 1
        text = capsys.readouterr().err
        assert text.startswith(f"error: {sentence}")
        assert text.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_what_it_leaves_cleaned_up(tmp_path, capsys, number):
    before = signal.getsignal(signal.SIGTERM)

    def main(argv):
        with atomic_text_file(tmp_path / "file"), handling(signal.default_int_handler, signal.SIGINT):
            os.kill(os.getpid(), number)  # SIGINT is ignored where the tests run in the background
            time.sleep(10)

    for wrapped, sentence in (
        (command(main), "stopped"),
        (command(resumes=True)(main), "stopped; run the same command again to go on"),
    ):
        with pytest.raises(SystemExit) as stopped:
            wrapped()
        assert stopped.value.code == 128 + number
        assert capsys.readouterr().err == f"{sentence}\n"
        assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_defect_keeps_its_traceback():
    with pytest.raises(KeyError):
        command(lambda argv: {}["absent"])()


def missing(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_missing_extra_is_named(capsys):
    def hidden(argv):  # as Transformers' own lazy modules do
        try:
            missing("accelerate.utils")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("Could not import module 'Trainer'") from error

    for main, sentence in (
        (lambda argv: missing("datasets"), "datasets: pip install 'modeling-jmnat[train]'"),
        (lambda argv: missing("onnx.helper"), "onnx: pip install 'modeling-jmnat[bench]'"),
        (lambda argv: missing("gradio"), "gradio: pip install 'modeling-jmnat[space]'"),
        (hidden, "accelerate: pip install 'modeling-jmnat[train]'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command(main)()
        assert stopped.value.code == 1
        assert capsys.readouterr().err == f"error: this command needs {sentence}\n"


def test_any_other_missing_module_is_a_defect():
    with pytest.raises(ModuleNotFoundError, match="modeling_jmnat.absent"):
        command(lambda argv: missing("modeling_jmnat.absent"))()
    with pytest.raises(ImportError, match="cannot import name"):
        command(lambda argv: exec("from json import absent"))()


@dataclass
class Options:
    """What to do."""

    data: str = field(metadata={"help": "Folder."})
    steps: int = field(default=3, metadata={"help": "Steps."})


def test_options_come_from_dataclass_defaults_and_command_line(capsys):
    assert parse_arguments(["--data", "x"], Options, "") == (Options("x", 3),)
    assert parse_arguments(["--data", "x"], [Options], "", {"steps": 5}) == (Options("x", 5),)
    assert parse_arguments(["--data=y", "--steps", "4"], Options, "", {"steps": 5}) == (Options("y", 4),)
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--steps", "4"], Options, "")
    assert stopped.value.code == 2
    assert "--data DATA [--OPTION VALUE ...]" in capsys.readouterr().err
    for words in (["-h"], ["--steps", "4", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            parse_arguments(words, Options, "About it.", {"steps": 5})
        assert not stopped.value.code
        text = capsys.readouterr().out
        assert "About it." in text
        assert "Steps. (default: 5)" in text
    assert read_ahead(["--preset", "a", "--other", "1"], "preset", "init_from").preset == "a"
    assert read_ahead(["--init-from=b"], "preset", "init_from").init_from == "b"
    assert read_ahead([], "preset").preset is None


def test_idle_threads_do_not_spin(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    seen = []
    command(lambda argv: seen.append(os.environ["OMP_WAIT_POLICY"]))([])
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    command(lambda argv: seen.append(os.environ["OMP_WAIT_POLICY"]))([])
    assert seen == ["PASSIVE", "ACTIVE"]
