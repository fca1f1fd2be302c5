"""Checkpoints of a training run: written whole or not at all, found again after a crash, thinned out.

    RUN/checkpoint-1200/model.safetensors              the weights that are evaluated: the average, if one is kept
    RUN/checkpoint-1200/training_weights.safetensors   then also the weights that training goes on from
    RUN/checkpoint-1200/{optimizer,scheduler,rng_state}.pt*, trainer_state.json

A checkpoint appears under its name by one rename. What is found under another name is left over from a crash.
"""

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Container, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..utils.atomic_files import UNFINISHED, remove_folder

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"  # in their place where LoRA is trained
TRAINING_WEIGHTS = "training_weights.safetensors"
TRAINER_STATE = "trainer_state.json"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_step(checkpoint: Path) -> int:
    return int(CHECKPOINT_NAME.fullmatch(checkpoint.name).group(1))


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first, whole or not."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        return []
    return sorted((path for path in run_dir.iterdir() if CHECKPOINT_NAME.fullmatch(path.name)), key=checkpoint_step)


def weights_of(checkpoint: Path) -> Path:
    """The file of weights, whether it is there or not; that of an adapter if there is one."""
    adapter = checkpoint / ADAPTER_WEIGHTS
    return adapter if adapter.exists() else checkpoint / WEIGHTS


def is_whole(checkpoint: str | Path) -> bool:
    """True if training can go on from here: every file is present and not cut short."""
    checkpoint = Path(checkpoint)
    weights = [weights_of(checkpoint), *checkpoint.glob(TRAINING_WEIGHTS)]
    archives = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
    try:
        json.loads((checkpoint / TRAINER_STATE).read_text())
        for path in weights:
            with safe_open(path, framework="pt"):  # refuses a file shorter than its header says
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return len(archives) > 2 and all(zipfile.is_zipfile(path) for path in archives)


def newest_whole(run_dir: str | Path) -> Path | None:
    """The newest checkpoint that training can go on from; damaged newer ones are skipped with a warning."""
    for checkpoint in reversed(list_checkpoints(run_dir)):
        if is_whole(checkpoint):
            return checkpoint
        if (checkpoint / "optimizer.pt").exists() or not weights_of(checkpoint).exists():
            logger.warning("%s is damaged and is skipped", checkpoint)
    return None


def staging_folder(run_dir: str | Path) -> Path:
    """The folder in which files are written before they get their name; on the run's own file system."""
    folder = Path(run_dir) / UNFINISHED
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove_leftovers(run_dir: str | Path) -> None:
    """Delete what a crash left unfinished."""
    shutil.rmtree(Path(run_dir) / UNFINISHED, ignore_errors=True)


def remove_after(run_dir: str | Path, checkpoint: Path | None) -> None:
    """Delete the checkpoints that are newer than the one from which training goes on (None: all of them)."""
    for other in list_checkpoints(run_dir):
        if checkpoint is None or checkpoint_step(other) > checkpoint_step(checkpoint):
            remove_folder(other)


def thin_out(run_dir: str | Path, newest: int | None, best_steps: Iterable[int]) -> None:
    """Keep the `newest` checkpoints whole (None or below 1: all), the weights of `best_steps`, delete the others."""
    checkpoints = list_checkpoints(run_dir)
    if newest is None or newest < 1:
        return
    best_steps = set(best_steps)
    for checkpoint in checkpoints[: max(len(checkpoints) - newest, 0)]:
        if checkpoint_step(checkpoint) not in best_steps:
            remove_folder(checkpoint)
            continue
        for pattern in ("optimizer.pt", "scheduler.pt", "rng_state*.pth", TRAINING_WEIGHTS):
            for path in checkpoint.glob(pattern):
                path.unlink()


def best_steps(log_history: list[dict], metric: str, count: int, steps: Container[int]) -> list[int]:
    """Of `steps`, those with the `count` highest values of `metric` in a trainer's log, best first; ties: earlier."""
    scores = {entry["step"]: entry[metric] for entry in log_history if metric in entry and entry["step"] in steps}
    return sorted(scores, key=lambda step: (-scores[step], step))[:count]
