"""From text files to a data set: every pair accounted for, held-out lines never dropped, one sentence on bad input."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from modeling_jmnat.data import preparation
from modeling_jmnat.data.preparation import PreparationArguments, load_prepared, prepare
from modeling_jmnat.tokenization_jmnat import train_joint_tokenizer
from modeling_jmnat.utils.fingerprints import tokenizer_fingerprint
from modeling_jmnat.utils.text_files import read_parallel
from tests.helpers.translation_samples import SCRIPTS, load_script, tiny_tokenizer

CORPUS = SCRIPTS / "demo_data" / "libreoffice-help"
SHIPPED = SCRIPTS.parent / "hub_card" / "multi30k_tiny" / "jmnat"
LONG = "sehr " * 60


def corpus_lines(split, count):
    sides = read_parallel(CORPUS / f"{split}.de.gz", CORPUS / f"{split}.en.gz")
    return tuple(side[:count] for side in sides)


@pytest.fixture(scope="module")
def script():
    return load_script("prepare_data")


@pytest.fixture
def files(tmp_path):
    """Arguments for small real files (600 training pairs), with changes."""
    named = {}
    for split, short, count in (("train", "train", 600), ("validation", "valid", 20), ("test", "test", 10)):
        for side, language, lines in zip(("source", "target"), ("de", "en"), corpus_lines(short, count), strict=True):
            path = tmp_path / f"{short}.{language}"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            named[f"{split}_{side}"] = str(path)
    return {**named, "output_dir": str(tmp_path / "data"), "vocab_size": 800}


def as_command_line(arguments):
    line = []
    for name, value in arguments.items():
        line += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return line


def add_line(path, text):
    with open(path, "a", encoding="utf-8") as file:
        file.write(text + "\n")


def test_every_column_of_the_data_set(files):
    result = prepare(PreparationArguments(**files))
    data, tokenizer = load_prepared(files["output_dir"])
    assert {name: len(split) for name, split in data.items()} == {"train": 600, "validation": 20, "test": 10}
    for name, split in data.items():
        assert {column: str(kind) for column, kind in split.features.items()} == {
            "id": "Value('int64')",
            "source": "Value('string')",
            "target": "Value('string')",
            "input_ids": "List(Value('int32'))",
            "labels": "List(Value('int32'))",
        }
        assert split["id"][:] == list(range(len(split)))
        sources, targets = read_parallel(files[f"{name}_source"], files[f"{name}_target"])
        assert split["source"][:] == sources
        assert split["target"][:] == targets
        assert split["input_ids"][:] == tokenizer(sources)["input_ids"]
        assert tokenizer.batch_decode(split["labels"][:], skip_special_tokens=True) == targets
        mean = sum(len(row) for row in split["labels"]) / len(split)
        assert result["mean_tokens"][name]["target"] == pytest.approx(mean, abs=0.01)
    assert json.loads((Path(files["output_dir"]) / "preparation.json").read_text()) == result
    assert result["vocab_size"] == len(tokenizer) <= 800


def test_counts_of_what_was_dropped(files):
    kept = read_parallel(files["train_source"], files["train_target"])
    additions = [
        ("", "nothing on the left", "empty_side"),
        ("nichts rechts", " \t", "empty_side"),
        ("LibreOffice", "LibreOffice", "copy"),
        (kept[0][5], kept[1][5], "duplicate"),
        (LONG, LONG + "very", "too_long"),
        ("Ja", "very long against the other side of this pair", "length_ratio"),
        (kept[0][7], kept[1][8], "kept"),  # a repeated source with another target is no duplicate
        ("  Ein Rand bleibt nicht ", "\tOuter space goes\u00a0", "kept"),
    ]
    for source, target, _ in additions:
        add_line(files["train_source"], source)
        add_line(files["train_target"], target)
    options = {"max_tokens_per_sentence": 60, "max_length_ratio": 4.0, "drop_copies": True, "drop_duplicates": True}
    counts = prepare(PreparationArguments(**files, **options))["pairs"]["train"]
    data, tokenizer = load_prepared(files["output_dir"])
    # Of the 600 real pairs, those that the same rules remove (counted here one by one):
    expected = dict.fromkeys(("empty_side", "copy", "duplicate", "too_long", "length_ratio", "kept"), 0)
    seen, texts = set(), []
    for pair in zip(*read_parallel(files["train_source"], files["train_target"]), strict=True):
        pair = (pair[0].strip(), pair[1].strip())
        lengths = [len(tokenizer(text)["input_ids"]) for text in pair]
        if "" in pair:
            reason = "empty_side"
        elif pair[0] == pair[1]:
            reason = "copy"
        elif pair in seen:
            reason = "duplicate"
        elif max(lengths) > 60:
            reason = "too_long"
        elif max(lengths) / min(lengths) > 4:
            reason = "length_ratio"
        else:
            reason = "kept"
            texts.append(pair)
        seen.add(pair)
        expected[reason] += 1
    assert counts == {"read": 608, **expected}
    for reason in expected:
        assert expected[reason] >= sum(kind == reason for *_, kind in additions)
    assert list(zip(data["train"]["source"], data["train"]["target"], strict=True)) == texts
    assert data["train"]["id"][:] == list(range(len(texts)))
    assert texts[-1] == ("Ein Rand bleibt nicht", "Outer space goes")


def test_copies_duplicates_and_uneven_pairs_are_kept_by_default(files):
    for _ in range(2):
        add_line(files["train_source"], "Writer")
        add_line(files["train_target"], "Writer")
    add_line(files["train_source"], "Ja")
    add_line(files["train_target"], "very long against the other side of this pair")
    counts = prepare(PreparationArguments(**files, max_length_ratio=0))["pairs"]["train"]
    assert counts["kept"] == counts["read"] == 603


def test_lowercase_changes_text_references_and_tokenizer(files):
    result = prepare(PreparationArguments(**files, lowercase=True))
    data, tokenizer = load_prepared(files["output_dir"])
    assert result["lowercase"] is tokenizer.lowercase is True
    raw = read_parallel(files["validation_source"], files["validation_target"])
    validation = data["validation"]
    assert validation["target"][:] == [text.lower() for text in raw[1]]
    assert tokenizer.batch_decode(validation["labels"][:], skip_special_tokens=True) == validation["target"][:]
    assert tokenizer(raw[0])["input_ids"] == validation["input_ids"][:]


def test_moses_is_trained_on_and_saved(files):
    prepare(PreparationArguments(**files, moses=True, source_lang="de", target_lang="en"))
    data, tokenizer = load_prepared(files["output_dir"])
    assert (tokenizer.moses_source_lang, tokenizer.moses_target_lang) == ("de", "en")
    row = data["train"][3]
    assert row["target"] == read_parallel(files["train_source"], files["train_target"])[1][3]  # references stay raw
    assert row["labels"] == tokenizer(text_target=row["target"])["input_ids"]
    assert " ," in tokenizer.get_vocab()  # a comma stands alone after Moses


def test_reused_tokenizer_gives_the_same_ids(files, tmp_path):
    first = prepare(PreparationArguments(**files))
    swapped = {**files, "train_source": files["train_target"], "train_target": files["train_source"]}
    swapped.update(output_dir=str(tmp_path / "second"), tokenizer=str(Path(files["output_dir"]) / "tokenizer"))
    second = prepare(PreparationArguments(**swapped))
    assert first["tokenizer_sha256"] == second["tokenizer_sha256"]
    one, two = load_prepared(files["output_dir"])[0], load_prepared(tmp_path / "second")[0]
    assert one["train"]["input_ids"][:] == two["train"]["labels"][:]
    assert one["test"]["labels"][:] == two["test"]["labels"][:]


def test_training_pairs_of_another_folder_are_appended(files, tmp_path):
    prepare(PreparationArguments(**files))
    first = files["output_dir"]
    own = {**files, "tokenizer": f"{first}/tokenizer", "output_dir": str(tmp_path / "both")}
    own |= {"train_source": files["validation_source"], "train_target": files["validation_target"]}
    counts = prepare(PreparationArguments(**own, append_train_of=first))["pairs"]
    assert (counts["train"]["read"], counts["validation"]["read"]) == (620, 20)
    raw, both = load_prepared(first)[0]["train"], load_prepared(own["output_dir"])[0]["train"]
    assert both["id"][:] == list(range(counts["train"]["kept"]))
    for column in ("source", "target", "input_ids", "labels"):
        assert both[column][-600:] == raw[column][:]
    with pytest.raises(ValueError, match="holds no finished preparation"):
        prepare(PreparationArguments(**{**own, "output_dir": str(tmp_path / "c")}, append_train_of=str(tmp_path)))


def test_reused_tokenizer_must_agree_with_the_options(files, tmp_path):
    prepare(PreparationArguments(**files))
    reused = {**files, "tokenizer": str(Path(files["output_dir"]) / "tokenizer"), "output_dir": str(tmp_path / "b")}
    with pytest.raises(ValueError, match="lowercase=True, but the tokenizer of .* keeps case"):
        prepare(PreparationArguments(**reused, lowercase=True))
    with pytest.raises(ValueError, match="moses=True with de and en, but the tokenizer of .* has None and None"):
        prepare(PreparationArguments(**reused, moses=True, source_lang="de", target_lang="en"))
    for folder, message in ((tmp_path / "nowhere", "nowhere does not exist"), (tmp_path, "holds no tokenizer")):
        with pytest.raises(ValueError, match=message):
            prepare(PreparationArguments(**{**reused, "tokenizer": str(folder)}))
    assert not (tmp_path / "b" / "preparation.json").exists()


def test_options_of_a_new_tokenizer_are_refused_with_another_one(files, script, capsys):
    """Only if they are typed: a recipe and the defaults have values for them, too."""
    own = files["output_dir"] + "-tokenizer"
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(own)
    line = as_command_line({name: value for name, value in files.items() if name != "vocab_size"} | {"tokenizer": own})
    for words, sentence in (
        (["--vocab_size", "9999"], f"vocab_size=9999, but the tokenizer of {own} has {len(tokenizer)} tokens: leave"),
        (["--unicode_form=NFKC"], f"unicode_form=NFKC, but the tokenizer of {own} has NFC: leave unicode_form out"),
        (["--unicode-form", "NFD"], f"unicode_form=NFD, but the tokenizer of {own} has NFC: leave unicode_form out"),
    ):
        with pytest.raises(SystemExit) as stopped:
            script.main([*line, *words])
        assert stopped.value.code == 1
        assert capsys.readouterr().err.startswith(f"error: {sentence}")
    script.main([*line, "--vocab_size", str(len(tokenizer)), "--unicode_form", "NFC"])
    script.main([*line, "--overwrite"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["vocab_size"] == len(tokenizer)


def test_the_unicode_form_of_a_reused_tokenizer_is_recognised(tmp_path):
    train_joint_tokenizer(["ein haus", "a house"] * 9, 300, unicode_form="NFKC").save_pretrained(tmp_path)
    preparation.check_reused_tokenizer(str(tmp_path), unicode_form="NFKC")
    with pytest.raises(ValueError, match="unicode_form=NFC, but the tokenizer of .* has NFKC"):
        preparation.check_reused_tokenizer(str(tmp_path), unicode_form="NFC")


@pytest.mark.parametrize("layout", ["translation", "columns"])
def test_data_set_by_name(files, tmp_path, layout):
    """A local folder stands for the Hub: `datasets` reads both in the same way."""
    folder = tmp_path / "hub"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        pairs = zip(*read_parallel(files[f"{split}_source"], files[f"{split}_target"]), strict=True)
        rows = [{"de": source, "en": target} for source, target in pairs]
        if layout == "translation":
            rows = [{"translation": row} for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    by_name = {"dataset_name": str(folder), "source_lang": "de", "target_lang": "en", "vocab_size": 800}
    prepare(PreparationArguments(output_dir=str(tmp_path / "a"), **by_name))
    prepare(PreparationArguments(**files))
    named, from_files = load_prepared(tmp_path / "a")[0], load_prepared(files["output_dir"])[0]
    for split in from_files:
        assert named[split].to_dict() == from_files[split].to_dict()
    with pytest.raises(ValueError, match=r"language 'fr' is not in .*hub; it has de, en"):
        prepare(PreparationArguments(output_dir=str(tmp_path / "b"), **{**by_name, "target_lang": "fr"}))
    with pytest.raises(ValueError, match="validation_split='dev' is not in .*; it has train, validation, test"):
        prepare(PreparationArguments(output_dir=str(tmp_path / "b"), **by_name, validation_split="dev"))
    no_test = prepare(PreparationArguments(output_dir=str(tmp_path / "b"), **by_name, test_split="none"))
    assert set(no_test["pairs"]) == {"train", "validation"}


BROKEN = "Ein\nHund\tschläft\u2028.\r\n"
WHOLE = "Ein Hund schläft ."


@pytest.mark.parametrize("layout", ["translation", "columns"])
def test_line_breaks_of_a_data_set_become_spaces(files, tmp_path, layout):
    folder = tmp_path / "hub"
    folder.mkdir()
    rows = [{"de": BROKEN, "en": "A\x0bdog"}] + [{"de": "Ein Hund", "en": "A dog\x85sleeps"}] * 20
    rows = [{"translation": row} for row in rows] if layout == "translation" else rows
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    named = {"dataset_name": str(folder), "source_lang": "de", "target_lang": "en", "vocab_size": 300}
    prepare(PreparationArguments(output_dir=str(tmp_path / "data"), max_length_ratio=0, **named))
    splits, tokenizer = load_prepared(tmp_path / "data")
    for split in splits.values():
        assert split["source"][:2] == [WHOLE, "Ein Hund"]
        assert split["target"][:2] == ["A dog", "A dog sleeps"]
        assert split["input_ids"][0] == tokenizer(WHOLE)["input_ids"]


def test_line_breaks_of_data_that_was_prepared_earlier_become_spaces(files, tmp_path):
    """Earlier versions kept the line breaks of data sets of the Hub."""
    prepare(PreparationArguments(**files))
    data = datasets.load_from_disk(f"{files['output_dir']}/dataset")
    data["train"] = data["train"].select(range(1)).map(lambda row: {"source": BROKEN.strip(), "target": "A\ndog"})
    data.save_to_disk(tmp_path / "new")
    shutil.rmtree(f"{files['output_dir']}/dataset")
    (tmp_path / "new").rename(f"{files['output_dir']}/dataset")
    both = files | {"output_dir": str(tmp_path / "both"), "append_train_of": files["output_dir"]}
    prepare(PreparationArguments(**both, max_length_ratio=0))
    last = load_prepared(tmp_path / "both")[0]["train"][-1]
    assert (last["source"], last["target"]) == (WHOLE, "A dog")


def bad_inputs():
    def cut_target(files):
        Path(files["train_target"]).write_text("one line\n")

    def empty_file(files):
        Path(files["validation_source"]).write_text("")

    def missing_file(files):
        files["test_source"] += ".gone"

    def bad_bytes(files):
        data = Path(files["train_source"]).read_bytes().split(b"\n")
        data[6] = "Gr\u00fc\u00dfe".encode("latin-1")
        Path(files["train_source"]).write_bytes(b"\n".join(data))

    def empty_test_line(files):
        add_line(files["test_source"], "Satz")
        add_line(files["test_target"], "  ")

    def long_line(files):
        add_line(files["validation_source"], LONG * 20)
        add_line(files["validation_target"], "short")

    def one_side(files):
        del files["validation_target"]

    def nothing_left(files):
        for side in ("train_source", "train_target"):
            Path(files[side]).write_text("\n\n")

    def not_writable(files):
        Path(files["output_dir"]).write_text("a file is in the way")

    def small_vocabulary(files):
        files["vocab_size"] = 50

    def two_inputs(files):
        files.update(dataset_name="some/name", source_lang="de", target_lang="en")

    def no_languages(files):
        files["moses"] = True

    def impossible_ratio(files):
        files["max_length_ratio"] = 0.5

    def limits_crossed(files):
        files["max_model_tokens"] = 100

    return [
        (cut_target, r"train\.de has 600 lines and .*train\.en has 1: line-aligned files need the same number"),
        (empty_file, r"valid\.de: the file is empty"),
        (missing_file, r"test\.de\.gone: No such file or directory; check the path"),
        (bad_bytes, r"train\.de: line 7 is not valid UTF-8"),
        (empty_test_line, r"test\.en: line 11 is empty: every test sentence needs text on both sides"),
        (long_line, r"valid\.de: line 21 has \d+ tokens: at most max_model_tokens=512 are allowed"),
        (one_side, r"validation_source=.*valid\.de and validation_target=None: both files are needed"),
        (nothing_left, r"no training pair is left after cleaning .*'empty_side': 2"),
        (not_writable, r"output_dir=.*data cannot be written"),
        (small_vocabulary, r"vocab_size=50 is too small: these texts need at least \d+"),
        (two_inputs, r"dataset_name='some/name' and text files .*: give one of them"),
        (no_languages, r"source_lang and target_lang are both needed"),
        (impossible_ratio, r"max_length_ratio=0\.5 must be 0 \(off\) or at least 1"),
        (limits_crossed, r"max_model_tokens=100 must be at least max_tokens_per_sentence=250"),
    ]


@pytest.mark.parametrize(("spoil", "sentence"), bad_inputs(), ids=lambda value: getattr(value, "__name__", ""))
def test_bad_input_is_one_sentence(files, script, capfd, spoil, sentence):
    spoil(files)
    with pytest.raises(SystemExit) as stopped:
        script.main(as_command_line(files))
    output = capfd.readouterr()
    assert stopped.value.code == 1
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(output.err)
    assert not (Path(files["output_dir"]) / "preparation.json").exists()


def test_the_command_itself(files, script, capsys):
    """In a new process: JSON as the last line, and the same tokenizer as here; a second run is refused."""
    line = as_command_line({**files, "lowercase": True})
    command = [sys.executable, str(SCRIPTS / "prepare_data.py"), *line]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    here = prepare(PreparationArguments(**{**files, "lowercase": True, "output_dir": files["output_dir"] + "-here"}))
    assert json.loads(run.stdout.splitlines()[-1]) == here
    with pytest.raises(SystemExit):
        script.main(line)
    sentence = f"output_dir={files['output_dir']} already holds preparation.json; pass --overwrite to replace it"
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_overwrite_replaces_only_when_the_new_data_is_good(files):
    first = prepare(PreparationArguments(**files))
    add_line(files["train_source"], "Noch ein Satz")
    with pytest.raises(ValueError, match="601 lines"):
        prepare(PreparationArguments(**files, overwrite=True))
    load_prepared(files["output_dir"])  # what was there is whole
    add_line(files["train_target"], "One more sentence")
    own = {**files, "tokenizer": str(Path(files["output_dir"]) / "tokenizer"), "overwrite": True}
    second = prepare(PreparationArguments(**own))
    assert second["tokenizer_sha256"] == first["tokenizer_sha256"]
    assert len(load_prepared(files["output_dir"])[0]["train"]) == 601


def test_an_interrupted_preparation_is_repeated_by_the_same_call(files, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets.DatasetDict, "save_to_disk", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(PreparationArguments(**files))
    assert not list(Path(files["output_dir"]).iterdir())
    prepare(PreparationArguments(**files))
    load_prepared(files["output_dir"])
    assert sorted(path.name for path in Path(files["output_dir"]).iterdir()) == [
        "dataset", "preparation.json", "tokenizer"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="already holds preparation.json"):
        prepare(PreparationArguments(**files))
    (Path(files["output_dir"]) / "preparation.json").write_text("{cut")
    with pytest.raises(ValueError, match="preparation.json is damaged: prepare the data again"):
        load_prepared(files["output_dir"])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("dataset/dataset_dict.json", '{"spl', "is damaged or cut short"),
        ("dataset/dataset_dict.json", "{}", "lacks splits"),
        ("dataset/train/state.json", "{}", "lacks _data_files"),
        ("dataset/validation/dataset_info.json", "[]", "must hold a JSON object"),
        ("dataset/train/data-00000-of-00001.arrow", None, "is damaged or cut short"),
        ("dataset/train/data-00000-of-00001.arrow", "", "is damaged or cut short"),
        ("preparation.json", "[1]", "is damaged"),
        ("tokenizer/tokenizer_config.json", "[1]", "is damaged"),
    ],
)
def test_damaged_files_of_prepared_data_are_named(tmp_path, files, name, content, sentence):
    prepare(PreparationArguments(**files))
    path = Path(files["output_dir"]) / name
    if content is None:  # cut short
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match=rf"^{path} {sentence}"):
        load_prepared(files["output_dir"])


class Killed(BaseException):
    pass


def prepare_until_killed(calls, arguments):
    """Stop before the `calls`-th file is removed or renamed; False if there are fewer."""
    output, counter = Path(arguments.output_dir), 0

    def counting(function):
        def counted(path, *options, **keywords):
            nonlocal counter
            if output in path.parents and path.name != ".lock":
                counter += 1
                if counter == calls:
                    raise Killed
            return function(path, *options, **keywords)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("unlink", "replace"):
            patch.setattr(Path, name, counting(getattr(Path, name)))
        try:
            prepare(arguments)
        except Killed:
            return True
    return False


def test_overwriting_may_stop_at_any_moment(files, monkeypatch):
    """The folder has the whole old or new preparation, or none, which the same call then makes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # which takes most of the time
    own = files["output_dir"] + "-tokenizer"
    tiny_tokenizer().save_pretrained(own)
    names = ("train_source", "train_target")
    old = PreparationArguments(**{**files, "tokenizer": own, "overwrite": True})
    for name in names:
        shorter = Path(files[name]).read_text().splitlines(keepends=True)[:20]
        Path(files[name] + ".new").write_text("".join(shorter[:19]))
        Path(files[name]).write_text("".join(shorter))
    longer_paths = {name: files[name] + ".new" for name in names}
    new = PreparationArguments(**{**files, **longer_paths, "tokenizer": own, "overwrite": True})
    prepare(old)
    output, kept = Path(files["output_dir"]), Path(files["output_dir"] + "-kept")
    shutil.copytree(output, kept)
    outcomes, killed, calls = [], True, 0
    while killed:
        shutil.rmtree(output)
        shutil.copytree(kept, output)
        calls += 1
        killed = prepare_until_killed(calls, new)
        finished = (output / "preparation.json").exists()
        outcomes.append(len(load_prepared(output)[0]["train"]) if finished else None)
        prepare(PreparationArguments(**{**vars(new), "overwrite": finished}))
        assert len(load_prepared(output)[0]["train"]) == 19
        assert not list(output.glob(".*"))
    assert list(dict.fromkeys(outcomes)) == [20, None, 19]
    assert outcomes.count(None) > 10


def test_an_interrupted_preparation_of_an_earlier_version_is_repeated(files):
    output = Path(files["output_dir"])
    for name in ("dataset/train/of_earlier.arrow", "tokenizer/tokenizer.json"):
        (output / name).parent.mkdir(parents=True)
        (output / name).touch()
    with pytest.raises(ValueError, match="already holds dataset; pass --overwrite"):
        prepare(PreparationArguments(**files))
    (output / ".unfinished").touch()  # the mark that it left
    prepare(PreparationArguments(**files))
    load_prepared(output)
    assert not list(output.glob("**/of_earlier*"))
    assert not list(output.glob(".*"))


def test_a_second_process_is_refused(files, script, capsys, monkeypatch):
    """The second call is refused at once, and what the first one writes is whole."""
    train_tokenizer, refusals = preparation.train_joint_tokenizer, []

    def in_the_midst(*arguments, **options):
        with pytest.raises(SystemExit):
            script.main([*as_command_line(files), "--overwrite"])
        refusals.append(capsys.readouterr().err)
        return train_tokenizer(*arguments, **options)

    monkeypatch.setattr(preparation, "train_joint_tokenizer", in_the_midst)
    prepare(PreparationArguments(**files))
    sentence = (
        f"output_dir={files['output_dir']} is in use by another process: wait until it ends or choose another folder"
    )
    assert [text.splitlines()[-1] for text in refusals] == [f"error: {sentence}"]  # below progress bars
    assert len(load_prepared(files["output_dir"])[0]["train"]) == 600


def test_data_with_unversioned_fingerprints_loads(files):
    prepare(PreparationArguments(**{**files, "tokenizer": str(SHIPPED)}))
    path = Path(files["output_dir"]) / "preparation.json"
    written = json.loads(path.read_text())
    assert written["tokenizer_sha256"].startswith("2:")
    before = "10c9e5d1462d6a811d8dc6eef66771c55e5a26d4b1e6cb3833ec001a0cd4c6b0"  # as it was written then
    path.write_text(json.dumps(written | {"tokenizer_sha256": before}))
    assert len(load_prepared(files["output_dir"])[0]["train"]) == 600
    path.write_text(json.dumps(written | {"tokenizer_sha256": before[::-1]}))
    with pytest.raises(ValueError, match="is not the tokenizer that made the ids"):
        load_prepared(files["output_dir"])


def test_loading_refuses_incomplete_data_and_another_tokenizer(files, tmp_path):
    with pytest.raises(ValueError, match=r"nothing holds no finished preparation \(preparation\.json is missing\)"):
        load_prepared(tmp_path / "nothing")
    prepare(PreparationArguments(**files))
    other = {**files, "output_dir": str(tmp_path / "other"), "vocab_size": 790}
    prepare(PreparationArguments(**other))
    own, foreign = (Path(folder) / "tokenizer" for folder in (files["output_dir"], other["output_dir"]))
    assert tokenizer_fingerprint(own) != tokenizer_fingerprint(foreign)
    original = (own / "tokenizer.json").read_bytes()
    (own / "tokenizer.json").write_bytes((foreign / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match="is not the tokenizer that made the ids"):
        load_prepared(files["output_dir"])
    (own / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer \(tokenizer\.json is missing\)"):
        load_prepared(files["output_dir"])
    (own / "tokenizer.json").write_bytes(original)
    load_prepared(files["output_dir"])


def test_compressed_files_are_read(files):
    plain = prepare(PreparationArguments(**files))
    packed = {**files, "output_dir": files["output_dir"] + "-gz"}
    for name in ("train_source", "test_target"):
        path = Path(files[name])
        path.with_suffix(path.suffix + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        packed[name] += ".gz"
    assert prepare(PreparationArguments(**packed)) == plain


def test_equal_data_has_equal_fingerprints(files):
    prepare(PreparationArguments(**files))
    prepare(PreparationArguments(**{**files, "output_dir": files["output_dir"] + "2"}))
    one, two = (load_prepared(files["output_dir"] + end)[0] for end in ("", "2"))
    assert [one[name]._fingerprint for name in one] == [two[name]._fingerprint for name in two]
    assert one["train"]._fingerprint != one["test"]._fingerprint


def test_embedded_corpus():
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) <= 2_000_000
    assert "Mozilla Public License Version 2.0" in (CORPUS / "LICENSE").read_text().splitlines()[0]
    assert "The Document Foundation" in (CORPUS / "README.md").read_text()
    pairs = {split: corpus_lines(split, None) for split in ("train", "valid", "test")}
    assert {split: len(sides[0]) for split, sides in pairs.items()} == {"train": 33369, "valid": 2000, "test": 2000}
    for sides in pairs.values():
        assert all(text == text.strip() != "" for side in sides for text in side)
    for side in (0, 1):
        train = {text.lower() for text in pairs["train"][side]}
        assert not train & {text.lower() for split in ("valid", "test") for text in pairs[split][side]}


def test_data_set_can_be_read_without_the_package(files):
    prepare(PreparationArguments(**files))
    plain = datasets.load_from_disk(str(Path(files["output_dir"]) / "dataset"))
    assert plain["train"].with_format("torch")[0]["labels"].dtype.is_signed


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (lambda text: len(text), r"'de' has the type int64 but must hold text"),
        (lambda text: [text], r"'de' has the type List but must hold text"),
        (lambda text: {"text": text}, r"'de' has the type dict but must hold text"),
    ],
)
@pytest.mark.parametrize("layout", ["translation", "columns"])
def test_columns_without_text_are_refused(tmp_path, layout, column, message):
    rows = [{"de": column("Ein Hund"), "en": "A dog"}] * 3
    write_rows(tmp_path / "hub", rows if layout == "columns" else [{"translation": row} for row in rows])
    named = {"dataset_name": str(tmp_path / "hub"), "source_lang": "de", "target_lang": "en"}
    with pytest.raises(ValueError, match=message):
        prepare(PreparationArguments(output_dir=str(tmp_path / "a"), **named))


def test_rows_without_a_pair_count_as_empty(tmp_path):
    rows = [{"translation": {"de": f"Ein Hund {n}.", "en": f"A dog {n}."}} for n in range(20)]
    write_rows(tmp_path / "hub", [{"translation": None}, *rows, {"translation": None}], validation=rows)
    named = {"dataset_name": str(tmp_path / "hub"), "source_lang": "de", "target_lang": "en", "vocab_size": 400}
    counts = prepare(PreparationArguments(output_dir=str(tmp_path / "a"), **named))["pairs"]["train"]
    assert (counts["read"], counts["empty_side"], counts["kept"]) == (22, 2, 20)


@pytest.mark.parametrize("name", ["./nowhere", "no where/at all"])
def test_a_data_set_that_is_not_there_is_named(tmp_path, name):
    named = {"dataset_name": name, "source_lang": "de", "target_lang": "en"}
    with pytest.raises(ValueError, match="dataset_name='.*' is neither a folder nor a possible name on the Hub"):
        prepare(PreparationArguments(output_dir=str(tmp_path / "a"), **named))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_config": "de-en"}, "dataset_config=de-en needs dataset_name"),
        ({"dataset_revision": "main"}, "dataset_revision=main needs dataset_name"),
        ({"validation_split": "dev"}, "validation_split=dev needs dataset_name"),
        (
            {"dataset_name": "a/b", "source_lang": "de", "target_lang": "de"},
            "source_lang and target_lang are both 'de': give two languages",
        ),
    ],
)
def test_options_of_a_data_set_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PreparationArguments(output_dir="a", **options)


def test_a_data_set_that_a_script_defines_is_refused(tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "hub.py").write_text("raise SystemExit")
    named = {"dataset_name": str(tmp_path / "hub"), "source_lang": "de", "target_lang": "en"}
    with pytest.raises(ValueError, match="is defined by a script, which is not run: try --dataset_revision refs/conv"):
        prepare(PreparationArguments(output_dir=str(tmp_path / "a"), **named))


def write_rows(folder, rows, validation=None):
    folder.mkdir()
    for split, of_split in (("train", rows), ("validation", validation or rows)):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in of_split))
