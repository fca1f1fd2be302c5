import gzip
from pathlib import Path

import pytest

from modeling_jmnat.pipeline import sentences_of
from tests.helpers.static_page import build_page

CORPUS = Path(__file__).resolve().parents[2] / "run_scripts" / "demo_data" / "libreoffice-help"


@pytest.fixture(scope="session")
def static_page(tmp_path_factory):
    """The folder of the page in `hub_card/browser` for the shipped model."""
    folder = tmp_path_factory.mktemp("page")
    build_page(folder)
    return folder


@pytest.fixture(scope="session")
def real_sentences():
    """200 German sentences that are none of the model's training text."""
    path = CORPUS / "test.de.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        lines = [line.rstrip("\n") for line in file]
    return [line for line in lines if len(sentences_of(line, "de")) == 1][:200]
