"""Tables of a suite, made from the JSON files of its evaluations."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from .output_files import atomic_text_file
from .suites import ABLATIONS, CM, DECODINGS, FROM_SCRATCH, JM, MAIN_STUDENTS, NAT, WEAK_STUDENTS, result_rows

PASSES = (1, 4, 10)
BEAMS = (1, 5)


def mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def figure(evaluations: Sequence[dict], setting: str, value: int, name: str) -> list[float]:
    """One figure of the rows with `setting` = `value`, from every evaluation (seed) that has it."""
    rows = [row for evaluation in evaluations for row in evaluation["results"] if row.get(setting) == value]
    return [row[name] for row in rows if row.get(name) is not None]


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and each seed behind it where there are several; a dash where nothing was measured."""
    if not values:
        return "-"
    text = f"{mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def evaluations_of(output: Path, name: str, seeds: int = 1, variant: str = "") -> list[dict]:
    names = [f"{name}-{seed}{variant}" for seed in range(1, seeds + 1)]
    return [evaluation for _, evaluation in result_rows(output, names)]


def student_row(label: str, evaluations: Sequence[dict]) -> list[str] | None:
    """BLEU at k = 1, 4, 10, then repeated tokens and chrF at the largest k; None without a result."""
    if not evaluations:
        return None
    bleu = [cell(figure(evaluations, "num_iterations", k, "sacrebleu")) for k in PASSES]
    last = max(row["num_iterations"] for row in evaluations[0]["results"])
    repeats = [cell(figure(evaluations, "num_iterations", k, "repeated_tokens_per_sentence"), 3) for k in (4, last)]
    return [label, *bleu, *repeats, cell(figure(evaluations, "num_iterations", last, "chrf"))]


STUDENT_HEADER = ("system", *(f"BLEU k={k}" for k in PASSES), "repeats k=4", "repeats k=10", "chrF k=10")


def table2(output: Path) -> str:
    """Teacher and students; the paper's tables 2 and 3."""
    rows = []
    for name, label in (
        ("teacher", "teacher"),
        ("teacher_on_distilled", "teacher trained on distilled text"),
        ("weak_teacher", "weak teacher"),
    ):
        for _, evaluation in result_rows(output, [name]):
            greedy, beam = (cell(figure([evaluation], "num_beams", size, "sacrebleu")) for size in BEAMS)
            repeats = cell(figure([evaluation], "num_beams", BEAMS[-1], "repeated_tokens_per_sentence"), 3)
            rows.append([label, greedy, beam, repeats])
    text = markdown(("teacher", "BLEU greedy", "BLEU beam 5", "repeats beam 5"), rows) + "\n"
    rows = []
    for student in (*MAIN_STUDENTS, *WEAK_STUDENTS, NAT):
        rows.append(student_row(student.label, evaluations_of(output, student.name, student.seeds)))
        reranked = evaluations_of(output, student.name, student.seeds, ".reranked")
        rows.append(student_row(f"{student.label}, reranked by the teacher", reranked))
    return text + markdown(STUDENT_HEADER, [row for row in rows if row])


def table4(output: Path) -> str:
    """Ablations; one seed each, beside the same seed of JM-NAT and CM-NAT."""
    rows = [student_row(JM.label, evaluations_of(output, JM.name))]
    rows += [
        student_row(student.label, evaluations_of(output, student.name)) for student in (*ABLATIONS, FROM_SCRATCH)
    ]
    rows.append(student_row(CM.label, evaluations_of(output, CM.name)))
    for name, label, _ in DECODINGS:
        rows.append(student_row(f"JM-NAT decoded with {label}", evaluations_of(output, JM.name, variant=f".{name}")))
    return markdown(STUDENT_HEADER, [row for row in rows if row])


TABLES = {"main": table2, "table2": table2, "table4": table4}


def write_tables(output: Path, suites: Sequence[str]) -> dict[str, str]:
    """`results/SUITE.md` for each suite, with the metric's signature beneath; returns the texts."""
    signatures = set()
    for path in sorted((output / "results").glob("*.json")):
        evaluation = json.loads(path.read_text(encoding="utf-8"))
        signatures.update(row["sacrebleu_signature"] for row in evaluation.get("results", ()))
    texts = {}
    for suite in suites:
        texts[suite] = TABLES[suite](output) + "\n" + "".join(f"{name}\n" for name in sorted(signatures))
        with atomic_text_file(output / "results" / f"{suite}.md") as file:
            file.write(texts[suite])
    return texts
