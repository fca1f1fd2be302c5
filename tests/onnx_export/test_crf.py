"""The graphs of a model with a CRF against the network."""

import numpy as np
import pytest
import torch

from modeling_jmnat import ORTJMNatForConditionalGeneration
from tests.helpers.random_models import ARCHITECTURES, pad, random_model, random_sources
from tests.onnx_export.test_export import (
    AT_ONCE,
    OPTIONS,
    assert_alike_in_every_batch,
    assert_same,
    decode,
    export_onnx,
    int8_twin,
    pass_by_pass,
)

onnx = pytest.importorskip("onnx", reason="the extra `bench` is not installed")

from modeling_jmnat.configuration_jmnat import resolve_options  # noqa: E402
from modeling_jmnat.inference.onnx_runtime import load_session, translator_inputs  # noqa: E402
from modeling_jmnat.inference.translator_options import OPTIONS_FILE, translator_feeds  # noqa: E402
from modeling_jmnat.onnx_export.whole_translation import HISTORY  # noqa: E402


@torch.no_grad()
def model_with_crf(seed=0, **fields):
    """Its logits are halved: among tokens that are all but certain, rounding would decide which are masked again."""
    model = random_model(seed, crf_rank=3, **fields)
    decoder = model.model.decoder
    last_norm = decoder.layers[-1].final_layer_norm if decoder.layer_norm is None else decoder.layer_norm
    for parameter in last_norm.parameters():
        parameter.div_(2.0)
    return model


def both(folder, seed=0, int8=False, **fields):
    model = model_with_crf(seed, **fields)
    export_onnx(model, folder, int8=int8)
    return model, ORTJMNatForConditionalGeneration.from_pretrained(folder, int8=int8)


@pytest.mark.parametrize("architecture", ["jmnat", "pre_norm", "no_positional", "self_visible", "marian"])
@pytest.mark.parametrize("vocab_size", [23, 300])
def test_every_number_of_passes_candidates_and_tokens_equals_the_network(architecture, vocab_size, tmp_path):
    model, exported = both(tmp_path, 80, vocab_size=vocab_size, **ARCHITECTURES[architecture])
    sources, by_passes = random_sources(model, 8, 80), pass_by_pass(tmp_path)
    seen = set()
    for passes, lengths, beam in [(1, 1, 8), (1, 3, 2), (2, 1, 2), (2, 3, 8), (4, 1, 400), (4, 3, 8), (2, 2, 1)]:
        options = {"num_iterations": passes, "num_length_candidates": lengths, "crf_beam": beam}
        expected, found = decode(model, sources, **options), decode(exported, sources, **options)
        assert not {"encoder", "decoder", "positions"} & vars(exported).keys()  # they have not been loaded
        assert_same(expected, found)
        assert_same(expected, decode(by_passes, sources, **options))
        plain = decode(model, sources, **options | {"crf_beam": 1})
        seen.add((beam > 1, plain.sequences.tolist() == expected.sequences.tolist()))
    assert seen == {(False, True), (True, False)}


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() | AT_ONCE.keys()))
def test_every_option_equals_the_network(name, tmp_path):
    model, exported = both(tmp_path, 81, ngram_size=2)
    sources, options = random_sources(model, 10, 81), OPTIONS.get(name) or AT_ONCE[name]
    expected = decode(model, sources, **options)
    assert_same(expected, decode(exported, sources, **options))
    assert_same(expected, decode(pass_by_pass(tmp_path), sources, **options))


@pytest.mark.parametrize("beam", [1, 3, 8])
def test_given_tokens_and_lengths(beam, tmp_path):
    model, exported = both(tmp_path, 82)
    mask, end, padding = (getattr(model.config, f"{name}_token_id") for name in ("mask", "eos", "pad"))
    canvas = torch.tensor([[mask, 20, mask, mask, 21, end], [mask, mask, 22, end, padding, padding]])
    input_ids, attention_mask = pad(random_sources(model, 2, 82), "left", extra=3)
    given = {"attention_mask": attention_mask, "return_dict_in_generate": True, "crf_beam": beam}
    for passes in (1, 3):
        options = {**given, "num_iterations": passes}
        infilled = [which.generate(input_ids, decoder_input_ids=canvas, **options) for which in (model, exported)]
        assert_same(*infilled)
        fixed = (canvas != mask) & (canvas != padding)
        assert torch.equal(infilled[1].sequences[fixed[:, : infilled[1].sequences.shape[1]]], canvas[fixed])
        options["target_lengths"] = torch.tensor([2, 12])
        assert_same(*(which.generate(input_ids, **options) for which in (model, exported)))


def test_a_sentence_is_translated_alike_in_every_batch(tmp_path):
    _, exported = both(tmp_path, 83)
    assert_alike_in_every_batch(exported, random_sources(exported, 8, 83))


def inputs_of(path):
    tensors = {value.name: value.type.tensor_type for value in onnx.load(path).graph.input}
    return {
        name: (tensor.elem_type, [dim.dim_value or None for dim in tensor.shape.dim])
        for name, tensor in tensors.items()
    }


def test_only_a_model_with_a_crf_has_its_inputs(tmp_path):
    model, _ = both(tmp_path / "crf", 84)
    plain = random_model(84)
    export_onnx(plain, tmp_path / "plain")
    for graph, names in (("translator", {"crf_beam"}), ("decoder", {"crf_beam", "valid"})):
        found, without = (inputs_of(tmp_path / folder / f"{graph}.onnx") for folder in ("crf", "plain"))
        assert found.keys() - without.keys() == names
        assert found["crf_beam"] == (onnx.TensorProto.INT64, [1])
    exported = ORTJMNatForConditionalGeneration.from_pretrained(tmp_path / "plain")
    sources = random_sources(plain, 4, 84)
    for beam in (1, 3):
        assert_same(decode(plain, sources), decode(exported, sources, crf_beam=beam))


def test_the_default_is_that_of_the_generation_configuration(tmp_path):
    model = model_with_crf(85)
    model.generation_config.update(num_iterations=2, num_length_candidates=2, crf_beam=3)
    export_onnx(model, tmp_path)
    input_ids, attention_mask = pad(random_sources(model, 6, 85))
    feeds = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.long().numpy()}
    session = load_session(tmp_path / "translator.onnx", 1)
    for given, options in (({}, {}), ({"crf_beam": np.array([8])}, {"crf_beam": 8})):
        sequences, *_ = session.run(None, feeds | given)
        expected = model.generate(input_ids, attention_mask=attention_mask, **options)
        assert sequences[:, 0].tolist() == expected.tolist()


@pytest.mark.parametrize("beam", [1, 8])
def test_the_graph_for_browsers_has_the_same_passes(beam, tmp_path):
    model = model_with_crf(86)
    model.generation_config.update(num_iterations=3, num_length_candidates=2)
    export_onnx(model, tmp_path, for_browsers=True)
    input_ids, attention_mask = pad(random_sources(model, 5, 86))
    session = load_session(tmp_path / "browser_translator.onnx", 1)
    names = [output.name for output in session.get_outputs()]
    feeds = translator_feeds(tmp_path / OPTIONS_FILE, input_ids, attention_mask, crf_beam=beam)
    assert feeds["crf_beam"].shape == ()
    assert translator_inputs(model, resolve_options(model.generation_config)).keys() < feeds.keys()
    found = dict(zip(names, session.run(names, feeds), strict=True))
    options = {"output_history": True, "return_dict_in_generate": True, "crf_beam": beam}
    expected = model.generate(input_ids, attention_mask=attention_mask, **options)
    for output, values in zip(HISTORY, zip(*expected.history, strict=True), strict=True):
        torch.testing.assert_close(torch.from_numpy(found[output]), torch.stack(values), rtol=1e-4, atol=1e-4)


def test_int8_is_its_twin(tmp_path):
    """But for the embeddings of the CRF, two tables that become one with common scales."""
    wide = {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
    model, exported = both(tmp_path, 87, int8=True, **wide)
    sources, options = random_sources(model, 40, 87), {"num_iterations": 1, "num_length_candidates": 1}

    def tokens_of(which, **others):  # activations are scaled by the batch
        lengths = [torch.tensor([len(source)]) for source in sources]
        outputs = [
            decode(which, [x], **options, **others, target_lengths=n) for x, n in zip(sources, lengths, strict=True)
        ]
        return [output.sequences[0].tolist() for output in outputs]

    def share_of_same(some, others):
        same = [x == y for one, other in zip(some, others, strict=True) for x, y in zip(one, other, strict=False)]
        return sum(same) / len(same)

    whole, by_passes = (decode(which, sources, **options) for which in (exported, pass_by_pass(tmp_path, int8=True)))
    assert torch.equal(whole.sequences, by_passes.sequences)
    torch.testing.assert_close(whole.sequences_scores, by_passes.sequences_scores, rtol=0, atol=0.01)
    float32, plain, int8 = tokens_of(model), tokens_of(model, crf_beam=1), tokens_of(exported)
    assert share_of_same(int8, float32) > 0.75 > share_of_same(plain, float32)
    assert share_of_same(int8, tokens_of(int8_twin(model))) > 0.96
