"""The graph for browsers: its passes against those of PyTorch, and its options as the JSON file beside it has them."""

import json

import numpy as np
import pytest
import torch

from modeling_jmnat.configuration_jmnat import resolve_options
from modeling_jmnat.inference.onnx_runtime import load_session, other_options, translator_inputs
from modeling_jmnat.inference.translator_options import OPTIONS_FILE, translator_feeds
from tests.helpers.random_models import pad, random_model, random_sources
from tests.onnx_export.test_export import OPTIONS, export_onnx

pytest.importorskip("onnxscript", reason="the extra `bench` is not installed")

from modeling_jmnat.onnx_export.export import write_defaults  # noqa: E402
from modeling_jmnat.onnx_export.whole_translation import HISTORY  # noqa: E402


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with its own options, and the folder of its graphs."""
    folder = tmp_path_factory.mktemp("exported")
    model = random_model(70, ngram_size=3)
    model.generation_config.update(num_iterations=3, length_normalization=0.7, suppress_tokens=[0, 1, 4, 9])
    model.generation_config.update(repeatable_tokens=[5, 6, 11], collapse_repeats=True)
    export_onnx(model, folder, for_browsers=True)
    return model, folder


def run(folder, feeds):
    session = load_session(folder / "browser_translator.onnx", 1)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_history_is_that_of_the_network(name, exported):
    model, folder = exported
    given = {"num_iterations": 4, "num_length_candidates": 3, **OPTIONS[name]}
    options = resolve_options(given, model.generation_config)
    if other_options(options):
        pytest.skip(f"passes with {', '.join(other_options(options))} are not in the graph")
    input_ids, attention_mask = pad(random_sources(model, 5, 70))
    expected = model.generate(
        input_ids, attention_mask=attention_mask, output_history=True, return_dict_in_generate=True, **given
    )
    feeds = translator_inputs(model, options)
    vectors = json.loads((folder / OPTIONS_FILE).read_text())
    feeds = {x: value if "runs" in vectors[x] else value.reshape(()) for x, value in feeds.items()}
    found = run(folder, {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.long().numpy(), **feeds})
    assert torch.from_numpy(found["sequences"]).flatten(0, 1).tolist() == expected.sequences.tolist()
    history = [torch.stack(values) for values in zip(*expected.history, strict=True)]
    for output, values in zip(HISTORY, history, strict=True):
        torch.testing.assert_close(torch.from_numpy(found[output]), values, rtol=1e-4, atol=1e-4)


def test_defaults_and_options_feed_the_graph(exported):
    model, folder = exported
    input_ids, attention_mask = pad(random_sources(model, 4, 71))
    for options in ({}, {"num_iterations": 2, "num_length_candidates": 2}, {"length_normalization": 0}):
        found = run(folder, translator_feeds(folder / OPTIONS_FILE, input_ids, attention_mask, **options))
        expected = model.generate(input_ids, attention_mask=attention_mask, **options)
        assert found["sequences"][:, 0].tolist() == expected.tolist()
    lengths = torch.tensor([3, 5, 4, 9])
    found = run(folder, translator_feeds(folder / OPTIONS_FILE, input_ids, attention_mask, target_lengths=lengths))
    expected = model.generate(input_ids, attention_mask=attention_mask, target_lengths=lengths)
    assert found["sequences"][:, 0].tolist() == expected.tolist()
    alone = run(folder, translator_feeds(folder / OPTIONS_FILE, [[5, 6, 7, 2]]))
    assert alone["sequences"][:, 0].tolist() == model.generate(torch.tensor([[5, 6, 7, 2]])).tolist()


def test_saved_defaults_are_the_inputs_of_the_model_and_follow_tuning(exported):
    model, folder = exported
    for passes in (3, 7):
        model.generation_config.num_iterations = passes
        if passes == 7:
            write_defaults(model, folder)
        feeds = translator_feeds(folder / OPTIONS_FILE, [[2]])
        for name, value in translator_inputs(model, resolve_options(model.generation_config)).items():
            np.testing.assert_array_equal(feeds[name], value if feeds[name].ndim else value.reshape(()))
            assert feeds[name].dtype == value.dtype
    assert feeds["num_iterations"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "option 'num_beams' is not an input of this graph, only num_iterations, "),
        ({"num_iterations": 2.5}, "num_iterations=2.5 must be a scalar of type int64"),
        ({"num_iterations": [2]}, r"num_iterations=\[2\] must be a scalar"),
        ({"remask_adjacent": 1}, "remask_adjacent=1 must be a scalar of type bool"),
        ({"token_bias": 0.5}, "token_bias=0.5 must be a vector of type float32"),
        ({"length_offset": "1"}, "length_offset='1' must be a scalar of type float32"),
    ],
)
def test_wrong_options_are_refused(options, message, exported):
    with pytest.raises(ValueError, match=message):
        translator_feeds(exported[1] / OPTIONS_FILE, [[5, 2]], **options)


def test_native_graphs_have_no_history(exported):
    names = {output.name for output in load_session(exported[1] / "translator.onnx", 1).get_outputs()}
    assert names.isdisjoint(HISTORY)
