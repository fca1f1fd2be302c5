"""Which differences between systems are significant: paired tests over the sentences, for all seeds at once."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..utils.atomic_files import write_json
from ..utils.json_files import read_json
from ..utils.text_files import read_lines
from ..utils.translation_scores import RESAMPLES, SEED, Scorer, middle, paired_p, resampled
from .systems import (
    ABLATIONS,
    ADDITIONS,
    AUTOREGRESSIVE,
    CM,
    COMPARISONS,
    JM,
    JM_BOTH_FULL_WEIGHT,
    MAIN_STUDENTS,
    NAT,
    OTHERS,
    RECIPES,
    REMASKING,
    Student,
    remasking_of,
)

PASSES, BEAMS = (1, 4, 10), (1, 5)
SPLITS = ("validation", "test")


class SeedMean:
    """The mean of a metric over the trainings of a system, with the methods of a sacreBLEU metric.

    Its statistics are those of all trainings, concatenated, so that a resample draws the same sentences for each.
    """

    def __init__(self, metric, num_seeds: int):
        self.metric, self.num_seeds = metric, num_seeds

    def _compute_score_from_stats(self, sums):
        import numpy as np
        from sacrebleu.metrics.base import Score

        parts = np.split(np.asarray(sums), self.num_seeds)
        return Score("mean", sum(self.metric._compute_score_from_stats(part).score for part in parts) / self.num_seeds)

    def _aggregate_and_compute(self, counts):
        return self._compute_score_from_stats([sum(column) for column in zip(*counts, strict=True)])

    def get_signature(self):
        return self.metric.get_signature()


class Decoded(NamedTuple):
    """A system with one way of decoding: the part of its evaluations' names after the seed, and the row in them."""

    system: str
    variant: str  # "" or such as ".independent"
    setting: str  # num_iterations or num_beams
    value: int

    def described(self) -> dict:
        variant = {"variant": self.variant[1:]} if self.variant else {}
        return {"system": self.system, **variant, self.setting: self.value}


def described_pair(ours: Decoded, theirs: Decoded) -> dict:
    """The entries of a row of `comparisons.json` that name its two systems."""
    return ours.described() | {f"baseline_{name}": value for name, value in theirs.described().items()}


def translations_of(results: Path, split: str, decoded: Decoded) -> dict[int, list[str]]:
    """The stored translations of each seed that was evaluated."""
    found = {}
    for path in sorted((results / split).glob(f"{decoded.system}-*{decoded.variant}.json")):
        seed = path.stem.removesuffix(decoded.variant).removeprefix(f"{decoded.system}-")
        if seed.isdigit():
            for row in read_json(path, ("results",))["results"]:
                if row.get(decoded.setting) == decoded.value and row.get("translations"):
                    found[int(seed)] = read_lines(path.parent / row["translations"])
    return found


def decoded_as(student: Student, remasking: str, k: int) -> Decoded:
    variant = "" if remasking == remasking_of(student) or k == 1 else f".{remasking}"
    return Decoded(student.name, variant, "num_iterations", k)


def changed_pairs() -> Iterator[tuple[Student, Student]]:
    """The rows of table 4 beside the system in which each changes one thing."""
    for student in (*ADDITIONS, *ABLATIONS):
        yield student, CM if student.name.startswith("cm_") else JM
    for student in RECIPES:
        yield student, JM_BOTH_FULL_WEIGHT


def wanted_pairs() -> Iterator[tuple[Decoded, Decoded]]:
    """The pairs of `COMPARISONS` and `changed_pairs` with each decoding, then the first two students against an
    autoregressive baseline, and last the paper's other systems against the basic NAT.
    """
    for system, baseline in (*COMPARISONS, *changed_pairs()):
        for remasking in REMASKING:
            for k in PASSES:
                if k > 1 or remasking == "adjacent":  # the first pass re-masks nothing
                    yield decoded_as(system, remasking, k), decoded_as(baseline, remasking, k)
    for student in MAIN_STUDENTS[:2]:
        for variant in ("", *(f".{name}" for name in (*REMASKING, "tuned", "reranked"))):
            for k in PASSES[1:]:
                for beams in BEAMS:
                    ours = Decoded(student.name, variant, "num_iterations", k)
                    yield ours, Decoded(AUTOREGRESSIVE[0].name, "", "num_beams", beams)
    for student in OTHERS:
        for k in student.passes or (1,):
            yield Decoded(student.name, "", "num_iterations", k), Decoded(NAT.name, "", "num_iterations", 1)


def compare(scorer: Scorer, ours: Sequence[list[str]], theirs: Sequence[list[str]]) -> dict:
    """sacreBLEU of two systems, each the mean over its trainings, and the paired bootstrap of their difference.

    Args:
        scorer: scorer with the references of B sentences.
        ours, theirs: B translations for each training; both systems need equally many trainings.

    Returns:
        `sacrebleu`, `baseline_sacrebleu`: the score of each training; `difference` of the means with its `interval`
        (95%), and `p`, as `Scorer.compare` explains them.
    """
    metric = SeedMean(scorer.measures["sacrebleu"].metric, len(ours))
    counts, scores, many = [], [], []
    for texts in (ours, theirs):
        parts = [scorer.counts(lines)["sacrebleu"] for lines in texts]
        scores.append([metric.metric._aggregate_and_compute(part).score for part in parts])
        counts.append([[number for row in rows for number in row] for rows in zip(*parts, strict=True)])
        many.append(resampled(metric, counts[-1], RESAMPLES, SEED))
    first, second = (sum(values) / len(values) for values in scores)
    return {
        "sacrebleu": scores[0],
        "baseline_sacrebleu": scores[1],
        "difference": first - second,
        "interval": middle([one - other for one, other in zip(*many, strict=True)]),
        "p": paired_p(metric, *counts, RESAMPLES, SEED),
    }


def write_comparisons(output: Path, lowercase: bool, language: str, bleu_tokenize: str | None) -> list[dict]:
    """Compare what has been evaluated so far; `results/comparisons.json` holds a row for each pair and split."""
    results, rows = output / "results", []
    for split in SPLITS:
        references = output / "text" / f"{split}.tgt"
        if not (results / split).is_dir():
            continue
        scorer = Scorer(read_lines(references), language, lowercase, bleu_tokenize, ["sacrebleu"])
        for ours, theirs in wanted_pairs():
            first, second = (translations_of(results, split, decoded) for decoded in (ours, theirs))
            seeds = sorted(first.keys() & second.keys())
            if seeds:
                found = compare(scorer, [first[seed] for seed in seeds], [second[seed] for seed in seeds])
                rows.append({"split": split, **described_pair(ours, theirs), "seeds": seeds, **found})
    if rows:
        write_json(results / "comparisons.json", {"resamples": RESAMPLES, "seed": SEED, "comparisons": rows})
    return rows
