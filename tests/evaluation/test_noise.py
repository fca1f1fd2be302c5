"""Noise at decoding: the right share, the same text for everybody, and nothing left behind."""

import json
from collections import Counter

import pytest
import torch

from modeling_jmnat.evaluation import run
from modeling_jmnat.evaluation.noise import STATE_NOISES, disturbed, noisy_lines, noisy_states
from modeling_jmnat.evaluation.source_words import word_finder
from modeling_jmnat.utils.id_batches import pad_batch
from tests.helpers.translation_samples import load_script, save_translators, tiny_student, tiny_tokenizer

LINES = [" ".join(f"w{line}_{word}" for word in range(10 + line % 15)) for line in range(400)]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_dropped_share_is_right_and_order_stays(share):
    noisy = noisy_lines(LINES, "drop", share)
    before, after = (sum(len(line.split()) for line in lines) for lines in (LINES, noisy))
    assert after / before == pytest.approx(1 - share, abs=0.01)
    for old, new in zip(LINES, noisy, strict=True):
        words = iter(old.split())
        assert all(word in words for word in new.split())  # a subsequence


def test_replaced_words_come_from_the_text():
    noisy = noisy_lines(LINES, "replace", 0.1)
    vocabulary = {word for line in LINES for word in line.split()}
    changed = 0
    for old, new in zip(LINES, noisy, strict=True):
        assert len(old.split()) == len(new.split())
        assert set(new.split()) <= vocabulary
        changed += sum(a != b for a, b in zip(old.split(), new.split(), strict=True))
    assert changed / sum(len(line.split()) for line in LINES) == pytest.approx(0.1, abs=0.01)


def test_noise_depends_on_seed_and_line_alone():
    assert noisy_lines(LINES, "drop", 0.1) == noisy_lines(LINES, "drop", 0.1)
    assert noisy_lines(LINES, "drop", 0.1) != noisy_lines(LINES, "drop", 0.1, seed=1)
    assert noisy_lines(LINES[:7], "drop", 0.3) == noisy_lines(LINES, "drop", 0.3)[:7]
    assert noisy_lines(LINES, "replace", 0.0) == LINES


def test_short_lines_keep_a_word():
    assert noisy_lines(["one", "", "two words"] * 20, "drop", 1.0).count("one") == 20
    assert set(noisy_lines(["a b"] * 50, "drop", 1.0)) == {"a", "b"}
    # A tenth of lines of one word cannot be dropped, a tenth of those of two words loses one: by chance.
    counts = Counter(noisy_lines(["a b"] * 1000, "drop", 0.1))
    assert counts["a b"] == pytest.approx(800, abs=60)


@pytest.mark.parametrize(
    ("lines", "units"),
    [
        (["我昨天在电脑上读了一本很有意思的书。"] * 200, 18),
        (["日本語のテキストには、空白がありません。"] * 200, 20),
        (["แมวนอนหลับอยู่บนเก้าอี้ตัวเก่าที่บ้าน"] * 200, 26),  # vowel signs belong to their letters
        (["나는 어제 흥미로운 책을 한 권 읽었다"] * 200, 7),
    ],
)
def test_languages_without_spaces_have_noise_on_their_characters(lines, units):
    find = word_finder(lines)
    assert len(find(lines[0])) == units
    assert "".join(map("".join, find(lines[0]))) == lines[0]
    dropped = noisy_lines(lines, "drop", 0.2)
    assert sum(len(find(line)) for line in dropped) / (len(lines) * units) == pytest.approx(0.8, abs=0.02)
    replaced = noisy_lines(lines, "replace", 0.2)
    assert [line.count(" ") for line in replaced] == [line.count(" ") for line in lines]
    changed = sum(a != b for line in replaced for a, b in zip(find(line), find(lines[0]), strict=True))
    assert changed / (len(lines) * units) == pytest.approx(0.2, abs=0.05)
    assert word_finder(["我在 Linux 上写字"])("在 Linux 上") == [("在", " "), ("Linux", " "), ("上", "")]


def test_bad_noise_has_a_sentence():
    model = tiny_student(tiny_tokenizer())
    with pytest.raises(ValueError, match="kind='swap' is not one of drop, replace"):
        noisy_lines(LINES, "swap", 0.1)
    with pytest.raises(ValueError, match=r"share=1.5 must lie in \[0, 1\]"):
        noisy_lines(LINES, "drop", 1.5)
    with pytest.raises(ValueError, match="place='output' is not one of encoder_input"):
        noisy_states(model, "output", 0.1).__enter__()
    with pytest.raises(ValueError, match="level=-1 must be a number of at least 0"):
        noisy_states(model, "encoder_input", -1).__enter__()


@pytest.fixture(scope="module")
def student():
    tokenizer = tiny_tokenizer()
    model = tiny_student(tokenizer)
    ids, mask = pad_batch(tokenizer(["ban dex gir kot", "lun max"])["input_ids"], tokenizer.pad_token_id)
    return model, {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids}


@torch.no_grad()
def states_of(model, batch):
    output = model(**batch)
    return {"encoder": output.encoder_last_hidden_state, "length": output.length_logits, "logits": output.logits}


@pytest.mark.parametrize("place", STATE_NOISES)
def test_noise_affects_only_its_place_and_ends_with_the_block(student, place):
    model, batch = student
    clean = states_of(model, batch)
    with noisy_states(model, place, 0.3):
        noisy = states_of(model, batch)
    changed = {name for name in clean if not torch.equal(clean[name], noisy[name])}
    expected = {
        "encoder_input": {"encoder", "length", "logits"},
        "encoder_output": {"encoder", "logits"},
        "decoder_input": {"logits"},
    }
    assert changed == expected[place]
    after = states_of(model, batch)
    assert all(torch.equal(clean[name], after[name]) for name in clean)
    with noisy_states(model, place, 0.3):
        again = states_of(model, batch)
    assert all(torch.equal(noisy[name], again[name]) for name in clean)  # seeded
    with noisy_states(model, place, 0.0):
        assert torch.equal(states_of(model, batch)["logits"], clean["logits"])


def test_size_of_the_noise_follows_the_states(student):
    model, batch = student
    clean = states_of(model, batch)["encoder"]
    with noisy_states(model, "encoder_output", 0.2):
        noise = states_of(model, batch)["encoder"] - clean
    assert noise.square().mean().sqrt() / clean.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)


def test_noise_of_an_autoregressive_model_and_of_words(tmp_path):
    from modeling_jmnat.inference.loading import load_translator

    model, _ = load_translator(save_translators(tmp_path) / "teacher")
    with disturbed(model, LINES, "encoder_input", 0.1) as lines:
        assert lines is LINES
    with disturbed(model, LINES, "drop", 0.1) as lines:
        assert lines == noisy_lines(LINES, "drop", 0.1)


def test_evaluate_gives_a_row_for_each_level(tmp_path, capsys):
    models = save_translators(tmp_path)
    lines = ["ban dex gir kot lun", "max ban ban", "kot lun max ban dex gir"]
    for name in ("source", "reference"):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    main = load_script("evaluate").main
    common = ["--source", str(tmp_path / "source"), "--reference", str(tmp_path / "reference"), "--device", "cpu"]
    for options, rows in (
        (["--model", str(models / "student"), "--num_iterations", "1", "2", "--noise", "decoder_input"], 4),
        (["--model", str(models / "teacher"), "--num_beams", "2", "--noise", "replace"], 2),
    ):
        texts = tmp_path / f"texts{rows}"
        levels = ["--noise_levels", "0", "0.5", "--translations", str(texts)]
        main([*common, *options, *levels])
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert [row["noise_level"] for row in report["results"]] == [0.0] * (rows // 2) + [0.5] * (rows // 2)
        assert report["settings"]["noise"] == options[-1]
        assert len(list(texts.iterdir())) == rows
    with pytest.raises(SystemExit):
        main([*common, "--model", str(models / "student"), "--noise", "rain"])
    assert "noise='rain' is not one of drop, replace, encoder_input" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["drop", "replace"])
def test_a_prefix_is_no_part_of_the_text_that_is_disturbed_and_measured(kind, tmp_path, monkeypatch, capsys):
    """Every system reads the same words, whatever its model expects before them."""
    models, lines = save_translators(tmp_path), [" ".join(line.split()[:10]) for line in LINES[:20]]
    text = tmp_path / "text"
    text.write_text("".join(f"{line}\n" for line in lines))
    translated = []

    def translate(model, tokenizer, sources, *arguments, original, **options):
        translated.extend(sources)
        yield {"num_beams": 1, "long_lines": 0, "sentences_per_second": 1.0, "words": len(original[0].split())}, lines

    monkeypatch.setattr(run, "evaluate_model", translate)
    options = ["--num_beams", "1", "--source_prefix", ">>eng<< ", "--noise", kind, "--noise_levels", "0.5"]
    files = ["--source", str(text), "--reference", str(text), "--device", "cpu"]
    load_script("evaluate").main(["--model", str(models / "teacher"), *files, *options])
    assert translated == [f">>eng<< {line}" for line in noisy_lines(lines, kind, 0.5)]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"][0]["words"] == 10
