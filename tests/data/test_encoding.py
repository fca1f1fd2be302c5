"""Corpora larger than memory: the same data as from lists, whatever the number of processes, and nothing left over."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import psutil
import pytest

from modeling_jmnat.data import corpus, encoding, preparation
from modeling_jmnat.data.dataset_columns import column_lengths
from modeling_jmnat.data.preparation import PreparationArguments, load_prepared, prepare
from modeling_jmnat.utils.fingerprints import tokenizer_fingerprint
from modeling_jmnat.utils.text_files import read_parallel
from tests.helpers.prepared_in_memory import prepared_in_memory
from tests.helpers.translation_samples import SCRIPTS

CORPUS = SCRIPTS / "demo_data" / "libreoffice-help"
CHUNK = 100
ODD = [
    ("", "no source"),
    ("kein Ziel", " \u00a0"),
    ("\u200b", "invisible"),
    ("Writer", "Writer"),
    ("  Writer", "Writer\u200b"),  # a copy and a duplicate of the one before, once it is clean
    ("<emph>12</emph> Zeilen", "<emph>12</emph> lines"),
    ("Ja", "very long against the other side of this pair"),
    ("sehr " * 40, "very " * 40),
    ("ﬁnden Ａ", "to ﬁnd Ａ"),
]


@pytest.fixture
def files(tmp_path):
    """About 700 pairs: real ones, some of them repeated, with odd ones in between."""
    pairs = list(zip(*read_parallel(CORPUS / "train.de.gz", CORPUS / "train.en.gz"), strict=True))[:600]
    draw = random.Random(3)
    pairs += draw.choices(pairs, k=60) + ODD * 2
    draw.shuffle(pairs)
    named = {"output_dir": str(tmp_path / "data")}
    for split, chosen in (("train", pairs), ("validation", [("Ein Satz", "A sentence")] * 3)):
        for side, texts in zip(("source", "target"), zip(*chosen, strict=True), strict=True):
            path = tmp_path / f"{split}.{side}"
            path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
            named[f"{split}_{side}"] = str(path)
    return named


@pytest.fixture
def small_chunks(monkeypatch):
    for module in (corpus, encoding):
        monkeypatch.setattr(module, "CHUNK", CHUNK)


OPTIONS = {
    "plain": {},
    "dropping": {"drop_duplicates": True, "drop_copies": True, "max_tokens_per_sentence": 30, "max_length_ratio": 2.5},
    "marked": {"mark_copied": True, "drop_duplicates": True, "max_length_ratio": 0},
    "lowercase": {"lowercase": True, "unicode_form": "NFKC", "drop_copies": True},
}


@pytest.mark.parametrize("num_proc", [1, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_data_as_from_lists(files, small_chunks, name, num_proc):
    arguments = PreparationArguments(**files, **OPTIONS[name], vocab_size=900, num_proc=num_proc)
    counts = prepare(arguments)["pairs"]["train"]
    data, tokenizer = load_prepared(files["output_dir"])
    rows, expected, in_memory = prepared_in_memory(arguments)
    assert counts == expected
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(in_memory)
    assert data["train"].to_list() == rows
    assert sorted(path.name for path in Path(files["output_dir"]).iterdir()) == [
        "dataset", "preparation.json", "tokenizer"
    ]  # fmt: skip


def test_appended_pairs_are_checked_with_the_others(files, small_chunks, tmp_path):
    prepare(PreparationArguments(**files, vocab_size=900))
    earlier = load_prepared(files["output_dir"])[0]["train"]
    both = PreparationArguments(
        **{**files, "output_dir": str(tmp_path / "both")},
        vocab_size=900,
        append_train_of=files["output_dir"],
        drop_duplicates=True,
        num_proc=2,
    )
    counts = prepare(both)["pairs"]["train"]
    rows, expected, _ = prepared_in_memory(both, zip(earlier["source"], earlier["target"], strict=True))
    assert counts == expected
    assert load_prepared(both.output_dir)[0]["train"].to_list() == rows
    assert counts["duplicate"] >= len(earlier)


def test_moses_is_the_same_with_several_processes(files, small_chunks, tmp_path):
    options = {**files, "vocab_size": 900, "moses": True, "source_lang": "de", "target_lang": "en"}
    one = prepare(PreparationArguments(**options))
    two = prepare(PreparationArguments(**{**options, "output_dir": str(tmp_path / "two"), "num_proc": 2}))
    assert one == two
    first, second = (load_prepared(folder)[0] for folder in (files["output_dir"], tmp_path / "two"))
    assert first["train"].to_list() == second["train"].to_list()
    assert first["train"]._fingerprint == second["train"]._fingerprint


def test_pairs_are_stored_a_chunk_at_a_time(small_chunks, tmp_path):
    class Text(str):
        alive = most = 0

        def __init__(self, *_):
            Text.alive += 1
            Text.most = max(Text.most, Text.alive)

        def __del__(self):
            Text.alive -= 1

    data = corpus.store_pairs(((Text(f"s{row}"), Text(f"t{row}")) for row in range(10 * CHUNK)), tmp_path / "pairs")
    assert (len(data), data[-1]) == (10 * CHUNK, {"source": "s999", "target": "t999"})
    assert Text.most <= 5 * CHUNK


def test_columns_are_stored_on_disk(files, small_chunks, monkeypatch):
    """Writing keeps one column of numbers in memory, and no text or ids."""
    write, seen = preparation._write, []

    def watching(output_dir, data, *others):
        for split in data.values():
            seen.append(split)
            tables = [table for row in split.data.blocks for table in row]
            in_memory = [table for table in tables if not isinstance(table, datasets.table.MemoryMappedTable)]
            assert [table.column_names for table in in_memory] == [["id"]]
        return write(output_dir, data, *others)

    monkeypatch.setattr(preparation, "_write", watching)
    prepare(PreparationArguments(**files, vocab_size=900, drop_duplicates=True))
    assert len(seen) == 2


def test_lengths_are_read_in_parts(monkeypatch):
    rows = [list(range(length)) for length in (3, 0, 5, 1, 2)]
    data = datasets.Dataset.from_dict({"input_ids": rows})
    monkeypatch.setattr("modeling_jmnat.data.dataset_columns.ROWS_AT_ONCE", 2)
    assert column_lengths(data, "input_ids").tolist() == [3, 0, 5, 1, 2]
    assert column_lengths(data.select([4, 2]), "input_ids").tolist() == [2, 5]
    assert column_lengths(data.select([]), "input_ids").tolist() == []
    assert column_lengths(data, "input_ids").dtype == np.int32


SLOW = """
import sys, time
from modeling_jmnat.commands.prepare import main
from modeling_jmnat.data import corpus, encoding
corpus.CHUNK = encoding.CHUNK = 100
encode, began = encoding._encode, sys.argv.pop()
def slow(batch, **arguments):
    open(began + str(time.time_ns()), "w")
    time.sleep(30)
    return encode(batch, **arguments)
encoding._encode = slow
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_command(files, tmp_path, number):
    """While two processes tokenise: afterwards no process is left, and the folder is not in use."""
    options = [word for name, value in files.items() for word in (f"--{name}", value)]
    options += ["--vocab_size", "900", "--num_proc", "2"]
    began = tmp_path / "began"
    command = psutil.Popen(
        [sys.executable, "-c", SLOW, *options, str(began)], stderr=subprocess.PIPE, text=True, process_group=0
    )
    deadline = time.time() + 120
    while not list(tmp_path.glob("began*")):
        assert command.poll() is None, command.stderr.read()
        assert time.time() < deadline
        time.sleep(0.1)
    workers = command.children(recursive=True)
    assert len(workers) == 3  # two, and the one that brings their results together
    if number == signal.SIGKILL:
        command.send_signal(number)
    else:  # a terminal sends it to all of them
        os.killpg(command.pid, number)
    command.wait(120)
    assert not psutil.wait_procs(workers, timeout=60)[1]
    said = command.stderr.read()
    assert said == ("" if number == signal.SIGKILL else "stopped\n")
    prepare(PreparationArguments(**files, vocab_size=900))
    load_prepared(files["output_dir"])
    assert not list(Path(files["output_dir"]).glob(".*"))
