"""The command `jmnat`: its list, quick `--help`, what it says when something is missing, and what comes with it."""

import json
import pkgutil
import re
import resource
import subprocess
import sys
from dataclasses import fields

import pytest

import modeling_jmnat
from modeling_jmnat import commands
from modeling_jmnat.commands import COMMANDS, shipped
from modeling_jmnat.commands.__main__ import main
from modeling_jmnat.teacher.command import TeacherArguments
from modeling_jmnat.training.arguments import JMNatTrainingArguments, TeacherTrainingArguments
from modeling_jmnat.training.command import RunArguments
from modeling_jmnat.training.options import MaskingOptions, ModelOptions
from modeling_jmnat.utils.command_line import EXTRAS
from tests.helpers.every_help import every_help
from tests.helpers.hub_server import stand_in_hub, take_for_the_hub
from tests.helpers.translation_samples import SCRIPTS, load_script, save_translators

HEAVY = ("torch", "transformers", "numpy", "huggingface_hub", *(name for names in EXTRAS.values() for name in names))
WITHOUT_EXTRAS = """
import contextlib, io, json, sys
blocked, commands = map(json.loads, sys.argv[1:])
sys.modules.update(dict.fromkeys(blocked))
from modeling_jmnat.commands.__main__ import main
for words in commands:
    with contextlib.redirect_stderr(io.StringIO()) as printed, contextlib.redirect_stdout(io.StringIO()):
        try:
            main(words)
        except SystemExit:
            pass
    print(printed.getvalue().strip().splitlines()[-1])
"""


@pytest.fixture(autouse=True)
def same_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)  # which `main` replaces


def python(code: str, *arguments) -> str:
    command = [sys.executable, "-c", code, *map(json.dumps, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What each command prints in a Python with only its standard library and safetensors."""
    return every_help(HEAVY)


def test_the_list_has_every_command(capsys):
    modules = {module.name for module in pkgutil.iter_modules(commands.__path__)} - {"__main__", "shipped"}
    assert {name.replace("-", "_") for name in COMMANDS} == modules
    scripts = {load_script(path.stem).__name__ for path in SCRIPTS.glob("*.py")}
    assert scripts == {f"modeling_jmnat.commands.{module}" for module in modules}
    for words in ([], ["--help"], ["-h"]):
        main(words)
        text = capsys.readouterr().out
        for name, line in COMMANDS.items():
            assert re.search(rf"^  {name} +{re.escape(line)}$", text, re.MULTILINE)
    main(["--version"])
    assert capsys.readouterr().out == f"jmnat {modeling_jmnat.__version__}\n"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tranlsate", "error: 'tranlsate' is not a command: did you mean translate?\n"),
        ("train_teachr", "error: 'train-teachr' is not a command: did you mean train-teacher?\n"),
        ("xyz", "error: 'xyz' is not a command: jmnat --help lists the commands\n"),
    ],
)
def test_an_unknown_command_gets_a_suggestion(name, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == sentence


def test_help_needs_no_library(helps):
    assert set(helps) == set(COMMANDS)
    for name, text in helps.items():
        assert text.startswith(f"usage: jmnat {name} ")
        assert "None" not in text
        assert re.search(r"^  --\w+", text, re.MULTILINE)
    example = "jmnat train --preset multi30k_tiny --data runs/data/multi30k --output_dir runs/jmnat"
    assert f"\n    {example}\n" in helps["train"]
    assert "(default: 6000)" in helps["prepare"]


def test_help_takes_less_than_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "modeling_jmnat.commands", "train", "--preset", "demo", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert "(default: 0.004)" in text  # the preset's learning rate


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("train", (RunArguments, ModelOptions, MaskingOptions, JMNatTrainingArguments)),
        ("train-teacher", (TeacherArguments, TeacherTrainingArguments)),
    ],
)
def test_help_of_trainings_shows_options_that_exist(helps, name, groups):
    shown = set(re.findall(r"^  --(\w+)", helps[name], re.MULTILINE))
    assert {"output_dir", "max_steps", "max_tokens", "data"} < shown
    assert shown < {item.name for group in groups for item in fields(group)}


def test_a_missing_extra_is_named_and_translating_needs_none(tmp_path):
    student = save_translators(tmp_path) / "student"
    (tmp_path / "text").write_text("ein haus\n")
    (tmp_path / "text.po").write_text('msgid "ein haus"\nmsgstr ""\n')
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 2.0}]}')
    text = f"--source {tmp_path}/text --reference {tmp_path}/text"
    run = f"--preset demo --data {tmp_path} --output_dir {tmp_path}/run"
    train = "pip install 'modeling-jmnat[train]'"
    cases = {
        f"prepare --output_dir {tmp_path}/data": f"this command needs datasets: {train}",
        f"train {run}": f"this command needs accelerate: {train}",
        f"train-teacher {run}": f"this command needs accelerate: {train}",
        "distill --teacher x --data x --output_dir x": f"this command needs accelerate: {train}",
        f"evaluate --model {student} {text}": f"this command needs sacrebleu: {train}",
        f"tune --model {student} {text}": f"this command needs sacrebleu: {train}",
        f"plot --run {tmp_path} --output {tmp_path}/x.png": f"this command needs matplotlib: {train}",
        "finetune-example": f"this command needs datasets: {train}",
        f"translate --model {student} --input {tmp_path}/text.po --output {tmp_path}/output.po": (
            "this command needs polib: pip install 'modeling-jmnat[documents]'"
        ),
        f"serve --model {student}": "this command needs starlette: pip install 'modeling-jmnat[serve]'",
        f"translate-corpus --model {student} --input {tmp_path}/text --output_dir {tmp_path}/corpus": (
            "this command needs ray: pip install 'modeling-jmnat[cluster]'"
        ),
        f"export-onnx {student}": "ONNX graphs cannot be written (",
        f"translate --model {student} --input {tmp_path}/text --output {tmp_path}/output": '{"sentences": 1, ',
    }
    blocked = [name for names in EXTRAS.values() for name in names if name != "yaml"]
    lines = python(WITHOUT_EXTRAS, blocked, [words.split() for words in cases]).splitlines()
    assert [line.removeprefix("error: ")[: len(start)] for line, start in zip(lines, cases.values(), strict=True)] == [
        *cases.values()
    ]


# What comes with the project -----------------------------------------------------------------------------------------


def test_in_a_checkout_model_and_text_lie_beside_the_package(monkeypatch):
    monkeypatch.delenv(shipped.MODEL_VARIABLE, raising=False)
    monkeypatch.delenv(shipped.TEXT_VARIABLE, raising=False)
    assert shipped.shipped_model().endswith("hub_card/de-en")
    assert (shipped.demo_text() / "valid.en.gz").is_file()
    monkeypatch.setenv(shipped.MODEL_VARIABLE, str(SCRIPTS))
    assert shipped.shipped_model() == str(SCRIPTS)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """As for a user of the wheel: nothing but the package, and a Hub on this machine."""
    with stand_in_hub() as hub:
        take_for_the_hub(monkeypatch, hub, tmp_path / "cache")
        monkeypatch.setattr(shipped, "CHECKOUT", tmp_path)
        for name in (shipped.MODEL_VARIABLE, shipped.TEXT_VARIABLE):
            monkeypatch.delenv(name, raising=False)
        yield hub


def test_installed_the_model_is_fetched_from_the_hub(installed, tmp_path, capsys):
    student = save_translators(tmp_path) / "student"
    files = {path.name: path.read_bytes() for path in student.iterdir()}
    installed.repositories[shipped.MODEL_REPOSITORY] = files
    (tmp_path / "text").write_text("ein haus\n")
    main(["translate", "--input", str(tmp_path / "text"), "--output", str(tmp_path / "translation")])
    assert len((tmp_path / "translation").read_text().splitlines()) == 1
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["sentences"] == 1


def test_installed_the_text_is_fetched_from_the_hub(installed):
    installed.repositories[f"datasets/{shipped.TEXT_REPOSITORY}"] = {"train.de.gz": b"x", "README.md": b"y"}
    folder = shipped.demo_text()
    assert [path.name for path in folder.iterdir()] == ["train.de.gz"]


def test_a_hub_without_them_is_one_sentence(installed, tmp_path, capsys):
    for words, what in (
        (
            ["translate"],
            "the model that comes with this project cannot be found: .*; give --model, a folder or a name",
        ),
        (
            ["finetune-example", "--model", "x"],
            "the text that comes with this project cannot be found: .*; give --data",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.match(f"error: {what}", line)
