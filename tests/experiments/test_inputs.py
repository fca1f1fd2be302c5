"""What a run reads: texts stay pairs on their way from a data set through all line-aligned files."""

import json

import pytest
from datasets import load_from_disk

from modeling_jmnat.data.preparation import PreparationArguments, load_prepared, prepare
from modeling_jmnat.experiments.inputs import export_held_out_text, held_out_text
from modeling_jmnat.teacher.distillation import DistillationArguments, distill
from modeling_jmnat.utils.text_files import read_parallel
from tests.helpers.teacher_samples import random_lines, random_teacher

BROKEN = {"de": "Ein Hund\nschläft.", "en": "A dog\r\nsleeps.\n"}
WHOLE = ("Ein Hund schläft.", "A dog sleeps.")


def distilled(folder):
    arguments = {"teacher": str(folder / "teacher"), "data": str(folder / "data"), "num_beams": 1, "device": "cpu"}
    arguments |= {"backend": "transformers", "max_length_ratio": 0, "append_raw": True}
    distill(DistillationArguments(output_dir=str(folder / "distilled"), **arguments))
    return folder / "distilled" / "distilled.de", folder / "distilled" / "distilled.en"


@pytest.fixture
def folder(tmp_path):
    """`data`, prepared of a data set whose second row of each split holds line breaks, and `teacher`."""
    (tmp_path / "hub").mkdir()
    for split, count, seed in (("train", 30, 0), ("validation", 5, 1), ("test", 5, 2)):
        rows = [{"de": line, "en": line.upper()} for line in random_lines(count, seed)]
        rows.insert(1, BROKEN)
        text = "\n".join(json.dumps({"translation": row}) for row in rows)
        (tmp_path / "hub" / f"{split}.jsonl").write_text(text)
    named = {"dataset_name": str(tmp_path / "hub"), "source_lang": "de", "target_lang": "en", "vocab_size": 330}
    prepare(PreparationArguments(output_dir=str(tmp_path / "data"), **named))
    tokenizer = load_prepared(tmp_path / "data")[1]
    random_teacher(tokenizer, seed=1).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return tmp_path


def test_line_breaks_of_a_data_set_leave_pairs_in_place(folder):
    splits, _ = load_prepared(folder / "data")
    export_held_out_text(held_out_text(folder / "data"), folder)
    for split in ("validation", "test"):
        sources, targets = read_parallel(*(folder / "text" / f"{split}.{side}" for side in ("src", "tgt")))
        assert (sources, targets) == (splits[split]["source"][:], splits[split]["target"][:])
        assert (sources[1], targets[1]) == WHOLE
        assert all(target == source.upper() for source, target in zip(sources[2:], targets[2:], strict=True))
    sources, targets = read_parallel(*distilled(folder))
    raw = list(zip(splits["train"]["source"], splits["train"]["target"], strict=True))
    assert raw[1] == WHOLE
    assert list(zip(sources, targets, strict=True))[-len(raw) :] == raw
    assert sources[: -len(raw)] == [source for source, _ in raw]


def test_line_breaks_in_data_of_an_earlier_version_are_refused(folder):
    for name in ("train", "test"):
        data = load_from_disk(str(folder / "data" / "dataset"))
        data[name] = data[name].map(lambda row: row | {"target": row["target"].replace("dog ", "dog\n")})
        data.save_to_disk(str(folder / "new"))
        (folder / "data" / "dataset").rename(folder / f"before_{name}")
        (folder / "new").rename(folder / "data" / "dataset")
    with pytest.raises(ValueError, match=r"test\.tgt: text 2 has a line break .* prepare that again"):
        export_held_out_text(held_out_text(folder / "data"), folder)
    with pytest.raises(ValueError, match=r"distilled\.en: text \d+ has a line break .* prepare that again"):
        distilled(folder)
