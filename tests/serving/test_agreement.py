"""Handler, server, translate.py and pipeline give the same text of real sentences by the 8-bit graphs."""

import gzip

import pytest

from modeling_jmnat.hub.handler import EndpointHandler
from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.pipeline import JMNatTranslationPipeline
from tests.helpers.translation_samples import load_script
from tests.serving.load import ROOT, TEXT, measure_clients, running_server

BACKEND = "onnx_int8"
NUM_SENTENCES = 200


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnxscript")
    pytest.importorskip("uvicorn")
    folder = tmp_path_factory.mktemp("exported")
    load_script("publish").main(["--model", str(ROOT / "hub_card" / "de-en"), "--output", str(folder), "--onnx"])
    return folder


@pytest.mark.slow
def test_every_way_gives_the_same_text(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with gzip.open(TEXT, "rt", encoding="utf-8") as file:
        texts = [line.strip() for line, _ in zip(file, range(NUM_SENTENCES), strict=False)]
    assert len(texts) == NUM_SENTENCES
    pipe = JMNatTranslationPipeline(*load_translator(exported, backend=BACKEND))
    expected = [record["translation_text"] for record in pipe(texts)]
    handler = EndpointHandler(str(exported))
    assert handler.backend == BACKEND
    assert [record["translation_text"] for record in handler({"inputs": texts})] == expected
    (tmp_path / "source").write_text("\n".join(texts) + "\n", encoding="utf-8")
    words = {"model": exported, "backend": BACKEND, "input": tmp_path / "source", "output": tmp_path / "output"}
    load_script("translate").main([str(word) for name, value in words.items() for word in (f"--{name}", value)])
    assert (tmp_path / "output").read_text(encoding="utf-8").splitlines() == expected
    with running_server("--model", str(exported)) as (_, port):
        answers, _, _ = measure_clients(port, texts, 8)
    assert answers == expected
