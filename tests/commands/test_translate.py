"""`jmnat translate` has the options of the other commands that translate."""

import pytest

from modeling_jmnat.commands.translate import main
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
