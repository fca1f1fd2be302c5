"""Lines in, lines out: order, independence of batching, bounded memory, options, and one sentence for each mistake."""

import gzip
import io
import json
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers.utils import ModelOutput

from modeling_jmnat.inference.translation import (
    LONGER_TARGETS,
    _read_output,
    parse_generation_options,
    translate_lines,
)
from modeling_jmnat.pipeline import JMNatTranslationPipeline
from modeling_jmnat.tokenization_jmnat import one_line
from tests.helpers.teacher_samples import WORDS, random_lines, random_teacher
from tests.helpers.translation_samples import SCRIPTS, load_script, tiny_student

PASSES = {"num_iterations": 3, "num_length_candidates": 3}


@pytest.fixture(scope="module")
def lines():
    """Thirty lines of very different lengths, some blank, some twice."""
    texts = random_lines(22, seed=3) + ["", "   ", "\t", WORDS[0], WORDS[0]]
    texts += [" ".join(random.Random(number).choices(WORDS, k=18)) for number in range(3)]
    random.Random(0).shuffle(texts)
    return texts


@pytest.fixture(scope="module")
def one_by_one(student, tokenizer, lines):
    """The slow way: `generate` on each line alone, without any code of the module under test."""
    texts = []
    for line in lines:
        if not line.strip():
            texts.append("")
            continue
        inputs = tokenizer(line, return_tensors="pt")
        ids = student.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **PASSES)
        texts.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    return texts


def texts_of(translations):
    return [translation.text for translation in translations]


@pytest.mark.parametrize(("budget", "window"), [(None, 4096), (60, 4096), (1, 4096), (400, 7), (10**9, 1)])
def test_every_line_is_translated_as_if_alone(student, tokenizer, lines, one_by_one, budget, window):
    results = list(translate_lines(student, tokenizer, lines, max_batch_tokens=budget, window_lines=window, **PASSES))
    assert [result.source for result in results] == lines
    assert texts_of(results) == one_by_one
    assert len(set(one_by_one)) > 15  # the model does not say the same to everything
    for result in results:
        blank = not result.source.strip()
        assert result.num_passes == (None if blank else 3)
        assert (result.candidates[0] == ("", 0.0)) == blank


def test_lines_are_read_only_as_far_as_needed(student, tokenizer):
    read = []

    def endless():
        for number in range(10**9):
            read.append(number)
            yield WORDS[number % len(WORDS)]

    translations = translate_lines(student, tokenizer, endless(), window_lines=10, num_iterations=1)
    for expected in (10, 20):
        texts = [next(translations).text for _ in range(10)]
        assert len(read) == expected
        assert len(texts) == 10


def test_batches_stay_within_the_budget(student, tokenizer, lines, monkeypatch):
    calls = []
    original = student.generate

    def recording(**kwargs):
        output = original(**kwargs)
        calls.append((kwargs["input_ids"].shape, output.candidate_lengths))
        return output

    monkeypatch.setattr(student, "generate", recording)
    budget = 120
    list(translate_lines(student, tokenizer, lines, max_batch_tokens=budget, **PASSES))
    assert sum(shape[0] for shape, _ in calls) == sum(bool(line.strip()) for line in lines)
    assert any(shape[0] > 1 for shape, _ in calls)
    for (count, width), lengths in calls:
        assert count == 1 or count * width * 3 <= budget
        assert count == 1 or count * 3 * int(lengths.max()) <= LONGER_TARGETS * budget


def test_targets_much_longer_than_sources_are_decoded_in_pieces(tokenizer, monkeypatch):
    model = tiny_student(tokenizer)
    with torch.no_grad():  # every sentence is to be 20 tokens long
        model.model.encoder.embed_lengths.weight[1:] = 0
        model.model.encoder.layer_norm = None
        model.model.encoder.layers[-1].final_layer_norm.bias.fill_(5.0)
        model.model.encoder.embed_lengths.weight[18:] = 1.0
    counts = []
    original = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **kwargs: counts.append(len(kwargs["input_ids"])) or original(**kwargs)
    )
    sources = [WORDS[number % 30] for number in range(40)]
    results = list(translate_lines(model, tokenizer, sources, max_batch_tokens=120, **PASSES))
    assert {length for result in results for length in result.candidate_lengths} == {18, 19, 20}
    assert max(counts) == LONGER_TARGETS * 120 // (3 * 20)
    assert sum(counts) == 40


def test_one_very_long_line_does_not_change_the_others(student, tokenizer, lines, one_by_one):
    longest = student.config.max_position_embeddings
    words = []
    while len(tokenizer(" ".join([*words, WORDS[7]]))["input_ids"]) <= longest:
        words.append(WORDS[7])
    long_line = " ".join(words)
    results = texts_of(translate_lines(student, tokenizer, [*lines[:9], long_line, *lines[9:]], **PASSES))
    assert [*results[:9], *results[10:]] == one_by_one
    assert results[9]
    too_long = " ".join([long_line] * 2)
    with pytest.raises(ValueError, match=rf"line 12 has \d+ tokens: the model allows at most {longest}"):
        list(translate_lines(student, tokenizer, [*lines[:11], too_long], window_lines=5, **PASSES))


def test_n_best_are_the_candidates_of_generate(student, tokenizer, lines):
    results = translate_lines(student, tokenizer, lines, num_return_sequences=3, **PASSES)
    for line, result in zip(lines, results, strict=True):
        scores = [score for _, score in result.candidates]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        if line.strip():
            inputs = tokenizer(line, return_tensors="pt")
            inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            output = student.generate(**inputs, num_return_sequences=3, return_dict_in_generate=True, **PASSES)
            texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
            assert [text for text, _ in result.candidates] == texts
            torch.testing.assert_close(torch.tensor(scores), output.sequences_scores, rtol=1e-4, atol=1e-5)


def test_canvases_show_the_masks_of_each_pass(student, tokenizer, lines):
    options = {**PASSES, "num_iterations": 4, "output_history": True}
    for result in translate_lines(student, tokenizer, lines, **options):
        if not result.source.strip():
            assert result.canvases is None
            continue
        length = result.canvases[0].count("__")
        assert result.canvases[0] == " ".join(["__"] * length)
        assert length in result.candidate_lengths
        masks = [canvas.count("__") for canvas in result.canvases]
        assert masks[1:] == [max(1, length * (4 - i) // 4) for i in (1, 2, 3)]


def test_canvases_end_where_a_sentence_stops(student, tokenizer, lines):
    """Whatever the other sentences of a batch need; as in the pipeline."""
    options = {**PASSES, "num_iterations": 6, "early_stop": True}
    texts = [line for line in lines if line.strip()]
    results = list(translate_lines(student, tokenizer, texts, output_history=True, **options))
    assert len({result.num_passes for result in results}) > 1
    pipe = JMNatTranslationPipeline(student, tokenizer, device="cpu", split_sentences=False)
    for result, record in zip(results, pipe(texts, return_history=True, **options), strict=True):
        assert len(result.canvases) == result.num_passes
        assert result.canvases == record["history"][:-1]


def test_languages_are_no_text():
    """A new M2M100Tokenizer does not know its languages as special tokens."""
    words = {5: "__en__", 6: "a", 7: "dog"}
    tokenizer = SimpleNamespace(
        all_special_ids=[0, 1, 2],
        pad_token_id=1,
        lang_token_to_id={"__en__": 5},
        batch_decode=lambda rows: [" ".join(words[token] for token in row) for row in rows],
    )
    (found,) = _read_output(tokenizer, ModelOutput(sequences=torch.tensor([[2, 5, 6, 7, 2, 1]])), 1)
    assert found["candidates"] == [("a dog", None)]


def test_a_generated_line_break_does_not_split_the_line(student, tokenizer):
    for name in ("<0x0A>", "<0x0D>", "<0x09>", "<0x0C>"):
        newline = tokenizer.convert_tokens_to_ids(name)
        others = [token for token in range(len(tokenizer)) if token != newline]
        (result,) = translate_lines(student, tokenizer, [WORDS[3]], num_iterations=1, suppress_tokens=others)
        assert result.token_ids
        assert set(result.token_ids) == {newline}
        assert result.text == ""  # white space at the edges is cut off
        between = one_line(f"a{tokenizer.decode(result.token_ids)}b")
        assert between == "a" + " " * len(result.token_ids) + "b"


@pytest.mark.parametrize("num_beams", [1, 3])
def test_autoregressive_models_are_translated_the_same_way(tokenizer, lines, num_beams):
    teacher = random_teacher(tokenizer)
    results = list(
        translate_lines(teacher, tokenizer, lines, max_batch_tokens=300, num_beams=num_beams, max_length=12)
    )
    for line, result in zip(lines, results, strict=True):
        assert result.num_passes is None
        if not line.strip():
            assert result.text == ""
            continue
        inputs = tokenizer(line, return_tensors="pt")
        ids = teacher.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], num_beams=num_beams, max_length=12
        )
        assert result.text == tokenizer.decode(ids[0], skip_special_tokens=True)
        assert result.candidates[0][1] is None


def test_beam_search_keeps_scores_only_where_they_are_asked_for(tokenizer, monkeypatch):
    teacher = random_teacher(tokenizer)
    asked, generate = [], teacher.generate

    def watched(**options):
        asked.append(options.get("output_scores", False))
        return generate(**options)

    monkeypatch.setattr(teacher, "generate", watched)
    options = {"num_beams": 3, "max_length": 12}
    (plain,) = translate_lines(teacher, tokenizer, [WORDS[3]], **options)
    for number in (1, 2):
        (result,) = translate_lines(teacher, tokenizer, [WORDS[3]], num_return_sequences=number, **options)
        scores = [score for _, score in result.candidates]
        assert len(scores) == number
        assert scores == sorted(scores, reverse=True)
        assert result.text == plain.text
    assert plain.candidates == [(plain.text, None)]
    assert asked == [False, True, True]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_iterations": 0}, "num_iterations=0"),
        ({"num_length_candidates": 0}, "num_length_candidates=0"),
        ({"num_length_candidates": 21}, "num_length_candidates=21"),
        ({"num_iteration": 4}, "num_iteration"),
        ({"num_return_sequences": 9}, "num_return_sequences=9"),
        ({"max_batch_tokens": 0}, "max_batch_tokens=0"),
        ({"window_lines": -1}, "window_lines=-1"),
    ],
)
def test_bad_options_are_named(student, tokenizer, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(translate_lines(student, tokenizer, [WORDS[0]], **options))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_beams": 0}, "num_beams=0 must be a whole number of at least 1"),
        ({"num_beams": "three"}, "num_beams='three' must be a whole number"),
        ({"length_penalty": "x"}, "length_penalty='x' must be a number"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1 must be a whole number of at least 0"),
        ({"num_iterations": 2}, "num_iterations does not apply to an autoregressive model"),
    ],
)
def test_bad_options_of_a_beam_search_are_named(tokenizer, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(translate_lines(random_teacher(tokenizer), tokenizer, [WORDS[0]], **options))


@pytest.mark.parametrize("name", ["shortlist", "reranker", "target_lengths", "num_iteration"])
def test_generation_options_are_known_ones(name):
    assert parse_generation_options(None) == {}
    options = {"num_iterations": 4, "num_beams": 2, "max_new_tokens": 9, "suppress_tokens": [1]}
    assert parse_generation_options(json.dumps(options)) == options
    with pytest.raises(ValueError, match=rf"^generation option '{name}' is unknown \([^,]*\)$"):
        parse_generation_options(json.dumps({**options, name: "x"}))


def test_return_type_is_not_an_option(student, tokenizer, lines, one_by_one):
    options = {**PASSES, **parse_generation_options('{"return_dict_in_generate": false}')}
    assert texts_of(translate_lines(student, tokenizer, lines, **options)) == one_by_one


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def translate():
    return load_script("translate").main


def stop(main, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err.strip().splitlines()[-1]


def test_command_writes_lines_in_order(folder, tmp_path, lines, one_by_one, translate, capsys):
    source = tmp_path / "source.de.gz"
    source.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    common = ["--model", str(folder / "student"), "--num_iterations", "3", "--num_length_candidates", "3"]
    translate([*common, "--input", str(source)])
    captured = capsys.readouterr()
    assert captured.out == "".join(f"{text}\n" for text in one_by_one)
    figures = json.loads(captured.err.splitlines()[-1])
    assert figures["sentences"] == len(lines)
    assert figures["sentences_per_second"] > 0
    translate([*common, "--input", str(source), "--output", str(tmp_path / "out.en.gz"), "--batch_tokens", "50"])
    assert gzip.decompress((tmp_path / "out.en.gz").read_bytes()).decode() == captured.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.en.gz", "source.de.gz"]


def test_command_reads_standard_input(folder, lines, one_by_one):
    command = [sys.executable, SCRIPTS / "translate.py", "--model", folder / "student"]
    command += ["--num_iterations", "3", "--num_length_candidates", "3"]
    text = "".join(f"{line}\n" for line in lines).encode()
    done = subprocess.run(command, input=text, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "".join(f"{text}\n" for text in one_by_one)
    assert b"translating" not in done.stderr  # no progress bar away from a terminal


def test_command_refuses_standard_input_that_is_not_utf8(folder, translate, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"good\ngr\xfcn\n")))
    sentence = stop(translate, ["--model", str(folder / "student")], capsys)
    assert sentence.startswith("error: standard input: line 2 is not valid UTF-8")


def test_command_writes_n_best_and_passes(folder, tmp_path, lines, one_by_one, translate, capsys):
    source = tmp_path / "source.txt"
    source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    common = ["--model", str(folder / "student"), "--input", str(source)]
    common += ["--num_iterations", "3", "--num_length_candidates", "3"]
    translate([*common, "--n_best", "2"])
    rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == [str(number) for number in range(1, len(lines) + 1) for _ in range(2)]
    assert [row[2] for row in rows[::2]] == one_by_one
    assert all(float(first[1]) >= float(second[1]) for first, second in zip(rows[::2], rows[1::2], strict=True))
    translate([*common, "--show_passes"])
    blocks = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert len(blocks) == len(lines)
    for line, text, block in zip(lines, one_by_one, blocks, strict=True):
        rows = [(row[:8].strip(), row[8:]) for row in block.split("\n")]
        passes = ["pass 1", "pass 2", "pass 3"] if line.strip() else []
        assert [name for name, _ in rows] == ["source", *passes, "result"]
        assert (rows[0][1], rows[-1][1]) == (line, text)


def test_command_shows_drafts_apart_from_the_translations(folder, tmp_path, lines, one_by_one, translate, capsys):
    source = tmp_path / "source.txt"
    source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    common = ["--model", str(folder / "student"), "--input", str(source)]
    translate([*common, "--num_iterations", "3", "--num_length_candidates", "3", "--watch"])
    captured = capsys.readouterr()
    assert captured.out == "".join(f"{text}\n" for text in one_by_one)
    drafts = captured.err.split("\033[33m")[1:]
    assert len(drafts) == 3 * sum(bool(line.strip()) for line in lines)
    assert drafts[2].split("\033[0m")[0] == next(text for text in one_by_one if text)
    assert stop(translate, [*common, "--watch", "--n_best", "2"], capsys).startswith(
        "error: --watch shows only the best"
    )


def test_command_says_what_is_wrong_and_leaves_the_output_alone(folder, tmp_path, translate, capsys):
    student = str(folder / "student")
    good, long, empty, output = (tmp_path / f"{name}.txt" for name in ("good", "long", "empty", "out"))
    good.write_text(f"{WORDS[0]}\n")
    long.write_text(f"{WORDS[0]}\n{' '.join(WORDS * 9)}\n")
    empty.write_text("")
    output.write_text("earlier\n")
    for arguments, sentence in (
        (["--model", student, "--input", str(long), "--long_lines", "error"], "error: line 2 has"),
        (["--model", student, "--input", str(empty)], f"error: {empty}: the input is empty"),
        (["--model", student, "--input", str(tmp_path / "absent")], f"error: {tmp_path}/absent: No such file"),
        (["--model", str(tmp_path), "--input", str(good)], f"error: model {tmp_path} cannot be loaded"),
        (["--model", student, "--input", str(good), "--num_iterations", "0"], "error: num_iterations=0"),
        (["--model", student, "--input", str(good), "--n_best", "0"], "error: n_best=0"),
        (
            ["--model", student, "--input", str(good), "--batch_tokens", "0"],
            "error: batch_tokens=0 must be at least 1",
        ),
        (["--model", student, "--input", str(good), "--generation_options", "{"], "error: generation_options='{'"),
        (
            ["--model", student, "--input", str(good), "--generation_options", '{"beam": 1}'],
            "error: generation option 'beam' is unknown (did you mean num_length_candidates?)",
        ),
        (
            ["--model", str(folder / "teacher"), "--input", str(good), "--show_passes"],
            "error: --show_passes does not apply",
        ),
    ):
        assert stop(translate, [*arguments, "--output", str(output)], capsys).startswith(sentence)
        assert output.read_text() == "earlier\n"
    sentence = stop(translate, ["--model", student, "--output", str(tmp_path / "no" / "out")], capsys)
    assert sentence == f"error: {tmp_path / 'no'} is not a folder: cannot write out there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "good.txt", "long.txt", "out.txt"]


@pytest.mark.slow
def test_ten_thousand_lines_stay_under_two_gigabytes(folder, tmp_path):
    generator = random.Random(1)
    source = tmp_path / "many.txt"
    with source.open("w") as file:
        for _ in range(10_000):
            file.write(" ".join(generator.choices(WORDS, k=generator.choice([1, 3, 8, 20]))) + "\n")
    program = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", program, SCRIPTS / "translate.py", "--model", folder / "student"]
    command += ["--input", source, "--output", tmp_path / "out.txt", "--num_iterations", "1"]
    command += ["--num_length_candidates", "1"]  # batches hold as many tokens as with more
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert int(done.stdout.split()[-1]) < 2 * 1024**2  # kilobytes
    assert len((tmp_path / "out.txt").read_bytes().decode().splitlines()) == 10_000
