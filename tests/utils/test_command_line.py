"""What the user can mend is one sentence and exit code 1, whichever library found it."""

import os
import signal
import time

import pytest
from safetensors import safe_open

from modeling_jmnat.utils.atomic_files import atomic_text_file
from modeling_jmnat.utils.command_line import command
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
