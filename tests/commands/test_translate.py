"""`jmnat translate`: options for all kinds of models, long sentences, and standard input."""

import json
import sys

import pytest

from modeling_jmnat.commands.translate import main
from modeling_jmnat.inference.translation import WINDOW_LINES
from tests.helpers.translation_samples import save_translators


def translated(folder, lines, capsys, *options):
    (folder / "lines").write_text("".join(f"{line}\n" for line in lines))
    main(["--input", str(folder / "lines"), *options])
    return capsys.readouterr().out.splitlines()


def test_prefixes_and_languages_are_for_autoregressive_models(tmp_path, capsys):
    models = save_translators(tmp_path)
    teacher = ("--model", str(models / "teacher"), "--num_beams", "2")
    with_prefix = translated(tmp_path, ["kot. mas", ""], capsys, *teacher, "--source_prefix", "ban ")
    whole = translated(tmp_path, ["ban kot. mas", ""], capsys, *teacher, "--split_sentences", "False")
    assert with_prefix == whole
    assert with_prefix[1] == ""
    for options in (["--source_prefix", "ban "], ["--languages", "de", "en"]):
        with pytest.raises(SystemExit):
            translated(tmp_path, ["kot"], capsys, "--model", str(models / "student"), *options)
        assert "languages and source_prefix do not apply to JM-NAT" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        translated(tmp_path, ["kot"], capsys, *teacher, "--languages", "de", "en")
    assert "error: languages='de en' are not languages of" in capsys.readouterr().err


def test_a_prefix_counts_before_the_work(tmp_path, capsys):
    """A line that is too long with its prefix is known before anything is translated."""
    models = save_translators(tmp_path)
    longest = json.loads((models / "teacher" / "config.json").read_text())["max_position_embeddings"]
    options = ["--model", str(models / "teacher"), "--long_lines", "error", "--source_prefix", "ban " * (longest - 4)]
    with pytest.raises(SystemExit):
        translated(tmp_path, [*[""] * WINDOW_LINES, "kot kot kot kot kot"], capsys, *options)
    said = capsys.readouterr()
    assert f"error: line {WINDOW_LINES + 1} has" in said.err
    assert said.out == ""


def test_long_sentences_of_a_document_are_told(tmp_path, capsys):
    pytest.importorskip("markdown_it")  # the extra `documents`
    models = save_translators(tmp_path)
    (tmp_path / "page.html").write_text(f"<p>ein haus</p><p>{'ban ' * 400}</p>")
    output = tmp_path / "output.html"
    files = ["--input", str(tmp_path / "page.html"), "--output", str(output), "--model", str(models / "student")]
    main([*files, "--long_lines", "skip"])
    warning, figures = capsys.readouterr().err.splitlines()[-2:]
    assert warning.startswith("warning: 1 line has a sentence longer than")
    assert json.loads(figures)["long_lines"] == 1


def test_a_closed_standard_input_is_said_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it after `<&-`
    with pytest.raises(SystemExit):
        main(["--model", "of no use"])
    assert capsys.readouterr().err == "error: standard input is closed: give --input FILE\n"
