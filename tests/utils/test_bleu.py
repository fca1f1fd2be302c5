"""The score of a perfect translation is 100 in every language, wherever BLEU is computed."""

import json
from types import SimpleNamespace

import pytest
import sacrebleu
from datasets import Dataset
from sacrebleu.metrics import BLEU

from modeling_jmnat import JMNatTrainingArguments
from modeling_jmnat.evaluation import scores, tuning_run
from modeling_jmnat.inference.translation import Translation
from modeling_jmnat.teacher import run as teacher_run
from modeling_jmnat.training import validation
from modeling_jmnat.utils import bleu
from modeling_jmnat.utils.bleu import (
    BLEU_TOKENIZERS,
    bleu_metric,
    bleu_tokenizer,
    corpus_bleu,
    language_without_spaces,
)
from modeling_jmnat.utils.translation_scores import score_translations
from tests.helpers.translation_samples import load_script, save_translators

TEXTS = {
    "zh": "我爱北京天安门，今天的天气很好。",
    "ja": "私は毎日学校へ歩いて行きます。",
    "ko": "나는 매일 학교에 걸어서 갑니다.",
    "th": "ฉันเดินไปโรงเรียนทุกวัน",
    "lo": "ຂ້ອຍຍ່າງໄປໂຮງຮຽນທຸກມື້",
    "km": "ខ្ញុំដើរទៅសាលារៀនរាល់ថ្ងៃ",
    "my": "ကျွန်တော်နေ့တိုင်းကျောင်းသို့လမ်းလျှောက်သွားသည်",
    "bo": "ང་ཉིན་ལྟར་སློབ་གྲྭར་འགྲོ།",
    "en": "I walk to school every day.",
    "ru": "Я хожу в школу каждый день.",
    "ar": "أذهب إلى المدرسة كل يوم.",
    "hi": "मैं हर दिन स्कूल जाता हूँ।",
}


@pytest.fixture(autouse=True)
def warn_anew():
    bleu.installed_tokenizer.cache_clear()


def test_tokenizers_are_those_of_sacrebleu():
    assert set(BLEU_TOKENIZERS) == set(BLEU.TOKENIZERS)


@pytest.mark.parametrize("language", TEXTS)
def test_the_language_follows_from_its_code_or_script(language):
    text = TEXTS[language]
    spaceless = None if language in ("en", "ru", "ar", "hi") else language
    for name in (None, "en", language, f"{language}-XX"):
        assert language_without_spaces([text, "URL 2"], name) == spaceless
    assert language_without_spaces(["word"], language) == spaceless
    for code, known in (("zho_Hans", "zh"), ("cmn", "zh"), ("jpn_Jpan", "ja"), ("kor_Hang", "ko"), ("deu_Latn", None)):
        assert language_without_spaces(["word"], code) == known
    assert language_without_spaces([], None) is None
    assert language_without_spaces(["123"], None) is None


@pytest.mark.parametrize("language", TEXTS)
def test_a_perfect_translation_scores_100(language):
    texts = [TEXTS[language]] * 3
    assert corpus_bleu(texts, texts) == pytest.approx(100)
    found = score_translations(texts, texts, "en")
    for name in ("sacrebleu", "chrf", "tokenized_bleu"):
        assert found[name] == pytest.approx(100), name
    if language in ("en", "ru", "ar", "hi"):
        assert "tok:13a" in found["sacrebleu_signature"]
        assert found["sacrebleu"] == sacrebleu.corpus_bleu(texts, [texts]).score


def test_other_words_lower_the_score():
    text, other = TEXTS["zh"], TEXTS["zh"].replace("天气", "花园")
    assert 20 < corpus_bleu([other], [text]) < 90
    assert corpus_bleu([other], [text]) == BLEU(tokenize="zh").corpus_score([other], [[text]]).score
    assert corpus_bleu([other], [text], chosen="char") == BLEU(tokenize="char").corpus_score([other], [[text]]).score
    assert score_translations(["好好好"], ["好"])["repeated_tokens_per_sentence"] == 2


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_a_missing_package_falls_back_to_characters_with_one_warning(language, monkeypatch, caplog):
    make = BLEU.__init__

    def without_mecab(self, *args, tokenize=None, **kwargs):
        if tokenize.endswith("mecab"):
            raise RuntimeError(f"dependencies are missing.\n\n    pip install sacrebleu[{language}]\n")
        make(self, *args, tokenize=tokenize, **kwargs)

    monkeypatch.setattr(BLEU, "__init__", without_mecab)
    for _ in range(2):
        assert bleu_tokenizer([TEXTS[language]]) == "char"
    (record,) = caplog.records
    assert f"pip install 'sacrebleu[{language}]'" in record.getMessage()
    with pytest.raises(ValueError, match=f"{language}-mecab needs a package that is missing: pip install"):
        bleu_metric(f"{language}-mecab")
    assert bleu_tokenizer([TEXTS[language]], chosen="13a") == "13a"


# Where it is used ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, and a text in Chinese: any translations are replaced by perfect ones."""
    folder = save_translators(tmp_path_factory.mktemp("models"))
    (folder / "source").write_text("a b\nc d e\n")
    (folder / "reference").write_text(f"{TEXTS['zh']}\n{TEXTS['zh'][::-1]}\n")
    return folder


def perfect(folder):
    lines = (folder / "reference").read_text().splitlines()
    return lambda model, tokenizer, sources, **options: iter(
        [Translation("", [(x, 0.0)], [7]) for x in lines[: len(sources)]]
    )


def text_of(folder):
    return [f"--model={folder / 'student'}", f"--source={folder / 'source'}", f"--reference={folder / 'reference'}"]


def test_evaluations_use_the_tokenizer_of_the_language(folder, monkeypatch, capsys, caplog):
    monkeypatch.setattr(scores, "translate_lines", perfect(folder))
    for options, score, name in (([], 100, "zh"), (["--bleu_tokenize", "13a"], 0, "13a")):
        load_script("evaluate").main([*text_of(folder), "--num_iterations", "1", *options])
        (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
        assert row["sacrebleu"] == pytest.approx(score)
        assert f"tok:{name}" in row["sacrebleu_signature"]
        assert row["by_source_words"]["1-5"]["sacrebleu"] == pytest.approx(score)
        assert ("sacreBLEU is 0 in every row" in caplog.text) == (score == 0)


@pytest.mark.parametrize("command", ["evaluate", "tune_decoding", "train_jmnat", "train_teacher", "reproduce"])
def test_unknown_tokenizers_are_refused(command, folder, tmp_path, capsys):
    needed = {"reproduce": ["--output", tmp_path], "train_jmnat": ["--output_dir", tmp_path]}
    needed["train_teacher"] = [*needed["train_jmnat"], "--preset", "demo"]
    options = text_of(folder) if command in ("evaluate", "tune_decoding") else ["--data", "x", *needed[command]]
    with pytest.raises(SystemExit) as stopped:
        load_script(command).main([*map(str, options), "--bleu_tokenize", "mecab"])
    assert stopped.value.code == 1
    assert "bleu_tokenize='mecab' is not one of 13a, intl, zh" in capsys.readouterr().err


def test_tuning_warns_where_nothing_can_be_chosen(folder, tmp_path, monkeypatch, capsys, caplog):
    lines = (folder / "reference").read_text().splitlines()
    found = [({"length_normalization": 1.0}, lines), ({"length_normalization": 2.0}, lines[::-1])]
    monkeypatch.setattr(tuning_run, "candidate_settings", lambda *args, **kwargs: iter(found))

    def best(*options):
        report = tmp_path / "report.json"
        load_script("tune_decoding").main([*text_of(folder), "--save=False", f"--output={report}", *options])
        capsys.readouterr()
        return json.loads(report.read_text())

    report = best()
    assert (report["best"], report["settings"]["bleu_tokenize"]) == ({"length_normalization": 1.0}, "zh")
    assert report["results"][0]["sacrebleu"] == pytest.approx(100)
    assert "tok:zh" in report["sacrebleu_signature"]
    assert not caplog.records
    report = best("--bleu_tokenize", "13a")
    assert [row["sacrebleu"] for row in report["results"]] == [0.0, 0.0]
    (record,) = caplog.records
    assert record.getMessage().startswith("sacreBLEU is 0.0 with every setting, so it cannot choose one")
    found[:] = found[:1]
    best("--bleu_tokenize", "zh")
    assert len(caplog.records) == 1
    found[0][1][:] = ["x", "y"]
    best()
    assert len(caplog.records) == 2


def test_evaluations_in_training_use_the_tokenizer_of_the_language(folder, tmp_path, monkeypatch):
    lines = (folder / "reference").read_text().splitlines()
    dataset = Dataset.from_dict({"source": ["a b", "c"], "target": lines})
    for module in (validation, teacher_run):
        monkeypatch.setattr(module, "translate_lines", perfect(folder))
    for options, score in (({}, 100), ({"bleu_tokenize": "13a"}, 0)):
        args = JMNatTrainingArguments(str(tmp_path), use_cpu=True, eval_num_iterations=[4], **options)
        trainer = SimpleNamespace(args=args, model=None, processing_class=None)
        assert validation.translation_scores(trainer, dataset) == {"bleu_k4": score, "bleu": score}
        model = SimpleNamespace(eval=lambda: None)
        found = teacher_run.validation_scores(model, None, dataset, 5, args.bleu_tokenize)
        assert set(found.values()) == {score}
