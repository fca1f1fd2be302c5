import pytest
import torch
from transformers import M2M100ForConditionalGeneration, MarianMTModel

from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.modeling_jmnat import sinusoidal_positions
from modeling_jmnat.teacher.model import build_teacher, same_tokenizer
from modeling_jmnat.utils.id_batches import pad_batch
from tests.helpers.teacher_samples import TINY, prepare_words


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def tokenizer(data):
    return load_prepared(data)[1]


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


def test_tokenizer_of_other_data_is_refused(tokenizer, tmp_path):
    other = load_prepared(prepare_words(tmp_path, train=30, vocab_size=320))[1]
    assert same_tokenizer(tokenizer, tokenizer)
    with pytest.raises(ValueError, match="the teacher's tokenizer"):
        same_tokenizer(other, tokenizer)


def test_special_ids_must_agree(tokenizer):
    with pytest.raises(ValueError, match="pad_token_id is 1 in the tokenizer and 0"):
        build_teacher({**TINY, "pad_token_id": 0, "bos_token_id": 1}, tokenizer)
