"""The README and the documents: what they link to exists, and what they show in Python does what they say."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / ".github").glob("*.md")),
    *sorted((ROOT / "hub_card").glob("docs/*.md")),
    *sorted((ROOT / "hub_card").glob("**/README.md")),
]


def anchors(text: str) -> set[str]:
    """How a code host names the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = path if not name else path.parent / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize(
    ("document", "count", "saved"), [("README.md", 3, "finetuned"), ("hub_card/docs/training.md", 1, "trained")]
)
def test_snippets_print_what_they_say(document, count, saved, tmp_path):
    """Each block as pasted, in a folder where `hub_card` is; a comment after `print(...)` is what it prints."""
    (tmp_path / "hub_card").symlink_to(ROOT / "hub_card")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == count
    for block in blocks:
        assert len(list(filter(None, block.splitlines()))) <= 12
        command = [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        expected = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        printed = done.stdout.splitlines()
        assert printed[: len(expected)] == expected if expected else "train_loss" in done.stdout
    assert (tmp_path / saved / "model.safetensors").is_file()


def test_what_stands_in_for_the_evaluator_of_the_library_evaluate(tmp_path):
    text = (ROOT / "hub_card" / "docs" / "commands.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "evaluate.load" in block]
    (tmp_path / "hub_card").symlink_to(ROOT / "hub_card")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = ast.literal_eval(done.stdout)
    assert found["chrf"] > 20
    assert found["intervals"]["chrf"] == (found["chrf"], found["chrf"])  # of one sentence
