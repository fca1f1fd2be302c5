"""Fixed shapes against plain decoding, sentence by sentence and by the batch, and what graphs would be captured."""

import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from modeling_jmnat import JMNatForConditionalGeneration, JMNatGenerationConfig
from modeling_jmnat.configuration_jmnat import JMNatOptions
from modeling_jmnat.inference.cuda_graphs import (
    CapturedGraph,
    FixedRows,
    GraphCache,
    StaticShapeJMNat,
    coarse_bucket,
    length_bucket,
    pad_to,
)
from tests.helpers.random_models import ARCHITECTURES, pad, random_model, random_sources

REPEAT_RULES = {"remask_repeats": True, "delete_repeats": True, "collapse_repeats": True}


def translate(model, sources, **options):
    input_ids, attention_mask = pad(sources, options.pop("side", "right"))
    return model.generate(input_ids=input_ids, attention_mask=attention_mask, return_dict_in_generate=True, **options)


def assert_same(found, expected):
    for name in ("sequences", "lengths", "num_passes", "candidate_lengths", "best_candidates"):
        assert torch.equal(found[name], expected[name]), name
    for name in ("sequences_scores", "token_scores"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)  # sums of float32
    assert set(found) == set(expected)


@pytest.mark.parametrize("num_iterations", [1, 4, 10])
@pytest.mark.parametrize("num_candidates", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 5, 9])  # 9 rows are filled up to 10
@pytest.mark.parametrize("exclude_self", [True, False])
def test_equals_plain_decoding(num_iterations, num_candidates, batch_size, exclude_self):
    model = random_model(batch_size, exclude_self_attention=exclude_self, max_target_length=30)
    static = StaticShapeJMNat(model)
    options = {"num_iterations": num_iterations, "num_length_candidates": num_candidates}
    for seed in range(3):
        sources = random_sources(model, batch_size, seed, longest=14)
        assert_same(translate(static, sources, **options), translate(model, sources, **options))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_and_option_equals_plain_decoding(name):
    model = random_model(1, **ARCHITECTURES[name])
    static = StaticShapeJMNat(model)
    sources = random_sources(model, 6, 1)
    for options in (
        {"num_return_sequences": 3, "side": "left"},
        {"remask_adjacent": False, "remask_schedule": "cosine", "num_iterations": 6},
        {"update_all": True, "num_iterations": 3, "suppress_tokens": []},
        {"target_lengths": torch.tensor([2, 3, 12, 5, 7, 4])},
        {"early_stop": True},
        {"confidence_threshold": 0.6},
        {"confidence_threshold": 0.5, "early_stop": True, "num_iterations": 8, "num_return_sequences": 2},
        {"early_stop": True, "prune_candidates": 2, "update_all": True},
        {"confidence_threshold": 0.4, "prune_candidates": 3, "prune_to": 2, "num_iterations": 6},
        {"prune_candidates": 2, "num_iterations": 5},
        {"consensus_weight": 5.0, "num_return_sequences": 2},
        {"consensus_weight": 5.0, "prune_candidates": 3, "prune_to": 2, "num_iterations": 3, "early_stop": True},
        {"prune_candidates": 1, "prune_to": 3, "num_iterations": 5},
        {"max_length": 5},
        {"collapse_repeats": True, "num_iterations": 2, "num_return_sequences": 3, "side": "left"},
        {"remask_repeats": True, "repeatable_tokens": [5, 6, 7, 8], "remask_adjacent": False},
        {"delete_repeats": True, "num_iterations": 4, "length_shift": 2, "num_return_sequences": 4},
        {"delete_repeats": True, "collapse_repeats": True, "early_stop": True, "num_iterations": 5},
        {"delete_repeats": True, "remask_repeats": True, "confidence_threshold": 0.6, "update_all": True},
        {"delete_repeats": True, "prune_candidates": 2, "num_iterations": 4, "consensus_weight": 2.0},
    ):
        assert_same(translate(static, sources, **dict(options)), translate(model, sources, **dict(options)))
    assert torch.equal(static.generate(pad(sources)[0]), model.generate(pad(sources)[0]))


def test_unsupported_options_are_decoded_without_graphs():
    model = random_model(2)
    static = StaticShapeJMNat(model)
    sources = random_sources(model, 3, 2)
    input_ids, attention_mask = pad(sources)
    embeds = model.model.encoder.embed_tokens(input_ids)
    for changed in ({"inputs_embeds": embeds}, {"encoder_outputs": model.get_encoder()(input_ids, attention_mask)}):
        found = static.generate(attention_mask=attention_mask, **changed)
        assert torch.equal(found, model.generate(input_ids, attention_mask=attention_mask))
    found, expected = (m.generate(input_ids, output_history=True, num_iterations=3) for m in (static, model))
    assert len(found.history) == 3
    assert torch.equal(found.history[-1].tokens, expected.history[-1].tokens)

    class Reranker:
        def score(self, input_ids, attention_mask, candidate_ids):
            assert attention_mask.shape == input_ids.shape
            return -candidate_ids.ne(1).sum(dim=1).float()

    assert torch.equal(*(m.generate(input_ids, reranker=Reranker()) for m in (static, model)))


def test_masks_of_another_shape_are_refused():
    model = random_model(12)
    static = StaticShapeJMNat(model)
    input_ids = torch.tensor([[5, 6, 7, 8, 2]])
    outputs = static.get_encoder()(input_ids)
    for shape in ((1, 3), (1, 7), (2, 5)):
        mask, message = torch.ones(shape), rf"\({shape[0]}, {shape[1]}\) but must have that of the tokens, \(1, 5\)"
        with pytest.raises(ValueError, match=message):
            static.generate(input_ids, attention_mask=mask)
        with pytest.raises(ValueError, match=message):
            static.get_encoder()(input_ids, mask)
        with pytest.raises(ValueError, match=message):
            static.generate(input_ids, attention_mask=mask, encoder_outputs=outputs)
    for shape in ((2, 5), (1, 9)):
        with pytest.raises(ValueError, match=rf"\({shape[0]}, {shape[1]}\) but must have .* \(1, 8\)"):
            static.generate(attention_mask=torch.ones(shape), encoder_outputs=outputs)
    with pytest.raises(ValueError, match=r"input_ids has shape \(2, 5\), which does not fit \(1, 8, 16\)"):
        static.generate(input_ids.repeat(2, 1), encoder_outputs=outputs)
    expected = model.generate(input_ids)
    assert torch.equal(static.generate(attention_mask=torch.ones(1, 5), encoder_outputs=outputs), expected)


def test_the_generation_configuration_is_the_model_s():
    model = random_model(13)
    static = StaticShapeJMNat(model)
    input_ids = torch.tensor([[5, 6, 7, 8, 2]])
    for which, passes in ((model, 2), (static, 3)):
        which.generation_config = JMNatGenerationConfig(num_iterations=passes, return_dict_in_generate=True)
        assert (
            model.generate(input_ids).num_passes.tolist() == static.generate(input_ids).num_passes.tolist() == [passes]
        )


def test_a_copied_source_is_decoded():
    model = random_model(3, decoder_input="source_copy")
    sources = random_sources(model, 3, 3)
    assert_same(*(translate(m, sources, num_iterations=1) for m in (StaticShapeJMNat(model), model)))


def test_half_precision_equals_plain_decoding():
    model = random_model(4).to(torch.bfloat16)
    sources = random_sources(model, 2, 4)
    found, expected = (translate(m, sources, num_iterations=2) for m in (StaticShapeJMNat(model), model))
    assert torch.equal(found.candidate_lengths, expected.candidate_lengths)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=0, atol=0.1)


def test_buckets_by_hand():
    assert [coarse_bucket(size) for size in (1, 7, 8, 9, 10, 15, 17, 33, 100, 128)] == [
        *(1, 7, 8, 10, 10, 16, 20, 40, 112, 128)
    ]
    assert [length_bucket(size, 512) for size in (1, 8, 9, 64, 65, 129, 500)] == [8, 8, 16, 64, 80, 160, 512]
    assert [length_bucket(size, 12) for size in (3, 9, 12, 13)] == [8, 12, 12, 13]
    for size in range(1, 600):
        assert size <= coarse_bucket(size) < 1.25 * size
        assert size <= length_bucket(size, 4096) < max(size + 8, 1.25 * size)


def test_padding_of_leading_dimensions():
    found = pad_to(torch.ones(2, 3, 4), (3, 5), value=7)
    assert found.shape == (3, 5, 4)
    assert found[:2, :3].eq(1).all()
    assert found[2].eq(7).all()
    assert found[:, 3:].eq(7).all()
    same = torch.ones(2, 3)
    assert pad_to(same, (2, 3)) is same


class FakeGraph:
    """Stands for `CapturedGraph` where there is no GPU: copies what comes in, calls the captured function."""

    captured = []
    replayed = []

    def __init__(self, function, inputs, pool, stream, warm_up_calls=2):
        self.function, self.inputs = function, [tensor.clone() for tensor in inputs]
        self.captured.append([tuple(tensor.shape) for tensor in inputs])
        function(*self.inputs)

    def __call__(self, *inputs):
        self.replayed.append(len(inputs))
        for static, tensor in zip(self.inputs, inputs, strict=True):
            assert static.shape == tensor.shape
            static.copy_(tensor)
        return self.function(*self.inputs)


@pytest.fixture
def fake_graphs(monkeypatch):
    monkeypatch.setattr("modeling_jmnat.inference.cuda_graphs.CapturedGraph", FakeGraph)
    monkeypatch.setattr(FakeGraph, "captured", [])
    monkeypatch.setattr(FakeGraph, "replayed", [])

    def with_graphs(model, max_graphs=256):
        static = StaticShapeJMNat(model, max_graphs)
        static.graphs.captures, static.graphs.pool, static.graphs.stream = True, None, None
        return static

    return with_graphs


def test_graphs_are_shared_by_sentences_of_a_bucket(fake_graphs):
    model = random_model(5, max_position_embeddings=64, max_target_length=40)
    static = fake_graphs(model)
    for count, target in ((1, 3), (1, 8), (1, 9), (1, 16), (1, 4)):
        sources = random_sources(model, count, target, longest=7)
        options = {"num_iterations": 2, "num_length_candidates": 1, "target_lengths": torch.full((count,), target)}
        assert_same(translate(static, sources, **options), translate(model, sources, **options))
    decoders = [shapes for shapes in FakeGraph.captured if len(shapes) == 3]
    assert len(FakeGraph.captured) - len(decoders) == 1
    assert decoders == [[(1, 1), (1, 8, 16), (1, 8)]] * 2  # targets up to 8, and up to 16
    translate(static, sources, **{**options, "num_iterations": 3})
    assert len(FakeGraph.captured) == 4


def test_passes_are_skipped_once_all_rows_have_stopped(fake_graphs):
    model = random_model(11)
    static = fake_graphs(model)
    sources = random_sources(model, 3, 11)
    rules = {"early_stop": True, "num_iterations": 12, "num_length_candidates": 2}
    for _ in range(2):  # captured, then replayed with what the first time has left behind
        FakeGraph.replayed.clear()
        found = translate(static, sources, **rules)
        assert_same(found, translate(model, sources, **rules))
        passes = int(max(translate(model, [source], **rules).num_passes.max() for source in sources))
        assert 2 <= passes < 12
        # The encoder with ids and mask; the first pass with four tensors; the others and the end with none.
        assert FakeGraph.replayed == [2, 4] + [0] * (passes - 1) + [0]
    assert len(static.graphs.graphs) == 2
    assert len(FakeGraph.captured) == 1 + 12 + 1
    others = random_sources(model, 3, 12)
    assert_same(translate(static, others, **rules), translate(model, others, **rules))


def test_rightful_repeats_are_not_recorded(fake_graphs):
    """A graph must see those of the present sources."""
    model = random_model(11)
    static = fake_graphs(model)
    for seed in range(4):
        for rules in (REPEAT_RULES, {**REPEAT_RULES, "early_stop": True}):
            sources = [[5 + seed, 5 + seed, 9, 9, 2], *random_sources(model, 2, seed)]
            options = {**rules, "num_iterations": 4, "target_lengths": torch.tensor([8, 8, 8])}
            assert_same(translate(static, sources, **options), translate(model, sources, **options))
    assert len(static.graphs.graphs) <= 2 * 2 + 1  # of sources up to 8 and beyond


def test_the_cache_is_bounded(fake_graphs):
    model = random_model(6)
    static = fake_graphs(model, max_graphs=2)
    for count in (1, 2, 3, 1):
        sources = random_sources(model, count, 6)
        assert_same(*(translate(m, sources, num_iterations=2) for m in (static, model)))
    assert len(static.graphs.graphs) == 2
    assert len(FakeGraph.captured) == 2 * 4  # the first shapes were dropped and captured again
    with pytest.raises(ValueError, match="max_graphs=0 must be at least 1"):
        StaticShapeJMNat(model, max_graphs=0)


def test_a_failing_capture_warns_once_and_decoding_continues(monkeypatch, fake_graphs):
    model = random_model(7)
    static = fake_graphs(model)

    def fail(*args):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr("modeling_jmnat.inference.cuda_graphs.CapturedGraph", fail)
    sources = random_sources(model, 2, 7)
    with pytest.warns(UserWarning, match="cannot be used.*not permitted when stream is capturing$"):
        found = translate(static, sources)
    assert_same(found, translate(model, sources))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(translate(static, sources), found)


def test_graphs_are_recorded_on_the_device_of_their_stream(monkeypatch):
    current, seen = [torch.device("cuda:0")], []

    @contextmanager
    def on_device(device):
        current.append(device)
        yield
        current.pop()

    @contextmanager
    def recorded(*graph, **options):
        seen.append(("graph", current[-1].index))
        yield

    def current_stream():
        seen.append(("stream", current[-1].index))
        return stream

    stream = SimpleNamespace(device=torch.device("cuda:1"), wait_stream=lambda other: None)
    fakes = {"device": on_device, "stream": nullcontext, "graph": recorded, "current_stream": current_stream}
    for name, fake in {**fakes, "CUDAGraph": object}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    CapturedGraph(lambda: seen.append(("call", current[-1].index)), (), None, stream)
    assert seen == [("stream", 1), ("call", 1), ("call", 1), ("stream", 1), ("graph", 1), ("call", 1)]
    assert current == [torch.device("cuda:0")]


def test_wrong_models_are_refused():
    with pytest.raises(ValueError, match="training mode"):
        StaticShapeJMNat(random_model(8).train())
    with pytest.raises(ValueError, match="must be a JMNatForConditionalGeneration"):
        StaticShapeJMNat(torch.nn.Linear(1, 1))
    assert not GraphCache(torch.device("cpu")).captures
    assert isinstance(StaticShapeJMNat(random_model(8)).model, JMNatForConditionalGeneration)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("rules", [{}, {"early_stop": True}, REPEAT_RULES, {**REPEAT_RULES, "early_stop": True}])
def test_graphs_equal_plain_decoding_on_a_gpu(rules):
    model = random_model(9, max_target_length=30, max_position_embeddings=64).cuda()
    static = StaticShapeJMNat(model)
    for seed in range(6):
        input_ids, attention_mask = (x.cuda() for x in pad(random_sources(model, 1 + 4 * (seed % 2), seed, 14)))
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "return_dict_in_generate": True}
        for num_iterations in (1, 4):
            options = {**inputs, **rules, "num_iterations": num_iterations}
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = static.generate(**options)
            expected = model.generate(**options)
            assert torch.equal(found.sequences, expected.sequences)
            torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=0, atol=1e-4)
    assert static.graphs.captures


@pytest.mark.parametrize("rules", [{}, {"prune_candidates": 2}, {"update_all": True}, REPEAT_RULES])
def test_no_pass_synchronises_with_the_device(rules):
    """Tensors of the meta device have no values: whatever wanted one, as a graph cannot, would fail."""
    model = random_model(10).to("meta")
    options = JMNatOptions(num_iterations=4, num_length_candidates=3, num_return_sequences=2, **rules)
    source_mask = torch.ones(2, 8, dtype=torch.bool, device="meta")
    states = model.model.encoder(torch.zeros(2, 8, dtype=torch.long, device="meta"), source_mask).last_hidden_state
    lengths = torch.zeros(2, 3, dtype=torch.long, device="meta")
    output, ends = model._decode(options, lengths, states, source_mask, num_positions=8)
    assert output.sequences.shape == (4, 8)
    assert output.sequences.device.type == "meta"
    assert ends.shape == (4,)
    for stopping in ({"early_stop": True}, {"confidence_threshold": 0.5}):
        suppressed = model._suppressed_tokens(options, lengths.device)
        unused = torch.zeros_like(lengths[:, 0], dtype=torch.bool)
        options = replace(options, **stopping)
        rightful = model._rightful_repeats(options, source_mask, source_mask.long())
        decoding = FixedRows(model, options, lengths, states, source_mask, suppressed, 8, rightful, unused=unused)
        for iteration in range(4):
            decoding.one_pass(iteration)
        assert decoding.stopped.shape == (6,)
