"""`--help` from dataclasses: what is required, defaults, presets, and the description as it is written."""

from dataclasses import dataclass, field
from typing import Literal

from transformers import HfArgumentParser

from modeling_jmnat.utils.help_text import help_text, usage_of


@dataclass
class First:
    """What to do, and on what.

    More that nobody needs to see.
    """

    data: str = field(metadata={"help": "Folder."})
    files: list[str] = field(metadata={"help": "Files."})
    passes: list[int] | None = field(default=None, metadata={"help": "Passes. Default: as saved."})
    levels: list[float] = field(default_factory=lambda: [0.0, 0.5], metadata={"help": "Levels, 100% at most."})


@dataclass
class Second:
    """How."""

    steps: int = field(default=3, metadata={"help": "Steps."})
    rate: float | None = field(default=None, metadata={"help": "Rate."})
    names: list[str] = field(default_factory=list, metadata={"help": "Names."})
    quick: bool = field(default=False, metadata={"help": "Quickly."})
    save: bool = field(default=True, metadata={"help": "Save it."})
    when: Literal["never", "always"] = field(default="never", metadata={"help": "When."})


DESCRIPTION = """One line.

    command --data X   (an example)
"""


def paragraphs(text: str) -> dict[str, str]:
    """What is said of each option, without line breaks."""
    options = [" ".join(part.split()) for part in text.split("\n  --")[1:]]
    return {option.split()[0]: option.partition(" ")[2] for option in options}


def test_options_are_shown_with_what_they_need(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = help_text("jmnat x", DESCRIPTION, [First, Second])
    assert text.startswith("usage: jmnat x --data DATA --files FILES [--OPTION VALUE ...]\n")
    assert "\nOne line.\n\n    command --data X   (an example)\n" in text
    assert "\nWhat to do, and on what:\n" in text
    assert "\nHow:\n" in text
    assert "nobody" not in text
    assert "None" not in text
    found = paragraphs(text.replace("\nHow:\n", ""))
    assert found["data"] == "DATA Folder. (required)"
    assert found["files"] == "FILES [FILES ...] Files. (required)"
    assert found["passes"] == "N [N ...] Passes. Default: as saved."
    assert found["levels"] == "X [X ...] Levels, 100% at most. (default: 0.0 0.5)"
    assert found["steps"] == "N Steps. (default: 3)"
    assert found["rate"] == "X Rate."
    assert found["names"] == "NAMES [NAMES ...] Names."
    assert found["quick"] == "Quickly."
    assert found["save"] == "Save it. (default: true; --no_save switches it off)"
    assert found["when"] == "never|always When. (default: never)"


def test_a_preset_changes_what_is_shown():
    preset = {"steps": 7, "quick": True, "rate": 0.5, "elsewhere": 1}
    found = paragraphs(help_text("x", "", [Second], preset))
    assert found["steps"] == "N Steps. (default: 7)"
    assert found["rate"] == "X Rate. (default: 0.5)"
    assert found["quick"] == "Quickly. (default: true; --no_quick switches it off)"
    assert help_text("x", "", [Second], usage="%(prog)s Y").startswith("usage: x Y\n")


def test_the_parser_knows_the_same_options():
    parser = HfArgumentParser([First, Second], usage=usage_of([First, Second]))
    known = {name for action in parser._actions for name in action.option_strings}
    text = help_text("x", "", [First, Second])
    assert {f"--{name}" for name in paragraphs(text)} < known
    assert "--no_save" in known
