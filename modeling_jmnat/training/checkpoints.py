"""Checkpoints of a training run: written whole or not at all, found again after a crash, thinned out.

    RUN/checkpoint-1200/model.safetensors              the weights to evaluate: the moving average, if there is one
    RUN/checkpoint-1200/training_weights.safetensors   with a moving average, the weights to resume from
    RUN/checkpoint-1200/{optimizer,scheduler,rng_state}.pt*, trainer_state.json
    RUN/checkpoint-1200/manifest.json                  sizes and checksums of these files, and the size of a step

A checkpoint gets its name by a single rename when it is complete; what a crash leaves is in `RUN/_unfinished`. The
names of the other folders begin with _, which `push_to_hub` leaves out:

    RUN/_replaced/checkpoint-1200                      of a training that the run has gone back behind
"""

import logging
import re
import shutil
import zipfile
from collections.abc import Container, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..utils.atomic_files import UNFINISHED, remove_folder, write_json
from ..utils.fingerprints import file_digest
from ..utils.json_files import read_json
from ..utils.model_files import MANIFEST, changed_file

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"  # instead, if LoRA is trained
TRAINING_WEIGHTS = "training_weights.safetensors"
TRAINER_STATE = "trainer_state.json"
STAGING = "_unfinished"
REPLACED = "_replaced"
SCORE_SETTINGS = "score_settings"  # in a trainer's log, beside a score: what it depends on besides the weights
DEEPSPEED = "latest"  # DeepSpeed's file with the name of the folder of optimizer states, one file per process
RESUMED_FROM = (
    "*.safetensors",
    "*.pt",
    "*.pth",
    TRAINER_STATE,
    DEEPSPEED,
)  # files listed in a manifest; others may be edited
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_step(checkpoint: Path) -> int:
    return int(CHECKPOINT_NAME.fullmatch(checkpoint.name).group(1))


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """All checkpoint folders of a run, whole or not, oldest first."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        return []
    return sorted((path for path in run_dir.iterdir() if CHECKPOINT_NAME.fullmatch(path.name)), key=checkpoint_step)


def weights_of(checkpoint: Path) -> Path:
    """Path of the weights, which need not exist; of the adapter's weights if there are any."""
    adapter = checkpoint / ADAPTER_WEIGHTS
    return adapter if adapter.exists() else checkpoint / WEIGHTS


def write_manifest(checkpoint: Path, step: dict[str, int]) -> None:
    """Record size and SHA-256 of each file that training resumes from.

    Args:
        step: `elastic.step_fields` of the run.
    """
    paths = sorted(path for pattern in RESUMED_FROM for path in checkpoint.rglob(pattern))
    files = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in paths
    }
    write_json(checkpoint / MANIFEST, {"files": files, "step": step})


def damage_of(checkpoint: str | Path, needed: Iterable[str] = ()) -> str | None:
    """Why training cannot resume from a checkpoint, for a message; None if it can.

    Args:
        needed: further files that must exist, such as `TRAINING_WEIGHTS` with a moving average.

    Raises:
        OSError: a file cannot be read, which may pass and says nothing about its content.
    """
    checkpoint = Path(checkpoint)
    weights = [weights_of(checkpoint), *checkpoint.glob(TRAINING_WEIGHTS)]
    rng_states = list(checkpoint.glob("rng_state*.pth"))
    archives = [checkpoint / "scheduler.pt", *rng_states]
    if not (checkpoint / DEEPSPEED).is_file():
        archives.insert(0, checkpoint / "optimizer.pt")
    try:
        state = read_json(checkpoint / TRAINER_STATE, keys=("global_step", "log_history"))
        for path in weights:
            with safe_open(path, framework="pt"):  # refuses a file shorter than its header says
                pass
    except SafetensorError as error:
        return f"{path.name} is damaged or cut short ({error})"
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        return str(error)
    if state["global_step"] != checkpoint_step(checkpoint):
        return f"{TRAINER_STATE} is of step {state['global_step']}"
    if (damage := changed_file(checkpoint)) is not None:
        return damage
    if not rng_states:
        return "rng_state.pth is missing"
    for path in archives:
        if not zipfile.is_zipfile(path):
            return f"{path.name} is missing or cut short"
    for name in needed:
        if not (checkpoint / name).is_file():
            where = ", as in checkpoints that were made without ema_decay" if name == TRAINING_WEIGHTS else ""
            return f"{name} is missing{where}"
    return None


def is_whole(checkpoint: str | Path, needed: Iterable[str] = ()) -> bool:
    """Whether training can resume from a checkpoint: every file is present and unchanged."""
    return damage_of(checkpoint, needed) is None


def newest_whole(run_dir: str | Path, needed: Iterable[str] = ()) -> Path | None:
    """The newest checkpoint that training can resume from; damaged newer ones are skipped with a warning.

    Args:
        needed: as in `damage_of`.

    Raises:
        OSError: a checkpoint cannot be read at the moment.
    """
    for checkpoint in reversed(list_checkpoints(run_dir)):
        try:
            damage = damage_of(checkpoint, needed)
        except OSError as error:
            raise OSError(
                f"{checkpoint} cannot be read ({error}), which need not mean damage: repeat when it can be, or move "
                "it away"
            ) from error
        if damage is None:
            return checkpoint
        if not holds_only_weights(checkpoint):
            logger.warning("%s is damaged and is skipped: %s", checkpoint, damage)
    return None


def checkpoint_to_resume(run_dir: str | Path, needed: Iterable[str] = ()) -> Path | None:
    """`newest_whole`; None if the run has no checkpoint at all.

    Raises:
        ValueError: there are checkpoints, but none is whole.
        OSError: as `newest_whole`.
    """
    newest, existing = newest_whole(run_dir, needed), list_checkpoints(run_dir)
    if newest is not None or not existing:
        return newest
    named = [checkpoint for checkpoint in existing if not holds_only_weights(checkpoint)] or existing
    raise ValueError(
        f"output_dir {run_dir} holds checkpoints but none to resume from; of {named[-1].name}: "
        f"{damage_of(named[-1], needed)}. Restore that file, set options as they were, or choose another output_dir; "
        "to begin anew in this one, delete its checkpoints"
    )


def holds_only_weights(checkpoint: Path) -> bool:
    """Whether a checkpoint has weights and no optimizer state, as `thin_out` leaves the best ones."""
    states = (checkpoint / "optimizer.pt", checkpoint / DEEPSPEED)
    return weights_of(checkpoint).exists() and not any(path.exists() for path in states)


def staging_folder(run_dir: str | Path) -> Path:
    """The folder for unfinished files, on the same file system as the run, so that they can be renamed."""
    folder = Path(run_dir) / STAGING
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove_leftovers(run_dir: str | Path) -> None:
    """Delete what a crash left unfinished."""
    for name in (STAGING, UNFINISHED):  # the second is of `atomic_files`, and of runs of earlier versions
        shutil.rmtree(Path(run_dir) / name, ignore_errors=True)


def set_newer_aside(run_dir: str | Path, step: int) -> None:
    """Move checkpoints of later steps than `step`, which is about to be saved, into `REPLACED`.

    They are damaged, or of a training that the run has gone back behind. In place, they would count as the newest, be
    resumed from, and displace the new ones.
    """
    for checkpoint in list_checkpoints(run_dir):
        if checkpoint_step(checkpoint) > step:
            aside = Path(run_dir) / REPLACED / checkpoint.name
            aside.parent.mkdir(exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
            logger.warning("training is at step %s again: %s is now in %s", step, checkpoint.name, aside.parent)


def thin_out(run_dir: str | Path, newest: int | None, best_steps: Iterable[int]) -> None:
    """Keep the `newest` checkpoints whole (None or below 1: all), and of `best_steps` the weights; delete the others.

    A damaged checkpoint does not count among the newest, so that it does not displace a good one.
    """
    if newest is None or newest < 1:
        return
    best_steps, left = set(best_steps), newest
    for checkpoint in reversed(list_checkpoints(run_dir)):
        if left:
            left -= changed_file(checkpoint) is None
            continue
        if checkpoint_step(checkpoint) not in best_steps:
            remove_folder(checkpoint)
            continue
        for pattern in ("optimizer.pt", "scheduler.pt", "rng_state*.pth", TRAINING_WEIGHTS, DEEPSPEED):
            for path in checkpoint.glob(pattern):
                path.unlink()
        for folder in checkpoint.glob("global_step*"):
            remove_folder(folder)


def last_score_settings(log_history: list[dict], metric: str) -> str | None:
    """The settings of the last score in a trainer's log; None if none is recorded."""
    recorded = [entry[SCORE_SETTINGS] for entry in log_history if metric in entry and SCORE_SETTINGS in entry]
    return recorded[-1] if recorded else None


def comparable_scores(log_history: list[dict], metric: str) -> dict[int, float]:
    """`metric` of each step in a trainer's log that was measured by the settings of the last one.

    Scores of earlier versions, which did not record the settings, count as measured by them.
    """
    settings = last_score_settings(log_history, metric)
    return {
        entry["step"]: entry[metric]
        for entry in log_history
        if metric in entry and entry.get(SCORE_SETTINGS, settings) == settings
    }


def best_steps(log_history: list[dict], metric: str, count: int, steps: Container[int]) -> list[int]:
    """The `count` of `steps` with the highest of `comparable_scores`, best first; in a tie, the earlier step."""
    scores = {step: score for step, score in comparable_scores(log_history, metric).items() if step in steps}
    return sorted(scores, key=lambda step: (-scores[step], step))[:count]
