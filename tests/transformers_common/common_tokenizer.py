"""Transformers' own tests of a tokenizer, applied to ours."""

import shutil
import tempfile
import unittest
from pathlib import Path

from transformers_tests.test_tokenization_common import TokenizerTesterMixin
from transformers_tests.test_tokenizers_backend_mixin import SMALL_TRAINING_CORPUS, TokenizersBackendTesterMixin

from modeling_jmnat import JMNatTokenizer
from modeling_jmnat.tokenization_jmnat import train_joint_tokenizer
from modeling_jmnat.utils.text_files import read_lines

CORPUS = Path(__file__).parents[2] / "run_scripts" / "demo_data" / "libreoffice-help"


class TrainedTokenizer:
    """A small tokenizer of both languages, saved where the tests load it from."""

    tokenizer_class = rust_tokenizer_class = JMNatTokenizer
    test_tokenizer_from_extractor = False  # vocabulary and merges alone are not the whole tokenizer

    @classmethod
    def setUpClass(cls):
        lines = [line for language in ("de", "en") for line in read_lines(CORPUS / f"test.{language}.gz")]
        cls.trained = tempfile.mkdtemp()
        train_joint_tokenizer(lines, vocab_size=1500).save_pretrained(cls.trained)
        cls.from_pretrained_id = cls.trained
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        shutil.rmtree(cls.trained)


class TokenizerTest(TrainedTokenizer, TokenizerTesterMixin, unittest.TestCase):
    def test_tokenize_special_tokens(self):
        # Special tokens written out are plain text by default; the library asks about the other way.
        self.get_tokenizer = lambda **kwargs: JMNatTokenizer.from_pretrained(
            self.tmpdirname, split_special_tokens=False, **kwargs
        )
        super().test_tokenize_special_tokens()


class BackendTest(TrainedTokenizer, TokenizersBackendTesterMixin, unittest.TestCase):
    """Two of these expect decoded text to be the normalised one, which begins with a space here; ours is the text."""

    sentences = ("This is the first sentence", "This sentence is different 🤗.")

    def test_training_new_tokenizer(self):
        tokenizer = self.get_rust_tokenizer()
        new = tokenizer.train_new_from_iterator(SMALL_TRAINING_CORPUS, 100)
        assert self.decoded(new) == self.sentences[0]
        assert new.special_tokens_map == tokenizer.special_tokens_map
        assert new.num_special_tokens_to_add(True) == tokenizer.num_special_tokens_to_add(True)

    def test_training_new_tokenizer_with_special_tokens_change(self):
        tokenizer = self.get_rust_tokenizer()
        renamed = {token: f"{token}a" for token in tokenizer.all_special_tokens}
        new = tokenizer.train_new_from_iterator(SMALL_TRAINING_CORPUS, 100, special_tokens_map=renamed)
        assert set(new.all_special_tokens) == set(renamed.values())
        assert (new.mask_token, new.eos_token) == ("<mask>a", "</s>a")
        assert new.mask_token_id == new.get_vocab()["<mask>a"]
        assert self.decoded(new) == self.sentences[0]

    def decoded(self, tokenizer) -> str:
        return tokenizer.decode(tokenizer(list(self.sentences))["input_ids"][0], skip_special_tokens=True)
