"""What a configuration accepts, keeps and refuses."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from modeling_jmnat import JMNatConfig, JMNatGenerationConfig
from tests.helpers.random_models import CMLM, random_config


def test_defaults_are_the_papers_wmt_model():
    config = JMNatConfig()
    sizes = (config.encoder_layers, config.decoder_layers, config.d_model, config.encoder_ffn_dim)
    assert sizes == (6, 6, 512, 2048)
    assert (config.encoder_attention_heads, config.decoder_attention_heads, config.dropout) == (8, 8, 0.1)
    weights = (config.encoder_loss_weight, config.ngram_loss_weight, config.length_loss_weight, config.label_smoothing)
    assert weights == (0.01, 0.01, 0.1, 0.1)
    assert (config.normalize_before, config.activation_function, config.position_embedding_type) == (
        False,
        "relu",
        "sinusoidal",
    )


def test_every_field_survives_saving(tmp_path):
    """Each field is set to another value than its default; the ones not named here would fail the comparison below."""
    changed = {
        **CMLM,
        "vocab_size": 31,
        "d_model": 24,
        "encoder_layers": 3,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 7,
        "decoder_layers": 1,
        "decoder_attention_heads": 3,
        "decoder_ffn_dim": 9,
        "dropout": 0,
        "attention_dropout": 0.2,
        "activation_dropout": 0.3,
        "normalize_before": True,
        "decoder_input": "source_copy",
        "position_offset": 0,
        "output_bias": True,
        "max_position_embeddings": 33,
        "max_target_length": 34,
        "layer_norm_eps": 1e-6,
        "ngram_size": 3,
        "ngram_alignment": "gold",
        "encoder_loss_weight": 0.0,
        "ngram_loss_weight": 1,
        "length_loss_weight": 0.5,
        "label_smoothing": 0.0,
        "length_smoothing": 0.5,
        "crf_rank": 16,
        "crf_loss_weight": 2.0,
        "split_sentences": False,
        "bos_token_id": None,
        "pad_token_id": 5,
        "eos_token_id": 6,
        "unk_token_id": None,
        "mask_token_id": 7,
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
    }
    config = JMNatConfig(**changed)
    config.save_pretrained(tmp_path)
    for loaded in (JMNatConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is JMNatConfig
        assert {name: getattr(loaded, name) for name in changed} == changed
    fields = set(JMNatConfig.__annotations__) - {"model_type", "attribute_map", "keys_to_ignore_at_inference"}
    assert fields == set(changed)


def test_names_that_tools_expect_are_aliases():
    config = random_config()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 2, 2)
    config.hidden_size = 32
    assert config.d_model == 32


@pytest.mark.parametrize(("name", "value"), [("d_model", 32.0), ("vocab_size", "31"), ("activation_function", None)])
def test_types_are_enforced_when_made_and_when_set(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        random_config(**{name: value})
    config = random_config()
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        setattr(config, name, value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"position_embedding_type": "rotary"}, "position_embedding_type='rotary' is not one of sinusoidal, learned"),
        ({"decoder_input": "copy"}, "decoder_input='copy' is not one of mask, source_copy"),
        ({"ngram_alignment": "both"}, "ngram_alignment='both' is not one of any, gold"),
        ({"activation_function": "relu6x"}, "activation_function='relu6x' is not one of"),
        ({"encoder_attention_heads": 3}, "d_model=16 is not a multiple of encoder_attention_heads=3"),
        ({"decoder_attention_heads": 0}, "decoder_attention_heads=0 must be at least 1"),
        (
            {"d_model": 15, "encoder_attention_heads": 1, "decoder_attention_heads": 1},
            "d_model=15 must be even with sinusoidal positions",
        ),
        ({"ngram_size": 0}, "ngram_size=0 must be at least 1"),
        ({"max_target_length": 1}, "max_target_length=1 must be at least 2"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing=-0.1 must be in \[0, 1\)"),
        ({"length_loss_weight": float("nan")}, "length_loss_weight=nan must be at least 0"),
        ({"mask_token_id": 23}, r"mask_token_id=23 must be a token id in \[0, 23\)"),
    ],
)
def test_invalid_fields_are_named(overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        random_config(**overrides)


def test_removed_options_in_old_folders_are_ignored(tmp_path, caplog):
    saved = {"num_iterations": 4, "length_threshold": 0.0, "prune_threshold": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(saved))
    config = JMNatGenerationConfig.from_pretrained(tmp_path)
    assert config.num_iterations == 4
    assert not hasattr(config, "length_threshold")
    assert not caplog.records
    (tmp_path / "generation_config.json").write_text(json.dumps(saved | {"prune_threshold": 0.5}))
    JMNatGenerationConfig.from_pretrained(tmp_path)
    assert "prune_threshold is no longer an option of decoding" in caplog.text
