"""Every setting that tuning compares equals a decoding with these options; what it chooses is saved and used."""

import errno
import itertools
import json
import sys
import tempfile
from dataclasses import fields

import pytest

from modeling_jmnat import (
    JMNatForConditionalGeneration,
    JMNatGenerationConfig,
    ORTJMNatForConditionalGeneration,
)
from modeling_jmnat.configuration_jmnat import REPEAT_RULES
from modeling_jmnat.evaluation import tuning_run
from modeling_jmnat.evaluation.options import REPEAT_SETTINGS, EvaluationArguments, TuningArguments
from modeling_jmnat.evaluation.tuning import (
    beam_settings,
    best_setting,
    best_text,
    candidate_settings,
    tried_candidates,
)
from modeling_jmnat.evaluation.tuning_run import folders_of, save_options
from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.inference.translation import Translation, translate_lines
from modeling_jmnat.teacher.reranking import load_reranker
from tests.helpers.teacher_samples import random_lines
from tests.helpers.translation_samples import load_script, save_translators, tiny_student, tiny_tokenizer

LINES = [*random_lines(12, seed=3), "", *random_lines(6, seed=4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_translators(tmp_path_factory.mktemp("translators"))


@pytest.fixture(scope="module")
def tune():
    return load_script("tune_decoding")


def texts(model, tokenizer, **options):
    return [translation.text for translation in translate_lines(model, tokenizer, LINES, **options)]


@pytest.mark.parametrize("reranked", [False, True])
def test_candidates_and_exponents_equal_their_own_decodings(folder, reranked):
    tokenizer = tiny_tokenizer()
    model = tiny_student(tokenizer)
    shared = {"early_stop": True}
    if reranked:
        shared["reranker"] = load_reranker(folder / "teacher", tokenizer)
    grid = {"num_iterations": [2, 3], "remask_adjacent": [True, False]}
    tried = [1, 2, 4], [0.0, 1.0, 3.0], [0.0, 3.0]
    compared, different = 0, set()
    for setting, found in candidate_settings(model, tokenizer, LINES, grid, *tried, shared):
        assert found == texts(model, tokenizer, **shared, **setting), setting
        compared += 1
        different.add(tuple(found))
    assert compared == 2 * 2 * 3 * 3 * 2
    assert len(different) > 12  # they are not all the same anyway


def test_rules_against_repeats_equal_their_own_decodings():
    """If candidates lose tokens, their length does not tell which one was tried."""
    tokenizer = tiny_tokenizer()
    model = tiny_student(tokenizer, seed=2)
    shared, rules = {"repeatable_tokens": [], "length_shift": 2}, list(REPEAT_SETTINGS.values())
    tried = [1, 2, 4], [0.0, 1.5], [0.0, 3.0]
    settings = candidate_settings(model, tokenizer, LINES, {"num_iterations": [2, 4]}, *tried, shared, rules)
    different = {}
    for setting, found in settings:
        assert found == texts(model, tokenizer, **shared, **setting), setting
        different.setdefault(tuple(setting[rule] for rule in REPEAT_RULES), []).append(found)
    assert [len(found) for found in different.values()] == [2 * 3 * 2 * 2] * 4
    collections = list(different.values())
    assert all(one != other for one, other in itertools.combinations(collections, 2))


def test_beam_searches_with_their_penalties(folder):
    model, tokenizer = load_translator(folder / "teacher", "cpu")
    grid = {"num_beams": [2, 3], "length_penalty": [0.5, 3.0]}
    settings = list(beam_settings(model, tokenizer, LINES, grid))
    assert [setting for setting, _ in settings] == [
        {"num_beams": beams, "length_penalty": penalty} for beams in (2, 3) for penalty in (0.5, 3.0)
    ]
    for setting, found in settings:
        assert found == texts(model, tokenizer, **setting)


def test_a_larger_exponent_never_shortens():
    tokenizer = tiny_tokenizer()
    model = tiny_student(tokenizer, seed=1)
    options = {"num_length_candidates": 5, "num_return_sequences": 5, "length_normalization": 0.0}
    for translation in translate_lines(model, tokenizer, random_lines(10, seed=7), num_iterations=2, **options):
        lengths = {text: length for (text, _), length in zip(translation.candidates, translation.lengths, strict=True)}
        chosen = [lengths[best_text(tried_candidates(translation, 5), exponent / 4)] for exponent in range(20)]
        assert chosen == sorted(chosen)


def test_the_best_text_by_hand():
    candidates = [("a", -3.0), ("b c", -4.0), ("d e f", -9.0)]
    ids = [[5, 2], [5, 6, 2], [7, 8, 9, 2]]
    translation = Translation("x", candidates, candidate_ids=ids, candidate_lengths=[4, 2, 3], lengths=[2, 3, 4])
    assert best_text(tried_candidates(translation, 3), 0.0) == "a"
    assert best_text(tried_candidates(translation, 3), 1.0) == "b c"  # -1.5, -1.33, -2.25
    assert best_text(tried_candidates(translation, 2), 1.0) == "a"  # of lengths 4 and 2
    assert best_text(tried_candidates(translation, 3), 1.0, 10.0) == "b c"  # consensus: 0.283, 0.271, 0.155
    assert best_text(tried_candidates(translation, 3), 1.0, 20.0) == "a"
    assert best_text(tried_candidates(translation, 3, min_length=2), 1.0, 20.0) == "a"
    assert best_text(tried_candidates(translation, 3, min_length=3), 1.0, 20.0) == "b c"  # "a" has two tokens
    assert best_text(tried_candidates(translation, 1), 1.0) == "d e f"
    assert best_text(tried_candidates(Translation("", [("", 0.0)]), 4), 2.0) == ""


def test_the_best_setting_by_hand():
    rows = [
        {"num_iterations": k, "length_normalization": exponent, "sacrebleu": bleu}
        for k, exponent, bleu in ((4, 1.0, 30.0), (4, 2.0, 33.0), (10, 1.0, 36.0), (10, 2.0, 34.0))
    ]
    assert best_setting(rows) == {"length_normalization": 2.0}  # 33.5 against 33
    assert best_setting(rows[:2] * 2) == {"length_normalization": 2.0}
    assert best_setting(list(reversed(rows[:1] + rows[3:]))) == {"length_normalization": 2.0}
    equals = [{"num_beams": beams, "sacrebleu": 1.0} for beams in (5, 3)]
    assert best_setting(equals) == {"num_beams": 5}
    lists = [{"suppress_tokens": tokens, "sacrebleu": bleu} for tokens, bleu in (([1, 4], 1.0), ([1], 2.0))]
    assert best_setting(lists) == {"suppress_tokens": [1]}


def test_the_command_saves_what_it_found_and_evaluate_takes_it(folder, tmp_path, tune, capsys):
    evaluate = load_script("evaluate")
    model, tokenizer = load_translator(folder / "student", "cpu")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "onnx").mkdir()
    model.generation_config.save_pretrained(tmp_path / "model" / "onnx")
    (tmp_path / "source").write_text("\n".join(LINES) + "\n")
    wanted = {"num_iterations": 3, "num_length_candidates": 5, "length_normalization": 2.5, "remask_adjacent": False}
    references = texts(model, tokenizer, **wanted)
    (tmp_path / "reference").write_text("\n".join(references) + "\n")
    common = ["--source", str(tmp_path / "source"), "--reference", str(tmp_path / "reference")]
    report = tmp_path / "tuning.json"
    grid = {"num_iterations": [3], "remask_adjacent": [True, False]}
    options = ["--num_length_candidates", "2", "5", "--grid", json.dumps(grid), "--output", str(report)]
    before = (tmp_path / "model" / "generation_config.json").read_text()
    tune.main(["--model", str(tmp_path / "model"), *common, *options, "--save", "False"])
    assert (tmp_path / "model" / "generation_config.json").read_text() == before
    tune.main(["--model", str(tmp_path / "model"), *common, *options])
    written = json.loads(report.read_text())
    assert len(written["results"]) == 2 * 2 * 7 * 4
    best = {name: written["best"][name] for name in wanted if name != "num_iterations"}
    row = next(row for row in written["results"] if row.items() >= {"sacrebleu": 100.0, **best}.items())
    assert row["num_iterations"] == 3
    *_, best_line, last = capsys.readouterr().out.splitlines()
    assert best_line == f"best: {json.dumps(written['best'])}"
    assert json.loads(last) == {"best": written["best"], "saved": True, "output": str(report)}
    for place in ("model", "model/onnx"):
        saved = JMNatGenerationConfig.from_pretrained(tmp_path / place)
        assert {name: getattr(saved, name) for name in best} == best
    assert saved.num_iterations == 10  # BLEU is a mean over all k: none of them is chosen
    tuned = JMNatForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    assert texts(tuned, tokenizer, num_iterations=3) == references
    evaluate.main(["--model", str(folder / "student"), *common, "--num_iterations", "3", "--tuning", str(report)])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["results"][0]["sacrebleu"] == 100.0
    assert figures["settings"]["generation"] == written["best"]


def test_exported_graphs_get_the_choice_as_well(folder, tmp_path, tune):
    pytest.importorskip("onnx", reason="the extra `bench` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `bench` is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `bench` is not installed")
    from modeling_jmnat.onnx_export.export import export_onnx

    model, tokenizer = load_translator(folder / "student", "cpu")
    model.save_pretrained(tmp_path)
    export_onnx(model, tmp_path / "onnx", int8=True)
    before = {path.name: path.stat().st_size for path in (tmp_path / "onnx").iterdir()}
    best = {"length_normalization": 0.0, "num_length_candidates": 2, "num_iterations": 2, "remask_adjacent": False}
    best |= {"length_offset": 3.0, "num_return_sequences": 2, "max_length": 9, "suppress_tokens": [0, 1, 4, 7, 9]}
    save_options(folders_of(str(tmp_path)), model, best)
    assert before.keys() == {path.name for path in (tmp_path / "onnx").iterdir()}
    sources = tokenizer([line for line in LINES if line], padding=True, return_tensors="pt")
    expected = model.generate(**sources)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    feeds = {name: sources[name].numpy() for name in ("input_ids", "attention_mask")}
    found = {}
    for name in ("translator.onnx", "translator_int8.onnx"):
        assert (tmp_path / "onnx" / name).stat().st_size == pytest.approx(before[name], abs=10)
        session = onnxruntime.InferenceSession(tmp_path / "onnx" / name, options)
        sequences, *_ = session.run(["sequences"], feeds)
        found[name] = sequences.reshape(len(expected), -1)
    assert found["translator.onnx"].tolist() == expected.tolist()
    for int8 in (False, True):
        exported = ORTJMNatForConditionalGeneration.from_pretrained(tmp_path, int8=int8)
        assert found[f"translator{'_int8' * int8}.onnx"].tolist() == exported.generate(**sources).tolist()
        exported.generate(**sources, early_stop=True)  # the other graphs, which belong to the same model


def test_without_onnx_exported_graphs_are_refused_before_the_work(folder, tmp_path, tune, monkeypatch, capsys):
    monkeypatch.setattr(tuning_run, "load_translator", lambda *arguments: pytest.fail("the work has begun"))
    monkeypatch.setitem(sys.modules, "modeling_jmnat.onnx_export.export", None)  # as where it cannot be imported
    (tmp_path / "text").write_text("a b\n")
    (tmp_path / "translator_int8.onnx").touch()
    text = ["--source", str(tmp_path / "text"), "--reference", str(tmp_path / "text")]
    with pytest.raises(SystemExit):
        tune.main(["--model", str(tmp_path), *text])
    assert "pip install 'modeling-jmnat[bench]'" in capsys.readouterr().err


def test_the_command_tunes_a_teacher(folder, tmp_path, tune):
    (tmp_path / "source").write_text("\n".join(LINES) + "\n")
    common = ["--source", str(tmp_path / "source"), "--reference", str(tmp_path / "source")]
    options = ["--exponents", "0.5", "2", "--grid", '{"num_beams": [2]}', "--save", "False"]
    tune.main(["--model", str(folder / "teacher"), *common, *options, "--output", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(row["num_beams"], row["length_penalty"]) for row in report["results"]] == [(2, 0.5), (2, 2.0)]
    best = max(report["results"], key=lambda row: row["sacrebleu"])
    assert report["best"]["length_penalty"] == best["length_penalty"]
    output = tmp_path / "evaluated.json"  # with the beams that were chosen, unless others are named
    command = ["--model", str(folder / "teacher"), *common, "--tuning", str(tmp_path / "report.json")]
    for options, beams in (([], [2]), (["--num_beams", "1", "3"], [1, 3])):
        load_script("evaluate").main([*command, *options, "--output", str(output)])
        evaluated = json.loads(output.read_text())
        assert [row["num_beams"] for row in evaluated["results"]] == beams
        assert evaluated["settings"]["generation"] == {"length_penalty": best["length_penalty"]}


def test_prefixes_and_languages_are_those_of_translate(folder, tmp_path, tune, capsys):
    """With a prefix each line but a blank one reads as if the prefix stood in the text, as evaluate does it."""
    lines = ["kot. mas", "", "ban kot"]
    for name, text in {"plain": lines, "whole": [line and f"ban {line}" for line in lines]}.items():
        (tmp_path / name).write_text("\n".join(text) + "\n")
    teacher = ["--model", str(folder / "teacher"), "--reference", str(tmp_path / "plain")]
    evaluate = load_script("evaluate")
    rows = []
    for command, options in ((tune, ["--exponents", "1", "--save", "False"]), (evaluate, ["--num_beams", "5"])):
        for source in (["plain", "--source_prefix", "ban "], ["whole"]):
            where = [*options, "--source", str(tmp_path / source[0]), *source[1:], "--output", str(tmp_path / "out")]
            command.main([*teacher, *where])
            report = json.loads((tmp_path / "out").read_text())
            assert report["settings"]["source_prefix"] == (source[2] if source[1:] else None)
            rows.append(report["results"][0]["sacrebleu"])
    assert rows[0] == rows[1]
    assert rows[2] == rows[3]
    capsys.readouterr()
    for command in (tune, evaluate):
        for model, options, message in (
            ("student", ["--source_prefix", "ban "], "languages and source_prefix do not apply to JM-NAT"),
            ("student", ["--languages", "de", "en"], "languages and source_prefix do not apply to JM-NAT"),
            ("teacher", ["--languages", "de", "en"], "error: languages='de en' are not languages of the model's"),
        ):
            text = ["--source", str(tmp_path / "plain"), "--reference", str(tmp_path / "plain")]
            with pytest.raises(SystemExit):
                command.main(["--model", str(folder / model), *text, *options])
            assert message in capsys.readouterr().err


def test_names_of_options_are_those_of_evaluate(folder, tmp_path, tune, capsys):
    (tmp_path / "text").write_text("a b c\nd e\n")
    text = ["--source", str(tmp_path / "text"), "--reference", str(tmp_path / "text"), "--save", "False"]
    reports = []
    for options in (["--num_iterations", "2", "3"], ["--grid", '{"num_iterations": [2, 3]}']):
        path = tmp_path / "report.json"
        tune.main(["--model", str(folder / "student"), *text, "--exponents", "1", *options, "--output", str(path)])
        reports.append(json.loads(path.read_text())["results"])
    assert reports[0] == reports[1]
    assert {row["num_iterations"] for row in reports[0]} == {2, 3}
    tune.main(["--model", str(folder / "teacher"), *text, "--exponents", "1", "--num_beams", "1", "2"])
    assert sum(line.startswith("num_beams ") for line in capsys.readouterr().out.splitlines()) == 2
    ours, theirs = ({item.name for item in fields(x)} for x in (TuningArguments, EvaluationArguments))
    of_decoding = {"num_iterations", "num_beams", "num_length_candidates", "generation_options", "reranker"}
    of_scores = {"source", "reference", "target_language", "bleu_tokenize", "lowercase", "batch_tokens"}
    assert of_decoding | of_scores | {"model", "output", "device", "dtype"} <= ours & theirs


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(folder, tmp_path, tune, monkeypatch, capsys):
    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(tuning_run, "load_translator", lambda *arguments: pytest.fail("the work has begun"))
    (tmp_path / "text").write_text("a b\n")
    text = ["--source", str(tmp_path / "text"), "--reference", str(tmp_path / "text")]
    with pytest.raises(SystemExit):
        tune.main(["--model", str(folder / "student"), *text])
    expected = (
        f"{folder / 'student' / 'generation_config.json'} cannot be written (Read-only file system): give --save False"
    )
    assert expected in capsys.readouterr().err


def test_a_link_is_not_written_through(folder, tmp_path, tune, monkeypatch, capsys):
    """As of the files in the Hub's cache."""
    monkeypatch.setattr(tuning_run, "load_translator", lambda *arguments: pytest.fail("the work has begun"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "generation_config.json").symlink_to(folder / "student" / "generation_config.json")
    with pytest.raises(SystemExit):
        tune.main(["--model", str(tmp_path / "model"), "--source", "text", "--reference", "text"])
    assert "generation_config.json is a link to" in capsys.readouterr().err


def test_a_failing_save_leaves_the_report_and_the_old_file(folder, tmp_path, tune, monkeypatch, capsys):
    def fill_the_disk(config, folder, config_file_name):
        (folder / config_file_name).write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JMNatGenerationConfig, "save_pretrained", fill_the_disk)
    (tmp_path / "text").write_text("a b\n")
    text = ["--source", str(tmp_path / "text"), "--reference", str(tmp_path / "text")]
    before = (folder / "student" / "generation_config.json").read_text()
    options = ["--grid", '{"num_iterations": [1]}', "--exponents", "1", "--output", str(tmp_path / "report.json")]
    with pytest.raises(SystemExit):
        tune.main(["--model", str(folder / "student"), *text, *options])
    assert "No space left on device" in capsys.readouterr().err
    assert json.loads((tmp_path / "report.json").read_text())["best"]["length_normalization"] == 1.0
    assert (folder / "student" / "generation_config.json").read_text() == before


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("student", ["--grid", '{"num_iterations": 4}'], "num_iterations must have a list of at least one value"),
        ("student", ["--grid", '{"num_iterations": []}'], "num_iterations must have a list of at least one value"),
        ("student", ["--grid", '{"prune_candidates": [1]}'], "prune_candidates cannot be tuned or set"),
        ("student", ["--generation_options", '{"prune_to": 2}'], "prune_to cannot be tuned"),
        ("student", ["--grid", '{"num_length_candidates": [3]}'], "--num_length_candidates sets it"),
        ("student", ["--generation_options", '{"length_offset": 5}'], "length_offset cannot be given in --grid or"),
        ("student", ["--grid", '{"length_normalization": [1]}'], "--exponents sets it"),
        ("student", ["--generation_options", '{"num_iterations": 4}'], "--grid sets it"),
        ("teacher", ["--grid", '{"length_penalty": [1, 2]}'], "length_penalty cannot be given in --grid or"),
        ("teacher", ["--generation_options", '{"num_beams": 2}'], "num_beams cannot be given in --generation_options"),
        ("student", ["--exponents", "1", "-1"], "exponents=[1.0, -1.0] must be at least one number, all in"),
        ("student", ["--exponents", "nan"], "exponents=[nan] must be at least one number, all in [0, 100]"),
        ("student", ["--consensus_weights", "-1"], "consensus_weights=[-1.0] must be at least one number, all in [0"),
        ("student", ["--grid", '{"consensus_weight": [1]}'], "--consensus_weights sets it"),
        ("student", ["--num_length_candidates", "2", "0"], "num_length_candidates=0 must be at least 1"),
        ("student", ["--grid", '{"num_iterations": [1, "a"]}'], "num_iterations='a' must be a whole number"),
        ("student", ["--grid", "x"], "grid='x' is not JSON"),
        ("teacher", ["--grid", '{"num_beams": [2, 0]}'], "num_beams=0 must be a whole number of at least 1"),
        ("student", ["--num_iterations", "0"], "num_iterations=0 must be at least 1"),
        ("student", ["--num_beams", "2"], "--num_beams does not apply to JM-NAT"),
        ("teacher", ["--num_iterations", "2"], "--num_iterations does not apply"),
        ("student", ["--num_iterations", "2", "--grid", '{"num_iterations": [1]}'], "num_iterations is given twice"),
        ("student", ["--output", "nowhere/report.json"], "nowhere is not a folder"),
        ("teacher", ["--num_length_candidates", "3"], "--num_length_candidates does not apply"),
        ("teacher", ["--consensus_weights", "1"], "--consensus_weights does not apply"),
        ("teacher", ["--reranker", "teacher"], "--reranker does not apply"),
        ("teacher", ["--repeat_rules", "none"], "--repeat_rules does not apply"),
        ("student", ["--repeat_rules", "all"], "repeat_rules=['all'] must be at least one of none, collapse, remask"),
        ("student", ["--repeat_rules", "delete", "--grid", '{"delete_repeats": [true]}'], "--repeat_rules sets"),
    ],
)
def test_the_command_says_what_is_wrong(folder, tmp_path, tune, capsys, model, options, message):
    (tmp_path / "text").write_text("a b\n")
    text = ["--source", str(tmp_path / "text"), "--reference", str(tmp_path / "text")]
    before = (folder / model / "generation_config.json").read_text()
    with pytest.raises(SystemExit) as stopped:
        tune.main(["--model", str(folder / model), *text, *options])
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out
    assert (folder / model / "generation_config.json").read_text() == before


def test_a_line_that_is_too_long_is_known_before_the_work(tmp_path, monkeypatch, capsys):
    save_translators(tmp_path)
    monkeypatch.setattr("modeling_jmnat.inference.translation._generate", None)  # nothing is translated
    (tmp_path / "text").write_text("ban\n" * 5000 + "ban " * 100 + "\n")
    arguments = ["--model", tmp_path / "student", "--source", tmp_path / "text", "--reference", tmp_path / "text"]
    with pytest.raises(SystemExit):
        load_script("tune_decoding").main([str(argument) for argument in arguments])
    assert "error: line 5001 has" in capsys.readouterr().err
