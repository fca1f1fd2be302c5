"""What the documents show is run: Python, doctests, and the tutorial's commands."""

import doctest
import re
from pathlib import Path

import modeling_jmnat

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "hub_card" / "docs"


def in_an_empty_folder(tmp_path, monkeypatch) -> None:
    """Change to a folder that holds what a checkout has at its top and documents name."""
    for name in ("hub_card", "run_scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)


def test_examples_of_the_reference(tmp_path, monkeypatch):
    """Each public name has an example, and all of them print what they show."""
    in_an_empty_folder(tmp_path, monkeypatch)
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    for name in modeling_jmnat.__all__:
        (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert ">>>" in section, name
    examples = doctest.DocTestParser().get_doctest(re.sub(r"^```.*$", "", text, flags=re.MULTILINE), {}, "api", "", 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(examples).attempted > 50
    assert not runner.failures
