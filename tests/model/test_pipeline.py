"""`JMNatTranslationPipeline`: forms of input and output, batches, splitting of long texts, history, errors."""

import copy
import json
import random
import re
import sys
import time
from collections import UserDict

import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import GPT2Config, GPT2LMHeadModel, TextGenerationPipeline, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_jmnat import JMNatGenerateOutput, JMNatTranslationPipeline, ORTJMNatForConditionalGeneration
from modeling_jmnat.pipeline import LAST_SIGNS, sentences_of, split_line
from modeling_jmnat.plain_text import clean_text
from modeling_jmnat.tokenization_jmnat import show_canvas
from tests.helpers.teacher_samples import random_lines, random_teacher
from tests.helpers.translation_samples import tiny_student, tiny_tokenizer

TEXTS = random_lines(7, seed=11)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_student(tokenizer)


@pytest.fixture(scope="module")
def translate(model, tokenizer):
    return JMNatTranslationPipeline(model, tokenizer, device="cpu", split_sentences=False)


def one_by_one(model, tokenizer, texts, **options):
    """The translation of each text by itself with `generate`."""
    outputs = [model.generate(**tokenizer([text], return_tensors="pt"), **options) for text in texts]
    return [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in outputs]


class Echo:
    """A model that translates every sentence into itself, and remembers the sentences."""

    def __init__(self, model, tokenizer):
        self.config, self.device = copy.copy(model.config), torch.device("cpu")
        self.config.max_position_embeddings = 1000
        self.tokenizer, self.seen = tokenizer, []

    def can_generate(self):
        return True

    def generate(self, input_ids, attention_mask, return_dict_in_generate):
        self.seen += self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        return JMNatGenerateOutput(sequences=input_ids, sequences_scores=torch.zeros(len(input_ids)))


@pytest.fixture
def echo(model, tokenizer):
    return Echo(model, tokenizer)


@pytest.fixture
def repeat(echo, tokenizer):
    return JMNatTranslationPipeline(echo, tokenizer)


def test_translations_are_those_of_generate_in_any_batch(model, tokenizer, translate):
    expected = [{"translation_text": texts[0]} for texts in one_by_one(model, tokenizer, TEXTS)]
    assert len({record["translation_text"] for record in expected}) > 3
    for batch_size in (1, 2, 3, 16):
        assert translate(TEXTS, batch_size=batch_size) == expected
    assert translate(tuple(TEXTS), batch_size=4) == expected


def test_texts_lists_generators_and_columns_are_accepted(translate):
    expected = translate(TEXTS)
    streamed = [[record] for record in expected]
    column = Dataset.from_dict({"de": TEXTS})
    assert translate(TEXTS[0]) == streamed[0]
    for stream in ((text for text in TEXTS), column["de"], KeyDataset(column, "de"), iter(TEXTS)):
        results = translate(stream, batch_size=3)
        assert not isinstance(results, list)
        assert list(results) == streamed
    assert translate([]) == []
    for empty in (iter([]), Dataset.from_dict({"de": []})["de"], KeyDataset(Dataset.from_dict({"de": []}), "de")):
        assert list(translate(empty)) == []


def test_streams_have_the_structure_of_transformers_own_pipelines(translate, tokenizer):
    own = TextGenerationPipeline(
        model=GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1)),
        tokenizer=tokenizer,
        device="cpu",
        max_new_tokens=1,
    )
    column = Dataset.from_dict({"de": TEXTS[:3]})

    def structure(results):
        records = [[list(record) for record in records] for records in results]
        return type(results), [[1] * len(records) for records in records]

    for stream in (lambda: (text for text in TEXTS[:3]), lambda: KeyDataset(column, "de")):
        for batch_size in (1, 2):
            results = [pipe(stream(), batch_size=batch_size) for pipe in (translate, own)]
            assert structure(results[0]) == structure(results[1])
    assert structure(translate(column["de"])) == structure(own(KeyDataset(column, "de")))
    assert len(translate(column["de"])) == len(own(KeyDataset(column, "de"))) == 3
    assert translate(list(column["de"])) == translate(TEXTS[:3])
    assert list(translate(column["de"], num_workers=1)) == list(translate(column["de"]))


def test_use_does_not_change_the_hash_of_a_pipeline(translate):
    """So that `datasets` finds what it has translated before."""
    before = Hasher.hash(translate)
    assert translate(TEXTS[:2], batch_size=2, return_history=True)
    assert Hasher.hash(translate) == before


def test_generators_are_read_as_they_are_translated(translate):
    taken = []

    def lines():
        for text in TEXTS:
            taken.append(text)
            yield text

    results = translate(lines(), batch_size=2)
    next(iter(results))
    assert 0 < len(taken) < len(TEXTS)


def test_n_best_gives_a_list_per_text(model, tokenizer, translate):
    found = translate(TEXTS, num_return_sequences=3, batch_size=4)
    expected = one_by_one(model, tokenizer, TEXTS, num_return_sequences=3)
    assert [[record["translation_text"] for record in records] for records in found] == expected
    assert translate(TEXTS[0], num_return_sequences=3) == found[0]


def test_scores_are_those_of_generate_and_of_several_sentences_their_mean(model, tokenizer, translate):
    options = {"num_return_sequences": 2, "return_dict_in_generate": True}
    outputs = [model.generate(**tokenizer([text], return_tensors="pt"), **options) for text in TEXTS[:2]]
    scores = [output.sequences_scores.tolist() for output in outputs]
    found = translate(TEXTS[:2], num_return_sequences=2, return_scores=True)
    assert [[record["score"] for record in records] for records in found] == scores
    (record,) = translate("\n".join([*TEXTS[:2], "7"]), split_sentences=True, return_scores=True)
    assert record["score"] == pytest.approx((scores[0][0] + scores[1][0]) / 2)
    assert translate(" ", return_scores=True) == [{"translation_text": " ", "score": 0.0}]
    assert "score" not in translate(TEXTS[0])[0]


def test_options_reach_generate_and_those_of_a_call_take_precedence(model, tokenizer):
    translate = JMNatTranslationPipeline(model, tokenizer, num_iterations=1, num_length_candidates=2)
    for given in ({}, {"num_iterations": 7}, {"num_length_candidates": 5, "remask_schedule": "cosine"}):
        options = {"num_iterations": 1, "num_length_candidates": 2, **given}
        expected = [{"translation_text": texts[0]} for texts in one_by_one(model, tokenizer, TEXTS, **options)]
        assert translate(TEXTS, batch_size=3, **given) == expected


def test_blank_texts_are_unchanged(translate):
    found = translate(["", " \t\n", TEXTS[0]], batch_size=2, num_return_sequences=2)
    assert found[:2] == [[{"translation_text": text}] * 2 for text in ("", " \t\n")]
    assert found[2] == translate(TEXTS[0], num_return_sequences=2)
    assert translate("", return_history=True)[0]["translation_text"] == ""


def test_history_holds_the_canvas_of_each_pass(model, tokenizer, translate):
    found = translate(TEXTS, batch_size=4, num_iterations=5, num_return_sequences=2, return_history=True)
    for text, records in zip(TEXTS, found, strict=True):
        inputs = tokenizer([text], return_tensors="pt")
        output = model.generate(**inputs, num_iterations=5, num_return_sequences=2, output_history=True)
        for rank, record in enumerate(records):
            best = output.best_candidates[0, rank]
            canvases = [show_canvas(tokenizer, turn.canvas[0, best].tolist()) for turn in output.history]
            assert record["history"] == [*canvases, record["translation_text"]]
            assert len(canvases) == 5
            assert set(canvases[0].split()) == {"__"}


def test_history_does_not_depend_on_the_batch(translate):
    options = {"num_iterations": 8, "early_stop": True, "return_history": True}
    alone = [translate(text, **options)[0] for text in TEXTS]
    assert translate(TEXTS, batch_size=16, **options) == alone
    assert len({len(record["history"]) for record in alone}) > 1, "some sentences stop early"


def test_history_of_several_sentences(model, tokenizer):
    translate = JMNatTranslationPipeline(model, tokenizer, num_iterations=8, early_stop=True, return_history=True)
    parts = [f"{text}\n" for text in TEXTS]
    (whole,) = translate("".join(parts), batch_size=3)
    alone = [translate(part)[0] for part in parts]
    assert whole["translation_text"] == "".join(record["translation_text"] for record in alone)
    longest = max(len(record["history"]) for record in alone)
    for turn, canvas in enumerate(whole["history"]):
        shown = [
            record["history"][turn] if turn < len(record["history"]) else record["translation_text"]
            for record in alone
        ]
        assert canvas == "".join(shown)
    assert whole["history"][-1] == whole["translation_text"]
    assert len(whole["history"]) == longest


def test_sentences_are_joined_by_their_original_white_space(repeat):
    """With a model that repeats its input, whatever the text is split into."""
    generator = random.Random(5)
    signs = [
        *"ab .!?\n\tÄöZ„“»'()…1-",
        "\u00a0",
        "\u202f",
        "\u2028",
        "\x85",
        "\r\n",
        "z.\u00a0B. ",
        "Dr. ",
        "日。",
        "😀",
    ]
    texts = ["".join(generator.choices(signs, k=generator.randrange(60))) for _ in range(400)]
    results = repeat(texts, batch_size=8, src_lang="de")
    lines_and_edges = re.compile(r"^\s+|\s*[\n\r]\s*|\s+$")
    for text, record in zip(texts, results, strict=True):
        found = record["translation_text"]
        assert clean_text(found).lower() == clean_text(text).lower()  # sentences in small letters get capitals
        assert lines_and_edges.findall(found) == lines_and_edges.findall(text)
        # White space within a sentence is one space, that between sentences is as it was.
        assert set(re.findall(r"\s+", found)) - {" "} <= set(re.findall(r"\s+", text))


def test_sentences_are_translated_one_by_one(repeat, echo):
    text = " Dr. Ahn kam am 3. Oktober z.\u00a0B. mit dem Zug.  „Was?“, fragte er!\n\n- Gut\n- Schlecht  \n\nEnde. "
    assert repeat(text, src_lang="de") == [{"translation_text": text.replace("\u00a0", " ")}]
    assert echo.seen == [
        "Dr. Ahn kam am 3. Oktober z. B. mit dem Zug.",
        "„Was?“, fragte er!",
        "Gut",
        "Schlecht",
        "Ende.",
    ]
    echo.seen.clear()
    repeat(text, split_sentences=False)
    assert echo.seen == [clean_text(text)]


def test_language_of_the_sentences(repeat, echo):
    text = "Er kam am 3. Oktober an. Dann ging er."
    repeat(text, src_lang="de")
    assert len(echo.seen) == 2
    echo.seen.clear()
    repeat(text, src_lang="en")
    assert len(echo.seen) == 3
    echo.config.source_language = "de"
    echo.seen.clear()
    repeat(text)
    assert len(echo.seen) == 2


# A bar stands where a sentence ends.
GERMAN = (
    "am 3. Okt. ging er.| Dann kam er.",
    "Er kam am 3. Okt. 2020 an.| Gut.",
    "Berlin, 3. Okt. 2020.| Am Mo. 3. Jan. kam er.",
    "am 3.\u00a0Okt.\u202f2020",
    "Vom 3. bis 5. Mai, am 3. und 4. Juni.",
    "Im 19. Jh. lebte er.| Er starb.",
    "Der 2. Weltkrieg war lang.| Er wohnt im 3. Stock.| Zum 18. Geburtstag!",
    "Der 3. und der 4. Tag waren gut.",
    "Ihr 2. Kind und mein 3. Kind.| Alle 5. Klassen.| Jeder 3. Deutsche.",
    "1. Tom kommt.| Ludwig XIV. regierte.| Um 50 v. Chr. lebte er.",
    "Die 5. und 6. Klasse kommt.| Im 3. oder 4. Stock.| Es waren 3 und 4.| Tom lachte.",
    "Er wurde 3.| Der Hund bellt.",
    "Es war am 3.| Dann ging er.",
    "Er hat 3.| Sie hat 4.",
    "z. B. am 5. März, d. h. bald.| Ja.",
    "Siehe Nr. 5 und Dr. Müller.| Frau Prof. Dr. Hans kam.",
    "Es sind ca. 5 Leute da, z.B. Tom.",
    "Die Fa. Meier liefert.| Ein engl. Text.| Dipl.-Ing. Meier auch.| Dipl.-Kfm. Meier nicht.",
    "An z. Hd. Frau Meier.| Hrsg. Meier, Übers. Schmidt.",
    "5 Tsd. Leute kamen.| Es waren 5 Tsd.| Das ist viel.",
    "Das war in der Str. 5.| Dann ging er.",
)
ENGLISH = (
    "On Oct. 3 he came.| He left.",
    "We met on Sat. Oct. 5.| Then he left.",
    "We met on Mon. morning.| It was Mon.| He left.",
    "I sat.| 5 men ran.| It weighs 5 lbs. and 3 oz. in total.",
    "There were approx. 5 men.| Vol. 3 is out.| See Fig. 3 and No. 5.| Go to Ft. Worth.",
    "Dr. Smith met Mr. Jones, e.g. Tom.| He said no.| He left.",
    "He lives in the U.S.| He is old.",
)


@pytest.mark.parametrize(
    ("language", "marked"), [("de", text) for text in GERMAN] + [("en", text) for text in ENGLISH]
)
def test_abbreviations_and_ordinals_end_no_sentence(language, marked):
    assert [piece.strip() for piece in sentences_of(marked.replace("|", ""), language)] == marked.split("| ")


@pytest.mark.parametrize("space", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_carriage_returns_and_line_feeds_end_a_line(repeat, echo, space):
    """A shape of a presentation has U+000B inside a sentence, a web page U+2028: these are spaces."""
    assert repeat(f"Der Hund{space}kam bald.\r\nEr{space}ging.", src_lang="de") == [
        {"translation_text": "Der Hund kam bald.\r\nEr ging."}
    ]
    assert echo.seen == ["Der Hund kam bald.", "Er ging."]
    assert sentences_of(f"Er kam.{space}Sie ging.\rEr kam\n\nauch", "de") == [
        f"Er kam.{space}",
        "Sie ging.\r",
        "Er kam\n\n",
        "auch",
    ]


def test_other_languages_are_left_to_the_library():
    assert sentences_of("Il est arrivé le 3. Okt. 2020.", "fr") == split_line("Il est arrivé le 3. Okt. 2020.", "fr")
    assert sentences_of("私は学生です。彼は先生です。", "ja") == ["私は学生です。", "彼は先生です。"]


def test_sentences_of_different_texts_share_batches(model, tokenizer):
    sizes = []

    class Counting(Echo):
        def generate(self, input_ids, **kwargs):
            sizes.append(len(input_ids))
            return super().generate(input_ids, **kwargs)

    texts = ["Eins. Zwei. Drei.", "Vier.", "", "Sechs! Sieben?"]
    results = JMNatTranslationPipeline(Counting(model, tokenizer), tokenizer)(texts, batch_size=4)
    assert sizes == [4, 3]
    assert [record["translation_text"] for record in results] == texts


def test_the_library_is_asked_wherever_it_would_split():
    """`sentences_of` decides by itself that a line is one sentence; the rules of sentencex must agree."""
    generator = random.Random(6)
    signs = [*"abcäß ,:;'()-", *" .!?…“", "Wort ", "Haus. ", "Ja! "]
    split = 0
    for _ in range(3000):
        line = "".join(generator.choices(signs, k=generator.randrange(1, 25)))
        pieces = split_line(line, "de")
        ends = [number for number, piece in enumerate(pieces) if piece[-1] == " " and piece.strip()]
        if any(re.search(r"\w", "".join(pieces[end + 1 :])) for end in ends):
            split += 1
            assert len(sentences_of(line, "de")) > 1, line
    assert split > 500


def test_signs_at_the_end_of_a_line_take_linear_time():
    generator = random.Random(7)
    for _ in range(300):
        line = "".join(generator.choices("aö ._!\n", k=generator.randrange(12)))
        assert LAST_SIGNS.sub("", line) == re.sub(r"\W+$", "", line)
    start = time.perf_counter()
    assert sentences_of("." * 60_000 + "a", "de") == ["." * 60_000 + "a"]
    assert time.perf_counter() - start < 1


def test_without_sentencex_the_error_says_what_to_install(repeat, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    for text in ("Ein Satz.", "Ein Satz, der weitergeht: ja!", "Ein 3.5 langer Satz?!", "Zeile\nZeile.\n"):
        assert repeat(text) == [{"translation_text": text}]
    with pytest.raises(ImportError, match="needs sentencex: pip install sentencex, or give split_sentences=False"):
        repeat("Ein Satz. Noch einer.")
    assert repeat("Ein Satz. Noch einer.", split_sentences=False)


class Table:
    """A data frame, over whose columns Python iterates."""

    columns = ("de",)

    def __iter__(self):
        return iter(self.columns)


def test_bad_inputs_get_one_sentence(model, tokenizer, translate):
    for bad in (3, b"Ja.", {"de": "Ja."}, UserDict(de="Ja."), Table(), [TEXTS[0], None], iter([{"de": "Ja."}])):
        with pytest.raises(ValueError, match="a text to translate must be a string, not"):
            list(translate(bad))
    long = "wort " * model.config.max_position_embeddings
    longest = model.config.max_position_embeddings
    with pytest.raises(ValueError, match=rf"beginning 'wort wort.*the model allows at most {longest}"):
        translate([TEXTS[0], long], long_lines="error")
    with pytest.raises(ValueError, match=r"generate does not support num_iteration=3 \(did you mean num_iterations"):
        translate(TEXTS, num_iteration=3)
    with pytest.raises(ValueError, match="src_lang=5 must be a two-letter language"):
        translate(TEXTS, src_lang=5)
    for option in ("split_sentences", "return_scores", "return_history"):
        with pytest.raises(ValueError, match=f"{option}='no' must be True or False"):
            translate(TEXTS, **{option: "no"})
    with pytest.raises(ValueError, match="num_iterations=0 must be a whole number"):
        translate(TEXTS, num_iterations=0)
    with pytest.raises(ValueError, match="translates with JM-NAT, not with a"):
        JMNatTranslationPipeline(random_teacher(tokenizer), tokenizer)


def test_nat_translation_is_a_task_as_well(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    translate = pipeline("nat-translation", model=str(tmp_path), device="cpu", num_iterations=2)
    assert type(translate) is JMNatTranslationPipeline
    expected = [{"translation_text": texts[0]} for texts in one_by_one(model, tokenizer, TEXTS, num_iterations=2)]
    assert translate(TEXTS, split_sentences=False) == expected


def test_saved_pipeline_answers_to_translation_again(tmp_path, tokenizer):
    translate = JMNatTranslationPipeline(tiny_student(tokenizer), tokenizer, device="cpu")
    translate.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert list(config["custom_pipelines"]) == ["translation"]
    assert {"pipeline.py", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "saved").iterdir()}
    # With the package no trust is needed, and code of the folder is not run.
    (tmp_path / "saved" / "pipeline.py").write_text("raise SystemExit('code of the folder is run')")
    for task in ("nat-translation", "translation"):
        for options in ({}, {"trust_remote_code": False}):
            again = pipeline(task, model=str(tmp_path / "saved"), device="cpu", **options)
            assert type(again) is JMNatTranslationPipeline
            assert again(TEXTS) == translate(TEXTS)
    with pytest.raises(SystemExit, match="code of the folder is run"):
        pipeline("translation", model=str(tmp_path / "saved"), trust_remote_code=True)
    again = pipeline("translation", model=translate.model, tokenizer=tokenizer)
    assert again(TEXTS) == translate(TEXTS)


def test_other_models_are_told_what_to_use(tmp_path, tokenizer):
    random_teacher(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="translates with JM-NAT, not with a m2m_100 model, for which Transformers"):
        pipeline("translation", model=str(tmp_path))


def test_exported_models_translate_in_the_pipeline(model, tokenizer, tmp_path):
    pytest.importorskip("onnx", reason="the extra `bench` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `bench` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `bench` is not installed")
    from modeling_jmnat.onnx_export.export import export_onnx

    export_onnx(model, tmp_path, int8=False)
    exported = ORTJMNatForConditionalGeneration.from_pretrained(tmp_path)
    options = {"batch_size": 3, "return_history": True, "num_return_sequences": 2}
    translate = pipeline("nat-translation", model=exported, tokenizer=tokenizer)
    assert "ORTJMNat" in repr(translate)
    assert translate(TEXTS, **options) == JMNatTranslationPipeline(model, tokenizer, device="cpu")(TEXTS, **options)
