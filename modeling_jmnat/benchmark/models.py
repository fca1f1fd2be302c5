"""Inputs of the benchmarks: checks of numbers and model folders before any work, and copies of the folders."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig

from ..inference.loading import NO_FOREIGN_CODE, is_jmnat_config, is_jmnat_itself, load_teacher_tokenizer
from ..utils.fingerprints import tokenizer_fingerprint

NEEDED = ("student", "teacher", "source", "reference")
TRAINING_STATE = (".pt", ".pth")  # a checkpoint's files besides the model: optimizer, scheduler, random states


def check_models(arguments, names: Sequence[str] = ("student", "teacher")) -> None:
    """Check that the arguments `names` are folders: a JM-NAT model, then autoregressive models with its tokenizer.

    Raises:
        ValueError: an argument in `NEEDED` is missing, or a folder is not such a model.
    """
    missing = [name for name in NEEDED if getattr(arguments, name) is None]
    if missing:
        raise ValueError(f"{missing[0]} is missing: give student, teacher, source and reference, or random_weights")
    folders = given_folders(arguments, names)
    for name, folder in folders.items():
        if not Path(folder).is_dir():
            raise ValueError(f"{name} {folder} is not a folder: give the folder of a saved model")
        config = AutoConfig.from_pretrained(folder, **NO_FOREIGN_CODE)
        if name == "student" and not is_jmnat_itself(config):
            raise ValueError(f"--student {folder} is a {config.model_type} model but must be a JM-NAT")
        if name != "student" and is_jmnat_config(config):
            raise ValueError(f"--{name} {folder} is a {config.model_type} model but must be autoregressive")
    fingerprints = {name: tokenizer_fingerprint(load_teacher_tokenizer(folder)) for name, folder in folders.items()}
    for name, fingerprint in fingerprints.items():
        if fingerprint != fingerprints["student"]:
            raise ValueError(
                f"--{name} {folders[name]} has another tokenizer than --student {folders['student']}: they must share "
                "one"
            )


def given_folders(arguments, names: Sequence[str]) -> dict[str, str]:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def copy_models(arguments, work: Path, names: Sequence[str] = ("student", "teacher")) -> list[str]:
    """Copy the models named in `arguments` to `work`, without checkpoints and subfolders; returns their names."""
    folders = given_folders(arguments, names)
    for name, folder in folders.items():
        copy_model(Path(folder), work / name)
    return list(folders)


def copy_model(folder: Path, target: Path) -> None:
    target.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.suffix not in TRAINING_STATE:
            shutil.copyfile(file, target / file.name)
