"""Recipes of the paper's data sets: everything up to the download, on a small local set of the same structure."""

import json

import datasets
import pytest

from modeling_jmnat.commands.prepare import parse_preparation
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.experiments.paper_data import RECIPES
from modeling_jmnat.training.presets import load_preset
from tests.helpers.translation_samples import load_script

WORDS = {
    "de": ["der", "Hund", "läuft", ",", "und", "die", "Katze", "schläft", "nicht", "."],
    "en": ["the", "Dog", "runs", ",", "and", "the", "cat", "doesn't", "sleep", "."],
    "ro": ["Câinele", "aleargă", ",", "iar", "pisica", "nu", "doarme", "și", "tace", "."],
}


def small_set(languages, count):
    """Rows as the Hub's translation sets hold them: {"translation": {"de": ..., "en": ...}}."""
    pairs = []
    for number in range(count):
        words = range(number % 5, 10) if number % 7 else range(10)
        pairs.append({key: " ".join(WORDS[key][(word + number) % 10] for word in words) for key in languages})
    return datasets.Dataset.from_list([{"translation": pair} for pair in pairs])


@pytest.fixture
def hub(monkeypatch):
    """A Hub that holds three small sets and notes what it was asked for."""
    asked = []

    def load_dataset(name, config=None, revision=None):
        asked.append((name, config, revision))
        languages = config.split("-")
        return datasets.DatasetDict(
            {split: small_set(languages, count) for split, count in (("train", 60), ("validation", 9), ("test", 8))}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_prepares_its_data(hub, tmp_path, capsys, name):
    recipe = RECIPES[name]
    command = ["--recipe", name, "--output_dir", str(tmp_path / "data"), "--vocab_size", "330"]
    load_script("prepare_data").main(command)
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    corpus, source, target = name.split("_")
    ours = {"iwslt14": "bbaaaa/iwslt14-de-en-preprocess", "wmt14": "wmt/wmt14", "wmt16": "wmt/wmt16"}
    pair = "ro-en" if "ro" in (source, target) else "de-en"
    assert hub == [(ours[corpus], pair, "refs/convert/parquet" if corpus == "iwslt14" else None)]
    assert (result["source_lang"], result["target_lang"]) == (source, target)
    assert result["lowercase"] == (corpus == "iwslt14")
    moses = (source, target) if corpus.startswith("wmt") else (None, None)
    assert (result["moses_source_lang"], result["moses_target_lang"]) == moses
    dataset, tokenizer = load_prepared(tmp_path / "data")
    assert result["pairs"]["train"]["read"] == 60
    assert len(dataset["test"]) == 8
    row = dataset["train"][0]
    text = " ".join(WORDS[source])
    assert row["source"] == (text.lower() if corpus == "iwslt14" else tokenizer.normalize_text(text))
    assert row["input_ids"][-1] == tokenizer.eos_token_id
    assert f"--preset {recipe.preset} --num_length_candidates {recipe.num_length_candidates}" in captured.err
    assert str(recipe.bleu["JM-NAT k=10"]) in captured.err


def test_recipes_are_the_papers():
    assert set(RECIPES) == {"iwslt14_de_en", "wmt14_en_de", "wmt14_de_en", "wmt16_en_ro", "wmt16_ro_en"}
    for name, recipe in RECIPES.items():
        arguments, chosen = parse_preparation(["--recipe", name, "--output_dir", "x"], "")
        assert chosen is recipe
        assert arguments.vocab_size == (10_000 if "iwslt" in name else 32_000)
        assert recipe.num_length_candidates == (4 if "iwslt" in name else 3)
        assert load_preset(recipe.preset).model["d_model"] == (256 if "iwslt" in name else 512)
        assert recipe.tokens_per_step == (8192 if "iwslt" in name else 65536)
        scores = recipe.bleu
        assert scores["teacher"] > scores["JM-NAT k=10"] > scores["CM-NAT k=10"] > scores["CM-NAT k=4"]


def test_options_overrule_a_recipe_and_unknown_ones_are_named():
    arguments, recipe = parse_preparation(["--output_dir", "x", "--recipe", "wmt14_en_de", "--vocab_size", "9"], "")
    assert (arguments.vocab_size, arguments.source_lang, recipe.preset) == (9, "en", "wmt_base")
    arguments, recipe = parse_preparation(["--output_dir", "x"], "")
    assert recipe is None
    assert not arguments.moses
    with pytest.raises(ValueError, match="recipe='wmt99' is not one of iwslt14_de_en"):
        parse_preparation(["--output_dir", "x", "--recipe", "wmt99"], "")


def test_a_set_that_cannot_be_read_has_a_sentence(monkeypatch, tmp_path, capsys):
    def offline(*arguments, **options):
        raise ConnectionError("Couldn't reach 'wmt/wmt14' on the Hub (offline)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(SystemExit):
        load_script("prepare_data").main(["--recipe", "wmt14_de_en", "--output_dir", str(tmp_path / "data")])
    assert "error: Couldn't reach 'wmt/wmt14'" in capsys.readouterr().err
