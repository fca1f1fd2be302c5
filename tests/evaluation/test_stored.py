"""evaluate.py: stored translations give the same scores; baselines, prepared data, a stand-in for COMET."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from modeling_jmnat.evaluation.stored import read_baselines, row_name, stored_folder
from modeling_jmnat.utils.text_files import read_lines, write_lines
from modeling_jmnat.utils.translation_scores import METRICS, score_translations
from tests.helpers.teacher_samples import random_lines
from tests.helpers.tiny_runs import prepare_tiny_data
from tests.helpers.translation_samples import load_script, save_translators, tiny_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, and references close to the translations, so that scores are above 0."""
    folder = save_translators(tmp_path_factory.mktemp("models"))
    write_lines(folder / "test.src", random_lines(30, seed=8))
    write_lines(folder / "test.tgt", random_lines(30, seed=9))
    evaluated(folder, folder / "first.json", "--num_iterations", "4", "--metrics", "sacrebleu", "--resamples", "0")
    texts = read_lines(folder / "first.translations" / "num_iterations-4.txt.gz")
    write_lines(
        folder / "test.tgt", [f"{text.capitalize()} Ja, ja." if i % 3 else text for i, text in enumerate(texts)]
    )
    return folder


def evaluated(folder, output, *options):
    """The report of evaluate.py on the student."""
    text = ["--source", str(folder / "test.src"), "--reference", str(folder / "test.tgt")]
    load_script("evaluate").main(["--model", str(folder / "student"), *text, "--output", str(output), *options])
    return json.loads(output.read_text())


def refused(capsys, *options):
    """The sentence with which evaluate.py ends."""
    with pytest.raises(SystemExit) as stopped:
        load_script("evaluate").main([str(option) for option in options])
    assert stopped.value.code == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_at_a_terminal_the_figures_do_not_bury_the_scores(folder, tmp_path, monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    output = tmp_path / "report.json"
    report = evaluated(folder, output, "--num_iterations", "1", "--metrics", "sacrebleu", "--resamples", "0")
    scores, last = capsys.readouterr().out.splitlines()
    assert scores.startswith("num_iterations 1: sacreBLEU")
    if terminal:
        assert last == f"all figures are in {output}"
    else:
        assert json.loads(last) == report


def printed_by_sacrebleu(folder, *arguments, **environment):
    command = [sys.executable, "-m", "sacrebleu", *arguments, "--width", "4"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("lowercase", [False, True])
def test_every_score_can_be_computed_again_from_the_stored_texts(folder, tmp_path, lowercase):
    options = ["--num_iterations", "1", "2", "--seed", "6", "--resamples", "150"] + ["--lowercase"] * lowercase
    report = evaluated(folder, tmp_path / "report.json", *options)
    stored = tmp_path / "report.translations"
    texts = ["num_iterations-1", "num_iterations-2", "reference"]
    assert sorted(path.name for path in stored.iterdir()) == sorted(
        f"{name}{ending}.txt.gz" for name in texts for ending in ("", ".tok")
    )
    assert read_lines(stored / "reference.txt.gz") == read_lines(folder / "test.tgt")
    assert report["sacrebleu_arguments"].keys() == set(METRICS)
    for row in report["results"]:
        assert row["translations"] == f"report.translations/num_iterations-{row['num_iterations']}.txt.gz"
        for name, arguments in report["sacrebleu_arguments"].items():
            ending = ".tok.txt.gz" if name.startswith(("tokenized", "repeated")) else ".txt.gz"
            texts = row["translations"].split("/")[1].replace(".txt.gz", ending)
            if name == "repeated_tokens_per_sentence":
                words = [line.split() for line in read_lines(stored / texts)]
                repeats = sum(line[i] == line[i + 1] for line in words for i in range(len(line) - 1))
                assert row[name] == pytest.approx(repeats / len(words), abs=1e-4)
                continue
            command = [f"reference{ending}", "--input", texts, *arguments.split()]
            command += ["--confidence", "--confidence-n", "150"]
            found = json.loads(printed_by_sacrebleu(stored, *command, SACREBLEU_SEED="6"))
            if name == "length_ratio":
                assert f"ratio = {row[name]:.3f} " in found["verbose_score"]
                continue
            assert 0 < row[name] == pytest.approx(found["score"], abs=2e-4)
            low, high = row["intervals"][name]
            assert (high - low) / 2 == pytest.approx(found["confidence_var"], abs=2e-4)
            assert set(row[f"{name}_signature"].split("|")) <= set(found["signature"].split("|"))


def test_baselines_are_files_and_other_evaluations(folder, tmp_path, capsys):
    other = evaluated(folder, tmp_path / "other.json", "--num_iterations", "1", "2")
    lines = read_lines(tmp_path / "other.translations" / "num_iterations-2.txt.gz")
    write_lines(tmp_path / "plain.txt", lines[::-1])
    capsys.readouterr()
    baselines = ["--baseline", str(tmp_path / "other.json"), str(tmp_path / "plain.txt")]
    metrics = ["--metrics", "chrfpp", "length_ratio"]
    report = evaluated(folder, tmp_path / "report.json", "--num_iterations", "2", *baselines, *metrics)
    (row,) = report["results"]
    names = ["other.json num_iterations 1", "other.json num_iterations 2", "plain.txt"]
    assert list(row["comparisons"]) == names
    for found in row["comparisons"].values():
        assert list(found) == ["chrfpp", "length_ratio"]
    assert row["comparisons"][names[1]]["chrfpp"] == {
        "baseline": row["chrfpp"],
        "difference": 0.0,
        "interval": [0.0, 0.0],
        "p": 1.0,
    }
    assert row["comparisons"][names[0]]["chrfpp"]["baseline"] == other["results"][0]["chrfpp"]
    texts = ["other.translations/num_iterations-1.txt.gz", "report.translations/num_iterations-2.txt.gz"]
    command = ["other.translations/reference.txt.gz", "--input", *texts, "--paired-bs", "--format", "text"]
    printed = printed_by_sacrebleu(tmp_path, *command, *report["sacrebleu_arguments"]["chrfpp"].split())
    p = float(re.search(r"\(p = ([\d.]+)\)", printed)[1])
    assert row["comparisons"][names[0]]["chrfpp"]["p"] == pytest.approx(p, abs=1e-4)
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"num_iterations 2: chrF\+\+ [\d.]+ ± [\d.]+, length ratio [\d.]+ ± [\d.]+; [\d.]+ sentences/s", shown[0]
    )
    assert re.fullmatch(
        rf"  against {re.escape(names[0])}: chrF\+\+ [+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\] p [\d.]+, length ratio .*",
        shown[1],
    )
    assert len(shown) == 5


def test_baselines_of_another_text_are_refused(folder, tmp_path, capsys):
    """With as many lines, they would be compared with the wrong references."""
    evaluated(folder, tmp_path / "other.json", "--num_iterations", "1", "--metrics", "chrf", "--resamples", "0")
    write_lines(tmp_path / "reference", read_lines(folder / "test.tgt")[::-1])
    text = ["--source", folder / "test.src", "--reference", tmp_path / "reference"]
    options = ["--baseline", tmp_path / "other.json", "--output", tmp_path / "report.json"]
    stored = tmp_path / "other.translations" / "reference.txt.gz"
    sentence = f"error: baseline={tmp_path}/other.json was evaluated with other references ({stored})"
    assert refused(capsys, "--model", folder / "student", *text, *options).startswith(sentence)
    evaluated(folder, tmp_path / "report.json", "--num_iterations", "1", *map(str, options[:2]), "--metrics", "chrf")


def test_scores_that_are_not_asked_for_are_left_out(folder, tmp_path):
    report = evaluated(folder, tmp_path / "a", "--num_iterations", "1", "--metrics", "ter", "--resamples", "0")
    (row,) = report["results"]
    assert {"ter", "ter_signature"} == {name for name in row if name.startswith(METRICS)}
    assert not {"intervals", "comparisons"} & row.keys()
    assert sorted(path.name for path in (tmp_path / "a.translations").iterdir()) == [
        "num_iterations-1.txt.gz",
        "reference.txt.gz",
    ]


def test_scores_of_a_row_are_those_of_plain_lists(folder, tmp_path):
    report = evaluated(folder, tmp_path / "a.json", "--num_iterations", "3", "--resamples", "60", "--seed", "4")
    texts = read_lines(tmp_path / report["results"][0]["translations"])
    expected = score_translations(texts, read_lines(folder / "test.tgt"), resamples=60, seed=4)
    for name in METRICS:
        assert report["results"][0][name] == pytest.approx(expected[name], abs=1e-4)
        assert report["results"][0]["intervals"][name] == pytest.approx(expected["intervals"][name], abs=1e-4)


def test_rows_under_noise_have_names_of_their_own(folder, tmp_path):
    noise = ["--noise", "drop", "--noise_levels", "0", "0.5", "--metrics", "chrf"]
    report = evaluated(folder, tmp_path / "a.json", "--num_iterations", "1", *noise)
    names = ["noise_level-0.0-num_iterations-1", "noise_level-0.5-num_iterations-1"]
    assert [row["translations"] for row in report["results"]] == [f"a.translations/{name}.txt.gz" for name in names]
    texts = [read_lines(tmp_path / row["translations"]) for row in report["results"]]
    assert texts[0] != texts[1]
    assert list(read_baselines([str(tmp_path / "a.json")], read_lines(folder / "test.tgt"))) == [
        "a.json noise_level 0.0, num_iterations 1",
        "a.json noise_level 0.5, num_iterations 1",
    ]


@pytest.mark.parametrize(
    ("output", "folder"),
    [
        ("x/a.json", "x/a.translations"),
        ("b.tuned.json", "b.tuned.translations"),
        ("c", "c.translations"),
        (None, None),
    ],
)
def test_names_of_folders(output, folder):
    found = stored_folder(output)
    assert (found and str(found)) == folder
    assert stored_folder("/dev/null") is None
    assert row_name({"num_beams": 5, "noise_level": 0.1, "sacrebleu": 3}) == "noise_level-0.1-num_beams-5"


def test_prepared_data_has_two_splits(tmp_path, capsys):
    data = prepare_tiny_data(tmp_path)
    from modeling_jmnat.data.preparation import load_prepared

    dataset, tokenizer = load_prepared(data)
    tiny_student(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    common = ["--model", str(tmp_path / "model"), "--data", str(data), "--num_iterations", "1"]
    output = tmp_path / "report.json"
    load_script("evaluate").main([*common, "--output", str(output)])
    report = json.loads(output.read_text())
    assert report["settings"]["source"] == report["settings"]["reference"] == f"{data.name}, validation"
    assert report["settings"]["sentences"] == len(dataset["validation"])
    assert read_lines(tmp_path / "report.translations" / "reference.txt.gz") == dataset["validation"]["target"][:]
    capsys.readouterr()
    sentence = f"error: {data} has no test split: prepare it again with --test_source and --test_target"
    assert refused(capsys, *common, "--split", "test") == sentence


def test_comet_scores_sentences_with_source_and_reference(folder, tmp_path, monkeypatch, capsys):
    """A stand-in for the package unbabel-comet: its model counts letters."""
    asked = []

    def predict(rows, gpus, progress_bar):
        asked.append(rows)
        return SimpleNamespace(scores=[len(row["mt"]) / (len(row["src"]) + len(row["ref"])) for row in rows])

    (tmp_path / "wmt22" / "checkpoints").mkdir(parents=True)
    (tmp_path / "wmt22" / "checkpoints" / "model.ckpt").touch()
    options = [
        "--num_iterations",
        "1",
        "--metrics",
        "chrf",
        "--comet_model",
        str(tmp_path / "wmt22"),
        "--device",
        "cpu",
    ]
    write_lines(tmp_path / "b.txt", read_lines(folder / "test.src"))
    monkeypatch.setitem(sys.modules, "comet", None)
    text = ["--source", folder / "test.src", "--reference", folder / "test.tgt"]
    sentence = refused(capsys, "--model", folder / "student", *text, *options)
    assert sentence.startswith("error: comet_model needs the package unbabel-comet")
    loaded = []
    model = SimpleNamespace(predict=predict)
    monkeypatch.setitem(
        sys.modules, "comet", SimpleNamespace(load_from_checkpoint=lambda path: loaded.append(path) or model)
    )
    report = evaluated(folder, tmp_path / "a.json", *options, "--baseline", str(tmp_path / "b.txt"))
    assert loaded == [str(tmp_path / "wmt22" / "checkpoints" / "model.ckpt")]
    (row,) = report["results"]
    sources, references = read_lines(folder / "test.src"), read_lines(folder / "test.tgt")
    texts = read_lines(tmp_path / row["translations"])
    rows = zip(sources, references, texts, strict=True)
    by_hand = [len(text) / (len(source) + len(reference)) for source, reference, text in rows]
    assert row["comet"] == pytest.approx(sum(by_hand) / 30, abs=1e-4)
    low, high = row["intervals"]["comet"]
    assert low < row["comet"] < high
    assert set(row["comparisons"]["b.txt"]) == {"chrf", "comet"}
    assert [list(row) for rows in asked for row in rows[:1]] == [["src", "mt", "ref"]] * 2
    assert report["settings"]["comet_model"] == "wmt22"
    sentence = refused(capsys, "--model", folder / "student", *text, "--comet_model", tmp_path)
    assert "holds no checkpoints/model.ckpt: give the folder of a COMET model" in sentence


def test_what_cannot_be_evaluated_gets_a_sentence_before_the_work(folder, tmp_path, capsys):
    short, old, none = tmp_path / "short.txt", tmp_path / "old.json", tmp_path / "none.json"
    write_lines(short, ["one"])
    old.write_text('{"results": [{"num_iterations": 1, "sacrebleu": 3.0}]}')
    none.write_text("{")
    text = ["--source", folder / "test.src", "--reference", folder / "test.tgt"]
    twice = tmp_path / "test.src"
    write_lines(twice, read_lines(folder / "test.src"))
    for options, sentence in (
        ([], "error: got no text: give either --source and --reference, or --data"),
        (["--source", short], "error: got source: give either --source and --reference"),
        ([*text, "--data", tmp_path], "error: got source, reference, data: give either"),
        ([*text, "--split", "test"], "error: split=test applies only to --data"),
        (["--data", tmp_path], f"error: {tmp_path} holds no finished preparation"),
        ([*text, "--metrics", "bleu"], "error: metrics=['bleu'] must be at least one of sacrebleu, chrf, chrfpp, ter"),
        ([*text, "--resamples", "7"], "error: resamples=7 must be at least 40, or 0 for no intervals"),
        ([*text, "--seed", "0"], "error: seed=0 must be at least 1"),
        ([*text, "--baseline", short, "--resamples", "0"], "error: resamples=0 must be at least 40 to compare with a"),
        ([*text, "--baseline", short], f"error: baseline={short} has 1 lines, but there are 30 references"),
        ([*text, "--baseline", old], f"error: baseline={old} has no translations: give a file of translations"),
        ([*text, "--baseline", none], f"error: baseline={none} has no translations"),
        ([*text, "--baseline", tmp_path / "no.txt"], f"error: {tmp_path}/no.txt: No such file"),
        ([*text, "--baseline", twice, folder / "test.src"], "two baselines are called 'test.src', rename one"),
    ):
        found = refused(capsys, "--model", folder / "student", *options, "--output", tmp_path / "report.json")
        assert sentence in found
    assert not (tmp_path / "report.json").exists()
    assert not (tmp_path / "report.translations").exists()
