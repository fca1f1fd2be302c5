"""Resume a run with another number of processes, with the same sentences in each step."""

import math
import sys
from pathlib import Path

from ..utils.json_files import read_json
from ..utils.model_files import MANIFEST
from .arguments import TranslationTrainingArguments

# Settings that determine the number of batches of a step.
STEP_FIELDS = ("world_size", "gradient_accumulation_steps", "batch_parts")


def step_fields(training: TranslationTrainingArguments) -> dict[str, int]:
    return {name: getattr(training, name) for name in STEP_FIELDS}


def keep_steps(training: TranslationTrainingArguments, begun: dict[str, int]) -> None:
    """Set `batch_parts` and `gradient_accumulation_steps` so that steps have the same sentences as when the run began.

    Batches are cut further if a step has too few of them for the processes, or if `batch_parts` asks for it.

    Args:
        begun: `step_fields` of the run's first call.
    """
    parts_of_step = begun["world_size"] * begun["gradient_accumulation_steps"]
    for_processes = training.world_size // math.gcd(parts_of_step, training.world_size)
    for_memory = training.batch_parts // math.gcd(begun["batch_parts"], training.batch_parts)
    cut = math.lcm(for_processes, for_memory)
    training.batch_parts = begun["batch_parts"] * cut
    training.gradient_accumulation_steps = parts_of_step * cut // training.world_size
    now = step_fields(training)
    if now != begun and training.process_index == 0:
        print(f"each step keeps its sentences: {_sentence(begun)} is now {_sentence(now)}", file=sys.stderr)


def check_step(training: TranslationTrainingArguments, checkpoint: str | Path) -> None:
    """Refuse to resume if a step would have other sentences than in the run so far.

    Raises:
        ValueError: the number of processes differs, and `elastic` is off or steps would differ in size.
    """
    path = Path(checkpoint) / MANIFEST
    begun = read_json(path).get("step") if path.is_file() else None
    if begun is None or begun["world_size"] == training.world_size:  # earlier versions did not record it
        return
    now = step_fields(training)
    if not training.elastic:
        raise ValueError(
            f"{checkpoint} was written by {begun['world_size']} processes and now there are {training.world_size}: "
            "start as many, or resume with elastic=True"
        )
    before, after = (s["world_size"] * s["gradient_accumulation_steps"] / s["batch_parts"] for s in (begun, now))
    if before != after:
        raise ValueError(
            f"a step of {checkpoint} has {_sentence(begun)}, and now it would have {_sentence(now)}: keep world_size "
            "* gradient_accumulation_steps / batch_parts as it was"
        )


def _sentence(step: dict[str, int]) -> str:
    return ", ".join(f"{name}={step[name]}" for name in STEP_FIELDS)
