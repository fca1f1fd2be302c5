"""The README and the documents: short sentences, links that lead somewhere, and code that does what they say."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from modeling_jmnat.baselines import SYSTEMS
from modeling_jmnat.baselines.training import SystemArguments, system_class, system_options
from tests.helpers.every_help import every_help
from tests.helpers.prose import code_pieces, numbers_of, sentences_of, words_of

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "hub_card" / "docs"
DOCUMENTS = list(
    dict.fromkeys(
        [
            ROOT / "README.md",
            *sorted((ROOT / ".github").glob("*.md")),
            *sorted(DOCS.glob("*.md")),
            *sorted((ROOT / "hub_card").glob("**/README.md")),
        ]
    )
)
# Reports of measurements, and a card that is made from them, may have sentences full of figures.
REPORTS = (ROOT / "hub_card" / "results", ROOT / "hub_card" / "de-en")
MOST_WORDS, MOST_NUMBERS = 35, 3  # of a sentence


def anchors(text: str) -> set[str]:
    """How a code host names the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    found = every_help()
    of_systems = {item.name for item in fields(SystemArguments)}  # which the help tells with --system alone
    for name in SYSTEMS:
        of_systems |= {item.name for item in fields(system_options(system_class(name)))}
    found["train"] += " ".join(f"--{name}" for name in of_systems)
    return found


def test_users_are_told_commands_and_not_scripts(helps):
    """Which an installed package has, and a folder without a checkout of this repository has not."""
    scripts = "|".join(path.stem for path in ROOT.glob("run_scripts/*.py"))
    pages = [path for path in DOCS.glob("*.md") if path.stem != "fairseq"]  # one of whose scripts has the name of ours
    told = [*helps.items(), *((path.name, path.read_text(encoding="utf-8")) for path in pages)]
    assert not {name: found for name, text in told if (found := re.findall(rf"\b(?:{scripts})\.py\b", text))}


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """The commands of this project in blocks and spans of code, each with its options."""
    scripts = {path.stem: re.search(r"commands\.(\w+)", path.read_text()) for path in ROOT.glob("run_scripts/*.py")}
    found = []
    for code in code_pieces(text):
        for line in re.split(r"\n|\||;|&&|\$\(", code.replace("\\\n", " ")):
            line = re.sub(r"\s#.*|'[^']*'", "", line)
            called = re.search(r"(?:\bjmnat|modeling_jmnat\.commands) ([a-z][\w-]*)(.*)|\b(\w+)\.py\b(.*)", line)
            if called and called[1]:
                found.append((called[1], re.findall(r"\s--([a-z][\w-]*)", called[2])))
            elif called and scripts.get(called[3]):
                name = scripts[called[3]][1].replace("_", "-")
                found.append((name, re.findall(r"\s--([a-z][\w-]*)", called[4])))
    return found


def test_commands_are_found():
    block = "jmnat train \\\n    --bf16 True  # --no\nls | jmnat translate --input x\n"
    text = f"Give `evaluate.py --noise 0.1` or\n```bash\n{block}```"
    assert commands_in(text) == [("train", ["bf16"]), ("translate", ["input"]), ("evaluate", ["noise"])]


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS if not any(folder in path.parents for folder in REPORTS)],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_sentences_are_short(path):
    """Tables and code apart."""
    sentences = sentences_of(path.read_text(encoding="utf-8"))
    assert not [text for text in sentences if words_of(text) > MOST_WORDS or numbers_of(text) > MOST_NUMBERS]


@pytest.mark.parametrize(
    ("text", "sentences", "numbers"),
    [
        (
            "One has `a. b`. Two, e.g. this:\n\n- three\n- four",
            ["One has `code`.", "Two, e.g. this:", "- three", "- four"],
            0,
        ),
        (
            "With [k = 4 and 10](x.md#1) it is 3.5 %.\n\n| 1 | 2 |\n\n```\n7. 8\n```\n",
            ["With k = 4 and 10 it is 3.5 %."],
            3,
        ),
    ],
)
def test_what_counts_as_a_sentence(text, sentences, numbers):
    found = sentences_of(text)
    assert found == sentences
    assert sum(map(numbers_of, found)) == numbers


def test_no_sentence_stands_in_two_documents():
    """Short ones and those of reports apart."""
    places: dict[str, set[Path]] = {}
    for path in DOCUMENTS:
        for sentence in sentences_of(path.read_text(encoding="utf-8")):
            if words_of(sentence) > 10 and not any(folder in path.parents for folder in REPORTS):
                places.setdefault(sentence, set()).add(path)
    assert not {sentence: paths for sentence, paths in places.items() if len(paths) > 1}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shell_commands_parse(path):
    for block in re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_made_parts_are_those_of_the_code(tmp_path):
    """`python hub_card/docs/made_from_code.py` has nothing to change."""
    copy = shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    write_pages = runpy.run_path(str(DOCS / "made_from_code.py"))["write_pages"]
    assert not write_pages(copy)
    page = copy / "decoding.md"
    page.write_text(page.read_text(encoding="utf-8").replace("| `early_stop` |", "| `old_name` |"), encoding="utf-8")
    assert write_pages(copy) == ["decoding.md"]


def test_messages_of_the_errors_page_are_in_the_code():
    """The words between the `...` of a message stand in a string of the package."""
    table = (DOCS / "errors.md").read_text(encoding="utf-8").partition("## Not an error")[0]
    messages = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    assert len(messages) > 30
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "modeling_jmnat").rglob("*.py")]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    source = "\n".join(text for text in texts if isinstance(text, str))
    lost = [
        text for message in messages for text in message.split("...") if text.strip() and text.strip() not in source
    ]
    assert not lost


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_have_the_options_that_documents_name(path, helps):
    if path.stem == "CHANGELOG":  # of options that are gone, too
        return
    for name, options in commands_in(path.read_text(encoding="utf-8")):
        assert name in helps, name
        known = {"help", *re.findall(r"--(\w+)", helps[name])}
        assert {option.replace("-", "_") for option in options} <= known, name


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


def test_the_replacement_for_evaluates_evaluator_works(tmp_path):
    text = (DOCS / "scores.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "evaluate.load" in block]
    (tmp_path / "hub_card").symlink_to(ROOT / "hub_card")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = ast.literal_eval(done.stdout)
    assert found["chrf"] > 20
    assert found["intervals"]["chrf"] == (found["chrf"], found["chrf"])  # of one sentence
