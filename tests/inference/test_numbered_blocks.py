"""Text, Parquet and data sets as numbered blocks: every row once, in its order, and one sentence on what cannot be."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_jmnat.inference.numbered_blocks import CorpusInput, write_blocks

TEXTS = ["eins", "", "  zwei ", "drei\u2028vier", "fünf", "sechs"]


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def read(folder):
    tables = [pq.read_table(path) for path in sorted(folder.iterdir())]
    return [(row["id"], row["source"]) for table in tables for row in table.to_pylist()]


def test_line_numbers_continue_across_files(tmp_path):
    (tmp_path / "a").write_text("".join(f"{text}\n" for text in TEXTS))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"sieben\r\nacht"))
    blocks = tmp_path / "blocks"
    blocks.mkdir()
    rows = CorpusInput((str(tmp_path / "a"), str(tmp_path / "b.gz"))).rows()
    assert write_blocks(rows, blocks, 3) == 8
    assert len(list(blocks.iterdir())) == 3
    assert read(blocks) == list(enumerate([*TEXTS, "sieben", "acht"]))


def test_parquet_is_read_with_and_without_ids(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    write_parquet(folder / "1.parquet", text=TEXTS[:3], name=["c", "b", "a"])
    write_parquet(folder / "2.parquet", text=[None, "x\ny"], name=["z", "y"])
    texts = ["eins", "", "  zwei ", "", "x y"]
    assert list(CorpusInput((str(folder),)).rows()) == list(enumerate(texts))
    named = CorpusInput((str(folder),), id_column="name").rows()
    assert list(named) == list(zip("cbazy", texts, strict=True))


@pytest.mark.parametrize("layout", ["translation", "columns"])
def test_data_set_by_name(tmp_path, layout):
    rows = [{"de": text, "en": "no"} for text in TEXTS]
    rows = [{"translation": row} for row in rows] if layout == "translation" else rows
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = CorpusInput(dataset_name=str(tmp_path / "hub"), dataset_split="test", text_column="de")
    assert list(given.rows()) == list(enumerate([text.replace("\u2028", " ") for text in TEXTS]))


def test_bad_input_is_named(tmp_path):
    twice = write_parquet(tmp_path / "twice.parquet", text=["a", "b", "c"], key=[1, 2, 1])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "twice.parquet").read_bytes()[:-9])
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    cases = [
        (lambda: CorpusInput(), "give either input files or dataset_name"),
        (lambda: CorpusInput((twice, "text.de")), "input has both text and Parquet files"),
        (lambda: CorpusInput(("text.de",), id_column="key"), "id_column='key' does not apply to text files"),
        (lambda: list(CorpusInput((twice,), id_column="key").rows()), "id_column='key' has an id more than once"),
        (lambda: list(CorpusInput((twice,), id_column="no").rows()), "id_column='no' is not in .*; it has text, key"),
        (lambda: list(CorpusInput((twice,), text_column="de").rows()), "text_column='de' is not in .*twice.parquet"),
        (lambda: list(CorpusInput((twice,), text_column="key").rows()), "must be a string, not int"),
        (lambda: list(CorpusInput((str(tmp_path / "cut.parquet"),)).rows()), "cut.parquet is not a complete Parquet"),
        (lambda: write_blocks(CorpusInput((str(tmp_path / "empty"),)).rows(), tmp_path, 2), "the input is empty"),
        (lambda: write_blocks(iter([(0, "a"), (1, "\ud800")]), tmp_path, 2), "row 2"),
        (lambda: list(CorpusInput((twice, str(tmp_path / "folder"))).rows()), "folder is a folder without .parquet"),
        (lambda: list(CorpusInput(dataset_name=str(tmp_path / "none")).rows()), "Couldn't find any data"),
    ]
    for call, sentence in cases:
        with pytest.raises((ValueError, OSError), match=sentence):
            call()
