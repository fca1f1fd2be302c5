"""Rows of results made from what the benchmarks wrote: one for each system, or for each setting of a training."""

import json
from pathlib import Path

from ..utils.json_files import read_json

DIGITS = 6  # significant ones, of losses and times


def speed_rows(folder: Path, run: str) -> list[dict]:
    """Rows of an output folder of `benchmark`, `benchmark-gpu` or `benchmark-training`.

    Where there is a profile.md, `profile` holds the figures of a system's line. `translations` are paths of files.

    Raises:
        ValueError: a file is damaged.
    """
    trained = (folder / "training.json").is_file()
    names = ("training.json", "training_environment.json") if trained else ("rows.json", "environment.json")
    surroundings = read_json(folder / names[1], ("threads",), "run the benchmark again")
    shared = {"run": run, **machine_of(surroundings)}
    profiles = profile_of(folder / "profile.md")
    try:
        rows = json.loads((folder / names[0]).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / names[0]} is damaged ({error}): run the benchmark again") from None
    for row in rows:
        if stored := row.get("translations"):
            row["translations"] = str(folder / stored)
        if found := profiles.get(row.get("title")):
            row["profile"] = found
    return [{**shared, **rounded(row)} for row in rows]


def machine_of(surroundings: dict) -> dict:
    threads = surroundings["threads"]
    named = [surroundings.get("processor"), f"{threads} thread{'s' * (threads != 1)}"]
    if (device := surroundings.get("device", "cpu")) != "cpu":
        named = [device]
    versions = surroundings.get("versions", {}).items()
    software = ", ".join(f"{name} {version}" for name, version in versions if name != "python")
    return {"machine": ", ".join(filter(None, named)), "software": software}


def profile_of(path: Path) -> dict[str, dict[str, float]]:
    """The figures of each system by column title, with shares in percent; empty if there is no such file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    if not lines:
        return {}
    (_, *parts), _, *systems = lines
    return {
        title: {part: float(cell.rstrip("%")) for part, cell in zip(parts, cells, strict=True) if cell}
        for title, *cells in systems
    }


def rounded(value):
    """The same with `DIGITS` significant digits in every number."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value
