"""Properties of the pipeline and of `translate_lines` on arbitrary text, with models that write what they are told."""

import functools
import re
import unicodedata
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_jmnat import JMNatConfig, JMNatForConditionalGeneration, JMNatGenerateOutput, JMNatTranslationPipeline
from modeling_jmnat.inference.translation import translate_lines
from modeling_jmnat.plain_text import clean_text
from tests.helpers.arbitrary import LINE_BREAKS, examples, texts
from tests.helpers.random_models import pad
from tests.helpers.teacher_samples import TINY
from tests.helpers.translation_samples import tiny_student
from tests.model.test_text_properties import tokenizer_of

LINE_BREAK = re.compile("[\n\r]")
JOINERS = re.compile("[\u180e\u200c\u200d\U000e0020-\U000e007f]")


class Echo(JMNatForConditionalGeneration):
    """Translates every sentence into itself."""

    def generate(self, input_ids, **options):
        self.check_source(input_ids)
        sequences = pad(self.written(input_ids.tolist()))[0]
        return JMNatGenerateOutput(sequences=sequences, sequences_scores=torch.zeros(len(sequences)))

    def check_source(self, input_ids):
        assert input_ids.shape[1] <= self.config.max_position_embeddings

    def written(self, rows):
        return rows


class Babbler(Echo):
    """Translates a sentence into any ids, which depend on the sentence alone."""

    def written(self, rows):
        return [self.babble([token for token in row if token != 1]) for row in rows]

    def babble(self, source):
        generator = torch.Generator().manual_seed(zlib.crc32(bytes(str(source), "ascii")))
        length = int(torch.randint(1, 9, (), generator=generator))
        return [*torch.randint(5, self.config.vocab_size, (length,), generator=generator).tolist(), 2]


@functools.cache
def model_of(kind, longest, vocabulary="marks"):
    tokenizer = tokenizer_of(vocabulary)
    if kind == "student":
        return tiny_student(tokenizer, max_position_embeddings=longest).double()
    config = JMNatConfig(**{**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": longest})
    return {"echo": Echo, "babbler": Babbler}[kind](config).eval()


@functools.cache
def pipeline_of(*arguments):
    return JMNatTranslationPipeline(model_of(*arguments), tokenizer_of(arguments[2]), device="cpu")


vocabularies = st.sampled_from(["plain", "marks", "lowercase"])
limits = st.sampled_from([8, 24, 400])
paragraphs = texts(14, extra=[*LINE_BREAKS, "\n\n", "Das ist gut. Was nun? ", "Er kam. ", "! "])


def line_ends(text):
    """The line breaks of a text, character by character: a line that is translated by nothing may join two of them."""
    return LINE_BREAK.findall(text)


def core(text):
    """What no way of reading changes: without capitals, and joiners at the edges of pieces."""
    return clean_text(unicodedata.normalize("NFC", JOINERS.sub("", clean_text(text)).upper().casefold()))


@examples(100)
@given(text=paragraphs, limit=limits, vocabulary=vocabularies, split_sentences=st.booleans())
def test_identity_translation_restores_the_text(text, limit, vocabulary, split_sentences):
    (record,) = pipeline_of("echo", limit, vocabulary)(text, split_sentences=split_sentences)
    written = record["translation_text"]
    assert core(written) == core(text)
    if split_sentences:
        assert line_ends(written) == line_ends(text)


@examples(100)
@given(text=paragraphs, limit=limits, vocabulary=vocabularies)
def test_number_of_lines_is_kept_whatever_the_model_writes(text, limit, vocabulary):
    (record,) = pipeline_of("babbler", limit, vocabulary)(text)
    written = record["translation_text"]
    written.encode()
    assert line_ends(written) == line_ends(text)
    for read, line in zip(LINE_BREAK.split(text), LINE_BREAK.split(written), strict=True):
        assert not line.strip() or read.strip()
        assert line.startswith(read[: len(read) - len(read.lstrip())])
    assert "\ufffd" not in written or "\ufffd" in text


@examples(15)
@given(
    lines=st.lists(paragraphs, min_size=1, max_size=4),
    batch_size=st.integers(1, 5),
    limit=limits,
    vocabulary=vocabularies,
)
def test_a_list_equals_its_texts(lines, batch_size, limit, vocabulary):
    for kind in ("babbler", "student"):
        pipe = pipeline_of(kind, limit, vocabulary)
        assert pipe(lines, batch_size=batch_size) == [pipe(line)[0] for line in lines]


@examples(60)
@given(
    lines=st.lists(paragraphs, max_size=8),
    limit=limits,
    vocabulary=vocabularies,
    split_sentences=st.booleans(),
    budget=st.sampled_from([None, 1, 60]),
    window=st.integers(1, 9),
)
def test_translations_keep_the_order_of_lines(lines, limit, vocabulary, split_sentences, budget, window):
    options = {"split_sentences": split_sentences, "long_lines": "split", "window_lines": window}
    model, tokenizer = model_of("echo", limit, vocabulary), tokenizer_of(vocabulary)
    found = [*translate_lines(model, tokenizer, lines, max_batch_tokens=budget, **options)]
    assert [translation.source for translation in found] == lines
    for line, translation in zip(lines, found, strict=True):
        assert core(translation.text) == core(line)
        assert len(translation.text.splitlines()) <= 1


@examples(60)
@given(
    lines=st.lists(paragraphs, max_size=8), limit=limits, vocabulary=vocabularies, budget=st.sampled_from([None, 60])
)
def test_each_line_gives_one_line_whatever_the_model_writes(lines, limit, vocabulary, budget):
    model, tokenizer = model_of("babbler", limit, vocabulary), tokenizer_of(vocabulary)
    options = {"split_sentences": True, "long_lines": "split"}
    found = [*translate_lines(model, tokenizer, lines, max_batch_tokens=budget, **options)]
    alone = [text for line in lines for text in translate_lines(model, tokenizer, [line], **options)]
    assert [translation.text for translation in found] == [translation.text for translation in alone]
    for line, translation in zip(lines, found, strict=True):
        assert len(translation.text.splitlines()) <= 1
        assert "\ufffd" not in translation.text or "\ufffd" in line


@examples(20)
@given(before=texts(4), half=st.integers(0xD800, 0xDFFF), after=texts(4), vocabulary=vocabularies)
def test_lone_surrogates_are_refused(before, half, after, vocabulary):
    text, model = before + chr(half) + after, model_of("echo", 24, vocabulary)
    with pytest.raises(ValueError, match="a text to translate has a lone surrogate at character"):
        pipeline_of("echo", 24, vocabulary)(text)
    with pytest.raises(ValueError, match="line 2 has a lone surrogate at character"):
        list(translate_lines(model, tokenizer_of(vocabulary), ["Haus", text], long_lines="split"))


@examples(20)
@given(text=paragraphs, limit=limits, vocabulary=vocabularies, num_best=st.integers(1, 2))
def test_history_keeps_the_lines_of_a_text(text, limit, vocabulary, num_best):
    options = {"return_history": True, "num_iterations": 3, "num_return_sequences": num_best, "collapse_repeats": True}
    records = pipeline_of("student", limit, vocabulary)([text], **options)[0]
    for record in records if num_best > 1 else [records]:
        assert record["history"][-1] == record["translation_text"]
        assert {line_ends(canvas) == line_ends(text) for canvas in record["history"]} == {True}
