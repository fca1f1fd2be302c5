"""Measured figures: folders of results make their own tables, and the figures of every document are from there."""

import json
import re
import shutil
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

from modeling_jmnat.experiments.documents import TABLE, declared, write_document
from modeling_jmnat.experiments.rows import key_of, select
from modeling_jmnat.experiments.stored_results import translations_of
from modeling_jmnat.hub.model_card import read_facts
from modeling_jmnat.utils.json_files import read_json_lines
from tests.helpers.prose import MADE

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "hub_card" / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/results.jsonl"))
# Pages with figures of their own, and the command for them: other releases, a load test, kills, half precision.
OWN_MEASUREMENTS = ("fairseq", "large-corpora", "many-devices", "scaling", "serving")
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / "hub_card" / name for name in ("de-en.yaml", "de-en/README.md", "multi30k_tiny/README.md")),
    *sorted(path for path in (ROOT / "hub_card" / "docs").glob("*.md") if path.stem not in OWN_MEASUREMENTS),
    *sorted(RESULTS.glob("**/*.md")),
]
CARDS = {"de-en": "shipped_models"}  # the folder of results that a published model's card is made from
NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
# Numbers that nobody measured here.
NO_MEASUREMENT = (
    r"\d+\.\d+\.\d+",  # versions
    r"(?:Python|PyTorch|Transformers|LibreOffice|fairseq|Apache|MPL|CC BY|CC BY-NC)[ -]\d+(?:\.\d+)*",
    rf"{NUMBER} (?:million|billion|MB|MiB|GB|GiB|kB)",  # sizes
    r"[Ss]ections? \d\.\d(?:(?:,| and| to) \d\.\d)*\b",  # of the paper
    "165,578|33,369|18,622|5,594",  # pairs of text
    rf"(?:a1|a2|weight|exponent|penalty|dropout|threshold|probability|goal)(?: =| of)? {NUMBER}",
)


def test_few_result_files():
    assert sum(path.is_file() for path in RESULTS.rglob("*")) < 80


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_rows_and_translations_of_a_folder_agree(folder):
    """A row for each system and setting; figures typed in by hand apart, with a note; translations of every line."""
    assert (folder / "README.md").is_file()
    rows = read_json_lines(folder / "results.jsonl")
    assert len({key_of(row) for row in rows}) == len(rows)
    assert not any("note" in row for row in rows)
    typed_in = folder / "typed_in.jsonl"
    if typed_in.is_file():
        assert all(row["note"] and row["translations"] is None for row in read_json_lines(typed_in))
    for row in rows:
        assert row["run"]
        if row.get("translations"):
            assert len(translations_of(folder, row)) == row["sentences"]
    stored = {path.relative_to(folder).as_posix() for path in folder.glob("translations/*")}
    assert stored == {row["translations"] for row in rows if row.get("translations")}


def test_figures_typed_in_by_hand_are_in_no_table_with_others():
    for path in RESULTS.glob("*/*.md"):
        for _, comment, _ in TABLE.findall(path.read_text()):
            files = declared(path, comment, "table").get("from", "results.jsonl")
            typed_in = ["typed_in" in file for file in ([files] if isinstance(files, str) else files)]
            assert all(typed_in) or not any(typed_in), (path, files)


@pytest.fixture(scope="module")
def made_anew(tmp_path_factory):
    """The folders of results with their tables and pictures made anew."""
    copy = tmp_path_factory.mktemp("made") / "results"
    shutil.copytree(RESULTS, copy)
    for picture in copy.glob("**/*.png"):
        picture.unlink()
    for path in copy.glob("*/*.md"):
        write_document(path)
    return copy


def test_tables_are_those_of_the_rows(made_anew):
    documents = sorted(RESULTS.glob("*/*.md"))
    assert sum(len(TABLE.findall(path.read_text())) for path in documents) > 50
    for path in documents:
        assert (made_anew / path.relative_to(RESULTS)).read_text() == path.read_text()


def test_pictures_are_those_of_the_rows(made_anew):
    pictures = {path.relative_to(RESULTS) for folder in FOLDERS for path in folder.glob("**/*.png")}
    assert pictures == {path.relative_to(made_anew) for path in made_anew.glob("**/*.png")}
    pinned = re.search(r"^matplotlib==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if pinned[1] == version("matplotlib"):  # another version draws other letters
        assert all((made_anew / path).read_bytes() == (RESULTS / path).read_bytes() for path in pictures)


# Figures in documents ------------------------------------------------------------------------------------------------


def prose(text: str) -> str:
    """Without code, comments, tables that are made from rows, and addresses of links."""
    text = TABLE.sub("", text)
    text = re.sub(r"<!--.*?-->|```.*?```|`[^`]*`", " ", text, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", text)


def figures_in(text: str) -> list[str]:
    """Numbers with a point in prose, and all numbers in cells of tables that hold numbers alone."""
    found = []
    for sentence in re.split(r"(?<=[.!?;])\s+|\n\n|\n(?=[-|])", prose(text)):
        sentence = re.sub(r"\s+", " ", sentence)
        if "not stored" in sentence:
            continue
        for pattern in NO_MEASUREMENT:
            sentence = re.sub(rf"\b{pattern}", "", sentence)
        if sentence.startswith("|"):
            cells = [cell.strip() for cell in sentence.split("|")[2:-1]]
            numeric = [cell for cell in cells if re.fullmatch(r"[\d.,%*()x ]*\d[\d.,%*()x ]*", cell)]
            found += [number for cell in numeric for number in re.findall(NUMBER, cell)]
        found += re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", sentence)
    return list(dict.fromkeys(found))


def numbers_of(value) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from numbers_of(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


@cache
def measured(folder: Path) -> frozenset[Decimal]:
    """Every number in the tables that a folder makes from its rows, in the rows of a card, and in its JSON files."""
    texts = [table[0] for path in folder.glob("*.md") for table in TABLE.finditer(path.read_text())]
    texts = [re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL) for text in texts]
    numbers = [number for text in texts for number in re.findall(r"\d+(?:\.\d+)?", text)]
    for path in folder.glob("*.json"):
        numbers += [f"{number:f}" for number in numbers_of(json.loads(path.read_text()))]
    for card in (ROOT / "hub_card").glob("*.yaml"):
        for test in read_facts(card).tests:
            if (card.parent / test.results).parent == folder:
                rows = select(read_json_lines(folder / "results.jsonl"), run=test.run, variant="")
                numbers += [f"{number:f}" for row in rows for number in numbers_of(row)]
    return frozenset(map(Decimal, numbers))


def is_measured(figure: str, folders: set[Path]) -> bool:
    """Whether a figure is a number of one of the folders, rounded as it is written."""
    plain = Decimal(figure.replace(",", ""))
    place = plain if plain % 1 else plain.normalize()  # 3,800 may be 3824
    numbers = {number for folder in folders for number in measured(folder)}
    return any(abs(number - plain) <= Decimal("0.5001").scaleb(place.as_tuple().exponent) for number in numbers)


def folders_of(path: Path, text: str) -> set[Path]:
    """The folders of results that a text in the file `path` links to."""
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"results/[\w/.-]+", text)
    targets = [(path.parent / link.partition("#")[0]).resolve() for link in links]
    around = {place for target in targets for place in (target, *target.parents)}
    cited = {RESULTS / folder for card, folder in CARDS.items() if ROOT / "hub_card" / card in around}
    return cited | (around & set(RESULTS.iterdir()))


def sections(path: Path) -> Iterator[tuple[str, set[Path]]]:
    """The text below each heading, with the folders of results that it, or a document it links to, links to."""
    own = {path.parent} if path.parent.parent == RESULTS else set()
    own |= {RESULTS / CARDS[path.parent.name]} if path.parent.name in CARDS else set()
    text = MADE.sub("", path.read_text(encoding="utf-8"))
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for section in re.split(r"\n(?=#+ )", text):
        folders = own | folders_of(path, section)
        for link in re.findall(r"\]\(([^)\s#]+\.md)", section):
            document = (path.parent / link).resolve()
            if document in DOCUMENTS and RESULTS not in document.parents:
                folders |= folders_of(document, document.read_text(encoding="utf-8"))
        yield section, folders


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_figure_is_in_a_result_file(path):
    """Or its sentence says "not stored"."""
    lost = {}
    for section, folders in sections(path):
        missing = [figure for figure in figures_in(section) if not is_measured(figure, folders)]
        if missing:
            lost[section.strip().splitlines()[0]] = missing
    assert not lost


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("It has 41.9 BLEU, and 42.35 (not stored). So 0.5 is left; `k=1.5` is code, Python 3.11 a version.", ["0.5"]),
        ("| system | k = 4 | speed |\n|---|---|---|\n| JM-NAT | 39.1 (38.8) | 3,800 |", ["39.1", "38.8", "3,800"]),
        ("| system 1 | k = 4 |\n|---|---|\n| 12 layers | C = 4 |", []),
        ("With a1 = 0.01 and 2.4 million parameters\n```\n1.5\n```\n<!-- 2.5 -->", []),
    ],
)
def test_what_counts_as_a_figure(text, figures):
    assert figures_in(text) == figures


def test_a_figure_that_nobody_measured_is_found():
    folder = RESULTS / "noise"
    assert is_measured("31.02", {folder})
    assert is_measured("31.0", {folder})
    assert not is_measured("31.01", {folder})
    assert not is_measured("99.9", {folder})
    assert not is_measured("31.02", set())
