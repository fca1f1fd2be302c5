"""The logic of the page in `hub_card/space`, on tiny models; `test_space_browser.py` looks at the page itself."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import passes
import pytest
import rendering
import torch
import yaml

from modeling_jmnat import JMNatConfig, JMNatForConditionalGeneration, JMNatTokenizer, JMNatTranslationPipeline
from tests.helpers.teacher_samples import random_lines
from tests.helpers.translation_samples import save_translators, tiny_student, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "hub_card" / "space"

SENTENCE = random_lines(1, seed=9)[0]


@pytest.fixture(scope="module")
def translators(tmp_path_factory):
    """Student and teacher as the page loads them, with their tokenizers."""
    folder = save_translators(tmp_path_factory.mktemp("translators"))
    return passes.load(folder / "student"), passes.load(folder / "teacher")


@pytest.mark.parametrize("adjacent", [True, False])
@pytest.mark.parametrize(("num_passes", "num_candidates"), [(1, 1), (4, 3), (10, 8)])
def test_passes_are_those_of_generate(translators, num_passes, num_candidates, adjacent):
    (model, tokenizer), _ = translators
    result = passes.translate(model, tokenizer, SENTENCE, num_passes, num_candidates, adjacent)
    inputs = tokenizer([SENTENCE], return_tensors="pt")
    options = {"num_iterations": num_passes, "num_length_candidates": num_candidates, "remask_adjacent": adjacent}
    expected = model.generate(**inputs, **options, num_return_sequences=num_candidates, output_history=True)
    assert result.text == tokenizer.decode(expected.sequences[0], skip_special_tokens=True)
    assert [candidate.length for candidate in result.candidates] == expected.lengths.tolist()
    means = [candidate.mean_log_prob for candidate in result.candidates]
    assert means == pytest.approx(expected.sequences_scores.tolist(), rel=1e-5)
    assert len(result.pass_seconds) == num_passes
    assert min(result.pass_seconds) > 0
    assert "predict_tokens" not in vars(model)  # no clock is left on the model
    for candidate, index in zip(result.candidates, expected.best_candidates[0].tolist(), strict=True):
        assert len(candidate.passes) == num_passes
        for tokens, turn in zip(candidate.passes, expected.history, strict=True):
            ids = turn.tokens[0, index, : candidate.length].tolist()
            canvas = turn.canvas[0, index, : candidate.length]
            assert [token.text for token in tokens] == tokenizer.convert_ids_to_tokens(ids)
            assert [token.masked for token in tokens] == (canvas == tokenizer.mask_token_id).tolist()
            probs = turn.log_probs[0, index, : candidate.length].exp()
            assert torch.equal(torch.tensor([token.prob for token in tokens]), probs)


def test_a_tuned_exponent_does_not_make_the_page_surer(translators, monkeypatch):
    (model, tokenizer), _ = translators
    plain = passes.translate(model, tokenizer, SENTENCE, 4, 3, True)
    monkeypatch.setattr(model.generation_config, "length_normalization", 2.25)
    tuned = passes.translate(model, tokenizer, SENTENCE, 4, 3, True)
    by_length = [
        {candidate.length: candidate.mean_log_prob for candidate in result.candidates} for result in (plain, tuned)
    ]
    assert by_length[0] == by_length[1]


def test_options_without_a_control_are_the_models_own(translators, monkeypatch):
    (model, tokenizer), _ = translators
    results = {value: passes.translate(model, tokenizer, SENTENCE, 4, 3, adjacent=value) for value in (True, False)}
    assert results[True].candidates != results[False].candidates
    for value, expected in results.items():
        monkeypatch.setattr(model.generation_config, "remask_adjacent", value)
        assert passes.translate(model, tokenizer, SENTENCE, 4, 3).candidates == expected.candidates
    assert "in common" not in rendering.render(results[False])
    monkeypatch.setattr(model.generation_config, "consensus_weight", 1.0)
    assert "in common" in rendering.render(passes.translate(model, tokenizer, SENTENCE, 4, 3))
    assert "Chosen by" not in rendering.render(passes.translate(model, tokenizer, SENTENCE, 4, 1))


def test_what_a_pass_replaced_is_what_stood_there_before(translators):
    (model, tokenizer), _ = translators
    replaced = 0
    for line in random_lines(5, seed=2):
        for candidate in passes.translate(model, tokenizer, line, 5, 4).candidates:
            assert all(token.masked and token.replaced is None for token in candidate.passes[0])
            for before, after in zip(candidate.passes, candidate.passes[1:], strict=False):
                for old, new in zip(before, after, strict=True):
                    assert new.replaced == (None if old.text == new.text else old.text)
                    assert new.masked or (new.text, new.prob) == (old.text, old.prob)
                    replaced += new.replaced is not None
    assert replaced > 0


def test_word_by_word_is_greedy_search_with_its_probabilities(translators):
    _, (teacher, tokenizer) = translators
    result = passes.translate_word_by_word(teacher, tokenizer, SENTENCE)
    ids = tokenizer([SENTENCE], return_tensors="pt")["input_ids"]
    produced = [teacher.config.decoder_start_token_id]
    for token in result.tokens:  # a full forward pass for each step
        with torch.no_grad():
            logits = teacher(input_ids=ids, decoder_input_ids=torch.tensor([produced])).logits[0, -1]
        produced.append(int(logits.argmax()))
        assert token.text == tokenizer.convert_ids_to_tokens(produced[-1])
        assert token.prob == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
    assert result.text == tokenizer.decode(produced[1:], skip_special_tokens=True)
    assert len(result.step_seconds) == len(result.tokens)
    assert result.other_seconds > 0


@pytest.mark.parametrize("text", [SENTENCE.upper(), f"• {SENTENCE}", f"{SENTENCE} 😀", "7", f"“{SENTENCE}”"])
def test_odd_texts_are_translated_as_in_the_pipeline(translators, text):
    pipe = JMNatTranslationPipeline(*translators[0], num_iterations=3, num_length_candidates=4)
    assert passes.translate(*translators[0], text, 3, 4).text == pipe(text)[0]["translation_text"]


@pytest.mark.parametrize("text", ["", "  \n\t ", "\u200b", None])
def test_nothing_to_translate(translators, text):
    with pytest.raises(ValueError, match="Please type a German sentence first"):
        passes.translate(*translators[0], text)


def test_too_long_a_text_is_told_with_both_numbers(translators):
    model, tokenizer = translators[0]
    longest = model.config.max_position_embeddings
    with pytest.raises(ValueError, match=rf"has \d+ tokens, but the model reads at most {longest}"):
        passes.translate(model, tokenizer, f"{SENTENCE} " * longest)


@pytest.mark.parametrize("part", ["wortschatz", "wort ", " ", "日", "\u0301"])
def test_huge_texts_are_refused_before_they_are_read(part):
    with pytest.raises(ValueError, match=r"3000000 characters, but the page reads at most \d+: please split"):
        passes.encode(None, None, part * (3_000_000 // len(part)))  # neither model nor tokenizer is asked


@pytest.mark.parametrize("value", [0, 11, -1, 2.5, None, "4", True, float("nan")])
def test_numbers_outside_of_their_range(translators, value):
    with pytest.raises(ValueError, match=f"number of passes must be a whole number from 1 to 10, not {value}"):
        passes.translate(*translators[0], SENTENCE, num_passes=value)
    if value != 11:
        with pytest.raises(ValueError, match=f"number of lengths must be a whole number from 1 to 8, not {value}"):
            passes.translate(*translators[0], SENTENCE, num_candidates=value)


def test_line_breaks_count_as_spaces(translators):
    expected = passes.translate(*translators[0], SENTENCE, 3)
    words = SENTENCE.split()
    assert passes.translate(*translators[0], "\n".join(words) + "\n", 3).candidates == expected.candidates


def example_result():
    """Two candidates of two passes, with text that would be markup, and a word of two pieces."""
    token = passes.Token
    first = [[token(" <b>", 0.95, True), token("x", 0.2, True), token(passes.END, 0.75, True)]]
    first.append([token(" <b>", 0.95), token('"&', 0.55, True, "x"), token(passes.END, 0.75)])
    second = [[token(" a", 0.35, True), token(passes.END, 0.9, True)]] * 2
    candidates = [passes.Candidate(3, -0.1, first), passes.Candidate(2, -0.7, second)]
    return passes.Translation("<b>\"& <script>alert('1')</script>", candidates, [0.012, 0.0034], 0.02)


def test_html_shows_passes_and_escapes_every_text():
    teacher = passes.WordByWord(
        "<i>t</i>", [passes.Token(" <i>", 0.5), passes.Token(passes.END, 1.0)], [0.1, 0.1], 0.05
    )
    page = rendering.render(example_result(), teacher)
    assert "<script" not in page
    assert "<i>t" not in page
    assert "&lt;b&gt;&quot;&amp; &lt;script&gt;" in page
    assert "&lt;i&gt;t&lt;/i&gt;" in page
    best = page[page.index('id="best"') : page.index('id="teacher"')]
    assert best.count('class="pass"') == 2
    assert best.count('class="word"') == 4  # the two pieces of the word stand together, the end apart
    assert "3 of 3 masked</span><span>12 ms" in best
    assert "1 of 3 masked</span><span>3.4 ms" in best
    chips = re.findall(r'<span class="chip (p\d(?: masked)?)".*?</b></span>', best)
    assert chips == ["p0 masked", "p4 masked", "p1 masked", "p0", "p2 masked", "p1"]
    assert "<del>x</del><b>&quot;&amp;</b>" in best
    cards = page[page.index('class="cards"') :]
    assert len(re.findall('class="card( best)?"', cards)) == 2
    assert cards.count("chosen</b>") == 1
    assert "90 % sure" in cards  # exp(-0.1)
    assert "50 % sure" in cards
    assert "JM-NAT:</b> 2 passes, 35 ms" in page
    assert "Word by word:</b> 2 steps, 250 ms" in page


def test_html_of_one_pass_without_teacher_and_of_a_message():
    result = example_result()
    del result.candidates[0].passes[1], result.pass_seconds[1], result.candidates[1]
    page = rendering.render(result)
    assert "1 pass, 32 ms" in page
    assert "Word by word" not in page
    assert 'id="teacher"' not in page
    assert "&lt;img" in rendering.render_message("<img src=x onerror=alert(1)>")


def test_model_is_the_variables_or_the_shipped_or_the_owners(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL", "somewhere/else")
    assert passes.model_name() == "somewhere/else"
    monkeypatch.delenv("MODEL")
    assert Path(passes.model_name()) == ROOT / "hub_card" / "de-en"
    monkeypatch.setattr(passes, "HERE", tmp_path / "space")
    monkeypatch.setenv("SPACE_AUTHOR_NAME", "somebody")
    assert passes.model_name() == "somebody/jmnat-de-en"
    monkeypatch.delenv("SPACE_AUTHOR_NAME")
    with pytest.raises(ValueError, match="set MODEL to a folder"):
        passes.model_name()


def test_model_folder_alone_is_enough(tmp_path, monkeypatch):
    """As in a Space: transformers without the package, a folder that holds its code."""
    monkeypatch.setattr(JMNatConfig, "_auto_class", "AutoConfig")
    monkeypatch.setattr(JMNatForConditionalGeneration, "_auto_class", "AutoModelForSeq2SeqLM")
    monkeypatch.setattr(JMNatTokenizer, "_auto_class", "AutoTokenizer")
    tokenizer = tiny_tokenizer()
    model = tiny_student(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    code = """if True:
        import sys
        sys.modules["modeling_jmnat"] = None  # as if it were not installed
        from passes import load, translate
        model, tokenizer = load(sys.argv[1])
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        print(translate(model, tokenizer, sys.argv[2], 3).text)
    """
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model"), SENTENCE],
        capture_output=True,
        text=True,
        cwd=SPACE,
        timeout=240,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.rstrip("\n") == passes.translate(model, tokenizer, SENTENCE, 3).text


def test_space_header_and_requirements():
    header = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert header["sdk"] == "gradio"
    assert (SPACE / header["app_file"]).is_file()
    assert f"gradio=={header['sdk_version']}\n" in (ROOT / "constraints.txt").read_text()
    assert {header["colorFrom"], header["colorTo"]} <= {
        "red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray",
    }  # fmt: skip
    assert len(header["short_description"]) <= 60
    assert header["models"]
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    required = {re.split("[<>=]", line)[0] for line in lines if line and not line.startswith("#")}
    files = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in SPACE.glob("*.py")}
    imported = set()
    for tree in files.values():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.split(".")[0] for name in names}
    assert imported - sys.stdlib_module_names - set(files) == required | {"gradio"}
