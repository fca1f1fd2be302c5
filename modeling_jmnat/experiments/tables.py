"""Tables of a suite, made from the JSON files of its evaluations; `pictures` draws the figures."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from ..utils.atomic_files import atomic_text_file
from ..utils.json_files import read_json
from ..utils.markdown import markdown
from ..utils.text_files import iterate_lines
from .comparisons import BEAMS, PASSES, SPLITS
from .systems import (
    ABLATIONS,
    ADDITIONS,
    AUTOREGRESSIVE,
    CM,
    DECODINGS,
    DEEPER_NATS,
    FROZEN_NATS,
    JM,
    MAIN_STUDENTS,
    NAT,
    NAT_SCRATCH,
    REMASKING,
    STATE_NOISE_LEVELS,
    WEAK_STUDENTS,
    WORD_NOISE_LEVELS,
    Student,
    remasking_of,
)

DELETE_RESULT = "delete it and the mark of its stage in stages/, and run the same command again"
MOST_SEEDS = 9
TUNED_LABEL = "decoding tuned on the validation text"
PASSES_HEADER = ("system", *(f"BLEU k={k}" for k in PASSES))
STUDENT_HEADER = (*PASSES_HEADER, "repeats k=4", "repeats k=10", "chrF k=10")
STATE_NOISE_LABELS = {
    "encoder_input": "encoder input",
    "encoder_output": "encoder output",
    "decoder_input": "decoder input",
}


def cell(values: Sequence[float], digits: int = 2) -> str:
    """The mean, followed by the value of each seed if there are several; a dash without values."""
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def figures(evaluations: Sequence[dict], name: str, **settings) -> list[float]:
    """One figure of all rows with these settings, from each evaluation (seed) that has it."""
    rows = [row for evaluation in evaluations for row in evaluation["results"]]
    rows = [row for row in rows if all(row.get(key) == value for key, value in settings.items())]
    return [row[name] for row in rows if row.get(name) is not None]


def evaluations_of(
    output: Path, name: str, variant: str = "", split: str = "validation", seeded: bool = True
) -> list[dict]:
    """The evaluations on a split that exist: of `NAME-SEED` for each seed, or of `NAME` itself with `seeded=False`."""
    names = [name] if not seeded else [f"{name}-{seed}" for seed in range(1, MOST_SEEDS + 1)]
    paths = [output / "results" / split / f"{name}{variant}.json" for name in names]
    return [read_json(path, ("results",), DELETE_RESULT) for path in paths if path.is_file()]


def student_row(label: str, evaluations: Sequence[dict]) -> list[str] | None:
    """BLEU at k = 1, 4, 10, then repeated words and chrF at the largest k; None without a result."""
    if not evaluations:
        return None
    bleu = [cell(figures(evaluations, "sacrebleu", num_iterations=k)) for k in PASSES]
    last = max(row["num_iterations"] for row in evaluations[0]["results"])
    repeats = [
        cell(figures(evaluations, "repeated_tokens_per_sentence", num_iterations=k), 3) for k in (PASSES[1], last)
    ]
    chrf = cell(figures(evaluations, "chrf", num_iterations=last))
    if last != PASSES[-1]:
        repeats[-1], chrf = (f"{text} at k={last}" for text in (repeats[-1], chrf))
    return [label, *bleu, *repeats, chrf]


def table1(output: Path) -> str:
    """Basic NAT with more layers; the paper's table 1."""
    rows, base = [], figures(evaluations_of(output, NAT_SCRATCH.name), "sacrebleu")
    for student in (NAT_SCRATCH, *DEEPER_NATS):
        bleu = figures(evaluations_of(output, student.name), "sacrebleu")
        gain = f"{bleu[0] - base[0]:+.2f}" if bleu and base and student is not NAT_SCRATCH else "-"
        rows.append([student.label, cell(bleu), gain] if bleu else None)
    return markdown(("system", "BLEU k=1", "gain"), rows)


def teacher_rows(output: Path, split: str) -> list[list[str]]:
    rows = []
    systems = [("teacher", "teacher", False), ("weak_teacher", "weak teacher", False)]
    systems += [(baseline.name, baseline.label, True) for baseline in AUTOREGRESSIVE]
    for name, label, seeded in systems:
        if evaluations := evaluations_of(output, name, "", split, seeded):
            bleu = [cell(figures(evaluations, "sacrebleu", num_beams=beams)) for beams in BEAMS]
            repeats = cell(figures(evaluations, "repeated_tokens_per_sentence", num_beams=BEAMS[-1]), 3)
            rows.append([label, *bleu, repeats])
    if tuned := evaluations_of(output, "teacher", ".tuned", split, False):
        bleu, repeats = (
            cell(figures(tuned, name, num_beams=BEAMS[-1]), digits)
            for name, digits in (("sacrebleu", 2), ("repeated_tokens_per_sentence", 3))
        )
        rows.append([f"teacher, {TUNED_LABEL}", "-", bleu, repeats])
    return rows


def teacher_of(student: Student) -> str:
    """Folder of the teacher whose translations a student learns from."""
    return "weak_teacher" if student.data == "weak_distilled" else "teacher"


def table2(output: Path) -> str:
    """Scores on validation and test text, then the time of one sentence; the paper's tables 2 and 3."""
    return "\n".join(f"{split}\n\n{scores_table(output, split)}" for split in SPLITS) + latency_table(output)


def scores_table(output: Path, split: str) -> str:
    header = ("autoregressive", "BLEU greedy", "BLEU beam 5", "repeats beam 5")
    text = markdown(header, teacher_rows(output, split)) + "\n"
    rows = []
    for student in (*MAIN_STUDENTS, *WEAK_STUDENTS, NAT):
        teacher = teacher_of(student).replace("_", " ")
        variants = {"": student.label}
        variants |= {f".{remasking}": f"{student.label}, {remasking} re-masking" for remasking in REMASKING}
        variants[".reranked"] = f"{student.label}, reranked by the {teacher}"
        variants[".tuned"] = f"{student.label}, {TUNED_LABEL}"
        variants[".reranked.tuned"] = f"{student.label}, reranked by the teacher, {TUNED_LABEL}"
        for variant, label in variants.items():
            rows.append(student_row(label, evaluations_of(output, student.name, variant, split)))
    return text + markdown(STUDENT_HEADER, rows)


def latency_table(output: Path) -> str:
    """Milliseconds per sentence at batch 1, and the speed-up over the teacher with beam 5."""
    teacher = evaluations_of(output, "teacher", ".latency", seeded=False)
    baseline = figures(teacher, "latency_ms", num_beams=BEAMS[-1])
    systems = [("teacher", "num_beams", beams, teacher) for beams in BEAMS]
    for other in AUTOREGRESSIVE:
        timed = evaluations_of(output, other.name, ".latency")
        systems += [(other.label, "num_beams", beams, timed) for beams in BEAMS]
    for student in MAIN_STUDENTS[:2]:
        timed = evaluations_of(output, student.name, ".latency")
        systems += [(student.label, "num_iterations", k, timed) for k in PASSES]
    rows = []
    for label, setting, value, evaluations in systems:
        for latency in figures(evaluations, "latency_ms", **{setting: value}):
            speed_up = f"{baseline[0]['mean'] / latency['mean']:.1f}" if baseline else "-"
            name = f"{label}, {'beam' if setting == 'num_beams' else 'k'} = {value}"
            rows.append([name, *(f"{latency[key]:.1f}" for key in ("mean", "p50", "p99")), speed_up])
    if not rows:
        return ""
    return "\n" + markdown(("system", "ms a sentence", "median", "99th percentile", "speed-up over beam 5"), rows)


def table3(output: Path) -> str:
    """Repeated words per sentence; the paper's table 3."""
    rows = []
    for student in (NAT, CM, JM):
        evaluations = evaluations_of(output, student.name)
        repeats = [cell(figures(evaluations, "repeated_tokens_per_sentence", num_iterations=k), 3) for k in PASSES]
        rows.append([student.label, *repeats] if evaluations else None)
    return markdown(("system", *(f"repeats k={k}" for k in PASSES)), rows)


def ablation_row(output: Path, student: Student) -> list[str] | None:
    """BLEU with adjacent beside independent re-masking, then the repeated words with independent re-masking."""
    own = evaluations_of(output, student.name)
    if not own:
        return None
    decoded = {
        name: own if name == remasking_of(student) else evaluations_of(output, student.name, f".{name}")
        for name in REMASKING
    }
    bleu = [cell(figures(own, "sacrebleu", num_iterations=1))]
    bleu += [
        cell(figures(evaluations, "sacrebleu", num_iterations=k))
        for evaluations in decoded.values()
        for k in PASSES[1:]
    ]
    repeats = figures(decoded["independent"], "repeated_tokens_per_sentence", num_iterations=PASSES[-1])
    return [student.label, *bleu, cell(repeats, 3)]


def table4(output: Path) -> str:
    """Ablations, and other ways to decode."""
    header = ["system", "BLEU k=1", "k=4, adjacent", "k=10, adjacent", "k=4, independent", "k=10, independent"]
    rows = [ablation_row(output, student) for student in (JM, CM, *ADDITIONS, *ABLATIONS)]
    text = markdown([*header, "repeats k=10, independent"], rows)
    rows = [
        student_row(f"JM-NAT decoded with {label}", evaluations_of(output, JM.name, f".{name}"))
        for name, label, _ in DECODINGS
    ]
    rows += [
        student_row(f"{student.label}, every token predicted anew in each pass", update_all)
        for student in ADDITIONS
        if (update_all := evaluations_of(output, student.name, ".update_all"))
    ]
    return text + "\n" + markdown(STUDENT_HEADER, rows)


def figure1(output: Path) -> str:
    """The basic NAT with a frozen half (its learning curves are in the picture), and with noise on its states."""
    halves = []
    for student in (NAT_SCRATCH, *FROZEN_NATS):
        bleu = figures(evaluations_of(output, student.name), "sacrebleu")
        halves.append([student.label, cell(bleu)] if bleu else None)
    rows = []
    for place, label in STATE_NOISE_LABELS.items():
        evaluations = evaluations_of(output, NAT_SCRATCH.name, f".{place}")
        bleu = [cell(figures(evaluations, "sacrebleu", noise_level=level)) for level in STATE_NOISE_LEVELS]
        rows.append([label, *bleu] if evaluations else None)
    noise = markdown(("noise on", *(f"{level:g}" for level in STATE_NOISE_LEVELS)), rows)
    return markdown(("system", "BLEU k=1"), halves) + "\n" + noise


def word_noise_systems(output: Path, noise: str) -> list[tuple[str, list[dict]]]:
    systems = [("teacher, beam 5", evaluations_of(output, "teacher", f".{noise}", seeded=False))]
    for student in (CM, JM):
        systems.append((f"{student.label}, k = 10", evaluations_of(output, student.name, f".{noise}")))
    return [(label, evaluations) for label, evaluations in systems if evaluations]


def figure3(output: Path) -> str:
    """Noise on the words of the source; the paper's figure 3."""
    rows = []
    for noise, verb in (("drop", "dropped"), ("replace", "replaced")):
        for label, evaluations in word_noise_systems(output, noise):
            bleu = [cell(figures(evaluations, "sacrebleu", noise_level=level)) for level in WORD_NOISE_LEVELS]
            rows.append([f"{label}, words {verb}", *bleu])
    return markdown(("system", *(f"{100 * level:g} %" for level in WORD_NOISE_LEVELS)), rows)


def case_study(output: Path) -> str:
    """Sentences with the canvas of every pass, as `translate.py --show_passes` wrote them."""

    def lines(path: Path) -> list[str]:
        return list(iterate_lines(path)) if path.is_file() else []

    references = lines(output / "text" / "cases.tgt")
    translations = lines(output / "results" / "teacher.cases.txt")
    blocks = {}
    for student in (CM, JM):
        text = "\n".join(lines(output / "results" / f"{student.name}-1.cases.txt"))
        blocks[student.label] = [block.strip("\n").split("\n") for block in text.split("\n\n") if block.strip()]
    parts = []
    for number, source in enumerate(lines(output / "text" / "cases.src")):
        rows = [["source", source], ["reference", references[number]]]
        if number < len(translations):
            rows.append(["teacher", translations[number]])
        for label, cases in blocks.items():
            for line in cases[number][1:] if number < len(cases) else []:
                rows.append([f"{label}, {line[:8].strip()}", line[8:]])
        rows = [[name, text.replace("<", "&lt;").replace("|", "\\|").replace("__", "\\_\\_")] for name, text in rows]
        parts.append(f"Sentence {number + 1}\n\n" + markdown(("", "text"), rows))
    return "\n".join(parts)


TABLES = {
    "main": table2,
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "figure1": figure1,
    "figure3": figure3,
    "case_study": case_study,
}


def write_tables(output: Path, suites: Sequence[str]) -> dict[str, str]:
    """`results/SUITE.md` for each suite, with the metric's signature beneath; returns the texts."""
    signatures = set()
    for path in sorted((output / "results").glob("*/*.json")):
        evaluation = read_json(path, what_to_do=DELETE_RESULT)
        rows = evaluation.get("results", ())
        signatures.update(row["sacrebleu_signature"] for row in rows if "sacrebleu_signature" in row)
    texts = {}
    for suite in suites:
        texts[suite] = TABLES[suite](output)
        if suite != "case_study":
            texts[suite] += "\n" + "".join(f"{name}\n" for name in sorted(signatures))
        with atomic_text_file(output / "results" / f"{suite}.md") as file:
            file.write(texts[suite])
    return texts
