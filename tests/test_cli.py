"""What the user can mend is one sentence and exit code 1, whichever library found it."""

import pytest
from safetensors import safe_open

from modeling_jmnat.cli import command


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


def test_a_defect_keeps_its_traceback():
    with pytest.raises(KeyError):
        command(lambda argv: {}["absent"])()
