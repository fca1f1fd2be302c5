"""Inputs of a run: data, presets and teacher, which must stay the same when it is resumed, and the held-out text."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.preparation import prepared_text
from ..training.presets import SECTIONS, load_preset
from ..utils.atomic_files import write_json
from ..utils.fingerprints import (
    file_digest,
    json_digest,
    legacy_folder_digest,
    model_digest,
    same_fingerprint,
    tokenizer_fingerprint,
)
from ..utils.json_files import read_json
from ..utils.text_files import write_lines
from .settings import SuiteSettings

BEGUN_WITH = "begun_with.json"
NUM_CASES, CASE_WORDS = 8, (10, 30)


def held_out_text(data: Path) -> dict[str, list[str]]:
    """Validation and test text of prepared data by the names of its files: validation.src, validation.tgt, ...

    Raises:
        ValueError: the preparation is not finished, or lacks one of the two splits.
    """
    text = {}
    for split in ("validation", "test"):
        text[f"{split}.src"], text[f"{split}.tgt"] = prepared_text(data, split)
    return text


def run_inputs(settings: SuiteSettings, text: Mapping[str, Sequence[str]]) -> dict[str, dict]:
    """What identifies a run, by the argument that chooses it."""
    presets = {"preset": settings.preset, "teacher_preset": settings.teacher_preset or settings.preset}
    teacher = {} if settings.teacher is None else {"teacher": {"weights": model_digest(settings.teacher)}}
    return {
        "data": {
            "preparation": file_digest(settings.data / "preparation.json"),
            "tokenizer": tokenizer_fingerprint(settings.data / "tokenizer"),
            "held_out_text": json_digest(text),
        },
        **{name: preset_contents(preset) for name, preset in presets.items()},
        **teacher,
    }


def preset_contents(name: str) -> dict:
    """Every field of a preset by its section and name."""
    preset = load_preset(name)
    return {
        f"{section}.{name}": value for section in SECTIONS for name, value in sorted(getattr(preset, section).items())
    }


def check_inputs(settings: SuiteSettings, inputs: Mapping[str, dict]) -> None:
    """Refuse to resume a run with other data, presets or another teacher than it was started with.

    Raises:
        ValueError: something differs; the message names it.
    """
    check_recorded(settings.output)
    path = settings.output / BEGUN_WITH
    if not path.is_file() or not any((settings.output / "logs").glob("*")):  # no stage has begun
        return
    begun = read_json(path, what_to_do="restore it or choose another --output")
    recorded, now = begun.get("data", {}), inputs["data"]["tokenizer"]
    if same_fingerprint(recorded.get("tokenizer"), now, lambda: legacy_folder_digest(settings.data / "tokenizer")):
        recorded["tokenizer"] = now
    for name in {**begun, **inputs}:
        before, now = begun.get(name, {}), inputs.get(name, {})
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            given = getattr(settings, name) or (settings.preset if name == "teacher_preset" else None)
            raise ValueError(
                f"{name}={given} is not that of the run in output={settings.output} ({', '.join(changed)} differ): "
                "give the same again or choose another --output"
            )


def check_recorded(output: Path) -> None:
    """ValueError for a folder in which stages have been started, and it is not known with which inputs."""
    if not (output / BEGUN_WITH).is_file() and any(log.stat().st_size for log in (output / "logs").glob("*")):
        raise ValueError(
            f"output={output} holds stages of a run but no {BEGUN_WITH}, which says what it was begun with: restore "
            "that file or choose another --output"
        )


def begin_run(settings: SuiteSettings, inputs: Mapping[str, dict], text: Mapping[str, Sequence[str]]) -> None:
    """Record what identifies the run, and write the text that its stages read."""
    write_json(settings.output / BEGUN_WITH, inputs)
    export_held_out_text(text, settings.output)


def export_held_out_text(text: Mapping[str, Sequence[str]], output: Path) -> None:
    """Write held-out text as line-aligned files, for the commands that read text.

    `cases` are a few test sentences of medium length, spread evenly over the file.
    """
    folder = output / "text"
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("validation", "test"):
        (output / "results" / split).mkdir(parents=True, exist_ok=True)
    for name, lines in text.items():
        write_lines(folder / name, lines)
    pairs = list(zip(text["test.src"], text["test.tgt"], strict=True))
    shortest, longest = CASE_WORDS
    fitting = [pair for pair in pairs if shortest <= len(pair[0].split()) <= longest] or pairs
    count = min(NUM_CASES, len(fitting))
    chosen = [fitting[position * len(fitting) // count] for position in range(count)]
    for side, ending in enumerate(("src", "tgt")):
        write_lines(folder / f"cases.{ending}", [pair[side] for pair in chosen])
