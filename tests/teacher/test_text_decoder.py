"""From sentence to translation: by the ids of the data or by the text, and None for a source that is too long."""

import pytest
from transformers import PreTrainedConfig

from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.inference.engines import CTranslate2Engine, Engine, TransformersEngine, decode
from modeling_jmnat.teacher.text_decoder import TextDecoder
from tests.helpers.teacher_samples import prepare_words, random_teacher


@pytest.mark.parametrize("backend", ["transformers", "ctranslate2"])
def test_texts_are_those_of_the_engine(backend, tmp_path):
    if backend == "ctranslate2":
        pytest.importorskip("ctranslate2", reason="the extra `bench` is not installed")
    splits, tokenizer = load_prepared(prepare_words(tmp_path))
    part = splits["train"][:20]
    model = random_teacher(tokenizer, seed=3)
    engine = TransformersEngine(model) if backend == "transformers" else CTranslate2Engine.from_model(model, tokenizer)
    expected = tokenizer.batch_decode(decode(engine, part["input_ids"], 3, 512), skip_special_tokens=True)
    shared = TextDecoder(engine, tokenizer, True, 3, 512)
    assert shared.decode(part["source"], part["input_ids"]) == expected
    assert len(set(expected)) > 5
    through_text = TextDecoder(engine, tokenizer, False, 3, 512)
    assert through_text.decode(part["source"], [[7]] * 20) == expected
    long = " ".join(part["source"])
    assert through_text.decode([long, part["source"][0]], [[7]] * 2) == [None, expected[0]]
    counts = []
    prefixed = TextDecoder(engine, tokenizer, False, 3, 512, prefix="ban ")
    found = prefixed.decode(part["source"], [[7]] * 20, counts.append)
    assert found == shared.decode(part["source"], tokenizer([f"ban {line}" for line in part["source"]])["input_ids"])
    assert sum(counts) == 20


def test_languages_are_no_text():
    """A new M2M100Tokenizer does not know its languages as special tokens, so that decoding writes them."""
    words = {3: "__en__", 4: "a", 5: "dog"}

    class Tokenizer:
        lang_token_to_id = {"__en__": 3}

        def __call__(self, texts, **options):
            return {"input_ids": [[7]] * len(texts)}

        def decode(self, ids, skip_special_tokens):
            return " ".join(words[token] for token in ids)

    class English(Engine):
        config, device = PreTrainedConfig(), "cpu"

        def prepare(self, sources):
            return sources

        def translate(self, batch, options):
            return batch

        def read(self, output):
            return [[3, 4, 5]] * len(output)

    assert TextDecoder(English(), Tokenizer(), False).decode(["ein Hund"], [[7]]) == ["a dog"]
