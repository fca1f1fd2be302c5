"""Tables of a suite, made from rows of results; `pictures` draws the figures."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from ..utils.atomic_files import atomic_text_file
from ..utils.markdown import markdown
from ..utils.text_files import iterate_lines
from .comparisons import BEAMS, PASSES, SPLITS, changed_pairs, decoded_as, described_pair
from .paper_data import CITED
from .rows import LATENCY, TRAINING, TUNING, run_rows, select
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
    OTHERS,
    OWN_DECODINGS,
    RECIPES,
    REMASKING,
    STATE_NOISE_LEVELS,
    WEAK_STUDENTS,
    WORD_NOISE_LEVELS,
    Student,
    remasking_of,
)

TUNED_LABEL = "decoding tuned on the validation text"
STUDENT_HEADER = ("system", *(f"BLEU k={k}" for k in PASSES), "repeats k=4", "repeats k=10", "chrF k=10")
STATE_NOISE_LABELS = {
    "encoder_input": "encoder input",
    "encoder_output": "encoder output",
    "decoder_input": "decoder input",
}
WORD_NOISE_SYSTEMS = {
    "teacher": "teacher, beam 5",
    CM.name: f"{CM.label}, k = 10",
    JM.name: f"{JM.label}, k = 10",
    **{student.name: student.label if student.one_pass else f"{student.label}, k = 10" for student in OTHERS},
}
OTHERS_HEADER = ("system", "BLEU", "repeats", "chrF")
OTHERS_HEADER += ("its paper: WMT14 En-De", "De-En", "WMT16 En-Ro", "Ro-En", "IWSLT14 De-En", "repeats")
CASE_STUDY = "case_study"


def cell(values: Sequence[float], digits: int = 2) -> str:
    """The mean of the seeds, with the lowest and the highest if there are several; a dash without values."""
    if not values:
        return "-"
    mean, low, high = (f"{value:.{digits}f}" for value in (statistics.fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def figures(rows: Sequence[dict], name: str, **conditions) -> list[float]:
    """One figure from every row with these values; the rows differ in their seeds."""
    return [row[name] for row in select(rows, **conditions) if row.get(name) is not None]


def splits_of(rows: Sequence[dict]) -> list[str]:
    """The splits that systems were scored on; "validation", on which choices are made, comes first."""
    scored = {row["split"] for row in rows if row["variant"].split(".")[-1] not in (TUNING, TRAINING, LATENCY)}
    return [split for split in SPLITS if split in scored]


def chosen_on(rows: Sequence[dict]) -> list[dict]:
    """The rows of the split that choices are made on: "validation" if there are any."""
    return select(rows, split=splits_of(rows)[:1])


def student_row(rows: Sequence[dict], label: str, student: Student, variant: str = "") -> list[str] | None:
    """BLEU at k = 1, 4, 10, then repeated words and chrF at the largest k; None without a result."""
    of = select(rows, system=student.name, variant=variant)
    if not of:
        return None
    bleu = [cell(figures(of, "sacrebleu", num_iterations=k)) for k in PASSES]
    last = max(row["num_iterations"] for row in of)
    repeats = [cell(figures(of, "repeated_tokens_per_sentence", num_iterations=k), 3) for k in (PASSES[1], last)]
    chrf = cell(figures(of, "chrf", num_iterations=last))
    if last != PASSES[-1]:
        repeats[-1], chrf = (f"{text} at k={last}" for text in (repeats[-1], chrf))
    return [label, *bleu, *repeats, chrf]


def table1(rows: Sequence[dict]) -> str:
    """Basic NAT with more layers; the paper's table 1."""
    rows = chosen_on(rows)
    lines, base = [], figures(rows, "sacrebleu", system=NAT_SCRATCH.name, variant="")
    for student in (NAT_SCRATCH, *DEEPER_NATS):
        bleu = figures(rows, "sacrebleu", system=student.name, variant="")
        gain = "-"
        if bleu and base and student is not NAT_SCRATCH:
            gain = f"{statistics.fmean(bleu) - statistics.fmean(base):+.2f}"
        lines.append([student.label, cell(bleu), gain] if bleu else None)
    return markdown(("system", "BLEU k=1", "gain"), lines)


def teacher_rows(rows: Sequence[dict]) -> list[list[str] | None]:
    systems = [("teacher", "", "teacher"), ("weak_teacher", "", "weak teacher")]
    systems += [(baseline.name, "", baseline.label) for baseline in AUTOREGRESSIVE]
    systems += [("teacher", "tuned", f"teacher, {TUNED_LABEL}")]
    lines = []
    for system, variant, label in systems:
        of = select(rows, system=system, variant=variant)
        bleu = [cell(figures(of, "sacrebleu", num_beams=beams)) for beams in BEAMS]
        repeats = cell(figures(of, "repeated_tokens_per_sentence", num_beams=BEAMS[-1]), 3)
        lines.append([label, *bleu, repeats] if of else None)
    return lines


def teacher_of(student: Student) -> str:
    """Folder of the teacher whose translations a student learns from."""
    return "weak_teacher" if student.data == "weak_distilled" else "teacher"


def table2(rows: Sequence[dict]) -> str:
    """Scores on validation and test text, then the time of one sentence; the paper's tables 2 and 3."""
    tables = [f"{split}\n\n{scores_table(select(rows, split=split))}" for split in splits_of(rows)]
    return "\n".join(tables or [markdown(STUDENT_HEADER, [])]) + latency_table(rows)


def scores_table(rows: Sequence[dict]) -> str:
    """Scores on one text."""
    header = ("autoregressive", "BLEU greedy", "BLEU beam 5", "repeats beam 5")
    text = markdown(header, teacher_rows(rows)) + "\n"
    lines = []
    for student in (*MAIN_STUDENTS, *WEAK_STUDENTS, NAT):
        teacher = teacher_of(student).replace("_", " ")
        variants = {"": student.label}
        variants |= {remasking: f"{student.label}, {remasking} re-masking" for remasking in REMASKING}
        variants["reranked"] = f"{student.label}, reranked by the {teacher}"
        variants["tuned"] = f"{student.label}, {TUNED_LABEL}"
        variants["reranked.tuned"] = f"{student.label}, reranked by the teacher, {TUNED_LABEL}"
        lines += [student_row(rows, label, student, variant) for variant, label in variants.items()]
    return text + markdown(STUDENT_HEADER, lines) + others_table(rows)


def others_table(rows: Sequence[dict]) -> str:
    """The paper's other systems below the basic NAT, each with the figures of its own paper; empty without any."""
    lines = []
    for student in (NAT, *OTHERS):
        cited = ["-" if value is None else f"{value:.2f}" for value in CITED.get(student.name, [None] * 6)]
        decodings = [("", k, f", k = {k}" if student.passes else "") for k in student.passes or (1,)]
        decodings += [(f"npd{count}", 1, f", {count} candidates reranked") for count in student.reranked]
        for variant, k, name in decodings:
            of = select(rows, system=student.name, variant=variant, num_iterations=k)
            own = cited if variant == "" and k == max(student.passes or (1,)) else ["-"] * 6
            figure = [cell(figures(of, "sacrebleu")), cell(figures(of, "repeated_tokens_per_sentence"), 3)]
            if of:
                lines.append([f"{student.label}{name}", *figure, cell(figures(of, "chrf")), *own])
    return "\n" + markdown(OTHERS_HEADER, lines) if any(line[0] != NAT.label for line in lines) else ""


def latency_table(rows: Sequence[dict]) -> str:
    """Milliseconds per sentence at batch 1, and the speed-up over the teacher with beam 5."""
    timed = select(rows, variant=LATENCY)
    baseline = figures(timed, "latency_ms", system="teacher", num_beams=BEAMS[-1])
    systems = [("teacher", "teacher", "num_beams", beams) for beams in BEAMS]
    systems += [(other.name, other.label, "num_beams", beams) for other in AUTOREGRESSIVE for beams in BEAMS]
    systems += [(student.name, student.label, "num_iterations", k) for student in MAIN_STUDENTS[:2] for k in PASSES]
    systems += [(other.name, other.label, "num_iterations", k) for other in OTHERS for k in other.passes or (1,)]
    lines = []
    for system, label, setting, value in systems:
        for latency in figures(timed, "latency_ms", system=system, **{setting: value}):
            speed_up = f"{baseline[0]['mean'] / latency['mean']:.1f}" if baseline else "-"
            name = f"{label}, {'beam' if setting == 'num_beams' else 'k'} = {value}"
            lines.append([name, *(f"{latency[key]:.1f}" for key in ("mean", "p50", "p99")), speed_up])
    if not lines:
        return ""
    return "\n" + markdown(("system", "ms a sentence", "median", "99th percentile", "speed-up over beam 5"), lines)


def table3(rows: Sequence[dict]) -> str:
    """Repeated words per sentence; the paper's table 3."""
    lines = []
    for student in (NAT, CM, JM):
        of = select(chosen_on(rows), system=student.name, variant="")
        repeats = [cell(figures(of, "repeated_tokens_per_sentence", num_iterations=k), 3) for k in PASSES]
        lines.append([student.label, *repeats] if of else None)
    return markdown(("system", *(f"repeats k={k}" for k in PASSES)), lines) + others_table(chosen_on(rows))


def ablation_row(rows: Sequence[dict], student: Student) -> list[str] | None:
    """BLEU with adjacent beside independent re-masking, then the repeated words with independent re-masking."""
    own = select(rows, system=student.name, variant="")
    if not own:
        return None
    decoded = {
        name: own if name == remasking_of(student) else select(rows, system=student.name, variant=name)
        for name in REMASKING
    }
    bleu = [cell(figures(own, "sacrebleu", num_iterations=1))]
    bleu += [cell(figures(of, "sacrebleu", num_iterations=k)) for of in decoded.values() for k in PASSES[1:]]
    repeats = figures(decoded["independent"], "repeated_tokens_per_sentence", num_iterations=PASSES[-1])
    return [student.label, *bleu, cell(repeats, 3)]


def difference_rows(rows: Sequence[dict]) -> list[list[str] | None]:
    """What each change gains with independent re-masking: the difference, its 95% interval and p."""
    lines = []
    for student, base in changed_pairs():
        cells = []
        for k in PASSES:
            ours, theirs = (decoded_as(system, "independent", k) for system in (student, base))
            found = select(rows, **{"variant": "", "baseline_variant": None, **described_pair(ours, theirs)})
            cells += [
                f"{row['difference']:+.2f} ({row['interval'][0]:.2f} to {row['interval'][1]:.2f}), p = {row['p']:.3f}"
                for row in found
            ] or ["-"]
        lines.append([student.label, base.label, *cells] if any(cell != "-" for cell in cells) else None)
    return lines


def table4(rows: Sequence[dict]) -> str:
    """Ablations, what each change gains, and other ways to decode."""
    rows = chosen_on(rows)
    header = ["system", "BLEU k=1", "k=4, adjacent", "k=10, adjacent", "k=4, independent", "k=10, independent"]
    lines = [ablation_row(rows, student) for student in (JM, CM, *ADDITIONS, *ABLATIONS, *RECIPES)]
    text = markdown([*header, "repeats k=10, independent"], lines)
    if any(differences := difference_rows(rows)):
        text += "\n" + markdown(("system", "beside", *(f"difference, k={k}" for k in PASSES)), differences)
    lines = [student_row(rows, f"JM-NAT decoded with {label}", JM, name) for name, label, _ in DECODINGS]
    lines += [
        student_row(rows, f"{student.label}, {label}", student, name)
        for _, name, label, _ in OWN_DECODINGS
        for student in (*ADDITIONS, *RECIPES)
    ]
    return f"{text}\n{markdown(STUDENT_HEADER, lines)}" if any(lines) else text


def noise_row(rows: Sequence[dict], label: str, levels: Sequence[float], **conditions) -> list[str] | None:
    """BLEU at each level of a noise."""
    of = select(rows, **conditions)
    return [label, *(cell(figures(of, "sacrebleu", noise_level=level)) for level in levels)] if of else None


def figure1(rows: Sequence[dict]) -> str:
    """The basic NAT with a frozen half (its learning curves are in the picture), and with noise on its states."""
    rows, halves = chosen_on(rows), []
    for student in (NAT_SCRATCH, *FROZEN_NATS):
        bleu = figures(rows, "sacrebleu", system=student.name, variant="")
        halves.append([student.label, cell(bleu)] if bleu else None)
    lines = [
        noise_row(rows, label, STATE_NOISE_LEVELS, system=NAT_SCRATCH.name, variant=place)
        for place, label in STATE_NOISE_LABELS.items()
    ]
    noise = markdown(("noise on", *(f"{level:g}" for level in STATE_NOISE_LEVELS)), lines)
    return markdown(("system", "BLEU k=1"), halves) + "\n" + noise


def figure3(rows: Sequence[dict]) -> str:
    """Noise on the words of the source; the paper's figure 3."""
    lines = [
        noise_row(chosen_on(rows), f"{label}, words {verb}", WORD_NOISE_LEVELS, system=system, variant=noise)
        for noise, verb in (("drop", "dropped"), ("replace", "replaced"))
        for system, label in WORD_NOISE_SYSTEMS.items()
    ]
    return markdown(("system", *(f"{100 * level:g} %" for level in WORD_NOISE_LEVELS)), lines)


def case_study(output: Path) -> str:
    """Sentences with the canvas of every pass, as `translate.py --show_passes` wrote them."""

    def lines(path: Path) -> list[str]:
        return list(iterate_lines(path)) if path.is_file() else []

    references = lines(output / "text" / "cases.tgt")
    translations = lines(output / "results" / "teacher.cases.txt")
    blocks = {}
    for student in (*OTHERS, CM, JM):
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


TABLES: dict[str, Callable[[Sequence[dict]], str]] = {
    "main": table2,
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "figure1": figure1,
    "figure3": figure3,
}


def signatures(rows: Sequence[dict]) -> str:
    """sacreBLEU's signatures of the scores in a table, one in a line."""
    return "".join(f"{name}\n" for name in sorted({row["signature"] for row in rows if row.get("signature")}))


def write_tables(output: Path, suites: Sequence[str]) -> dict[str, str]:
    """Write `results/SUITE.md` for each suite, with the metric's signature below; returns the texts."""
    rows, texts = run_rows(output), {}
    for suite in suites:
        texts[suite] = case_study(output) if suite == CASE_STUDY else f"{TABLES[suite](rows)}\n{signatures(rows)}"
        with atomic_text_file(output / "results" / f"{suite}.md") as file:
            file.write(texts[suite])
    return texts
