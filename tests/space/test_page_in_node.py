"""`hub_card/browser/translator.js` in Node, with the page's libraries: ids, feeds, texts and passes as in Python."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from modeling_jmnat import ORTJMNatForConditionalGeneration
from modeling_jmnat.inference.translator_options import OPTIONS_FILE, translator_feeds
from modeling_jmnat.pipeline import sentences_of
from modeling_jmnat.plain_text import Sentence
from tests.helpers.static_page import SHIPPED

pytest.importorskip("onnxscript", reason="the extra `bench` is not installed")

SCRIPT = Path(__file__).with_name("in_node.mjs")
OPTIONS = {"num_iterations": 4, "num_length_candidates": 2}
ODD_TEXTS = (
    "",
    "Er sagte </s> und <mask> zu <s>.",  # special tokens that are written out are text
    "Grüße 👩‍👩‍👧 und 日本語, a\u200bb\tc\u00a0d",
    "Cafe\u0301 a\u0308\u0323 \ufeffﬁ ½ Ⅳ",
    "نص‌ها क्‍ष 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "„Zitat“ – 1.234,56 € … $HOME/x_y",
)
OTHERWISE_SPELLED = (
    *("ICH HABE KEINE ZEIT.", "STRAßE GESPERRT!", "UNO", "DIE UNO", "ich habe keine zeit.", "ein haus", "Ein Haus"),
    *("• Ein Hund schläft.", "👩‍👩‍👧 Hallo du", "Das ist gut. 😀", "→ weiter", "5 > 3 ist wahr", "– Ein Punkt"),
    *("DIE USA UND DIE EU.", "DAS HAUS IST GROSS.", "WEISS", "JA!", "WAS?", "USA", "Hallo", "ich bin in den usa"),
    *("- Ein Punkt", "1. Ein Punkt", "3. Mai", "a) Ein Punkt", "[ ] Ein Punkt", "(iv) Ein Punkt", "## Ein Titel"),
    *("*** Wichtig ***", "• 2. Ein Punkt", "> – Ein Punkt", "– 😀 Ein Punkt", "3. Oktober", "1. FC Köln"),
    *("ﬁnden Sie das?", "Ｈａｌｌｏ Welt", "𝐇allo ‐ Welt", "Er sagte: ‟Komm her!”", "Das geht´s."),
)
TEXTS_OF_SENTENCES = (
    'Dr. Meier kam am 3. Mai. Er ging bald. Ist das so? "Ja." Nein.',
    "Am 3. Okt. 2020 war das, z. B. bei der Fa. Meier. Gut!",
    "Erste Zeile\nZweite Zeile. Und mehr.\r\n\r\n  Dritte \n",
    "Der Dipl.-Ing. wohnt ca. 5 km weiter. www.beispiel.de ist eine Seite.",
    " ",
)


@pytest.fixture(scope="module")
def in_node(static_page, graphs):
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed: apt-get install nodejs")

    def run(texts=(), options=None, languages=(), feeds=()):
        job = {"page": str(static_page), "graph": str(graphs / "browser_translator.onnx")}
        job |= {"texts": texts, "options": options, "languages": languages, "feeds": feeds}
        done = subprocess.run([node, SCRIPT], input=json.dumps(job), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_ids_are_those_of_python(in_node, real_sentences):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    texts = [*real_sentences, *ODD_TEXTS]
    assert in_node(texts)["ids"] == tokenizer(texts)["input_ids"]


def test_capitals_and_signs_are_read_as_in_python(in_node):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    for text, found in zip(OTHERWISE_SPELLED, in_node(OTHERWISE_SPELLED)["reads"], strict=True):
        sentence = Sentence.read(text, tokenizer)
        assert found == [sentence.text, sentence.write("A Dog.")], text


def test_200_sentences_and_their_passes_are_those_of_python(in_node, graphs, real_sentences):
    """In float32, where what differs in the last bit does not grow; see hub_card/browser/README.md for int8."""
    found = in_node(real_sentences, OPTIONS)["translations"]
    model, tokenizer = ORTJMNatForConditionalGeneration.from_pretrained(graphs), AutoTokenizer.from_pretrained(SHIPPED)
    assert len(real_sentences) == 200
    for number, (sentence, translation) in enumerate(zip(real_sentences, found, strict=True)):
        given = tokenizer(sentence, return_tensors="pt")
        output = model.generate(**given, **OPTIONS, num_return_sequences=2, return_dict_in_generate=True)
        assert translation["text"] == tokenizer.decode(output.sequences[0], skip_special_tokens=True)
        if number >= 20:
            continue
        output = model.generate(
            **given, **OPTIONS, num_return_sequences=2, return_dict_in_generate=True, output_history=True
        )
        for index, candidate in zip(output.best_candidates[0].tolist(), translation["candidates"], strict=True):
            length = candidate["length"]
            assert length == output.candidate_lengths[0, index]
            for turn, tokens in zip(output.history, candidate["passes"], strict=True):
                masked = turn.canvas[0, index, :length] == tokenizer.mask_token_id
                assert [token["masked"] for token in tokens] == masked.tolist()
                words = tokenizer.convert_ids_to_tokens(turn.tokens[0, index, :length].tolist())
                assert [token["text"] for token in tokens] == words
                probs = torch.tensor([token["prob"] for token in tokens])
                torch.testing.assert_close(probs, turn.log_probs[0, index, :length].exp(), rtol=1e-3, atol=1e-4)


def test_options_are_fed_as_in_python(in_node, graphs):
    given = ({}, {"num_iterations": 2, "remask_adjacent": True}, {"target_lengths": [5], "length_offset": 1.5})
    for options, feeds in zip(given, in_node(feeds=given)["feeds"], strict=True):
        expected = translator_feeds(graphs / OPTIONS_FILE, [[2]], **options)
        assert feeds.keys() == expected.keys() - {"input_ids", "attention_mask"}
        for name, feed in feeds.items():
            assert (feed["type"], tuple(feed["dims"])) == (str(expected[name].dtype), expected[name].shape)
            values = np.array([float(value) for value in feed["data"]], dtype=np.float64)
            np.testing.assert_array_equal(values, expected[name].astype(np.float64).flatten())


def test_wrong_options_are_refused_as_in_python(in_node, graphs):
    wrong = ({"num_beams": 4}, {"num_iterations": 2.5}, {"num_iterations": [2]}, {"remask_adjacent": 1})
    messages = in_node(feeds=wrong)["feeds"]
    for options, message in zip(wrong, messages, strict=True):
        with pytest.raises(ValueError, match=re.escape(message.replace('"', "'"))):
            translator_feeds(graphs / OPTIONS_FILE, [[2]], **options)


def test_sentences_are_those_of_the_pipeline(in_node, real_sentences):
    pytest.importorskip("sentencex", reason="sentencex is not installed")
    several = [" ".join(real_sentences[begin : begin + 4]) for begin in range(0, 200, 4)]
    texts = [*TEXTS_OF_SENTENCES, *several]
    for text, pieces in zip(texts, in_node(languages=[["de", text] for text in texts])["sentences"], strict=True):
        assert "".join(piece["before"] + piece["text"] + piece["after"] for piece in pieces) == text
        assert [piece["text"] for piece in pieces] == [piece.strip() for piece in sentences_of(text, "de")]
