"""Beam search for whole lines by an engine: the sentences of `decode`, whatever batch they are in."""

import pytest

from modeling_jmnat.inference.engines import CTranslate2Engine, TransformersEngine, decode
from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.inference.search_model import search_model
from modeling_jmnat.inference.translation import translate_lines
from tests.helpers.teacher_samples import random_lines


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("backend", ["transformers", "ctranslate2"])
def test_lines_are_translated_as_by_decode_in_any_batch(folder, backend, num_beams):
    if backend == "ctranslate2":
        pytest.importorskip("ctranslate2")
    model, tokenizer = load_translator(folder / "teacher", "cpu")
    lines = random_lines(12, seed=8)
    make = CTranslate2Engine.from_model if backend == "ctranslate2" else lambda model, _: TransformersEngine(model)
    ids = decode(make(model, tokenizer), tokenizer(lines)["input_ids"], num_beams)
    expected = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    search = search_model(model, tokenizer, backend, {"num_beams": num_beams})
    lines[5:5] = ["", "  "]
    expected[5:5] = ["", ""]
    for budget in (1, 4096):
        translated = list(translate_lines(search, tokenizer, lines, max_batch_tokens=budget))
        assert [translation.text for translation in translated] == expected
        scores = [
            translation.candidates[0][1] for number, translation in enumerate(translated) if number not in (5, 6)
        ]
        if backend == "ctranslate2" and num_beams > 1:
            assert all(score < 0 for score in scores)
    assert len({*expected}) > 6


def test_other_options_are_refused(folder):
    model, tokenizer = load_translator(folder / "teacher", "cpu")
    with pytest.raises(ValueError, match="max_length does not apply to the beam search of this command, which takes"):
        search_model(model, tokenizer, "transformers", {"num_beams": 2, "max_length": 9})
    search_model(model, tokenizer, "transformers", {"length_penalty": 0.3})
    assert model.generation_config.length_penalty == 0.3
