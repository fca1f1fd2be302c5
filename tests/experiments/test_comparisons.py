"""Paired tests of systems, each the mean over its trainings."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from modeling_jmnat.experiments.comparisons import Decoded, compare, translations_of, wanted_pairs, write_comparisons
from modeling_jmnat.experiments.systems import (
    ABLATIONS,
    ADDITIONS,
    CM_BOTH,
    JM_BOTH_FULL_WEIGHT,
    NAT,
    RECIPES,
    REMASKING,
)
from modeling_jmnat.utils.text_files import write_lines
from modeling_jmnat.utils.translation_scores import RESAMPLES, Scorer

TEXT = Path("run_scripts/demo_data/libreoffice-help")


@pytest.fixture(scope="module")
def references():
    with gzip.open(TEXT / "valid.en.gz", "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file][:150]


@pytest.fixture(scope="module")
def scorer(references):
    return Scorer(references, metrics=["sacrebleu"])


def shortened(lines, share, seed):
    """The lines without this share of their words."""
    generator = np.random.default_rng(seed)
    return [" ".join(word for word in line.split() if generator.random() > share) or "a" for line in lines]


def test_one_training_is_compared_as_sacrebleu_does(references, scorer):
    ours, theirs = shortened(references, 0.1, 1), shortened(references, 0.12, 2)
    found, expected = compare(scorer, [ours], [theirs]), scorer.compare(ours, theirs)["sacrebleu"]
    assert found["p"] == expected["p"]
    assert found["interval"] == pytest.approx(expected["interval"])
    assert found["difference"] == pytest.approx(expected["difference"])
    assert found["sacrebleu"] == [pytest.approx(scorer.scores(ours)["sacrebleu"])]


def test_several_trainings_are_compared_by_their_mean(references, scorer):
    systems = [[shortened(references, share, seed) for seed in (1, 2, 3)] for share in (0.1, 0.13)]
    found = compare(scorer, *systems)
    generator, size, differences = np.random.default_rng(12345), len(references), []
    for _ in range(50):  # by hand, from the texts
        drawn = generator.integers(size, size=size)
        resample = Scorer([references[i] for i in drawn], metrics=["sacrebleu"])
        means = [
            np.mean([resample.scores([texts[i] for i in drawn])["sacrebleu"] for texts in trainings])
            for trainings in systems
        ]
        differences.append(means[0] - means[1])
    scores = [[scorer.scores(texts)["sacrebleu"] for texts in trainings] for trainings in systems]
    assert found["difference"] == pytest.approx(np.mean(scores[0]) - np.mean(scores[1]))
    assert found["interval"][0] < min(np.median(differences), found["difference"]) < found["interval"][1]
    spread = found["interval"][1] - found["interval"][0]
    assert spread == pytest.approx(3.92 * np.std(differences), rel=0.4)
    assert found["p"] < 0.05


def test_differences_by_chance_are_not_significant(references, scorer):
    same = [[shortened(references, 0.1, seed) for seed in seeds] for seeds in ((100, 101), (102, 103))]
    found = compare(scorer, *same)
    assert found["p"] > 0.05
    assert found["interval"][0] < 0 < found["interval"][1]
    assert compare(scorer, same[0], same[0])["p"] == 1


def store(results, split, name, rows):
    """An evaluation as evaluate.py writes it; `rows` are texts by (setting, value)."""
    figures = []
    for (setting, value), lines in rows.items():
        file = f"{name}.translations/{setting}-{value}.txt.gz"
        (results / split / file).parent.mkdir(parents=True, exist_ok=True)
        write_lines(results / split / file, lines)
        figures.append({setting: value, "translations": file})
    (results / split / f"{name}.json").write_text(json.dumps({"results": figures}))


def test_what_has_been_evaluated_is_compared(tmp_path, references):
    results, jm, cm = tmp_path / "results", JM_BOTH_FULL_WEIGHT.name, CM_BOTH.name
    (tmp_path / "text").mkdir()
    write_lines(tmp_path / "text" / "test.tgt", references)
    for seed in (1, 2):
        for name, share in ((f"{jm}-{seed}", 0.1), (f"{cm}-{seed}.adjacent", 0.2), (f"{jm}-{seed}.tuned", 0.15)):
            rows = {("num_iterations", k): shortened(references, share, seed + k) for k in (4, 10)}
            store(results, "test", name, rows)
    store(results, "test", "ar_both-1", {("num_beams", 5): shortened(references, 0.05, 1)})
    rows = write_comparisons(tmp_path, False, "en", None)
    assert json.loads((results / "comparisons.json").read_text())["resamples"] == RESAMPLES
    found = {
        (row["system"], row.get("variant", ""), row["num_iterations"], row["baseline_system"]): row for row in rows
    }
    assert set(found) == {
        (jm, variant, k, baseline)
        for k in (4, 10)
        for variant, baseline in (("", cm), ("", "ar_both"), ("tuned", "ar_both"))
    } | {(cm, "adjacent", k, "ar_both") for k in (4, 10)}
    against_cm, against_beam = found[jm, "", 4, cm], found[jm, "", 10, "ar_both"]
    assert (against_cm["seeds"], against_beam["seeds"]) == ([1, 2], [1])  # those that both have
    assert against_cm["baseline_variant"] == "adjacent"
    assert against_cm["difference"] > 0 > against_beam["difference"]
    assert against_cm["p"] < 0.05
    assert translations_of(results, "test", Decoded(jm, "", "num_iterations", 4)).keys() == {1, 2}


def test_a_difference_is_asked_for_with_every_way_to_remask():
    pairs = [(ours, theirs) for ours, theirs in wanted_pairs() if ours.system != theirs.system]
    own = [pair for pair in pairs if pair[1].system == CM_BOTH.name and pair[0].system == JM_BOTH_FULL_WEIGHT.name]
    assert {(ours.variant, theirs.variant) for ours, theirs in own if ours.value > 1} == {
        ("", ".adjacent"),
        (".independent", ""),
    }
    assert len(own) == 1 + 2 * len(REMASKING)
    assert len(set(pairs)) == len(pairs)
    against_basic = {(ours.system, ours.value) for ours, theirs in pairs if theirs.system == NAT.name}
    assert against_basic >= {("nat_ft", 1), ("nat_ir", 10), ("imitate_nat", 1)}


def test_each_row_of_table_4_is_compared_with_the_system_that_it_changes():
    asked = {(ours.system, theirs.system) for ours, theirs in wanted_pairs()}
    assert asked >= {
        ("ngram_gold", "jm"),
        ("raw", "jm"),
        ("jm_both", "jm"),
        ("cm_encoder_mask", "cm"),
        ("cm_raw", "cm"),
        ("jm_recipe_amom", JM_BOTH_FULL_WEIGHT.name),
    }
    assert {student.name for student in (*ADDITIONS, *ABLATIONS, *RECIPES)} <= {system for system, _ in asked}


def test_nothing_is_written_before_there_is_something_to_compare(tmp_path):
    assert write_comparisons(tmp_path, False, "en", None) == []
    assert not list(tmp_path.iterdir())
