"""What the documents show is run: Python, doctests, and the tutorial's commands."""

import ast
import contextlib
import doctest
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_jmnat
from modeling_jmnat.commands.__main__ import main
from tests.serving.load import running_server
from tests.test_documents import DOCUMENTS, ROOT

DOCS = ROOT / "hub_card" / "docs"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```\n(?:\n```text\n(.*?)```)?", re.DOTALL | re.MULTILINE)
ELSEWHERE = {
    "README.md": "tests/test_documents.py, in a process of its own",
    "hub_card/docs/training.md": "tests/test_documents.py, in a process of its own",
    "hub_card/docs/scores.md": "tests/test_documents.py, in a process of its own",
    "hub_card/docs/serving.md": "below, with a server",
    "hub_card/docs/tutorial.md": "below, with its commands",
    "hub_card/docs/api.md": "below, as a doctest",
}
# Appended to the tutorial's trainings, which take minutes.
FEW_UPDATES = ["--max_steps", "3", "--warmup_steps", "1", "--eval_strategy", "no", "--save_steps", "3"]
PAGES = [
    path
    for path in DOCUMENTS
    if re.search("^```python", path.read_text(encoding="utf-8"), re.MULTILINE)
    and path.relative_to(ROOT).as_posix() not in ELSEWHERE
]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder with what a checkout has at its top and documents name; the working directory."""
    for name in ("hub_card", "run_scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)  # which `main` replaces
    return tmp_path


def printed_by(code: str, names: dict) -> tuple[str, object]:
    """What a snippet prints, and the value of its last line if that is an expression."""
    tree, value = ast.parse(code), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "snippet", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "snippet", "eval"), names)
    return printed.getvalue(), value


def promised(code: str) -> list[str]:
    """The comments behind `print(...)`, or in the lines after it."""
    found, open_print = [], False
    for line in code.splitlines():
        comment = re.search(r"^ *print\(.*\)  # (.*)$|^# (.*)$", line)
        if comment and (comment[1] or open_print):
            found.append(comment[1] or comment[2])
        open_print = bool(re.match(r" *print\(", line)) or (open_print and line.startswith("#"))
    return found


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("print(1)  # 1\nx = 2\n# no output\nprint(x)\n# 2\n# 3\n", ["1", "2", "3"]),
        ("for x in y:\n    print(x)\n# a\n# b", ["a", "b"]),
    ],
)
def test_what_a_snippet_promises(code, lines):
    assert promised(code) == lines


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_snippets_of_a_page(path, checkout):
    """One after the other, as in a notebook; a comment behind `print(...)`, or a block of text, is what comes out."""
    if path.name == "onnx.md":
        pytest.importorskip("onnxscript")
        export_of_the_shipped_model(checkout / "DIR")
    names: dict = {}
    checked = 0
    for kind, code, text in BLOCK.findall(path.read_text(encoding="utf-8")):
        if kind != "python":
            continue
        printed, value = printed_by(code, names)
        lines = promised(code)
        if lines:
            assert printed.splitlines() == lines
        elif text:
            assert value == ast.literal_eval(text)
        checked += bool(lines or text)
    assert checked


def export_of_the_shipped_model(folder: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from modeling_jmnat.onnx_export.export import export_onnx

    model = AutoModelForSeq2SeqLM.from_pretrained("hub_card/de-en")
    tokenizer = AutoTokenizer.from_pretrained("hub_card/de-en")
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    export_onnx(model.eval(), folder / "onnx", int8=True, tokenizer=tokenizer)


def test_examples_of_the_reference(checkout):
    """Each public name has an example, and all of them print what they show."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    for name in modeling_jmnat.__all__:
        (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert ">>>" in section, name
    text = re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(text, {}, "api", "", 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(examples).attempted > 50
    assert not runner.failures


def test_clients_of_a_server(checkout):
    """Those of the page on serving: of LibreTranslate in Python, and curl."""
    for package in ("libretranslatepy", "starlette", "uvicorn"):
        pytest.importorskip(package)
    blocks = BLOCK.findall((DOCS / "serving.md").read_text(encoding="utf-8"))
    asking = [(kind, code) for kind, code, _ in blocks if "127.0.0.1:5000/" in code]
    with running_server("--model", "hub_card/de-en", "--device", "cpu") as (_, port):
        for kind, code in asking:
            code = code.replace(":5000/", f":{port}/")
            if kind == "python":
                printed, _ = printed_by(code, {})
                assert printed.splitlines() == promised(code)
            elif shutil.which("curl"):
                answers = run_shell(['curl() { command curl --silent --show-error --fail "$@"; echo; }', code])
                translations = [json.loads(line)["translatedText"] for line in answers.splitlines()]
                assert len(translations) == code.count("curl ")
                assert all(translations)
    assert {kind for kind, _ in asking} == {"python", "bash"}


def run_shell(lines: list[str]) -> str:
    function = f'set -e; jmnat() {{ {shlex.quote(sys.executable)} -m modeling_jmnat.commands "$@"; }}\n'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-c", function + "\n".join(lines)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_commands(block: str) -> str:
    """The lines of a block in bash, but those that begin with `jmnat` in this process, which has its imports."""
    printed, lines = "", []
    for line in [*block.replace("\\\n", " ").splitlines(), "jmnat --version"]:
        if not line.startswith("jmnat "):
            lines.append(line)
            continue
        printed += run_shell(lines)
        _, *words = shlex.split(line, comments=True)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            main(words + FEW_UPDATES * words[0].startswith("train"))
        lines, printed = [], printed + output.getvalue()
    return printed


@pytest.mark.slow
def test_the_tutorial(checkout):
    """Every command, from text to a published model, on less text and with few updates; only the push is left out."""
    for kind, code, text in BLOCK.findall((DOCS / "tutorial.md").read_text(encoding="utf-8")):
        if "pip install" in code or "--push" in code:
            continue
        if kind == "python":
            printed, _ = printed_by(code, {})
            assert ast.literal_eval(printed)[0]["translation_text"]
            continue
        printed = run_commands(code)
        if "gzip" in code:
            for file in checkout.glob("tutorial/*.*"):
                lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
                file.write_text("".join(lines[: 300 if file.stem == "train" else 3]), encoding="utf-8")
        if text:
            assert printed.startswith(text)
    card = (checkout / "tutorial/published/README.md").read_text(encoding="utf-8")
    assert "It was trained for minutes" in card
