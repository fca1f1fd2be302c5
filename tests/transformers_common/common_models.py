"""Transformers' own tests of a model and of its configuration, applied to ours in three architectures."""

import unittest

import torch
from transformers.models.auto import modeling_auto
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor

from modeling_jmnat import JMNatConfig, JMNatForConditionalGeneration, JMNatModel

# The library's tests find out by these tables which class takes labels.
modeling_auto.MODEL_MAPPING_NAMES["jmnat"] = "JMNatModel"
modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES["jmnat"] = "JMNatForConditionalGeneration"

VOCAB_SIZE = 99
FIRST_WORD = 5  # after the special tokens
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 24,
    "attention_dropout": 0.1,
    "max_position_embeddings": 50,
    "max_target_length": 50,
    "init_std": 0.02,
}


class ModelTester:
    """What the common tests need from a model: sizes, a configuration, a batch."""

    batch_size = 3
    seq_length = decoder_seq_length = 7
    encoder_seq_length = key_length = 8  # the length token comes first
    hidden_size = SIZES["d_model"]
    num_hidden_layers = SIZES["decoder_layers"]
    num_attention_heads = SIZES["decoder_attention_heads"]
    vocab_size = VOCAB_SIZE
    is_training = True

    def __init__(self, architecture: dict):
        self.architecture = architecture

    def get_config(self) -> JMNatConfig:
        return JMNatConfig(**SIZES, **self.architecture)

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids, decoder_input_ids = (self.sentences(config.eos_token_id) for _ in range(2))  # (B, S), (B, T)
        return config, {
            "input_ids": input_ids,
            "decoder_input_ids": decoder_input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "decoder_attention_mask": torch.ones_like(decoder_input_ids),
        }

    def sentences(self, eos_token_id: int) -> torch.Tensor:
        ids = ids_tensor([self.batch_size, self.seq_length], VOCAB_SIZE).clamp(min=FIRST_WORD)
        ids[:, -1] = eos_token_id
        return ids


class CommonTests(ModelTesterMixin):
    """The settings that all architectures share, and the two tests that cannot apply."""

    all_model_classes = (JMNatModel, JMNatForConditionalGeneration)
    all_generative_model_classes = ()  # those tests decode word by word
    is_encoder_decoder = True
    test_can_init_all_missing_weights_before_2023 = True
    architecture: dict

    def setUp(self):
        self.model_tester = ModelTester(self.architecture)
        self.config_tester = ConfigTester(self, config_class=JMNatConfig, d_model=64, **self.architecture)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("It counts five outputs; ours has length log-probabilities as well.")
    def test_attention_outputs(self):
        pass

    @unittest.skip("It expects the cross-entropy of every label alone; ours has three more terms.")
    def test_encoder_decoder_loss_no_double_shift(self):
        pass


class PaperTest(CommonTests, unittest.TestCase):
    """The paper's model: positions leave themselves out of self-attention, layer norm after each block."""

    architecture = {}


class WithoutNoSelfMaskTest(CommonTests, unittest.TestCase):
    """Every position sees itself, layer norm before each block (the shipped model's), input copied from the source."""

    architecture = {"exclude_self_attention": False, "normalize_before": True, "decoder_input": "source_copy"}


class MaskPredictTest(CommonTests, unittest.TestCase):
    """CMLM's architecture (Mask-Predict)."""

    architecture = {
        "positional_attention": False,
        "exclude_self_attention": False,
        "position_embedding_type": "learned",
        "activation_function": "gelu",
        "scale_embedding": False,
    }
