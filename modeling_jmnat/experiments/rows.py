"""Rows of results: one for each system, seed, variant, split and setting, made of what other commands wrote.

Read are evaluations (`evaluate`), choices of a decoding (`tune`), logs of trainings and figures of the benchmarks. The
variant says how a system was decoded: "" as it is, "independent", "tuned", "reranked", "drop" (noise), "training" (its
log).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.plots import read_log_history, series
from ..evaluation.scores import machine_in_words
from ..utils.json_files import read_json
from .comparisons import SPLITS
from .speed_rows import rounded, speed_rows

NAME_RESULTS = (
    "name JSON files of evaluate.py or tune_decoding.py, or the output folder of reproduce.py or a benchmark"
)
DELETE_RESULT = "delete it and the mark of its stage in stages/, and run the same command again"
TUNING, TRAINING, LATENCY = "tuning", "training", "latency"  # variants that score nothing
TRIED = "tried"
COMPARISONS = "comparisons.json"
# What tells rows apart. Rows of benchmarks have a title, a size and a dtype instead of systems and decodings.
KEYS = ("run", "system", "seed", "variant", "split", "noise_level", "num_iterations", "num_beams", "title")
KEYS += ("size", "dtype", *(f"baseline_{name}" for name in ("system", "variant", "num_iterations", "num_beams")))
# Figures of one machine in one hour, and what repeats another figure.
DROPPED = {"seconds", "sentences_per_second", "tokens_per_second", "long_lines"}
DROPPED |= {f"{name}_signature" for name in ("chrfpp", "ter", "tokenized_bleu")}
NAME = re.compile(r"(?P<system>.+?)-(?P<seed>\d+)(?:\.(?P<variant>.+))?")  # such as jm_dropout_0.2-1.independent


def key_of(row: Mapping[str, Any]) -> tuple:
    return tuple(row.get(name) for name in KEYS)


def select(rows: Sequence[dict], **conditions) -> list[dict]:
    """The rows that have these values; a list of values means any of them."""

    def fits(row: dict) -> bool:
        return all(
            row.get(name) in value if isinstance(value, list) else row.get(name) == value
            for name, value in conditions.items()
        )

    return [row for row in rows if fits(row)]


def collect(source: Path, run: str = "", what_to_do: str = NAME_RESULTS) -> list[dict]:
    """All rows of a file of `evaluate` or `tune`, or of an output folder of `reproduce` or of a benchmark.

    Args:
        what_to_do: ending of the error message about a damaged file.

    Raises:
        ValueError: there is nothing of that kind, or a file is damaged.
    """
    if source.is_file():
        return list(evaluation_rows(source, run, what_to_do))
    if (source / "rows.json").is_file() or (source / "training.json").is_file():
        return speed_rows(source, run)
    results = source / "results" if (source / "results").is_dir() else source
    folders = (*(results / split for split in SPLITS), results)
    files = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    rows = [row for path in files for row in evaluation_rows(path, run, what_to_do)]
    rows += [row for folder in sorted(source.iterdir()) for row in log_rows(folder, run)] if source.is_dir() else []
    if not rows:
        raise ValueError(f"{source} holds no results: {NAME_RESULTS}")
    return rows


def run_rows(output: Path) -> list[dict]:
    """The rows of an output folder of `reproduce`, none if there is no result yet."""
    return collect(output, what_to_do=DELETE_RESULT) if any((output / "results").glob("**/*.json")) else []


def named(stem: str) -> dict:
    """System, seed (None for a teacher) and variant from the name of a file, such as `jm-1.reranked.tuned`."""
    if match := NAME.fullmatch(stem):
        return {"system": match["system"], "seed": int(match["seed"]), "variant": match["variant"] or ""}
    system, _, variant = stem.partition(".")
    return {"system": system, "seed": None, "variant": variant}


def evaluation_rows(path: Path, run: str, what_to_do: str = NAME_RESULTS) -> Iterator[dict]:
    """Rows of one file. The split is that of prepared data, or the name of the file's folder, or else "test".

    `translations` is the path of the file with this row's translations, None if there is none.
    """
    if path.name == COMPARISONS:
        yield from comparison_rows(read_json(path, ("comparisons",), what_to_do), run)
        return
    report = read_json(path, ("results",), what_to_do)
    places = prepared_split(report.get("settings", {})), path.parent.name
    split = next((name for name in places if name in SPLITS), "test")
    shared = {"run": run, **named(path.stem), "split": split}
    if "best" in report:
        yield from tuning_rows(report, shared)
        return
    for row in report["results"]:
        stored = row.get("translations")
        figures = {name: value for name, value in row.items() if name not in DROPPED and name != "translations"}
        figures |= settings_of(report)
        if "sacrebleu_signature" in figures:
            figures["signature"] = figures.pop("sacrebleu_signature")
        yield {**shared, **figures, "translations": None if stored is None else str(path.parent / stored)}


def prepared_split(settings: Mapping[str, Any]) -> str | None:
    """The split in the settings of an evaluation of prepared data, where source and reference are "DATA, SPLIT"."""
    source = settings.get("source") or ""
    return source.rpartition(", ")[2] if source == settings.get("reference") else None


def tuning_rows(report: dict, shared: dict) -> Iterator[dict]:
    """One row for each number of passes or beams: validation BLEU of the best options, and of all that were tried."""
    best, results = report["best"], report["results"]
    setting = "num_iterations" if "num_iterations" in results[0] else "num_beams"
    columns = [name for name in results[0] if name != setting and len({str(row[name]) for row in results}) > 1]
    for value in dict.fromkeys(row[setting] for row in results):
        rows = select(results, **{setting: value})
        chosen = [row for row in rows if all(row[name] == best[name] for name in best.keys() & row.keys() - {setting})]
        yield {
            **shared,
            "split": "validation",
            setting: value,
            **({"sacrebleu": chosen[0]["sacrebleu"]} if chosen else {}),
            **settings_of(report),
            "generation": best,
            "tried": {"columns": columns, "rows": [[row[name] for name in columns] for row in rows]},
            **({"signature": signature} if (signature := report.get("sacrebleu_signature")) else {}),
        }


def tried_rows(row: dict) -> list[dict]:
    """A row of `tuning_rows` as one row of the variant "tried" for each combination, its options beside the score."""
    tried = row.get("tried", {"columns": [], "rows": []})
    shared = {name: value for name, value in row.items() if name not in ("tried", "generation")} | {"variant": TRIED}
    shared |= row.get("generation", {})  # the options that did not vary
    return [{**shared, **dict(zip(tried["columns"], values, strict=True))} for values in tried["rows"]]


def comparison_rows(report: dict, run: str) -> Iterator[dict]:
    """One row for each pair of systems: the difference of their sacreBLEU, its interval and p; the scores by seed."""
    for row in report["comparisons"]:
        figures = dict(row)
        shared = {"run": run, "system": figures.pop("system"), "seed": None, "variant": figures.pop("variant", "")}
        figures |= {"scores": figures.pop("sacrebleu"), "baseline_scores": figures.pop("baseline_sacrebleu")}
        yield {**shared, **figures, "resamples": report["resamples"]}


def settings_of(report: dict) -> dict:
    """What a score depends on besides the model: options, other models and the machine."""
    settings, device, versions = (report.get(name, {}) for name in ("settings", "device", "versions"))
    found = {name: settings[name] for name in ("sentences", "noise", "reranker") if settings.get(name) is not None}
    if settings.get("backend", "torch") != "torch":
        found["backend"] = settings["backend"]
    if settings.get("generation"):
        found["generation"] = settings["generation"]
    if device:
        found["machine"] = machine_in_words(device)
    if versions:
        found["software"] = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "python")
    return found


def log_rows(folder: Path, run: str) -> Iterator[dict]:
    """Validation BLEU and loss of a training by step, as points [step, value]; nothing of other folders."""
    try:
        history = read_log_history(folder) if folder.is_dir() else []
    except ValueError:  # no training, or one that has not logged yet
        return
    names = [name for name in dict.fromkeys(key for row in history for key in row) if name.startswith("eval_bleu")]
    log = {name: [list(point) for point in zip(*series(history, name), strict=True)] for name in ("loss", *names)}
    if any(log.values()):
        shared = {"run": run, **named(folder.name), "variant": TRAINING, "split": "validation"}
        yield {**shared, "log": rounded({name: points for name, points in log.items() if points})}
