"""The handler of a published folder, loaded and called as Hugging Face's inference toolkit does it."""

import configparser
import importlib.util
import json
import sys
from pathlib import Path

import pytest

import modeling_jmnat
from modeling_jmnat.hub.publishing import ENDPOINT_FILES, published_files
from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.inference.translation import translate_lines
from modeling_jmnat.pipeline import JMNatTranslationPipeline
from tests.helpers.fresh_process import run_without_package
from tests.helpers.teacher_samples import random_lines
from tests.helpers.translation_samples import load_script, tiny_student, tiny_tokenizer

PACKAGE = Path(modeling_jmnat.__file__).parent
TEXTS = random_lines(5, seed=3)
IN_AN_ENDPOINT = """
import importlib.util, json, sys
folder, requests = sys.argv[1:]
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder + "/handler.py")
sys.path.insert(0, folder)
handler = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = handler
spec.loader.exec_module(handler)
endpoint = handler.EndpointHandler(folder)
answers = []
for body in json.loads(requests):
    try:
        answers.append(endpoint(body))
    except Exception as error:
        answers.append({"error": str(error)})
print(json.dumps({"backend": endpoint.backend, "answers": answers}))
"""
BAD = (
    ({}, 'the request must be {"inputs": text or list of texts, "parameters": {option: value}}'),
    ({"inputs": "a", "parameters": [1]}, 'the request must be {"inputs": text or list of texts'),
    ([], 'the request must be {"inputs": text or list of texts'),
    ({"inputs": "a", "parameters": {"generate_parameters": [1]}}, 'the request must be {"inputs": text or list'),
    ({"inputs": "a", "parameters": {"streamer": 1}}, "streamer is a int but must have the methods put and end"),
    ({"inputs": None}, "a text to translate must be a string, not NoneType"),
    ({"inputs": ["a", 5]}, "a text to translate must be a string, not int: 5"),
    ({"inputs": "a", "parameters": {"num_iterations": 0}}, "num_iterations=0"),
    ({"inputs": "a", "parameters": {"num_iterations": 101}}, "num_iterations=101 must be at most 100 in a request"),
    (
        {"inputs": "a", "parameters": {"generate_parameters": {"num_iterations": 10**9}}},
        "num_iterations=1000000000 must be at most 100 in a request",
    ),
    ({"inputs": "a", "parameters": {"crf_beam": 10**6}}, "crf_beam=1000000 must be at most 64 in a request"),
    ({"inputs": "a", "parameters": {"num_iteration": 2}}, "num_iteration"),
    ({"inputs": "a", "parameters": {"generate_parameters": {"do_sample": True}}}, "do_sample"),
    ({"inputs": "a", "parameters": {"long_lines": "cut"}}, "long_lines='cut' is not one of"),
)
REQUESTS = (
    {"inputs": TEXTS[0]},
    {"inputs": TEXTS},
    {"inputs": TEXTS[0], "parameters": {"num_return_sequences": 2, "return_scores": True}},
    {"inputs": TEXTS, "parameters": {"batch_size": 3, "generate_parameters": {"num_iterations": 1}}},
    {"inputs": []},
)


def build(folder, *options) -> Path:
    tokenizer = tiny_tokenizer()
    tiny_student(tokenizer).save_pretrained(folder / "trained")
    tokenizer.save_pretrained(folder / "trained")
    words = ["--model", str(folder / "trained"), "--output", str(folder / "model"), *options]
    load_script("publish").main(words)
    return folder / "model"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return build(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return build(tmp_path_factory.mktemp("exported"), "--onnx")


def load_handler(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder / "handler.py")
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    return handler.EndpointHandler(str(folder))


def expected(translate) -> list:
    options = {"num_return_sequences": 2, "return_scores": True}
    first, several = translate(TEXTS[0]), translate(TEXTS)
    return [first, several, translate(TEXTS[0], **options), translate(TEXTS, batch_size=3, num_iterations=1), []]


def test_an_endpoint_without_the_package_answers_as_the_pipeline(published, tmp_path):
    bodies = [*REQUESTS, *(body for body, _ in BAD)]
    output = run_without_package(IN_AN_ENDPOINT, tmp_path, tmp_path, published, json.dumps(bodies))
    found = json.loads(output.splitlines()[-1])
    model, tokenizer = load_translator(published, "cpu")
    assert found["backend"] == "torch"
    assert found["answers"][: len(REQUESTS)] == expected(JMNatTranslationPipeline(model, tokenizer))
    for (body, sentence), answer in zip(BAD, found["answers"][len(REQUESTS) :], strict=True):
        assert sentence in answer["error"], body
        assert "\n" not in answer["error"]


def test_the_8_bit_graph_is_taken_without_a_gpu(exported, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    endpoint = load_handler(exported, monkeypatch)
    assert endpoint.backend == "onnx_int8"
    model, tokenizer = load_translator(exported, backend="onnx_int8")
    assert [endpoint(body) for body in REQUESTS] == expected(JMNatTranslationPipeline(model, tokenizer))
    lines = [line.strip() for line in TEXTS]
    by_lines = [each.text for each in translate_lines(model, tokenizer, lines, max_batch_tokens=1)]
    assert [record["translation_text"] for record in endpoint({"inputs": lines})] == by_lines
    for body, sentence in BAD:
        with pytest.raises(ValueError, match=".") as refused:
            endpoint(body)
        assert sentence in str(refused.value)


def test_pytorch_is_taken_where_the_graph_cannot_run(exported, tmp_path):
    output = run_without_package(IN_AN_ENDPOINT, tmp_path, tmp_path, exported, json.dumps(REQUESTS[:1]))
    assert json.loads(output.splitlines()[-1])["backend"] == "torch"


def test_the_requirements_are_those_of_the_package(published):
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg")
    comment, *lines = (published / "requirements.txt").read_text().splitlines()
    assert comment.startswith("# ")
    assert lines == setup["options"]["install_requires"].split()
    for name in ENDPOINT_FILES:
        assert (published / name).read_bytes() == (PACKAGE / "hub" / name).read_bytes()


@pytest.mark.parametrize("name", ENDPOINT_FILES)
def test_a_handler_of_ones_own_stays_and_is_not_pushed(tmp_path, name):
    folder = build(tmp_path)
    (folder / "handler.py").write_text((folder / "handler.py").read_text() + "# of an earlier version\n")
    build(tmp_path)
    assert (folder / "handler.py").read_bytes() == (PACKAGE / "hub" / "handler.py").read_bytes()
    assert {*ENDPOINT_FILES} <= published_files(folder).keys()
    (folder / name).write_text("mine")
    build(tmp_path)
    assert (folder / name).read_text() == "mine"
    assert not {*ENDPOINT_FILES} & published_files(folder).keys()
