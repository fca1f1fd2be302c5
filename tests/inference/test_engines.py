"""Engines of beam search: batches, limits and number types, and CTranslate2 against Transformers."""

import importlib.util
import json

import pytest
import torch
from datasets import Dataset

from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.inference.beam_search import max_target_length
from modeling_jmnat.inference.ctranslate2_models import SEARCH_BACKENDS, choose_backend
from modeling_jmnat.inference.engines import CTranslate2Engine, TransformersEngine, decode
from tests.helpers.marian_teacher import opus_model, train, train_segmenter, write_tokenizer
from tests.helpers.teacher_samples import prepare_words, random_lines, random_teacher


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def tokenizer(data):
    return load_prepared(data)[1]


@pytest.fixture(scope="module")
def sources(data):
    return load_prepared(data)[0]["train"]["input_ids"][:20]


@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_batches_do_not_change_the_translation(tokenizer, sources, normalize_before, num_beams):
    engine = TransformersEngine(random_teacher(tokenizer, normalize_before))
    together = decode(engine, sources[:10], num_beams, batch_tokens=4096)
    alone = decode(engine, sources[:10], num_beams, batch_tokens=1)
    assert together == alone
    assert all(2 not in ids and 1 not in ids for ids in together)
    assert len({tuple(ids) for ids in together}) > 5  # sources matter


def test_greedy_decoding_equals_a_slow_loop(tokenizer, sources):
    model = random_teacher(tokenizer)
    fast = decode(TransformersEngine(model), sources[:6], num_beams=1, max_length=12)
    for source, result in zip(sources[:6], fast, strict=True):
        ids = [2]
        while len(ids) < 12 and (len(ids) == 1 or ids[-1] != 2):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([ids])).logits
            ids.append(logits[0, -1].argmax().item())
        assert result == [token for token in ids[1:] if token != 2]


def test_training_mode_is_restored(tokenizer, sources):
    model = random_teacher(tokenizer).train()
    decode(TransformersEngine(model), sources[:2], num_beams=1, max_length=5)
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_beams": 0}, "num_beams=0"), ({"batch_tokens": 0}, "batch_tokens=0")],
)
def test_bad_decoding_options_are_named(tokenizer, sources, options, message):
    with pytest.raises(ValueError, match=message):
        decode(TransformersEngine(random_teacher(tokenizer)), sources[:1], **options)


def test_empty_and_too_long_sources_are_refused(tokenizer):
    engine = TransformersEngine(random_teacher(tokenizer))
    with pytest.raises(ValueError, match="source 2 has no tokens"):
        decode(engine, [[2], []])
    with pytest.raises(ValueError, match="source 1 has 70 tokens"):
        decode(engine, [[7] * 70])


@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize("num_beams", [1, 5])
def test_ctranslate2_gives_the_same_translations(data, tokenizer, normalize_before, num_beams):
    pytest.importorskip("ctranslate2")
    model = random_teacher(tokenizer, normalize_before, seed=3)
    with torch.no_grad():  # random models seldom end a sentence
        model.get_input_embeddings().weight[tokenizer.eos_token_id] *= 2 if normalize_before else 5
    config = json.dumps(model.config.to_dict(), default=str)
    sources = load_prepared(data)[0]["train"]["input_ids"][:40]
    engines = TransformersEngine(model), CTranslate2Engine.from_model(model, tokenizer)
    assert json.dumps(model.config.to_dict(), default=str) == config
    expected, found = (decode(engine, sources, num_beams, 512) for engine in engines)
    if num_beams > 1:  # where the limit of the length cuts, the two rank unfinished hypotheses differently
        limits = [max_target_length(model.config, len(ids)) for ids in sources]
        pairs = [(x, y) for x, y, limit in zip(expected, found, limits, strict=True) if len(x) < limit]
        assert len(pairs) >= 5
        expected, found = ([ids[side] for ids in pairs] for side in (0, 1))
    assert sum(x == y for x, y in zip(expected, found, strict=True)) >= 0.85 * len(expected)  # near ties may differ


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.5},
        {"min_length": 12},
        {"suppress_tokens": [17, 40]},
        {"bad_words_ids": [[1], [17], [50, 50]]},
    ],
)
def test_ctranslate2_obeys_a_generation_configuration(options, data, tokenizer):
    pytest.importorskip("ctranslate2")
    model = random_teacher(tokenizer, seed=3)
    sources = load_prepared(data)[0]["train"][:40]["input_ids"]
    engines = TransformersEngine(model), CTranslate2Engine.from_model(model, tokenizer)
    free = [decode(engine, sources, 1, 512) for engine in engines]
    model.generation_config.update(**options)
    expected, found = (decode(engine, sources, 1, 512) for engine in engines)
    assert sum(x == y for x, y in zip(expected, found, strict=True)) >= 0.85 * len(expected)
    assert found != free[1]


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("pad", ["zero", "trained"])
def test_ctranslate2_reads_models_of_marians_layout(pad, num_beams, tmp_path):
    """Decoding starts from `<pad>`, whose embedding is zero in opus-mt; one that was trained is another start."""
    pytest.importorskip("ctranslate2")
    lines = random_lines(60, seed=7)
    tokenizer = write_tokenizer(tmp_path, *[train_segmenter(lines, 60)] * 2)
    torch.manual_seed(2)
    sizes = {f"{half}_{name}": 2 for half in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 16, "max_position_embeddings": 60}
    model = opus_model(tokenizer, tokenizer(lines)["input_ids"], **sizes)
    pairs = Dataset.from_dict({"source": lines, "target": lines})
    options = {"per_device_train_batch_size": 20, "max_steps": 150, "learning_rate": 0.01, "disable_tqdm": True}
    train(model, tokenizer, pairs, tmp_path / "trained", **options)  # until its translations are of many kinds
    model.eval()
    start = model.get_input_embeddings().weight.data[model.config.pad_token_id]
    assert not start.any()
    if pad == "trained":
        start.normal_(std=0.3)
    sources = tokenizer(lines)["input_ids"]
    expected = decode(TransformersEngine(model), sources, num_beams, 512)
    found = decode(CTranslate2Engine.from_model(model, tokenizer), sources, num_beams, 512)
    ended = [pair for pair in zip(expected, found, strict=True) if 0 < len(pair[0]) < 40]
    assert len({tuple(ids) for ids, _ in ended}) > 5
    assert sum(one == other for one, other in ended) >= 0.9 * len(ended)  # near ties may differ


def test_workers_of_ctranslate2_keep_the_order(data, tokenizer):
    pytest.importorskip("ctranslate2")
    model = random_teacher(tokenizer, seed=3)
    sources = load_prepared(data)[0]["train"]["input_ids"][:40]
    usual, found = torch.get_num_threads(), []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            engine, seen = CTranslate2Engine.from_model(model, tokenizer), []
            assert (torch.get_num_threads(), engine.translator.num_translators) == (num_threads, num_threads)
            found.append(decode(engine, sources, 2, 64, seen.append))
            assert sum(seen) == 40
            assert len(seen) > 2 * 3  # batches that wait for a worker are collected in turn
    finally:
        torch.set_num_threads(usual)
    assert found[0] == found[1]
    assert len(set(map(tuple, found[0]))) > 5


def test_each_row_has_its_own_length_limit(tokenizer):
    model = random_teacher(tokenizer)
    assert max_target_length(model.config, 5) == 18  # 1.5 * 5 + 10, rounded up
    assert max_target_length(model.config, 60) == 64  # of 66 positions, two are for start and end
    model.generation_config.max_new_tokens = 4  # as saved in some models: it does not cut what is translated here
    found = decode(TransformersEngine(model), [[7, 8, 9, 10, 2], [*range(7, 26), 2]], num_beams=2)
    assert [len(ids) for ids in found] == [18, 40]  # a random model does not end by itself


def test_choice_of_backend(tokenizer):
    model = random_teacher(tokenizer)
    assert choose_backend("transformers", model, "cpu") == "transformers"
    assert choose_backend("auto", model, "cuda") == "transformers"
    assert choose_backend("auto", model, "cpu") in SEARCH_BACKENDS[1:]
    with pytest.raises(ValueError, match="backend='fast' is not one of"):
        choose_backend("fast", model, "cpu")
    model.generation_config.forced_bos_token_id = 5
    assert choose_backend("auto", model, "cpu") == "transformers"
    if importlib.util.find_spec("ctranslate2"):
        with pytest.raises(ValueError, match="cannot run a multilingual m2m_100 model"):
            choose_backend("ctranslate2", model, "cpu")


def test_ctranslate2_computes_in_the_models_number_type(tokenizer, monkeypatch):
    ctranslate2 = pytest.importorskip("ctranslate2")
    model = random_teacher(tokenizer).bfloat16()
    assert choose_backend("auto", model, "cpu") == "transformers"
    with pytest.raises(ValueError, match="cannot compute in dtype='bfloat16' on this cpu: choose float32, or use"):
        choose_backend("ctranslate2", model, "cpu")
    asked = {}
    monkeypatch.setattr(ctranslate2, "Translator", lambda path, **options: asked.update(options))
    for normalize_before in (True, False):
        model = random_teacher(tokenizer, normalize_before).bfloat16()
        CTranslate2Engine.from_model(model, tokenizer)
        assert asked.pop("compute_type") == "bfloat16"
        assert model.dtype == torch.bfloat16
