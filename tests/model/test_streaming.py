"""`generate(streamer=...)`: a draft after each pass, then the result; in the pipeline, too."""

import pytest
import torch
from transformers import TextDiffusionStreamer, TextIteratorStreamer, TextStreamer

from modeling_jmnat import JMNatTranslationPipeline
from modeling_jmnat.inference.cuda_graphs import StaticShapeJMNat
from tests.helpers.random_models import random_model
from tests.helpers.teacher_samples import random_lines
from tests.helpers.translation_samples import tiny_student, tiny_tokenizer

SOURCE = torch.tensor([[7, 12, 9, 15, 2]])


class Recorder:
    """Records what it gets, in order."""

    def __init__(self):
        self.events = []

    def put_draft(self, value):
        self.events.append(("draft", value.tolist()))

    def put(self, value):
        self.events.append(("put", value.tolist()))

    def end(self):
        self.events.append(("end", None))


class ResultAlone:
    put, end = Recorder.put, Recorder.end
    __init__ = Recorder.__init__


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_student(tokenizer)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_iterations": 1},
        {"consensus_weight": 2.0, "prune_candidates": 2, "collapse_repeats": True},
        {"early_stop": True, "update_all": True},
        {"decoder_input_ids": torch.tensor([[8, 4, 4, 2]])},
    ],
)
def test_each_pass_streams_the_leading_candidate(options):
    model = random_model(16)
    expected = model.generate(SOURCE, **options)
    for backend in (model, StaticShapeJMNat(model)):
        streamer = Recorder()
        assert torch.equal(backend.generate(SOURCE, streamer=streamer, **options), expected)
        kinds = [kind for kind, _ in streamer.events]
        drafts = [ids for kind, ids in streamer.events if kind == "draft"]
        assert kinds == ["draft"] * len(drafts) + ["put", "end"]
        assert streamer.events[-2][1] == expected.tolist()
        assert drafts[-1] == expected.tolist()  # the last pass leads to the result
        if "early_stop" not in options:
            assert len(drafts) == options.get("num_iterations", 10)
        if options:
            continue
        history = model.generate(SOURCE, output_history=True).history
        for ids, turn in zip(drafts, history, strict=True):
            best = int((turn.log_probs[0].sum(dim=-1) / (turn.tokens[0] != 1).sum(dim=-1)).argmax())
            text = [token for token in turn.tokens[0, best].tolist() if token != 1]
            assert ids == [text[: text.index(2) + 1] if 2 in text else text]


def test_streamers_of_transformers_work(model, tokenizer, capsys):
    inputs = tokenizer(random_lines(1, seed=3), return_tensors="pt")
    expected = tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True)
    for options in ({}, {"skip_prompt": True}):
        model.generate(**inputs, streamer=TextStreamer(tokenizer, skip_special_tokens=True, **options))
        assert capsys.readouterr().out == f"{expected}\n"
        streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True, timeout=10, **options)
        model.generate(**inputs, streamer=streamer)
        assert "".join(streamer) == expected
        streamer = TextDiffusionStreamer(tokenizer, skip_special_tokens=True, **options)
        model.generate(**inputs, streamer=streamer, num_iterations=4)
        shown = capsys.readouterr().out
        assert shown.count("\0337\033[33m") == 4
        after_four = tokenizer.decode(model.generate(**inputs, num_iterations=4)[0], skip_special_tokens=True)
        assert shown.endswith(f"\0338\033[J{after_four}\n")


def test_several_texts_cannot_be_streamed():
    model = random_model(16)
    with pytest.raises(ValueError, match="streamer is a object but must have the methods put and end"):
        model.generate(SOURCE, streamer=object())
    with pytest.raises(ValueError, match="streamer is a type but must have the methods put and end"):
        model.generate(SOURCE, streamer=Recorder)
    for options in ({"input_ids": SOURCE.repeat(2, 1)}, {"input_ids": SOURCE, "num_return_sequences": 2}):
        streamer = Recorder()
        with pytest.raises(ValueError, match="streamer takes one text, not .*: give one sentence at a time"):
            model.generate(streamer=streamer, **options)
        assert not streamer.events


def test_exported_graphs_stream_drafts(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra `bench` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `bench` is not installed")
    from modeling_jmnat.inference.onnx_runtime import ORTJMNatForConditionalGeneration
    from modeling_jmnat.onnx_export.export import export_onnx

    model = random_model(16)
    export_onnx(model, tmp_path, int8=False)
    exported = ORTJMNatForConditionalGeneration.from_pretrained(tmp_path)
    for kind in (Recorder, ResultAlone):
        expected, found = kind(), kind()
        model.generate(SOURCE, streamer=expected)
        exported.generate(SOURCE, streamer=found)
        assert found.events == expected.events


def test_the_pipeline_streams_a_text_sentence_by_sentence(model, tokenizer):
    pipe = JMNatTranslationPipeline(model, tokenizer, device="cpu", num_iterations=3)
    lines = random_lines(2, seed=5)
    streamer = Recorder()
    (record,) = pipe(f"{lines[0]}\n\n{lines[1]}", streamer=streamer)
    kinds = [kind for kind, _ in streamer.events]
    assert kinds == ["draft"] * 3 + ["put"] + ["draft"] * 3 + ["put", "end"]
    shown = [tokenizer.decode(ids[0], skip_special_tokens=True) for kind, ids in streamer.events if kind == "put"]
    assert record["translation_text"] == "\n\n".join(shown)
    streamer = Recorder()
    assert len(pipe(lines, streamer=streamer)) == 2
    assert [kind for kind, _ in streamer.events].count("end") == 2
    with pytest.raises(ValueError, match="streamer takes one text"):
        pipe(lines, streamer=streamer, batch_size=2)
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True, timeout=10)
    (record,) = pipe(lines[0], streamer=streamer)
    assert "".join(streamer) == record["translation_text"]
    blank = Recorder()
    assert pipe(" ", streamer=blank)[0]["translation_text"] == " "
    assert blank.events == [("end", None)]
