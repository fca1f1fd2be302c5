"""The ONNX graphs against the network they were written from, for every architecture; the int8 ones by their error."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import accelerate
import numpy as np
import pytest
import sacrebleu
import torch
import torch.nn.functional as F

from modeling_jmnat import JMNatForConditionalGeneration, ORTJMNatForConditionalGeneration
from modeling_jmnat.configuration_jmnat import JMNatOptions
from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.inference.translation import translate_lines
from modeling_jmnat.utils.atomic_files import UNFINISHED
from modeling_jmnat.utils.locks import folder_lock
from modeling_jmnat.utils.text_files import read_parallel
from tests.helpers.random_models import ARCHITECTURES, pad, random_model, random_sources
from tests.helpers.translation_samples import load_script, save_translators, tiny_student, tiny_tokenizer

onnx = pytest.importorskip("onnx", reason="the extra `bench` is not installed")
pytest.importorskip("onnxscript", reason="the extra `bench` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `bench` is not installed")

from onnx import TensorProto  # noqa: E402

from modeling_jmnat.inference.onnx_runtime import (  # noqa: E402
    PASS,
    POSITIONS_FILE,
    TRANSLATOR_OPTIONS,
    VOCABULARY_BLOCK,
    graph_file,
    load_session,
)
from modeling_jmnat.onnx_export.export import export_onnx  # noqa: E402
from modeling_jmnat.onnx_export.graph_writer import GraphWriter, quantise_rows  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "hub_card" / "de-en"
CORPUS = ROOT / "run_scripts" / "demo_data" / "libreoffice-help"
OPTIONS = {
    "paper": {},
    "one_pass": {"num_iterations": 1, "num_length_candidates": 1},
    "pruned": {"prune_candidates": 2},
    "rows_leave": {"early_stop": True, "confidence_threshold": 0.9},
    "n_best": {"num_return_sequences": 3, "remask_adjacent": False},
    "rows_leave_pruned": {"early_stop": True, "prune_candidates": 1, "prune_to": 2},
    "update_all": {"update_all": True, "remask_schedule": "cosine"},
    "all_tokens": {"suppress_tokens": []},
    "suppressed": {"suppress_tokens": [0, 1, 4, 7, 11, 15]},
    "consensus": {"consensus_weight": 5.0, "num_length_candidates": 4},
    "consensus_n_best": {"consensus_weight": 5.0, "num_return_sequences": 3, "length_normalization": 1.5},
    "consensus_of_long_texts": {"consensus_weight": 5.0, "consensus_min_length": 5, "num_length_candidates": 3},
    "consensus_of_one": {"consensus_weight": 5.0, "num_length_candidates": 1},
    "pruned_to_two": {"prune_candidates": 1, "prune_to": 2, "num_length_candidates": 5, "consensus_weight": 5.0},
    "pruned_n_best": {"prune_candidates": 2, "num_return_sequences": 2, "num_length_candidates": 5},
    "pruned_after_the_last": {"prune_candidates": 4, "prune_to": 2, "consensus_weight": 5.0},
    "pruned_too_late": {"prune_candidates": 5, "consensus_weight": 5.0},
    "pruned_to_more_than_there_are": {"prune_candidates": 2, "prune_to": 9},
    "remask_repeats": {"remask_repeats": True, "num_iterations": 6, "repeatable_tokens": [5, 6, 7]},
    "collapse_repeats": {"collapse_repeats": True, "num_iterations": 2, "num_return_sequences": 3},
    "delete_repeats": {"delete_repeats": True, "num_return_sequences": 3, "length_shift": 1},
    "delete_repeats_of_one_pass": {"delete_repeats": True, "num_iterations": 1},
    "every_rule_of_repeats": {"remask_repeats": True, "delete_repeats": True, "collapse_repeats": True},
    "repeats_pruned_before": {"delete_repeats": True, "collapse_repeats": True, "prune_candidates": 2, "prune_to": 2},
    "repeats_pruned_then": {"delete_repeats": True, "collapse_repeats": True, "prune_candidates": 3, "prune_to": 2},
    "repeats_pruned_after": {"delete_repeats": True, "prune_candidates": 4, "prune_to": 2, "consensus_weight": 5.0},
    "repeats_of_rows_that_leave": {"delete_repeats": True, "remask_repeats": True, "early_stop": True},
}


def both(folder, seed=0, int8=False, **fields):
    model = random_model(seed, **fields)
    export_onnx(model, folder, int8=int8)
    return model, ORTJMNatForConditionalGeneration.from_pretrained(folder, int8=int8)


def decode(model, sources, **options):
    input_ids, attention_mask = pad(sources)
    options = {"num_iterations": 4, "num_length_candidates": 3, **options}
    return model.generate(input_ids, attention_mask=attention_mask, return_dict_in_generate=True, **options)


def pass_by_pass(folder, int8=False):
    """The plain twin of an export: each pass is a call of its own."""
    exported = ORTJMNatForConditionalGeneration.from_pretrained(folder, int8=int8)
    exported.generate_at_once = lambda *args, **kwargs: None
    return exported


def use_all_files(folder):
    """Decode with an option that makes passes run one by one."""
    exported = ORTJMNatForConditionalGeneration.from_pretrained(folder)
    decode(exported, [[5, 6, 2]], early_stop=True)


def assert_same(expected, found):
    for name in ("sequences", "lengths", "num_passes", "candidate_lengths", "best_candidates"):
        assert torch.equal(expected[name], found[name]), name
    for name in ("sequences_scores", "token_scores"):
        torch.testing.assert_close(expected[name], found[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_equals_the_network(architecture, tmp_path):
    for seed in (31, 32):
        model, exported = both(tmp_path, seed, **ARCHITECTURES[architecture])
        sources = random_sources(model, 12, seed)
        assert_same(decode(model, sources), decode(exported, sources))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_equals_the_network(name, tmp_path):
    model, exported = both(tmp_path, 33, ngram_size=3)
    sources = random_sources(model, 10, 33)
    output = decode(exported, sources, **OPTIONS[name])
    assert_same(decode(model, sources, **OPTIONS[name]), output)
    if name == "rows_leave":
        assert len(set(output.num_passes.tolist())) > 1  # otherwise nothing has been tested


# Those of OPTIONS that the graph of a whole translation knows, and what only it is asked for.
AT_ONCE = {name: options for name, options in OPTIONS.items() if options.keys() <= set(TRANSLATOR_OPTIONS)} | {
    "alone": {"remask_adjacent": False},
    "score": {"length_normalization": 0.5, "length_offset": 3.0},
    "short": {"max_length": 5},
    "two_tokens": {"max_length": 3, "num_length_candidates": 3},
    "shifted_far": {"length_shift": 9, "num_length_candidates": 5},
    "shifted_back": {"length_shift": -3, "num_length_candidates": 5},
    "fewer_lengths_than_candidates": {"max_length": 4, "num_length_candidates": 9, "consensus_weight": 5.0},
    "more_passes_than_tokens": {"num_iterations": 20, "max_length": 8},
    "given": {"target_lengths": [2, 40, 6, 9, 3, 4, 5, 7, 8, 10], "num_length_candidates": 5},
}


@pytest.mark.parametrize("ngram_size", [1, 2, 3])
@pytest.mark.parametrize("name", AT_ONCE)
def test_a_whole_translation_equals_its_passes(name, ngram_size, tmp_path):
    for seed in (61, 62):
        model, exported = both(tmp_path, seed, ngram_size=ngram_size)
        sources = random_sources(model, 10, seed)
        output = decode(exported, sources, **AT_ONCE[name])
        assert not {"encoder", "decoder", "positions"} & vars(exported).keys()  # they have not been loaded
        assert_same(decode(pass_by_pass(tmp_path), sources, **AT_ONCE[name]), output)
        assert_same(decode(model, sources, **AT_ONCE[name]), output)


def test_the_graph_limits_candidates_to_the_number_of_lengths(tmp_path):
    model, exported = both(tmp_path, 61)
    sources = random_sources(model, 10, 61)
    feeds = exported.source_feeds(*pad(sources))
    feeds |= {"num_iterations": np.array(4), "num_length_candidates": np.array([9]), "max_length": np.array([4])}
    names = [output.name for output in exported.translator.get_outputs()]
    found = dict(zip(names, exported.translator.run(None, feeds), strict=True))
    expected = decode(model, sources, num_length_candidates=9, max_length=4)
    assert found["candidate_lengths"].shape == (10, 3)
    assert found["candidate_lengths"].tolist() == expected.candidate_lengths.tolist()
    assert found["sequences"][:, 0].tolist() == expected.sequences.tolist()


def test_a_list_of_ids_that_grows_in_place_is_read_again(tmp_path):
    """The inputs of the last call are kept, which a list shared with the generation config must not outlive."""
    model, exported = both(tmp_path, 64)
    sources = random_sources(model, 10, 64)
    exported.generation_config.suppress_tokens = [0, 1, 4]
    common = decode(exported, sources).sequences.flatten().mode().values.item()
    for token in (5, common):
        exported.generation_config.suppress_tokens.append(token)
        assert_same(decode(model, sources, suppress_tokens=[0, 1, 4, token]), decode(exported, sources))
        exported.generation_config.suppress_tokens.pop()


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - AT_ONCE.keys()))
def test_other_options_run_pass_by_pass(name, tmp_path):
    _, exported = both(tmp_path, 63)
    decode(exported, random_sources(exported, 3, 63), **OPTIONS[name])
    assert {"encoder", "decoder", "positions"} <= vars(exported).keys()


def test_a_graph_of_an_earlier_export_is_fed_what_it_knows(tmp_path, monkeypatch):
    """It has no inputs for repeats and `length_shift`: with these options passes run one by one."""
    model, exported = both(tmp_path, 63)
    sources, translator = random_sources(model, 6, 63), exported.translator
    later = (
        "remask_repeats",
        "delete_repeats",
        "collapse_repeats",
        "length_shift",
        "consensus_min_length",
        "repeatable",
    )

    class Earlier:
        calls = 0

        def get_overridable_initializers(self):
            return [value for value in translator.get_overridable_initializers() if value.name not in later]

        def run(self, outputs, feeds):
            assert not feeds.keys() & set(later)
            Earlier.calls += 1
            return translator.run(outputs, feeds)

    monkeypatch.setitem(vars(exported), "translator", Earlier())
    for options in ({}, {"collapse_repeats": True}, {"length_shift": 2}, {"repeatable_tokens": [5, 6]}):
        assert_same(decode(model, sources, **options), decode(exported, sources, **options))
    assert Earlier.calls == 2


def test_the_graph_of_a_whole_translation_needs_nothing_but_onnx_runtime(tmp_path):
    """Its defaults are those of the generation configuration."""
    model = random_model(64)
    model.generation_config.update(
        num_iterations=3, num_length_candidates=5, remask_adjacent=False, num_return_sequences=2,
        length_normalization=0.0, consensus_weight=3.0, max_length=7, suppress_tokens=[0, 1, 4, 9],
    )  # fmt: skip
    export_onnx(model, tmp_path)
    input_ids, attention_mask = pad(random_sources(model, 6, 64))
    expected = model.generate(input_ids, attention_mask=attention_mask, return_dict_in_generate=True)
    feeds = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.long().numpy()}
    sequences, scores, *_ = load_session(tmp_path / "translator.onnx", 1).run(None, feeds)
    assert sequences.shape[:2] == scores.shape == (6, 2)
    assert sequences.reshape(12, -1).tolist() == expected.sequences.tolist()
    torch.testing.assert_close(torch.from_numpy(scores).flatten(), expected.sequences_scores, rtol=1e-4, atol=1e-4)


def test_options_are_inputs_of_rank_0_in_the_graph_for_browsers(tmp_path):
    """As a program feeds them that knows neither overridable initialisers nor vectors of one number."""
    model = random_model(66)
    model.generation_config.update(num_iterations=3, num_return_sequences=2, consensus_weight=2.0)
    export_onnx(model, tmp_path, int8=True, for_browsers=True)
    assert (tmp_path / "browser_translator_int8.onnx").is_file()
    onnx.checker.check_model(onnx.load(tmp_path / "browser_translator.onnx"), full_check=True)
    session = load_session(tmp_path / "browser_translator.onnx", 1)
    assert not session.get_overridable_initializers()
    ranks = {value.name: len(value.shape) for value in session.get_inputs()}
    vectors = {"token_bias", "repeatable", "target_lengths"}
    assert {name for name, rank in ranks.items() if rank == 1} == vectors
    input_ids, attention_mask = pad(random_sources(model, 5, 66))
    sources = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.long().numpy()}
    defaults = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "translator.onnx").graph.initializer
        if tensor.name in ranks
    }
    assert defaults.keys() | sources.keys() == ranks.keys()
    for options in ({}, {"num_iterations": 1, "num_length_candidates": 2}, {"max_length": 4, "prune_candidates": 1}):
        given = {name: np.asarray(value, dtype=defaults[name].dtype) for name, value in options.items()}
        scalars = {name: value if name in vectors else value.reshape(()) for name, value in (defaults | given).items()}
        translator = load_session(tmp_path / "translator.onnx", 1)
        names = [output.name for output in translator.get_outputs()]  # the passes are outputs of the other one alone
        found = session.run(names, sources | scalars)
        optional = {name: value.reshape(defaults[name].shape) for name, value in given.items()}
        expected = translator.run(None, sources | optional)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    export_onnx(model, tmp_path)
    assert not list(tmp_path.glob("browser_*"))


@pytest.mark.parametrize("ngram_size", [1, 2])
def test_inputs_of_the_translator_keep_their_names_types_and_shapes(ngram_size, tmp_path):
    """Programs in other languages feed them, and graphs that were exported before are fed the same."""
    export_onnx(random_model(68, ngram_size=ngram_size), tmp_path)
    found = {}
    for value in onnx.load(tmp_path / "translator.onnx").graph.input:
        tensor = value.type.tensor_type
        found[value.name] = tensor.elem_type, [dim.dim_value or None for dim in tensor.shape.dim]
    whole, number, boolean = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
    expected = {name: (whole, [None, None]) for name in ("input_ids", "attention_mask")}
    expected |= {name: (whole, []) for name in ("num_iterations", "prune_candidates", "consensus_min_length")}
    ones = ("num_length_candidates", "num_return_sequences", "prune_to", "max_length")
    expected |= {name: (whole, [1]) for name in ones}
    expected |= {name: (number, []) for name in ("length_offset", "length_normalization", "consensus_weight")}
    expected |= {"token_bias": (number, [VOCABULARY_BLOCK]), "target_lengths": (whole, [None])}
    expected |= {name: (boolean, []) for name in ("remask_repeats", "delete_repeats", "collapse_repeats")}
    expected |= {"repeatable": (boolean, [VOCABULARY_BLOCK]), "length_shift": (whole, [])}
    if ngram_size > 1:
        expected["remask_adjacent"] = (boolean, [])
    assert found == expected


def test_options_that_the_graph_of_a_whole_translation_does_not_know_are_named(tmp_path, caplog):
    model = random_model(67)
    model.generation_config.update(num_iterations=3, remask_adjacent=False)
    export_onnx(model, tmp_path, int8=True)
    assert caplog.messages == []
    model.generation_config.update(early_stop=True, remask_schedule="cosine", update_all=True)
    export_onnx(model, tmp_path, int8=True)
    (message,) = caplog.messages
    assert message.endswith("ignores options of this model: remask_schedule, early_stop, update_all")


def test_it_translates_text_without_pytorch(tmp_path):
    save_translators(tmp_path)
    student = str(tmp_path / "student")
    load_script("export_onnx").main([student])
    text = "ab cde fgh"
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers"), None))
import numpy as np, onnxruntime
from tokenizers import Tokenizer
onnxruntime.set_default_logger_severity(3)
tokenizer = Tokenizer.from_file("{student}/onnx/tokenizer.json")
translator = onnxruntime.InferenceSession("{student}/onnx/translator.onnx")
ids = np.array([tokenizer.encode("{text}").ids])
sequences, *_ = translator.run(None, {{"input_ids": ids, "attention_mask": np.ones_like(ids)}})
print(tokenizer.decode(sequences[0, 0]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    model, tokenizer = load_translator(student)
    expected = tokenizer.decode(model.generate(**tokenizer(text, return_tensors="pt"))[0], skip_special_tokens=True)
    assert expected
    assert result.stdout == expected + "\n"


@pytest.mark.parametrize("int8", [False, True])
def test_operators_of_the_passes_keep_their_names(int8, tmp_path):
    """Everything that runs in each pass; `onnx_profile.py` recognises it by the names."""
    model = random_model(66)
    export_onnx(model, tmp_path, int8=int8)
    session = load_session(tmp_path / graph_file("translator", int8), 1, tmp_path / "record")
    input_ids, attention_mask = pad(random_sources(model, 1, 66))
    for passes in (1, 4):
        feeds = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.long().numpy()}
        session.run(None, {**feeds, "num_iterations": np.array(passes)})
    events = json.loads(Path(session.end_profiling()).read_text())
    runs = Counter(event["name"] for event in events if event["name"].endswith("_kernel_time"))
    assert {count for name, count in runs.items() if PASS in name} == {1 + 4}
    assert {count for name, count in runs.items() if PASS not in name} == {2}


def test_int8_translates_alike_whole_and_by_passes(tmp_path):
    _, exported = both(tmp_path, 65, int8=True)
    sources = random_sources(exported, 20, 65)
    whole, passes = (decode(which, sources, num_iterations=2) for which in (exported, pass_by_pass(tmp_path, True)))
    # A last bit of positional attention may round an activation differently.
    assert torch.equal(whole.sequences, passes.sequences)
    torch.testing.assert_close(whole.sequences_scores, passes.sequences_scores, rtol=0, atol=0.01)


def test_vocabularies_of_more_than_one_block(tmp_path):
    """Ties, the last token and the padding of the last block are where a search by blocks could go wrong."""
    for vocab_size in (VOCABULARY_BLOCK, VOCABULARY_BLOCK + 1, 2 * VOCABULARY_BLOCK - 1):
        model, exported = both(tmp_path, 34, vocab_size=vocab_size)
        sources = random_sources(model, 10, 34)
        expected = decode(model, sources)
        assert_same(expected, decode(exported, sources))
        assert int(expected.sequences.max()) < vocab_size


def graphs_in(graph, around=()):
    """A graph and those inside it, each with those around it, the nearest last."""
    yield graph, around
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs_in(attribute.g, (*around, graph))


@pytest.mark.parametrize(("tied", "tables"), [(True, 2), (False, 3)])
def test_a_table_of_the_vocabulary_is_stored_once_for_its_rows_and_once_for_products(tied, tables, tmp_path):
    model, _ = both(tmp_path, 44, int8=True, vocab_size=200, tie_word_embeddings=tied)
    for name in ("translator.onnx", "translator_int8.onnx"):
        graphs = graphs_in(onnx.load(tmp_path / name).graph)
        stored = [table.dims for graph, _ in graphs for table in graph.initializer]
        assert sum(256 in dims and model.config.d_model in dims for dims in stored) == tables


@pytest.mark.parametrize("crf_rank", [0, 3])
@pytest.mark.parametrize(
    ("name", "product"), [("translator.onnx", "Gemm"), ("translator_int8.onnx", "DynamicQuantizeMatMul")]
)
def test_weights_are_held_where_onnx_runtime_prepares_them(name, product, crf_rank, tmp_path):
    """By the product's own graph or the one directly around it; otherwise it silently takes a third longer."""
    both(tmp_path, 45, int8=True, crf_rank=crf_rank)
    products = 0
    for graph, around in graphs_in(onnx.load(tmp_path / name).graph):
        held = {tensor.name for holder in (graph, *around[-1:]) for tensor in holder.initializer}
        for node in graph.node:
            if node.op_type == product:
                assert node.input[1] in held
                products += len(around) == 2  # those of the passes
    assert products > 0


def assert_alike_in_every_batch(exported, sources):
    """A sentence is translated alone as it is among the others."""
    together = decode(exported, sources)
    for index, source in enumerate(sources):
        alone = decode(exported, [source])
        length = alone.sequences.shape[1]
        assert torch.equal(alone.sequences[0], together.sequences[index, :length])
        assert (together.sequences[index, length:] == exported.config.pad_token_id).all()
        torch.testing.assert_close(alone.sequences_scores[0], together.sequences_scores[index], rtol=1e-4, atol=1e-5)


def test_a_sentence_is_translated_alike_in_every_batch(tmp_path):
    _, exported = both(tmp_path, 35)
    assert_alike_in_every_batch(exported, random_sources(exported, 8, 35))


def test_left_padding_given_lengths_and_rerankers(tmp_path):
    model, exported = both(tmp_path, 36)
    sources = random_sources(model, 5, 36)
    input_ids, attention_mask = pad(sources, "left", extra=45)
    options = {"attention_mask": attention_mask, "num_iterations": 3, "return_dict_in_generate": True}
    options["target_lengths"] = torch.tensor([2, 12, 5, 7, 3])
    assert_same(model.generate(input_ids, **options), exported.generate(input_ids, **options))
    # A mask left out is taken from <pad>; a row of nothing but padding must not become NaN.
    empty = torch.cat([input_ids, torch.full_like(input_ids[:1], model.config.pad_token_id)])
    assert_same(*(which.generate(empty, return_dict_in_generate=True) for which in (model, exported)))


def test_source_ids_are_whole_numbers_of_the_vocabulary(tmp_path):
    _, exported = both(tmp_path, 48)
    input_ids, attention_mask = pad(random_sources(exported, 4, 48))
    vocab_size = exported.config.vocab_size
    for options in ({}, {"early_stop": True}):  # at once, and pass by pass
        expected = exported.generate(input_ids, attention_mask=attention_mask, **options)
        assert torch.equal(exported.generate(input_ids.int(), attention_mask=attention_mask, **options), expected)
        for wrong in (-1, vocab_size, vocab_size + 20):
            message = rf"input_ids holds {wrong}, but ids must lie in \[0, {vocab_size}\)"
            with pytest.raises(ValueError, match=message):
                exported.generate(torch.tensor([[5, wrong, 2]]), **options)


def test_encoder_outputs_may_be_used_again(tmp_path):
    _, exported = both(tmp_path, 37)
    input_ids, attention_mask = pad(random_sources(exported, 4, 37))
    outputs = exported.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
    again = exported.generate(input_ids, attention_mask=attention_mask, encoder_outputs=outputs)
    assert torch.equal(exported.generate(input_ids, attention_mask=attention_mask), again)


def test_a_loop_computes_once_what_its_body_does_not_change():
    graph = GraphWriter("loop")
    given = graph.input("given", (3,))

    def body(inner, iteration, before, count):
        return inner.add("Add", before, inner.add("Exp", given)), inner.add("Add", count, iteration)

    states = (given, TensorProto.FLOAT, (3,)), (graph.constant(torch.tensor(0)), TensorProto.INT64, ())
    after, count = graph.loop("body", graph.constant(torch.tensor(4)), body, *states)
    graph.output("after", after, (3,))
    graph.output("count", count, (), TensorProto.INT64)
    assert [node.op_type for node in graph.nodes] == ["Exp", "Loop", "Identity", "Identity"]
    (body,) = (attribute.g for attribute in graph.nodes[1].attribute)
    assert [node.op_type for node in body.node] == ["Identity", "Add", "Add"]
    session = onnxruntime.InferenceSession(graph.model({}).SerializeToString())
    value = torch.tensor([0.0, 1.0, -2.0])
    after, count = session.run(None, {"given": value.numpy()})
    torch.testing.assert_close(torch.from_numpy(after), value + 4 * value.exp())
    assert count == 0 + 1 + 2 + 3


def test_int8_rounds_each_row_to_its_own_scale():
    weight = torch.tensor([[0.5, -1.27, 0.0], [254.0, -2.0, -3.1], [0.0, 0.0, 0.0], [0.63, 0.64, 0.2]])
    quantised, scales = quantise_rows(weight)
    assert quantised.tolist() == [[50, -127, 0], [127, -1, -2], [0, 0, 0], [63, 64, 20]]
    torch.testing.assert_close(scales[[0, 1, 3]], torch.tensor([0.01, 2.0, 0.01]))
    error = (quantised * scales[:, None] - weight).abs()
    assert (error <= scales[:, None] / 2 * 1.0001).all()


@pytest.mark.parametrize("width", [64, 65, 256])
def test_int8_products_fit_into_16_bits(width):
    """The processor of these tests may have wider sums; others add two products in 16 bits, and cut off the rest."""
    generator = torch.Generator().manual_seed(width)
    weight = torch.randn(50, width, generator=generator)
    weight[25:] = weight[25:].sign() * torch.randint(1, 3, weight[25:].shape, generator=generator)
    quantised, _ = quantise_rows(weight)
    activations = torch.full((2, width), 255)
    activations[1] = torch.randint(0, 256, (width,), generator=generator)
    products = F.pad(activations[:, None] * quantised, (0, width % 2)).unflatten(2, (-1, 2))
    for cut_off in (products.clamp(max=0), products.clamp(min=0), products):
        assert (cut_off.sum(dim=3).clamp(-(2**15), 2**15 - 1) == cut_off.sum(dim=3)).all()
    graph = GraphWriter("product", int8=True)
    ids = graph.input("activations", (2, width), TensorProto.UINT8)
    graph.output("sums", graph.add("MatMulInteger", ids, graph.constant(quantised.T)), (2, 50), TensorProto.INT32)
    session = onnxruntime.InferenceSession(graph.model({}).SerializeToString())
    (sums,) = session.run(None, {"activations": activations.to(torch.uint8).numpy()})
    assert (torch.from_numpy(sums) == activations @ quantised.long().T).all()


def int8_twin(model):
    """`model` in place as its int8 graphs compute it, in plain PyTorch."""

    def linear(module, states):
        quantised, scales = quantise_rows(module.weight)
        lowest, highest = states.min().clamp(max=0), states.max().clamp(min=0)
        step = (highest - lowest) / 255
        zero = (-lowest / step).round()
        states = ((states / step).round() + zero).clamp(0, 255) - zero
        products = states @ quantised.float().T * (step * scales)
        return products if module.bias is None else products + module.bias

    def embedding(module, ids):
        quantised, scales = quantise_rows(module.weight)
        return (quantised * scales[:, None])[ids]

    for name, module in model.named_modules():
        in_float = name.endswith(("position_attn.q_proj", "position_attn.k_proj", "embed_lengths"))
        if not in_float and isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            module.forward = partial(linear if isinstance(module, torch.nn.Linear) else embedding, module)
    return model


def test_int8_is_its_twin_and_close_to_float32(tmp_path):
    model, exported = both(tmp_path, 38, int8=True, d_model=64, encoder_ffn_dim=128, decoder_ffn_dim=128)
    sources = random_sources(model, 40, 38)
    lengths = torch.tensor([len(source) for source in sources])
    options = {"num_iterations": 1, "num_length_candidates": 1}

    def decode_each(which):  # activations are scaled by the batch
        return [
            decode(which, [source], **options, target_lengths=length[None])
            for source, length in zip(sources, lengths, strict=True)
        ]

    def share_of_same(some, others):
        same = [
            token == other
            for one, another in zip(some, others, strict=True)
            for token, other in zip(one.sequences[0].tolist(), another.sequences[0].tolist(), strict=False)
        ]
        return sum(same) / len(same)

    float32, int8, twin = decode_each(model), decode_each(exported), decode_each(int8_twin(model))
    assert share_of_same(int8, twin) > 0.97
    differences = torch.cat([(a.sequences_scores - b.sequences_scores).abs() for a, b in zip(int8, twin, strict=True)])
    assert differences.median() < 1e-6
    assert differences.max() < 0.05  # an activation may lie between two whole numbers
    assert share_of_same(int8, float32) > 0.85
    assert all(a.sequences_scores != b.sequences_scores for a, b in zip(int8, float32, strict=True))
    sizes = [sum(path.stat().st_size for path in tmp_path.glob(name)) for name in ("*coder.onnx", "*_int8.onnx")]
    assert sizes[1] < sizes[0]


def test_unsupported_models_and_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="decoder_input='source_copy' cannot be exported"):
        export_onnx(random_model(39, decoder_input="source_copy"), tmp_path)
    with pytest.raises(ValueError, match="activation_function='mish' cannot be exported"):
        export_onnx(random_model(39, activation_function="mish"), tmp_path)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        ORTJMNatForConditionalGeneration.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no translator\.onnx"):
        ORTJMNatForConditionalGeneration.from_pretrained(tmp_path)
    _, exported = both(tmp_path, 39)
    with pytest.raises(ValueError, match=r"translator_int8\.onnx.*--int8"):
        ORTJMNatForConditionalGeneration.from_pretrained(tmp_path, int8=True)
    with pytest.raises(ValueError, match="41 tokens, more than max_position_embeddings=40"):
        exported.generate(torch.full((1, 41), 6))
    with pytest.raises(ValueError, match="input_ids is missing"):
        exported.generate(inputs_embeds=torch.zeros(1, 3, 16))
    with pytest.raises(ValueError, match="device='cuda' is not supported"):
        exported.to("cuda")


def test_the_exported_model_keeps_its_weights(tmp_path):
    """Exporting works on a copy: the model may be in half precision, or in training."""
    model = random_model(40).half().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, tmp_path)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_an_export_removes_the_one_before_and_nothing_else(tmp_path):
    export_onnx(random_model(42), tmp_path / "once")
    folder = tmp_path / "twice"
    export_onnx(random_model(43), folder, int8=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "other.onnx").write_text("mine")
    export_onnx(random_model(42), folder)
    assert names(folder) == names(tmp_path / "once") | {"notes.txt", "other.onnx"}
    model = random_model(42)
    sources = random_sources(model, 5, 42)
    assert_same(decode(model, sources), decode(ORTJMNatForConditionalGeneration.from_pretrained(folder), sources))
    export_onnx(random_model(42, positional_attention=False), folder)
    assert POSITIONS_FILE not in names(folder)


def test_an_export_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    export_onnx(random_model(44), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / UNFINISHED / "files").mkdir(parents=True)  # as a process that was killed leaves it
    (tmp_path / UNFINISHED / "files" / "encoder_int8.onnx").write_text("half")

    def full_disk(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("modeling_jmnat.onnx_export.export.positional_projections", full_disk)
        with pytest.raises(OSError, match="disk full"):
            export_onnx(random_model(45), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    export_onnx(random_model(45), tmp_path)
    assert names(tmp_path) == before.keys()


def test_a_second_export_into_the_folder_is_refused(tmp_path):
    with folder_lock(tmp_path / "onnx", "output"):
        with pytest.raises(
            ValueError, match=f"output={tmp_path / 'onnx'} is in use by another process: wait until it ends"
        ):
            export_onnx(random_model(44), tmp_path / "onnx")
        assert names(tmp_path / "onnx") == {".lock"}


def test_an_export_stopped_while_moving_is_not_found(tmp_path, monkeypatch):
    both(tmp_path, 50)
    replace, moved = Path.replace, []

    def stop(path, target):
        if path.name == "translator.onnx":
            raise KeyboardInterrupt
        moved.append(path.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(random_model(51), tmp_path)
    graphs = {"encoder.onnx", "decoder.onnx"}
    assert set(moved) == graphs | {POSITIONS_FILE, "config.json", "generation_config.json"}
    with pytest.raises(ValueError, match=r"holds no translator\.onnx"):
        ORTJMNatForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["translator.onnx", "encoder.onnx", "decoder.onnx", POSITIONS_FILE])
def test_files_of_two_models_are_refused(name, tmp_path):
    for seed, folder in ((46, tmp_path / "a"), (47, tmp_path / "b")):
        export_onnx(random_model(seed), folder)
    shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    with pytest.raises(ValueError, match="do not belong to the same model"):
        use_all_files(tmp_path / "a")


@pytest.mark.parametrize("fields", [{}, {"crf_rank": 4}])
def test_graphs_of_older_weights_are_refused(fields, tmp_path):
    """A model that has learned on since its export would otherwise go on translating as before."""
    model = random_model(46, **fields)
    model.save_pretrained(tmp_path)
    graphs = tmp_path / "onnx"
    export_onnx(model, graphs)
    shutil.copytree(graphs, tmp_path / "elsewhere")
    ORTJMNatForConditionalGeneration.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    (tmp_path / "model.safetensors").unlink()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    ORTJMNatForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        model.model.shared.weight[7] += 0.5
    model.save_pretrained(tmp_path)
    for folder in (tmp_path, graphs):
        with pytest.raises(
            ValueError, match=r"translator\.onnx and model\.safetensors do not belong to the same model"
        ):
            ORTJMNatForConditionalGeneration.from_pretrained(folder)
    ORTJMNatForConditionalGeneration.from_pretrained(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_what_an_export_lacks_is_named(name, tmp_path):
    tokenizer = tiny_tokenizer()
    export_onnx(tiny_student(tokenizer), tmp_path, tokenizer=tokenizer)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"holds no {name}: export the model again with `jmnat export-onnx`"):
        load_translator(tmp_path, backend="onnx")


def test_options_of_another_thread_are_not_taken(tmp_path):
    """It calls `generate` just when this one has its options ready."""

    class Interrupted(ORTJMNatForConditionalGeneration):
        kept, others = (None, {}), []

        @property
        def last_feeds(self):
            return self.kept

        @last_feeds.setter
        def last_feeds(self, feeds):
            self.kept = feeds
            if self.others:
                self.option_feeds(self.others.pop())

    export_onnx(random_model(46), tmp_path)
    model = Interrupted.from_pretrained(tmp_path)
    model.others.append(JMNatOptions(num_iterations=7))
    assert model.option_feeds(JMNatOptions(num_iterations=2))["num_iterations"] == 2
    assert model.option_feeds(JMNatOptions(num_iterations=7))["num_iterations"] == 7


@pytest.mark.parametrize("name", ["translator.onnx", "encoder.onnx", "decoder.onnx", POSITIONS_FILE])
def test_damaged_files_are_named(name, tmp_path, capfd):
    both(tmp_path, 49)
    content = (tmp_path / name).read_bytes()
    for damaged in (b"", content[:100], content[: len(content) // 2], content[:-1], b"no graph" * 50):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name} cannot be loaded") as error:
            use_all_files(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=name):
        use_all_files(tmp_path)
    assert "EP Error" not in capfd.readouterr().out


def test_wrong_devices_and_dtypes_are_named(tmp_path):
    for wrong in ({"device": "cuda"}, {"dtype": "bfloat16"}):
        ((name, value),) = wrong.items()
        with pytest.raises(ValueError, match=f"{name}='{value}' is not possible with exported graphs") as error:
            load_translator(tmp_path, backend="onnx", **wrong)
        assert ({"device", "dtype"} - {name}).pop() not in str(error.value)


def test_commands_export_and_translate(tmp_path, capsys):
    save_translators(tmp_path)
    student = tmp_path / "student"
    load_script("export_onnx").main([str(student), "--int8"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["megabytes"].keys() == {
        *(f"{part}{kind}.onnx" for part in ("encoder", "decoder", "translator") for kind in ("", "_int8")),
        "positions.safetensors",
    }
    source = tmp_path / "source.txt"
    source.write_text("ab cde\n\nfgh i ab\nd e f g h\n")
    texts = {}
    for backend in ("torch", "onnx", "onnx_int8"):
        output = tmp_path / backend
        arguments = ["--model", str(student), "--backend", backend, "--input", str(source), "--output", str(output)]
        load_script("translate").main([*arguments, "--num_iterations", "3", "--batch_tokens", "20"])
        texts[backend] = output.read_text().split("\n")
    assert texts["torch"] == texts["onnx"]
    assert len(texts["onnx_int8"]) == 5
    for wrong in (["--backend", "tpu"], ["--backend", "onnx", "--dtype", "bfloat16"]):
        with pytest.raises(SystemExit):
            load_script("translate").main(["--model", str(student), "--input", str(source), *wrong])
    with pytest.raises(SystemExit):
        load_script("export_onnx").main(["--model", str(tmp_path / "teacher")])
    assert "only JM-NAT can be exported" in capsys.readouterr().err


def test_trained_weights_translate_alike(tmp_path):
    """The shipped model on held-out text: float32 gives the same ids as PyTorch, int8 loses at most 0.3 BLEU."""
    model, tokenizer = load_translator(SHIPPED)
    export_onnx(model, tmp_path, int8=True)
    sources, references = (lines[:600:2] for lines in read_parallel(*(CORPUS / f"test.{x}.gz" for x in ("de", "en"))))
    options = {"num_iterations": 4, "num_length_candidates": 3, "max_batch_tokens": 1}
    float32, int8 = (
        list(
            translate_lines(
                ORTJMNatForConditionalGeneration.from_pretrained(tmp_path, int8=int8), tokenizer, sources, **options
            )
        )
        for int8 in (False, True)
    )
    plain = list(translate_lines(model, tokenizer, sources[:60], **options))
    assert [line.token_ids for line in float32[:60]] == [line.token_ids for line in plain]
    assert [line.token_ids for line in int8] != [line.token_ids for line in float32]  # they are other graphs
    bleu = [sacrebleu.corpus_bleu([line.text for line in lines], [references]).score for lines in (float32, int8)]
    assert bleu[0] > 20
    assert bleu[1] > bleu[0] - 0.3


def test_the_package_needs_no_onnx():
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['onnxruntime'] = None\n"
        "from modeling_jmnat import ORTJMNatForConditionalGeneration\n"
        "from modeling_jmnat.inference.onnx_runtime import load_session\n"
        "try:\n    load_session('x.onnx', 1)\n"
        "except ValueError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install onnxruntime" in result.stdout


def test_an_exported_model_has_the_interface_of_a_model(tmp_path):
    model, exported = both(tmp_path, 41)
    assert isinstance(model, JMNatForConditionalGeneration)
    assert exported.config.to_dict()["d_model"] == model.config.d_model
    assert exported.generation_config.num_iterations == model.generation_config.num_iterations
    assert exported.eval().to("cpu").can_generate()


def test_weights_that_graphs_would_miss_are_refused(tmp_path):
    """An adapter beside a weight, a quantised copy of it, or a weight that is elsewhere."""
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(random_model(), peft.LoraConfig(target_modules=["q_proj"])).get_base_model()
    quantised = torch.ao.quantization.quantize_dynamic(random_model(), {torch.nn.Linear}, dtype=torch.qint8)
    offloaded = random_model()
    accelerate.cpu_offload(offloaded)
    for model, message in (
        (adapted, "q_proj has an adapter: merge it into the model first"),
        (quantised, "is a Linear: export the unquantised model"),
        (offloaded, "are offloaded: load the model without a device_map"),
    ):
        with pytest.raises(ValueError, match=message):
            export_onnx(model, tmp_path / "graphs")
    assert not (tmp_path / "graphs").exists()
