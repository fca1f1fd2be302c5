"""Folders of results: rows of every kind of file, translations that give their scores again, tables and pictures."""

import json
import subprocess
import sys

import pytest

from modeling_jmnat.commands.tables import main
from modeling_jmnat.evaluation.stored import store_texts
from modeling_jmnat.experiments import stored_results
from modeling_jmnat.experiments.documents import write_document
from modeling_jmnat.experiments.rows import collect, key_of, named, select
from modeling_jmnat.experiments.stored_results import RESULTS, translations_of
from modeling_jmnat.utils.json_files import read_json_lines
from modeling_jmnat.utils.text_files import write_lines
from modeling_jmnat.utils.translation_scores import score_translations

REFERENCES = ["a man is sleeping on a bench .", "two dogs play in the snow .", "a girl reads a long book ."]
TEXTS = {
    "jm-1": ["a man sleeps on a bench .", "two dogs play in snow .", "a girl reads a book ."],
    "jm-2": ["a man is sleeping .", "two dogs play in the snow .", "a girl reads the long book ."],
    "cm-1": ["a man is sleeping on the bench .", "dogs play in the snow .", "girl reads long book ."],
}
DEVICE = {"type": "cpu", "name": "AMD EPYC", "threads": 1, "dtype": "float32"}


def evaluation(path, texts, setting="num_iterations", value=4, **settings):
    """A file as evaluate.py writes it, with its translations beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = store_texts(path.with_name(f"{path.stem}.translations"), f"{setting}-{value}", texts)
    bleu = score_translations(texts, REFERENCES, resamples=0)["sacrebleu"]
    row = {setting: value, "sacrebleu": bleu, "sacrebleu_signature": "tok:13a", "seconds": 1.0, "translations": stored}
    report = {"settings": {"model": "m", "noise": None, **settings}, "device": DEVICE, "results": [row]}
    path.write_text(json.dumps(report))
    return bleu


def tuning(path):
    tried = [
        {
            "num_iterations": k,
            "num_length_candidates": 4,
            "length_normalization": exponent,
            "sacrebleu": 10 * k + exponent,
        }
        for k in (4, 10)
        for exponent in (1.0, 2.0)
    ]
    best = {"num_length_candidates": 4, "length_normalization": 2.0}
    path.write_text(json.dumps({"settings": {"model": "m"}, "results": tried, "best": best}))


@pytest.fixture
def run(tmp_path):
    """An output folder of `reproduce`."""
    output = tmp_path / "run"
    for split in ("validation", "test"):
        for name, texts in TEXTS.items():
            evaluation(output / "results" / split / f"{name}.json", texts, generation={"remask_adjacent": False})
    tuning(output / "results" / "jm-1.tuning.json")
    scores = {"sacrebleu": [30.0, 31.0], "baseline_sacrebleu": [29.0, 29.5], "difference": 1.25}
    pair = {
        "split": "test",
        "system": "jm",
        "num_iterations": 4,
        "baseline_system": "cm",
        "baseline_num_iterations": 4,
    }
    comparisons = {"resamples": 1000, "seed": 1, "comparisons": [pair | scores | {"interval": [0.1, 2.4], "p": 0.02}]}
    (output / "results" / "comparisons.json").write_text(json.dumps(comparisons))
    (output / "jm-1").mkdir()
    history = [{"step": 10, "loss": 3.123456789}, {"step": 20, "loss": 2.0, "eval_bleu": 12.5}]
    (output / "jm-1" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    (output / "cm-1" / "checkpoint-5").mkdir(parents=True)
    (output / "cm-1" / "checkpoint-5" / "trainer_state.json").write_text('{"log_history": []}')  # has not logged yet
    return output


@pytest.mark.parametrize(
    ("stem", "parts"),
    [
        ("jm-1", ("jm", 1, "")),
        ("full_mask_0.2-1.independent", ("full_mask_0.2", 1, "independent")),
        ("jm-12.confidence_0.9", ("jm", 12, "confidence_0.9")),
        ("cm-1.reranked.tuned", ("cm", 1, "reranked.tuned")),
        ("teacher.tuned", ("teacher", None, "tuned")),
        ("teacher_10_2", ("teacher_10_2", None, "")),
        ("libreoffice-help", ("libreoffice-help", None, "")),
    ],
)
def test_systems_seeds_and_variants_by_names_of_files(stem, parts):
    assert tuple(named(stem).values()) == parts


def test_rows_of_a_run(run):
    rows = collect(run, "tiny")
    assert len(rows) == len({key_of(row) for row in rows}) == 2 * 3 + 2 + 1 + 1
    (row,) = select(rows, system="jm", seed=2, split="validation")
    assert row["generation"] == {"remask_adjacent": False}
    assert row["machine"] == "AMD EPYC, 1 thread, float32"
    assert row["signature"] == "tok:13a"
    assert "seconds" not in row
    few, many = select(rows, variant="tuning")
    assert (few["split"], few["sacrebleu"], many["sacrebleu"]) == ("validation", 42.0, 102.0)
    assert few["tried"] == {"columns": ["length_normalization", "sacrebleu"], "rows": [[1.0, 41.0], [2.0, 42.0]]}
    (pair,) = select(rows, baseline_system="cm")
    assert (pair["variant"], pair["scores"], pair["difference"], pair["p"]) == ("", [30.0, 31.0], 1.25, 0.02)
    (log,) = select(rows, variant="training")
    assert log["log"] == {"loss": [[10, 3.12346], [20, 2.0]], "eval_bleu": [[20, 12.5]]}


def test_results_beside_each_other_are_of_the_test_text(tmp_path):
    evaluation(tmp_path / "results" / "jm-1.json", TEXTS["jm-1"])
    (row,) = collect(tmp_path)
    assert row["split"] == "test"
    (same,) = collect(tmp_path / "results" / "jm-1.json")
    assert same == row


def test_evaluations_of_prepared_data_are_of_its_split(tmp_path):
    for split in ("validation", "test"):
        settings = {"source": f"data, {split}", "reference": f"data, {split}"}
        evaluation(tmp_path / f"{split}-1.json", TEXTS["jm-1"], **settings)
        assert [row["split"] for row in collect(tmp_path / f"{split}-1.json")] == [split]
    evaluation(tmp_path / "jm-1.json", TEXTS["jm-1"], source="a, validation", reference="b")
    assert [row["split"] for row in collect(tmp_path / "jm-1.json")] == ["test"]


def add(folder, *words):
    main(["--results", str(folder), *map(str, words)])


def test_stored_translations_give_the_scores_again(run, tmp_path, capsys):
    folder = tmp_path / "question"
    add(folder, "--add", run, "--run", "tiny/updates_10")
    assert json.loads(capsys.readouterr().out)["new"] == 10
    reference = tmp_path / "reference.txt"
    write_lines(reference, REFERENCES)
    rows = [row for row in read_json_lines(folder / RESULTS) if row.get("translations")]
    assert {row["translations"] for row in rows} == {
        f"translations/tiny-updates_10-{split}.tsv.gz" for split in ("validation", "test")
    }
    for row in rows:
        texts = tmp_path / "texts.txt"
        write_lines(texts, translations_of(folder, row))
        command = [sys.executable, "-m", "sacrebleu", str(reference), "-i", str(texts), "-b", "-w", "4"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert float(done.stdout) == pytest.approx(row["sacrebleu"], abs=1e-4)


@pytest.fixture
def benchmark(tmp_path):
    """An output folder of `benchmark`."""
    output = tmp_path / "bench"
    rows = [
        {"system": "Transformers", "label": "beam 5", "title": "Transformers, beam 5", "latency_ms": 30.123456789},
        {"system": "JM-NAT", "label": "k = 4", "title": "JM-NAT, k = 4", "latency_ms": 4.0, "speed_up": {"a": 7.5}},
        {"system": "JM-NAT", "label": "k = 9", "title": "JM-NAT, k = 9", "latency_ms": 9.0}
        | {"speed_up_rounds": {"a": [3.25, 4.5]}},
    ]
    (output / "translations").mkdir(parents=True)
    for number, row in enumerate(rows):
        write_lines(output / "translations" / f"{number}.txt.gz", TEXTS["jm-1"])
        row["translations"] = f"translations/{number}.txt.gz"
    (output / "rows.json").write_text(json.dumps(rows))
    surroundings = {"processor": "AMD EPYC", "threads": 2, "versions": {"python": "3.11", "torch": "2.13"}}
    (output / "environment.json").write_text(json.dumps(surroundings))
    profile = "| system | products | GMAC |\n|---|---|---|\n| JM-NAT, k = 4 | 53% | 0.66 |\n\nShares.\n"
    (output / "profile.md").write_text(profile)
    return output


def test_rows_of_a_benchmark(benchmark, tmp_path):
    folder = tmp_path / "speed"
    add(folder, "--add", benchmark, "--run", "tiny_on_epyc", "--only", "k = ")
    four, nine = read_json_lines(folder / RESULTS)
    assert (four["machine"], four["software"]) == ("AMD EPYC, 2 threads", "torch 2.13")
    assert four["profile"] == {"products": 53.0, "GMAC": 0.66}
    assert (nine["translations"], nine["column"]) == ("translations/tiny_on_epyc.tsv.gz", 2)
    assert translations_of(folder, nine) == TEXTS["jm-1"]
    columns = ["ratio: {show: [speed_up > a, speed_up_rounds > a]}", "part: {show: profile > products, digits: 0}"]
    declared = "\n  ".join(["<!-- table\nlines: {each: title}\ncolumns:", *columns])
    (folder / "README.md").write_text(f"{declared}\n-->\n<!-- end -->\n")
    assert write_document(folder / "README.md")
    table = "|  | ratio | part |\n|---|---|---|\n| JM-NAT, k = 4 | 7.5 | 53 |\n| JM-NAT, k = 9 | 3.2 to 4.5 | - |\n"
    assert table in (folder / "README.md").read_text()
    (benchmark / "rows.json").write_text("[")
    with pytest.raises(ValueError, match="rows.json is damaged"):
        collect(benchmark)


def test_rows_of_a_benchmark_of_training(tmp_path):
    (tmp_path / "training.json").write_text('[{"size": "tiny", "dtype": "float32", "seconds": 0.123456789}]')
    surroundings = {"processor": "AMD EPYC", "threads": 8, "device": "NVIDIA H100", "versions": {}}
    (tmp_path / "training_environment.json").write_text(json.dumps(surroundings))
    (row,) = collect(tmp_path, "gpu")
    assert (row["machine"], row["size"], row["seconds"]) == ("NVIDIA H100", "tiny", 0.123457)


def test_new_results_take_the_place_of_old_ones(run, tmp_path, capsys):
    folder = tmp_path / "question"
    add(folder, "--add", run / "results" / "test" / "jm-1.json", "--run", "tiny")
    add(folder, "--add", run, "--run", "tiny", "--only", "^cm")
    evaluation(run / "results" / "test" / "jm-1.json", TEXTS["jm-2"])
    add(folder, "--add", run / "results" / "test" / "jm-1.json", "--run", "tiny")
    counts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["new"], line["replaced"]) for line in counts] == [(1, 0), (2, 0), (0, 1)]
    rows = read_json_lines(folder / RESULTS)
    stored = {(row["system"], row["split"]): translations_of(folder, row) for row in rows}
    assert stored == {("jm", "test"): TEXTS["jm-2"]} | {
        ("cm", split): TEXTS["cm-1"] for split in ("validation", "test")
    }


def test_columns_stay_where_the_rows_say_until_these_are_written(run, tmp_path, monkeypatch):
    folder = tmp_path / "question"
    add(folder, "--add", run, "--run", "tiny")
    before = {
        key_of(row): translations_of(folder, row) for row in read_json_lines(folder / RESULTS) if "column" in row
    }
    assert len(before) == 6
    evaluation(run / "results" / "test" / "jm-1.json", TEXTS["cm-1"])
    monkeypatch.setattr(stored_results, "write_rows", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        stored_results.add_results(folder, [run / "results" / "test" / "jm-1.json"], "tiny")
    for row in read_json_lines(folder / RESULTS):
        if "column" in row:
            replaced = (row["system"], row["seed"], row["split"]) == ("jm", 1, "test")
            assert translations_of(folder, row) == (TEXTS["cm-1"] if replaced else before[key_of(row)])


def test_translations_of_another_text_get_a_sentence(run, tmp_path, capsys):
    folder = tmp_path / "question"
    add(folder, "--add", run, "--run", "tiny", "--only", "jm-1")
    evaluation(run / "results" / "test" / "cm-1.json", TEXTS["cm-1"])
    stored = run / "results" / "test" / "cm-1.translations" / "num_iterations-4.txt.gz"
    write_lines(stored, TEXTS["cm-1"][:2])
    before = (folder / RESULTS).read_bytes()
    with pytest.raises(SystemExit):
        add(folder, "--add", run / "results" / "test" / "cm-1.json", "--run", "tiny")
    sentence = "error: cm-1 has 2 translations and jm-1 has 3, but those of one run are of the same text"
    assert sentence in capsys.readouterr().err
    assert (folder / RESULTS).read_bytes() == before


def test_translations_that_may_not_be_copied(run, tmp_path):
    folder = tmp_path / "question"
    add(folder, "--add", run, "--run", "tiny", "--with_translations", "False")
    rows = read_json_lines(folder / RESULTS)
    assert not any(row.get("translations") for row in rows)
    assert [path.name for path in folder.iterdir()] == [RESULTS]
    with pytest.raises(ValueError, match="there are no stored translations of jm-1 in tiny"):
        translations_of(folder, select(rows, system="jm", variant="")[0])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--add", "RUN"], "--add needs --run"),
        (["--add", "RUN", "--run", "tiny", "--only", "("], "only='(' must be a regular expression"),
        (
            ["--add", "RUN", "--run", "tiny", "--only", "nat"],
            "only='nat' matches none of cm-1, jm against cm, jm-1",
        ),
        (["--add", "RUN/jm-1", "--run", "tiny"], "trainer_state.json lacks results: name JSON files of evaluate.py"),
        (["--add", "RUN/none", "--run", "tiny"], "none holds no results"),
    ],
)
def test_mistakes_have_a_sentence(run, tmp_path, words, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        add(tmp_path / "question", *(word.replace("RUN", str(run)) for word in words))
    assert stopped.value.code == 1
    assert sentence in capsys.readouterr().err


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / RESULTS).write_text('{"run": "a"}\n{"run":\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_json_lines(tmp_path / RESULTS)


# Documents -----------------------------------------------------------------------------------------------------------

DOCUMENT = """# Question

<!-- table
rows: {run: tiny, variant: ""}
lines:
  JM-NAT: {system: jm}
  CM-NAT: {system: cm}
  JM-NAT against CM-NAT: {system: jm, baseline_system: cm}
columns:
  test: {show: sacrebleu, num_iterations: 4, split: test, digits: 2}
  difference: {show: difference}
  of that: {show: interval}
  validation, no seed 2: {show: sacrebleu, seed: [1, 3], split: validation}
-->
old
<!-- end -->

Text stays.

<!-- table
kind: table2
rows: {run: tiny}
-->
<!-- end -->
"""


def test_tables_are_made_from_the_rows(run, tmp_path, capsys):
    folder = tmp_path / "question"
    add(folder, "--add", run, "--run", "tiny")
    (folder / "README.md").write_text(DOCUMENT)
    add(folder)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["changed"] == [str(folder / "README.md")]
    text = (folder / "README.md").read_text()
    one, two, cm = (score_translations(TEXTS[name], REFERENCES, resamples=0)["sacrebleu"] for name in TEXTS)
    low, high = sorted((one, two))
    assert f"| JM-NAT | {(one + two) / 2:.2f} ({low:.2f} to {high:.2f}) | 1.2 | 0.1 to 2.4 | {one:.1f} |\n" in text
    assert f"| CM-NAT | {cm:.2f} | - | - | {cm:.1f} |\n" in text
    assert "| JM-NAT against CM-NAT | - | 1.2 | 0.1 to 2.4 | - |\n<!-- end -->\n\nText stays.\n" in text
    assert text.count("| system | BLEU k=1 | BLEU k=4 | BLEU k=10 |") == 2  # of validation and test text
    assert "old" not in text
    assert not write_document(folder / "README.md")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "num_iterations: 4, split: test",
            "num_iterations: 4",
            "the line 'JM-NAT' has 4 rows of sacrebleu, which differ in seed, split: say in the line or the column",
        ),
        ("system: cm", "system: nat", "there is no row for the line 'CM-NAT'"),
        ("run: tiny, variant", "run: large, variant", "has no row with {'run': 'large'"),
        ("kind: table2", "kind: table9", "kind='table9' is not one of main, table1"),
        ("kind: table2", "kinds: table2", "a table must be declared by columns, from, kind, lines, rows"),
        ("kind: table2", "kind: [", "must be declared in YAML"),
        ("show: sacrebleu, seed", "seed", "the column 'validation, no seed 2' must say what to show"),
        ("columns:", "rows:", "a table must be declared by columns"),
        ("<!-- table\nkind", "<!-- picture\nkind", "a picture must be declared by file, from, kind, lines, rows"),
        ("<!-- table\nkind: table2", "<!-- picture\nfile: a.png\nkind: bars", "kind='bars' must be one of latency"),
    ],
)
def test_mistakes_in_a_declaration_have_a_sentence(run, tmp_path, old, new, sentence):
    folder = tmp_path / "question"
    add(folder, "--add", run, "--run", "tiny")
    path = folder / "README.md"
    path.write_text(DOCUMENT.replace(old, new))
    with pytest.raises(ValueError, match="README.md: ") as error:
        write_document(path)
    assert sentence in str(error.value)
    assert path.read_text() == DOCUMENT.replace(old, new)


def test_a_cell_is_of_one_choice_of_options(run, tmp_path):
    folder = tmp_path / "question"
    add(folder, "--add", run, "--run", "tiny")
    path = folder / "README.md"
    declared = (
        "<!-- table\nrows: {variant: tried}\nlines:\n  tried: {num_iterations: 4}\ncolumns:\n  BLEU: {show: sacrebleu"
    )
    path.write_text(f"{declared}}}\n-->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="'tried' has 2 rows of sacrebleu, which differ in other options: say in"):
        write_document(path)
    path.write_text(f"{declared}, length_normalization: 2.0}}\n-->\n<!-- end -->\n")
    assert write_document(path)
    assert "| tried | 42.0 |\n" in path.read_text()
