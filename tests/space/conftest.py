import gzip
from pathlib import Path

import pytest

from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.pipeline import sentences_of
from tests.helpers.static_page import SHIPPED, build_page

CORPUS = Path(__file__).resolve().parents[2] / "run_scripts" / "demo_data" / "libreoffice-help"


@pytest.fixture(scope="session")
def static_page(tmp_path_factory):
    """The folder of the page in `hub_card/browser` for the shipped model."""
    folder = tmp_path_factory.mktemp("page")
    build_page(folder)
    return folder


@pytest.fixture(scope="session")
def graphs(tmp_path_factory):
    """The folder of all graphs of the shipped model."""
    pytest.importorskip("onnxscript", reason="the extra `bench` is not installed")
    from modeling_jmnat.onnx_export.export import export_onnx

    model, tokenizer = load_translator(SHIPPED, device="cpu", dtype="float32")
    folder = tmp_path_factory.mktemp("graphs")
    export_onnx(model, folder, int8=True, tokenizer=tokenizer, for_browsers=True)
    return folder


@pytest.fixture(scope="session")
def real_sentences():
    """200 German sentences that are none of the model's training text."""
    path = CORPUS / "test.de.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        lines = [line.rstrip("\n") for line in file]
    return [line for line in lines if len(sentences_of(line, "de")) == 1][:200]
