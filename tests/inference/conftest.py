"""The tiny models that this room translates with."""

import pytest

from tests.helpers.translation_samples import save_translators, tiny_student, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_translators(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def student(tokenizer):
    return tiny_student(tokenizer)
