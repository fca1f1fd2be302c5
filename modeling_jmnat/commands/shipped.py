"""The model and text that come with the project, next to the package in a checkout, otherwise on the Hub."""

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
# Environment variables with another model or text: a folder, or a repository on the Hub.
MODEL_VARIABLE, TEXT_VARIABLE = "JMNAT_SHIPPED_MODEL", "JMNAT_DEMO_TEXT"
MODEL_REPOSITORY = "jmnat/jmnat-de-en"  # hub_card/de-en after `jmnat publish --push`
TEXT_REPOSITORY = "jmnat/libreoffice-help"  # the data set with the files of run_scripts/demo_data/libreoffice-help


def shipped_model() -> str:
    """The German-English model: its folder, or its name on the Hub.

    Raises:
        ValueError: it cannot be found.
    """
    name = os.environ.get(MODEL_VARIABLE) or _beside_the_package("hub_card/de-en", "config.json") or MODEL_REPOSITORY
    _fetch(name, ("config.json",), "model", "--model, a folder or a name on the Hub")
    return name


def demo_text() -> Path:
    """A folder with the files train, valid and test, each .de.gz and .en.gz.

    Raises:
        ValueError: it cannot be found.
    """
    folder = _beside_the_package("run_scripts/demo_data/libreoffice-help", "train.de.gz")
    name = os.environ.get(TEXT_VARIABLE) or folder or TEXT_REPOSITORY
    return _fetch(name, ("*.gz",), "text", "--data, a folder with such files", repo_type="dataset")


def _beside_the_package(path: str, file: str) -> str | None:
    """A folder of the checkout that contains this package; None if the package is installed elsewhere."""
    folder = CHECKOUT / path
    return str(folder) if (folder / file).is_file() else None


def _fetch(name: str, patterns: tuple[str, ...], kind: str, instead: str, **hub_options) -> Path:
    from ..utils.hub_folders import fetch_folder

    try:
        return fetch_folder(name, patterns, **hub_options)
    except ValueError as error:
        raise ValueError(f"the {kind} that comes with this project cannot be found: {error}; give {instead}") from None
