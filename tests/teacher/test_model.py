import importlib.util
import json

import pytest
import torch
from transformers import M2M100ForConditionalGeneration, MarianMTModel

from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.inference.loading import load_teacher_tokenizer
from modeling_jmnat.modeling_jmnat import sinusoidal_positions
from modeling_jmnat.teacher.backends import BACKENDS, CTranslate2Decoder, TransformersDecoder, choose_backend
from modeling_jmnat.teacher.model import build_teacher, decode, max_target_length, same_tokenizer, tokenizer_digest
from modeling_jmnat.utils.id_batches import pad_batch
from tests.helpers.teacher_samples import TINY, prepare_words, random_teacher


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
def test_architecture_follows_the_preset(tokenizer, normalize_before):
    model = build_teacher({**TINY, "normalize_before": normalize_before, "decoder_layers": 1}, tokenizer)
    assert type(model) is (M2M100ForConditionalGeneration if normalize_before else MarianMTModel)
    assert (model.config.encoder_layers, model.config.decoder_layers) == (2, 1)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.model.encoder.embed_tokens.weight is model.model.decoder.embed_tokens.weight
    assert model.config.decoder_start_token_id == tokenizer.eos_token_id
    generation = model.generation_config
    assert (generation.forced_bos_token_id, generation.forced_eos_token_id) == (None, None)
    assert generation.max_length == 65
    std = model.get_input_embeddings().weight.std().item()
    assert std == pytest.approx(32**-0.5, rel=0.05)


def test_pre_norm_positions_equal_the_students(tokenizer):
    teacher = build_teacher({**TINY, "normalize_before": True}, tokenizer)
    ids, mask = pad_batch([[7, 8, 9, 10, 2], [11, 2]], tokenizer.pad_token_id)
    positions = teacher.model.encoder.embed_positions(ids)  # (2, 5, 32)
    table = sinusoidal_positions(8, 32, ids.device)
    first = tokenizer.pad_token_id + 1
    assert torch.allclose(positions[0], table[first : first + 5], atol=1e-6)
    assert torch.allclose(positions[1, :2], table[first : first + 2], atol=1e-6)
    assert not positions[1, 2:].any()


@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_batches_do_not_change_the_translation(tokenizer, sources, normalize_before, num_beams):
    model = random_teacher(tokenizer, normalize_before)
    together = decode(model, sources[:10], num_beams, batch_tokens=4096)
    alone = decode(model, sources[:10], num_beams, batch_tokens=1)
    assert together == alone
    assert all(2 not in ids and 1 not in ids for ids in together)
    assert len({tuple(ids) for ids in together}) > 5  # sources matter


def test_greedy_decoding_equals_a_slow_loop(tokenizer, sources):
    model = random_teacher(tokenizer)
    fast = decode(model, sources[:6], num_beams=1, max_length=12)
    for source, result in zip(sources[:6], fast, strict=True):
        ids = [2]
        while len(ids) < 12 and (len(ids) == 1 or ids[-1] != 2):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([ids])).logits
            ids.append(logits[0, -1].argmax().item())
        assert result == [token for token in ids[1:] if token != 2]


def test_training_mode_comes_back(tokenizer, sources):
    model = random_teacher(tokenizer).train()
    decode(model, sources[:2], num_beams=1, max_length=5)
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_beams": 0}, "num_beams=0"), ({"batch_tokens": 0}, "batch_tokens=0")],
)
def test_bad_decoding_options(tokenizer, sources, options, message):
    with pytest.raises(ValueError, match=message):
        decode(random_teacher(tokenizer), sources[:1], **options)


def test_source_without_tokens_or_too_long(tokenizer):
    model = random_teacher(tokenizer)
    with pytest.raises(ValueError, match="source 2 has no tokens"):
        decode(model, [[2], []])
    with pytest.raises(ValueError, match="source 1 has 70 tokens"):
        decode(model, [[7] * 70])


def test_tokenizer_of_other_data_is_refused(tokenizer, tmp_path):
    other = load_prepared(prepare_words(tmp_path, train=30, vocab_size=320))[1]
    assert same_tokenizer(tokenizer, tokenizer)
    with pytest.raises(ValueError, match="the teacher's tokenizer"):
        same_tokenizer(other, tokenizer)


def test_digest_survives_use_and_saving(tokenizer, tmp_path):
    before = tokenizer_digest(tokenizer)
    tokenizer(["ban", "ban dex"], padding=True, truncation=True, max_length=4)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(tokenizer) == tokenizer_digest(load_teacher_tokenizer(tmp_path)) == before


def test_special_ids_must_agree(tokenizer):
    with pytest.raises(ValueError, match="pad_token_id is 1 in the tokenizer and 0"):
        build_teacher({**TINY, "pad_token_id": 0, "bos_token_id": 1}, tokenizer)


@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize("num_beams", [1, 5])
def test_ctranslate2_gives_the_same_translations(data, tokenizer, normalize_before, num_beams):
    pytest.importorskip("ctranslate2")
    model = random_teacher(tokenizer, normalize_before, seed=3)
    with torch.no_grad():  # random models seldom end a sentence
        model.get_input_embeddings().weight[tokenizer.eos_token_id] *= 2 if normalize_before else 5
    config = json.dumps(model.config.to_dict(), default=str)
    part = load_prepared(data)[0]["train"][:40]
    arguments = (model, tokenizer, True, num_beams, 512)
    transformers, ctranslate2 = TransformersDecoder(*arguments), CTranslate2Decoder(*arguments)
    assert json.dumps(model.config.to_dict(), default=str) == config
    expected = transformers._decode_ids(part["input_ids"], None)
    found = ctranslate2._decode_ids(part["input_ids"], None)
    if num_beams > 1:  # where the limit of the length cuts, the two rank unfinished hypotheses differently
        limits = [max_target_length(model, len(ids)) for ids in part["input_ids"]]
        pairs = [(x, y) for x, y, limit in zip(expected, found, limits, strict=True) if len(x) < limit]
        assert len(pairs) >= 5
        expected, found = ([ids[side] for ids in pairs] for side in (0, 1))
    assert sum(x == y for x, y in zip(expected, found, strict=True)) >= 0.85 * len(expected)  # near ties may differ
    found = ctranslate2._decode_ids(part["input_ids"], None)
    texts = ctranslate2.decode(part["source"], part["input_ids"])
    assert texts == tokenizer.batch_decode(found, skip_special_tokens=True)


@pytest.mark.parametrize("options", [{"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.5}])
def test_ctranslate2_obeys_rules_against_repetition(options, data, tokenizer):
    pytest.importorskip("ctranslate2")
    model = random_teacher(tokenizer, seed=3)
    sources = load_prepared(data)[0]["train"][:40]["input_ids"]
    decoders = [kind(model, tokenizer, True, 1, 512) for kind in (TransformersDecoder, CTranslate2Decoder)]
    free = [decoder._decode_ids(sources, None) for decoder in decoders]
    model.generation_config.update(**options)
    found, expected = (decoder._decode_ids(sources, None) for decoder in decoders)
    assert sum(x == y for x, y in zip(expected, found, strict=True)) >= 0.85 * len(expected)
    assert found != free[0]


def test_workers_of_ctranslate2_keep_the_order(data, tokenizer):
    pytest.importorskip("ctranslate2")
    model = random_teacher(tokenizer, seed=3)
    part = load_prepared(data)[0]["train"][:40]
    usual, found = torch.get_num_threads(), []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            decoder, seen = CTranslate2Decoder(model, tokenizer, True, 2, 128), []
            assert (torch.get_num_threads(), decoder.translator.num_translators) == (num_threads, num_threads)
            found.append(decoder.decode(part["source"], part["input_ids"], seen.append))
            assert sum(seen) == 40
            assert len(seen) > 2 * 3  # batches that wait for a worker are collected in turn
    finally:
        torch.set_num_threads(usual)
    assert found[0] == found[1]
    assert len(set(found[0])) > 5


def test_each_row_has_its_own_length_limit(tokenizer):
    model = random_teacher(tokenizer)
    assert max_target_length(model, 5) == 18  # 1.5 * 5 + 10, rounded up
    assert max_target_length(model, 60) == 64  # of 66 positions, two are for start and end
    found = decode(model, [[7, 8, 9, 10, 2], [*range(7, 26), 2]], num_beams=2)
    assert [len(ids) for ids in found] == [18, 40]  # a random model does not end by itself


def test_choice_of_backend(tokenizer):
    model = random_teacher(tokenizer)
    assert choose_backend("transformers", model, "cpu") == "transformers"
    assert choose_backend("auto", model, "cuda") == "transformers"
    assert choose_backend("auto", model, "cpu") in BACKENDS[1:]
    with pytest.raises(ValueError, match="backend='fast' is not one of"):
        choose_backend("fast", model, "cpu")
    model.generation_config.forced_bos_token_id = 5
    assert choose_backend("auto", model, "cpu") == "transformers"
    if importlib.util.find_spec("ctranslate2"):
        with pytest.raises(ValueError, match="cannot take a multilingual m2m_100 model"):
            choose_backend("ctranslate2", model, "cpu")


def test_ctranslate2_computes_in_the_models_number_type(tokenizer, monkeypatch):
    ctranslate2 = pytest.importorskip("ctranslate2")
    model = random_teacher(tokenizer).bfloat16()
    assert choose_backend("auto", model, "cpu") == "transformers"
    with pytest.raises(ValueError, match="cannot compute in dtype='bfloat16' on this cpu: choose float32, or take"):
        choose_backend("ctranslate2", model, "cpu")
    asked = {}
    monkeypatch.setattr(ctranslate2, "Translator", lambda path, **options: asked.update(options))
    for normalize_before in (True, False):
        model = random_teacher(tokenizer, normalize_before).bfloat16()
        CTranslate2Decoder(model, tokenizer, True)
        assert asked.pop("compute_type") == "bfloat16"
        assert model.dtype == torch.bfloat16
