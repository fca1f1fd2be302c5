"""The command `jmnat`: its list, and quick `--help`."""

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
from modeling_jmnat.commands import COMMANDS
from modeling_jmnat.commands.__main__ import main
from modeling_jmnat.teacher.command import TeacherArguments
from modeling_jmnat.training.arguments import JMNatTrainingArguments, TeacherTrainingArguments
from modeling_jmnat.training.command import RunArguments
from modeling_jmnat.training.options import MaskingOptions, ModelOptions
from tests.helpers.translation_samples import SCRIPTS, load_script

HEAVY = ("torch", "transformers", "numpy", "huggingface_hub", "accelerate", "datasets", "pyarrow", "sacrebleu", "onnx")
EVERY_HELP = """
import contextlib, io, json, sys
blocked = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(blocked))
from modeling_jmnat.commands import COMMANDS
from modeling_jmnat.commands.__main__ import main
texts = {}
for name in COMMANDS:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([name, "--help"])
    texts[name] = printed.getvalue()
print(json.dumps(texts))
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
    """What each command prints where Python has nothing but its own library and safetensors."""
    return json.loads(python(EVERY_HELP, HEAVY))


def test_the_list_has_every_command(capsys):
    modules = {module.name for module in pkgutil.iter_modules(commands.__path__)} - {"__main__"}
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
