"""Scores, intervals and paired tests against sacreBLEU's command, and against slow resampling by hand."""

import gzip
import json
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu

from modeling_jmnat.utils import translation_scores
from modeling_jmnat.utils.translation_scores import METRICS, Scorer, count_repeated_tokens, score_translations
from tests.helpers.teacher_samples import random_lines

RATIOS = ("repeated_tokens_per_sentence", "length_ratio")


def disturbed(lines, seed, share=0.2):
    """Lines in which some words are lost, doubled or moved."""
    draw = random.Random(seed)
    texts = []
    for line in lines:
        words = [word for word in line.split() for _ in range(draw.choices((0, 1, 2), (share, 1, share))[0])]
        draw.shuffle(words) if draw.random() < share else None
        texts.append(" ".join(words))
    return texts


REFERENCES = [f"{line.capitalize()}." for line in random_lines(60, seed=1)]
SYSTEM, BASELINE = disturbed(REFERENCES, 1), disturbed(REFERENCES, 2, 0.3)


def sacrebleu_command(folder, texts, references, *arguments, **environment):
    """What the command prints for texts in files."""
    for name, lines in {**texts, "reference": references}.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    command = ["reference.gz", "--input", *(f"{name}.gz" for name in texts), *arguments, "--width", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "sacrebleu", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("lowercase", [False, True])
def test_scores_and_intervals_are_those_of_the_command(tmp_path, lowercase):
    scorer = Scorer(REFERENCES, lowercase=lowercase)
    scores, intervals = scorer.scores(SYSTEM), scorer.intervals(SYSTEM, 200, seed=7)
    assert list(intervals) == list(scorer.measures) == list(METRICS)
    for name, (_, _, arguments) in scorer.measures.items():
        if name == "repeated_tokens_per_sentence":
            continue
        known = ({"plain": SYSTEM}, REFERENCES)
        if name == "tokenized_bleu":
            known = ({"words": list(map(scorer.words, SYSTEM))}, map(scorer.words, REFERENCES))
        options = [*arguments.split(), "--confidence", "--confidence-n", "200"]
        printed = json.loads(sacrebleu_command(tmp_path, *known, *options, SACREBLEU_SEED="7"))
        if name == "length_ratio":
            assert f"ratio = {scores[name]:.3f} " in printed["verbose_score"]
            continue
        assert scores[name] == pytest.approx(printed["score"], abs=1e-4)
        low, high = intervals[name]
        assert (high - low) / 2 == pytest.approx(printed["confidence_var"], abs=1e-4)
        assert low < printed["confidence_mean"] < high
        assert set(scores[f"{name}_signature"].split("|")) <= set(printed["signature"].split("|"))


def test_paired_tests_are_those_of_the_command(tmp_path):
    scorer = Scorer(REFERENCES)
    found = scorer.compare(SYSTEM, BASELINE, 300, seed=3)
    plain = {"baseline": BASELINE, "system": SYSTEM}
    words = {name: list(map(scorer.words, texts)) for name, texts in plain.items()}
    for name in ("sacrebleu", "chrf", "chrfpp", "ter", "tokenized_bleu"):
        known = (plain, REFERENCES)
        if name == "tokenized_bleu":
            known = (words, map(scorer.words, REFERENCES))
        options = [*scorer.measures[name].arguments.split(), "--paired-bs", "--paired-bs-n", "300"]
        printed = sacrebleu_command(tmp_path, *known, *options, "--format", "text", SACREBLEU_SEED="3")
        theirs, ours = map(float, re.findall(r"([\d.]+) \([\d.]+ ± [\d.]+\)", printed))
        assert found[name]["baseline"] == pytest.approx(theirs, abs=1e-4)
        assert found[name]["difference"] == pytest.approx(ours - theirs, abs=2e-4)
        assert found[name]["p"] == pytest.approx(float(re.search(r"\(p = ([\d.]+)\)", printed)[1]), abs=1e-4)


def test_resampling_by_hand():
    """All at once, as in sacreBLEU's code: indices (resamples, B), and scores of the texts they choose."""
    scorer = Scorer(REFERENCES)
    chosen = np.random.default_rng(5).choice(60, size=(80, 60), replace=True)

    def slow(texts, score):
        return np.array([score([texts[row] for row in rows], [REFERENCES[row] for row in rows]) for rows in chosen])

    def bleu(texts, references):
        return sacrebleu.corpus_bleu(texts, [references]).score

    def repeats(texts, references):
        return sum(count_repeated_tokens(scorer.words(text).split()) for text in texts) / len(texts)

    def ratio(texts, references):
        score = sacrebleu.corpus_bleu(texts, [references])
        return score.sys_len / score.ref_len

    intervals, compared = scorer.intervals(SYSTEM, 80, 5), scorer.compare(SYSTEM, BASELINE, 80, 5)
    for name, score in (("sacrebleu", bleu), ("repeated_tokens_per_sentence", repeats), ("length_ratio", ratio)):
        ours, theirs = slow(SYSTEM, score), slow(BASELINE, score)
        assert intervals[name] == pytest.approx(tuple(np.sort(ours)[[2, 77]]))
        assert compared[name]["interval"] == pytest.approx(tuple(np.sort(ours - theirs)[[2, 77]]))
        assert compared[name]["difference"] == pytest.approx(score(SYSTEM, REFERENCES) - score(BASELINE, REFERENCES))
        # p, from its definition in sacreBLEU
        apart = np.abs(ours - theirs)
        beyond = (apart - apart.mean() > abs(compared[name]["difference"])).sum()
        assert compared[name]["p"] == pytest.approx((beyond + 1) / 81)


def test_a_system_does_not_differ_from_itself():
    """sacreBLEU's smallest p would call it better than itself."""
    for figures in Scorer(REFERENCES).compare(SYSTEM, list(SYSTEM)).values():
        assert (figures["difference"], figures["interval"], figures["p"]) == (0.0, (0.0, 0.0), 1.0)


def test_the_seed_decides_and_the_environment_stays(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "99")
    options = {"resamples": 100, "baselines": {"other": BASELINE}, "metrics": ["chrf", "length_ratio"]}
    first, again, other = (score_translations(SYSTEM, REFERENCES, **options, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["intervals"]["chrf"] != other["intervals"]["chrf"]
    assert first["chrf"] == other["chrf"]
    assert os.environ["SACREBLEU_SEED"] == "99"
    assert set(first) == {"chrf", "chrf_signature", "length_ratio", "intervals", "comparisons"}
    monkeypatch.delenv("SACREBLEU_SEED")
    score_translations(SYSTEM, REFERENCES, **options)
    assert "SACREBLEU_SEED" not in os.environ


def test_several_references():
    second = [text if number % 3 else None for number, text in enumerate(BASELINE)]
    references = [[one, two] if two is not None else [one] for one, two in zip(REFERENCES, second, strict=True)]
    scores, streams = score_translations(SYSTEM, references), [REFERENCES, second]
    assert scores["sacrebleu"] == sacrebleu.corpus_bleu(SYSTEM, streams).score
    assert scores["ter"] == sacrebleu.corpus_ter(SYSTEM, streams).score
    assert scores["chrfpp"] == sacrebleu.corpus_chrf(SYSTEM, streams, word_order=2).score
    assert "nrefs:var" in scores["sacrebleu_signature"]
    assert score_translations(SYSTEM, [[line] for line in REFERENCES]) == score_translations(SYSTEM, REFERENCES)


@pytest.mark.parametrize(
    ("text", "language", "tokenizer", "ter"),
    [
        ("我喜欢吃苹果。", "en", "zh", "norm:yes|punct:yes|asian:yes"),
        ("我喜欢吃苹果。", "zh", "zh", "norm:yes|punct:yes|asian:yes"),
        ("나는 사과를 좋아한다.", "ko", None, "norm:no|punct:yes|asian:no"),
        ("ฉันชอบกินแอปเปิล", "th", "char", None),
        ("Ich mag Äpfel.", "de", "13a", "norm:no|punct:yes|asian:no"),
    ],
)
def test_words_are_those_of_the_language(text, language, tokenizer, ter):
    scores = score_translations([text, text[1:]], [text, text], language)
    if tokenizer is not None:
        assert f"tok:{tokenizer}|" in scores["sacrebleu_signature"]
    assert (ter in scores["ter_signature"]) if ter else ("ter" not in scores)
    if ter and language != "ko":
        assert 0 < scores["ter"] < 50
    assert scores["tokenized_bleu"] > 0
    assert 0.5 < scores["length_ratio"] <= 1
    if tokenizer == "zh":
        assert score_translations(["我我喜欢"], [text], language)["repeated_tokens_per_sentence"] == 1


@pytest.mark.parametrize(
    ("code", "language"), [("pt-BR", "pt"), ("deu_Latn", "de"), ("fra", "fr"), ("ces_Latn", "cs"), ("DE", "de")]
)
def test_codes_of_regions_scripts_and_three_letters_have_the_rules_of_their_language(code, language):
    texts = ["L'homme d'aujourd'hui, bzw. z.B. Nr. 5 a Dr. Silva, tzv. svět atd."]
    found, expected = (Scorer(texts, name).words(texts[0]) for name in (code, language))
    assert found == expected
    if language in ("fr", "de"):
        assert found != Scorer(texts, "en").words(texts[0])


def test_ratios_by_hand():
    scores = score_translations(["a a b", "", "c c c."], ["a b", "b", "c c"], metrics=RATIOS)
    assert scores == {"repeated_tokens_per_sentence": 1.0, "length_ratio": 7 / 5}
    assert score_translations([""], [""], metrics=["length_ratio"])["length_ratio"] == 0.0


def test_scores_by_sentence_have_intervals_and_tests():
    asked = []

    def lengths(texts):
        asked.append(list(texts))
        return [len(text) / 7 for text in texts]

    scorer = Scorer(REFERENCES, metrics=["chrf"], by_sentence={"letters": lengths})
    mean = np.mean([len(text) / 7 for text in SYSTEM])
    assert scorer.scores(SYSTEM)["letters"] == pytest.approx(mean)
    low, high = scorer.intervals(SYSTEM)["letters"]
    assert low < mean < high
    assert 0 < scorer.compare(SYSTEM, BASELINE)["letters"]["p"] <= 1
    assert asked == [SYSTEM, BASELINE]


def test_counts_are_cached(monkeypatch):
    scorer, calls = Scorer(REFERENCES, metrics=["ter"]), []
    ter = scorer.measures["ter"].metric
    one = ter._compute_segment_statistics
    monkeypatch.setattr(ter, "_compute_segment_statistics", lambda *args: calls.append(1) or one(*args))
    translation_scores.scored(scorer, SYSTEM, 100, baselines={"a": BASELINE})
    translation_scores.scored(scorer, BASELINE, 100, baselines={"a": SYSTEM})
    assert len(calls) == 120


@pytest.mark.parametrize(
    ("hypotheses", "references", "options", "sentence"),
    [
        ([], [], {}, "0 hypotheses and 0 references: give equally many, at least one"),
        (["a"], ["a", "b"], {}, "1 hypotheses and 2 references"),
        ("abc", ["a"] * 3, {}, "'abc' instead of a list of hypotheses and 3 references"),
        (None, ["a"], {}, "None instead of a list of hypotheses"),
        (["a"], None, {}, "1 hypotheses and 0 references"),
        (["a"], "a", {}, "references='a' must be a list of at least one text"),
        (["a", None], ["a", "b"], {}, r"hypotheses\[1\] is None \(NoneType\) but must be a string"),
        (["a", 3], ["a", "b"], {}, r"hypotheses\[1\] is 3 \(int\)"),
        (["a", "b"], ["a", None], {}, r"references\[1\] is None"),
        (["a", "b"], ["a", []], {}, r"references\[1\] is empty: each sentence needs at least one reference"),
        (["a", "b"], ["a", ["b", 1.0]], {}, r"references\[1\] is 1.0 \(float\)"),
        (["a"], ["a"], {"metrics": ["bleu"]}, r"metrics=\['bleu'\] must be at least one of sacrebleu, chrf"),
        (["a"], ["a"], {"metrics": []}, r"metrics=\[\] must be"),
        (["a"], ["a"], {"resamples": 5}, "resamples=5 must be at least 40, or 0"),
        (["a"], ["a"], {"resamples": 100, "seed": 0}, "seed=0 must be at least 1"),
        (["a"], ["a"], {"baselines": {"b": ["a"]}}, "must be above 0 to compare with baselines, such as 1000"),
        (["a"], ["a"], {"resamples": 100, "baselines": {"b": ["a", "b"]}}, "2 hypotheses and 1 references"),
        (["a"], ["a"], {"bleu_tokenize": "mecab"}, "bleu_tokenize='mecab' is not one of"),
        (["a"], ["a"], {"target_language": "klingon"}, "Moses language 'klingon' must be a code"),
    ],
)
def test_what_cannot_be_scored_gets_a_sentence(hypotheses, references, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        score_translations(hypotheses, references, **options)
