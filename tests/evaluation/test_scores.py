"""Scores against hand-computed values and sacreBLEU itself; figures of whole evaluations against slow counts."""

import gzip
import json
import platform
import re

import pytest
import sacrebleu
import torch
from sacremoses import MosesTokenizer
from transformers import T5Config, T5ForConditionalGeneration

from modeling_jmnat.evaluation import run
from modeling_jmnat.evaluation import scores as evaluation
from modeling_jmnat.evaluation.scores import (
    decoding_figures,
    evaluate_model,
    measure_latency,
    score_by_source_words,
)
from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.inference.translation import Translation, translate_lines
from modeling_jmnat.teacher.reranking import load_reranker
from modeling_jmnat.utils.translation_scores import count_repeated_tokens, score_translations
from tests.helpers.teacher_samples import WORDS, random_lines
from tests.helpers.translation_samples import load_script, save_translators, tiny_student, tiny_tokenizer

HYPOTHESES = ["The dog doesn't run .", "A man, a man and and a hat.", "It is 3.5 % Of it", "yes"]
REFERENCES = ["the dog doesn't run.", "A man and a woman with a hat.", "it's 3.5 % of it.", "Yes yes!"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("a", 0), ("a b a b", 0), ("a a", 1), ("a a a b b a", 3), ("The the", 0), ("- - - -", 3)],
)
def test_repeats_by_hand(text, expected):
    assert count_repeated_tokens(text.split()) == expected


def test_repeats_are_counted_on_words_after_moses():
    hypotheses = ["yes, yes yes.", "Ja ja", "well well. . ."]  # "." is split from the word it ends
    figures = score_translations(hypotheses, ["yes"] * 3)
    assert figures["repeated_tokens_per_sentence"] == pytest.approx((1 + 0 + 3) / 3)
    figures = score_translations(hypotheses, ["yes"] * 3, lowercase=True)
    assert figures["repeated_tokens_per_sentence"] == pytest.approx((1 + 1 + 3) / 3)


def test_bleu_by_hand():
    figures = score_translations(["the cat sat on the mat"], ["the cat sat on a mat"])
    by_hand = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25  # no brevity penalty
    assert figures["sacrebleu"] == pytest.approx(by_hand)
    assert figures["tokenized_bleu"] == pytest.approx(by_hand)
    same = score_translations(REFERENCES, REFERENCES)
    assert [same[name] for name in ("sacrebleu", "chrf", "tokenized_bleu")] == pytest.approx([100] * 3)


@pytest.mark.parametrize("lowercase", [False, True])
def test_scores_are_sacrebleus_own(lowercase):
    figures = score_translations(HYPOTHESES, REFERENCES, "en", lowercase)
    assert figures["sacrebleu"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], lowercase=lowercase).score
    fold = str.lower if lowercase else str
    assert figures["chrf"] == pytest.approx(
        sacrebleu.corpus_chrf([fold(text) for text in HYPOTHESES], [[fold(text) for text in REFERENCES]]).score
    )
    moses = MosesTokenizer(lang="en")
    split = [
        [moses.tokenize(fold(text), return_str=True, escape=False) for text in texts]
        for texts in (HYPOTHESES, REFERENCES)
    ]
    expected = sacrebleu.corpus_bleu(split[0], [split[1]], tokenize="none", force=True).score
    assert figures["tokenized_bleu"] == pytest.approx(expected)
    case = "lc" if lowercase else "mixed"
    assert re.fullmatch(rf"nrefs:1\|case:{case}\|eff:no\|tok:13a\|.*", figures["sacrebleu_signature"])
    assert f"case:{case}|" in figures["tokenized_bleu_signature"]
    assert "tok:none" in figures["tokenized_bleu_signature"]
    assert f"case:{case}|" in figures["chrf_signature"]


def test_short_and_long_sentences_are_scored_apart():
    lengths = [5, 31, 6, 1, 10, 45, 5]
    sources = [" ".join(["wort"] * length) for length in lengths]
    references = ["the cat sat on the mat"] * 7
    hypotheses = ["the cat sat on the mat"] * 6 + ["the cat sat on a mat"]
    hypotheses[5] = "THE CAT SAT ON THE MAT"
    groups = score_by_source_words(sources, hypotheses, references)
    assert {name: group["sentences"] for name, group in groups.items()} == {"1-5": 3, "6-10": 2, "over 30": 2}
    assert groups["6-10"]["sacrebleu"] == pytest.approx(100)
    # By hand: of 18, 15, 12 and 9 n-grams 17, 13, 10 and 7 match; no brevity penalty.
    assert groups["1-5"]["sacrebleu"] == pytest.approx(100 * (17 / 18 * 13 / 15 * 10 / 12 * 7 / 9) ** 0.25)
    assert groups["over 30"]["sacrebleu"] < 60
    assert score_by_source_words(sources, hypotheses, references, True)["over 30"]["sacrebleu"] == pytest.approx(100)
    assert score_by_source_words(sources, references, references).keys() == groups.keys()


def test_sources_without_spaces_are_grouped_by_their_characters():
    sources = ["我没有时间。", "猫", "我昨天在图书馆里读了一本很有意思的书。"]
    groups = score_by_source_words(sources, ["a b c d e"] * 3, ["a b c d e"] * 3)
    assert {name: group["sentences"] for name, group in groups.items()} == {"1-5": 1, "6-10": 1, "16-20": 1}


def test_lengths_are_those_of_the_original_text(folder):
    model, tokenizer = load_translator(folder / "student")
    sources = [" ".join(WORDS[:3]), " ".join(WORDS[:7])]
    prefixed = [" ".join([*WORDS[:5], source]) for source in sources]
    settings = [{"num_iterations": 1}]
    ((figures, _),) = evaluate_model(model, tokenizer, prefixed, sources, settings, original=sources)
    assert figures["by_source_words"].keys() == {"1-5", "6-10"}


def test_case_matters_unless_told_otherwise():
    mixed = score_translations(["THE CAT SAT ON THE MAT"], ["the cat sat on the mat"])
    lower = score_translations(["THE CAT SAT ON THE MAT"], ["the cat sat on the mat"], lowercase=True)
    for name in ("sacrebleu", "chrf", "tokenized_bleu"):
        assert mixed[name] < 10
        assert lower[name] == pytest.approx(100)


def test_scores_refuse_what_cannot_be_compared():
    for hypotheses, references in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match=f"{len(hypotheses)} hypotheses and {len(references)} references"):
            score_translations(hypotheses, references)
    with pytest.raises(ValueError, match="Moses language 'xx"):
        score_translations(["a"], ["a"], target_language="xx-none")


def test_length_figures_by_hand():
    def tokenizer(text_target, verbose):
        return {"input_ids": [[*text.split(), "</s>"] for text in text_target]}

    def translation(num_tokens, candidate_lengths, num_passes):
        return Translation("x", [("x", 0.0)], [9] * num_tokens, num_passes, candidate_lengths)

    translations = [
        translation(2, [3, 4], 4),  # reference of 3 tokens: among the candidates, and chosen
        translation(3, [4, 3], 2),  # among the candidates, not chosen
        translation(4, [5, 6], 4),  # not among them
        translation(5, [5, 6], 1),  # 6: chosen
        Translation("", [("", 0.0)]),  # a blank line counts nowhere
    ]
    figures = decoding_figures(tokenizer, translations, ["a b", "a b", "a b", "a b c d e", ""])
    assert figures == {
        "mean_passes": 11 / 4,
        "length_recall": 3 / 4,
        "length_recall_at": 2,
        "length_accuracy": 2 / 4,
    }


def test_latency_by_hand(monkeypatch):
    """The clock is turned by the translation itself: sentence i takes i milliseconds, and 7 s more in one round."""
    now = [0.0]
    calls = []

    def translate(lines):
        disturbed = len(calls) > 101 + evaluation.WARM_UP_SENTENCES and calls.count(lines[0]) == 2
        calls.extend(lines)
        now[0] += int(lines[0]) / 1000 + 7 * disturbed

    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: now[0])
    figures = measure_latency(translate, [str(number) for number in range(1, 102)], 101)
    assert figures == pytest.approx({"sentences": 101, "rounds": 3, "mean": 51.0, "p50": 51.0, "p99": 100.0})
    assert calls[: evaluation.WARM_UP_SENTENCES] == ["1", "2", "3", "4", "5", "6", "7", "8"]
    assert len(calls) == 3 * 101 + evaluation.WARM_UP_SENTENCES
    assert now[0] > 7 * 80
    calls.clear()
    assert measure_latency(translate, [str(number) for number in range(100)], 4)["sentences"] == 4
    assert calls[-4:] == ["0", "25", "50", "75"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_translators(tmp_path_factory.mktemp("models"))
    (folder / "test.src").write_text("".join(f"{line}\n" for line in random_lines(12, seed=8)))
    (folder / "test.tgt.gz").write_bytes(gzip.compress("".join(f"{x}\n" for x in random_lines(12, seed=9)).encode()))
    return folder


def test_figures_of_a_student(folder):
    model, tokenizer = load_translator(folder / "student")
    sources, references = random_lines(12, seed=8), random_lines(12, seed=9)
    settings = [{"num_iterations": k} for k in (1, 3)]
    rows = list(
        evaluate_model(model, tokenizer, sources, references, settings, generation={"num_length_candidates": 4})
    )
    inputs = tokenizer(sources, return_tensors="pt", padding=True)
    with torch.no_grad():
        encoded = model.get_encoder()(inputs["input_ids"], inputs["attention_mask"])
    likely = encoded.length_logits.topk(4).indices.clamp(min=2)
    lengths = torch.tensor([len(ids) for ids in tokenizer(references)["input_ids"]])
    recall = (likely == lengths[:, None]).any(dim=1).float().mean().item()
    for (figures, texts), k in zip(rows, (1, 3), strict=True):
        options = {"num_iterations": k, "num_length_candidates": 4}
        assert texts == [result.text for result in translate_lines(model, tokenizer, sources, **options)]
        assert figures["num_iterations"] == figures["mean_passes"] == k
        assert figures["length_recall"] == pytest.approx(recall, abs=1e-4)
        assert figures["length_recall_at"] == 4
        groups = figures["by_source_words"]
        assert sum(group["sentences"] for group in groups.values()) == 12
        short = [row for row, line in enumerate(sources) if len(line.split()) <= 5]
        expected = sacrebleu.corpus_bleu([texts[row] for row in short], [[references[row] for row in short]]).score
        assert groups["1-5"] == {"sentences": len(short), "sacrebleu": pytest.approx(expected, abs=1e-4)}
        assert figures["sacrebleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score, abs=1e-4)
        assert figures["sentences_per_second"] == pytest.approx(12 / figures["seconds"], rel=0.01)
    assert rows[0][1] != rows[1][1]
    every_length = {"num_length_candidates": 20}
    long_enough = [" ".join(line.split()[:6]) for line in references]
    ((figures, _),) = evaluate_model(model, tokenizer, sources, long_enough, settings[:1], generation=every_length)
    assert figures["length_recall"] == 1.0


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluate():
    return load_script("evaluate").main


def test_command_writes_figures_settings_and_translations(folder, tmp_path, evaluate, capsys):
    output = tmp_path / "result.json"
    texts = {}
    for name, varied, values in (("student", "num_iterations", ["1", "2"]), ("teacher", "num_beams", ["1", "2"])):
        arguments = ["--model", str(folder / name), "--source", str(folder / "test.src")]
        arguments += ["--reference", str(folder / "test.tgt.gz"), f"--{varied}", *values, "--lowercase"]
        if name == "student":
            arguments += ["--num_length_candidates", "3"]
        arguments += ["--latency_sentences", "2", "--translations", str(tmp_path / name)]
        evaluate([*arguments, "--output", str(output)])
        lines = capsys.readouterr().out.splitlines()
        report = json.loads(output.read_text())
        assert json.loads(lines[-1]) == report
        assert len(lines) == 3
        assert all(line.startswith(f"{varied} ") for line in lines[:2])
        assert report["settings"]["model"] == name
        assert report["settings"]["sentences"] == 12
        assert report["settings"]["lowercase"] is True
        assert report["device"]["type"] in ("cpu", "cuda")
        assert {"torch", "transformers", "sacrebleu"} <= set(report["versions"])
        assert str(folder) not in output.read_text()
        assert [str(row[varied]) for row in report["results"]] == values
        for row in report["results"]:
            assert "case:lc" in row["sacrebleu_signature"]
            assert set(row["latency_ms"]) == {"sentences", "rounds", "mean", "p50", "p99"}
            texts = (tmp_path / name / f"{varied}-{row[varied]}.txt").read_text().splitlines()
            references = random_lines(12, seed=9)
            expected = sacrebleu.corpus_bleu(texts, [references], lowercase=True).score
            assert row["sacrebleu"] == pytest.approx(expected, abs=1e-4)
            assert ("length_recall" in row) == (name == "student")
        common = {"sacrebleu", "chrf", "tokenized_bleu", "repeated_tokens_per_sentence", "sentences_per_second"}
        assert common <= set(report["results"][0])


def test_a_reranker_chooses_in_evaluations_and_translations(folder, tmp_path, evaluate):
    student, teacher, source = (str(folder / name) for name in ("student", "teacher", "test.src"))
    options = ["--num_iterations", "2", "--num_length_candidates", "4"]
    model, tokenizer = load_translator(student)
    expected = {}
    for name, reranker in (("alone", None), ("reranked", load_reranker(teacher, tokenizer))):
        settings = {"num_iterations": 2, "num_length_candidates": 4, "reranker": reranker}
        translations = translate_lines(model, tokenizer, random_lines(12, seed=8), **settings)
        expected[name] = [translation.text for translation in translations]
    assert expected["alone"] != expected["reranked"]
    files = ["--source", source, "--reference", str(folder / "test.tgt.gz"), "--output", str(tmp_path / "report")]
    evaluate(["--model", student, *files, *options, "--reranker", teacher, "--translations", str(tmp_path)])
    assert (tmp_path / "num_iterations-2.txt").read_text().splitlines() == expected["reranked"]
    assert json.loads((tmp_path / "report").read_text())["settings"]["reranker"] == "teacher"
    output = tmp_path / "translated"
    command = ["--model", student, "--input", source, "--output", str(output), *options, "--reranker", teacher]
    load_script("translate").main(command)
    assert output.read_text().splitlines() == expected["reranked"]


def test_exported_graphs_are_evaluated(folder, tmp_path, evaluate, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra `bench` is not installed")
    student = str(folder / "student")
    load_script("export_onnx").main([student, "--output", str(tmp_path / "graphs")])
    files = ["--source", str(folder / "test.src"), "--reference", str(folder / "test.tgt.gz")]
    scores = {}
    for model, backend in ((student, "torch"), (str(tmp_path / "graphs"), "onnx")):
        evaluate(["--model", model, *files, "--backend", backend, "--output", str(tmp_path / "report")])
        report = json.loads((tmp_path / "report").read_text())
        assert report["settings"]["backend"] == backend
        scores[backend] = [row["sacrebleu"] for row in report["results"]]
    assert scores["onnx"] == scores["torch"]
    with pytest.raises(SystemExit):
        evaluate(["--model", str(tmp_path / "graphs"), *files, "--backend", "onnx", "--noise", "encoder_input"])
    assert "noise=encoder_input needs backend=torch" in capsys.readouterr().err


def test_models_without_a_limit_of_positions_are_evaluated(folder, tmp_path, evaluate):
    """T5 has only relative positions."""
    tokenizer = tiny_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, decoder_start_token_id=0)
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    files = ["--source", str(folder / "test.src"), "--reference", str(folder / "test.tgt.gz")]
    evaluate(["--model", str(tmp_path / "t5"), *files, "--num_beams", "1", "--output", str(tmp_path / "report")])
    assert json.loads((tmp_path / "report").read_text())["settings"]["model_type"] == "t5"


def test_command_counts_long_lines_and_splits_sentences_when_asked(folder, tmp_path, evaluate, capsys):
    source, reference = tmp_path / "source.txt", tmp_path / "reference.txt"
    source.write_text(f"{' '.join(WORDS * 9)}\n{WORDS[0].capitalize()}. {WORDS[1].capitalize()}.\n")
    reference.write_text("one\ntwo\n")
    common = ["--model", str(folder / "student"), "--source", str(source), "--reference", str(reference)]
    common += ["--num_iterations", "1", "--output", str(tmp_path / "report")]
    evaluate([*common, "--translations", str(tmp_path)])
    report, whole = (tmp_path / name for name in ("report", "num_iterations-1.txt"))
    assert "warning: 1 line has a sentence longer than the 64 tokens" in capsys.readouterr().err
    (row,) = json.loads(report.read_text())["results"]
    assert (row["long_lines"], row["length_recall_at"]) == (1, 4)
    texts = whole.read_text()
    evaluate([*common, "--translations", str(tmp_path), "--split_sentences", "--long_lines", "skip"])
    report = json.loads(report.read_text())
    assert (report["settings"]["split_sentences"], report["settings"]["long_lines"]) == (True, "skip")
    assert report["results"][0]["length_recall_at"] == 0  # no line was translated as a whole
    assert whole.read_text().splitlines()[0] == ""
    assert whole.read_text().splitlines()[1] != texts.splitlines()[1]


def test_command_says_what_is_wrong_and_leaves_the_output_alone(folder, tmp_path, evaluate, capsys):
    output = tmp_path / "result.json"
    output.write_text("earlier")
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text("one\n")
    long.write_text(" ".join(WORDS * 9) + "\n")
    wrong = tmp_path / "wrong"
    tokenizer = tiny_tokenizer()
    tiny_student(tokenizer, vocab_size=len(tokenizer) - 1).save_pretrained(wrong)
    tokenizer.save_pretrained(wrong)
    student, teacher, source = str(folder / "student"), str(folder / "teacher"), str(folder / "test.src")
    capsys.readouterr()
    for arguments, sentence in (
        ([student, source, str(short)], f"error: {source} has 12 lines and {short} has 1"),
        ([str(wrong), source, source], f"error: the tokenizer has {len(tokenizer)} tokens"),
        ([student, str(long), str(short), "--long_lines", "error"], "error: line 1 has"),
        ([student, source, source, "--num_iterations", "1", "0"], "error: num_iterations=0"),
        (
            [teacher, source, source, "--num_beams", "1", "0"],
            "error: num_beams=0 must be a whole number of at least 1",
        ),
        ([student, source, source, "--noise", "encoder_input", "--noise_levels", "0", "nan"], "error: noise_levels=["),
        ([student, source, source, "--noise", "drop", "--noise_levels", "2"], "error: noise_levels=[2.0] must be"),
        ([student, source, source, "--latency_sentences", "-1"], "error: latency_sentences=-1 must be at least 0"),
        ([student, source, source, "--num_length_candidates", "0"], "error: num_length_candidates=0"),
        ([student, source, source, "--num_beams", "5"], "error: --num_beams does not apply to JM-NAT"),
        ([teacher, source, source, "--num_iterations", "4"], "error: --num_iterations does not apply"),
        ([teacher, source, source, "--num_length_candidates", "4"], "error: --num_length_candidates does not apply"),
        ([student, source, source, "--reranker", student], f"error: {student} is a non-autoregressive model"),
        ([student, source, source, "--reranker", f"{folder}/no"], f"error: the folder {folder}/no does not exist"),
        ([student, source, source, "--generation_options", '{"shortlist": "sl"}'], "error: generation option 'short"),
        ([student, source, source, "--target_language", "klingon"], "error: Moses language 'klingon'"),
        ([student, str(tmp_path / "absent"), source], f"error: {tmp_path}/absent: No such file"),
    ):
        model, source_file, reference, *options = arguments
        with pytest.raises(SystemExit) as stopped:
            evaluate(["--model", model, "--source", source_file, "--reference", reference, *options]
                     + ["--output", str(output)])  # fmt: skip
        assert stopped.value.code == 1
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith(sentence)
        assert output.read_text() == "earlier"
        assert not capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.txt", "result.json", "short.txt", "wrong"]


def test_an_interruption_leaves_the_rows_that_were_done(folder, tmp_path, monkeypatch):
    rows = run.evaluate_model

    def interrupted(*arguments, **options):
        yield next(rows(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "evaluate_model", interrupted)
    text = ["--source", str(folder / "test.src"), "--reference", str(folder / "test.tgt.gz")]
    with pytest.raises(SystemExit) as stopped:
        load_script("evaluate").main(["--model", str(folder / "student"), *text, "--output", str(tmp_path / "report")])
    assert stopped.value.code == 130
    assert [row["num_iterations"] for row in json.loads((tmp_path / "report").read_text())["results"]] == [1]


def test_the_basic_nat_is_evaluated_with_its_one_pass(folder, tmp_path, evaluate, capsys):
    tokenizer = tiny_tokenizer()
    tiny_student(tokenizer, decoder_input="source_copy").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = ["--source", str(folder / "test.src"), "--reference", str(folder / "test.tgt.gz")]
    evaluate(["--model", str(tmp_path), *text])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["num_iterations"] for row in report["results"]] == [1]


def test_processor_is_read(tmp_path, monkeypatch):
    assert evaluation.processor_name()
    monkeypatch.setattr(evaluation, "CPUINFO", tmp_path / "cpuinfo")
    assert evaluation.processor_instructions() == []
    assert evaluation.processor_name() == (platform.processor() or platform.machine())
    lines = "processor\t: 0\nmodel name\t: A CPU: 2 GHz\nflags\t\t: fpu avx2 amx_int8 vaes\n"
    evaluation.CPUINFO.write_text(lines + lines.replace("avx2", "avx_vnni"))
    assert evaluation.processor_name() == "A CPU: 2 GHz"
    assert evaluation.processor_instructions() == ["avx2", "amx_int8"]
