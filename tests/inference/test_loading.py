"""Saved models and their tokenizers: what is loaded, and one sentence for each thing that is wrong."""

import copy
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel, GenerationConfig

from modeling_jmnat import JMNatTranslationPipeline
from modeling_jmnat.configuration_jmnat import JMNatConfig
from modeling_jmnat.inference.loading import (
    check_vocabulary,
    load_teacher,
    load_teacher_tokenizer,
    load_translator,
    set_languages,
)
from modeling_jmnat.modeling_jmnat import JMNatForConditionalGeneration
from modeling_jmnat.tokenization_jmnat import repeatable_tokens
from modeling_jmnat.utils.fingerprints import tokenizer_fingerprint
from modeling_jmnat.utils.hub_folders import check_folder
from modeling_jmnat.utils.id_batches import pad_batch
from tests.helpers.hub_server import without_waiting
from tests.helpers.teacher_samples import TINY, random_teacher
from tests.helpers.translation_samples import tiny_student


def test_tokenizer_of_another_model_is_refused(student, tokenizer):
    check_vocabulary(student, tokenizer)
    rounded_up = -(-(len(tokenizer) + 1) // 8) * 8
    check_vocabulary(tiny_student(tokenizer, vocab_size=rounded_up), tokenizer)
    sentence = r"the tokenizer has \d+ tokens and the model \d+: load the tokenizer that was saved with this model"
    for size in (len(tokenizer) - 1, rounded_up + 1, rounded_up + 64):
        with pytest.raises(ValueError, match=sentence):
            check_vocabulary(tiny_student(tokenizer, vocab_size=size), tokenizer)
    with pytest.raises(
        ValueError, match="mask_token_id is 4 in the tokenizer and 3 in the model: load the tokenizer that"
    ):
        check_vocabulary(tiny_student(tokenizer, mask_token_id=3), tokenizer)


def test_errors_of_loading_name_the_cause(folder, tmp_path):
    model, _ = load_translator(folder / "student", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert not model.training
    (tmp_path / "empty").mkdir()
    for arguments, sentence in (
        ((tmp_path / "absent",), "absent does not exist"),
        ((tmp_path / "empty",), "empty cannot be loaded: it holds no config.json: give the folder of a saved model"),
        ((folder / "student", "tpu"), "device='tpu' cannot be used here"),
        ((folder / "student", "cpu", "int8"), "dtype='int8' is not one of auto, float32"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_translator(*arguments)


@pytest.mark.parametrize("load", [load_translator, load_teacher])
def test_what_is_no_saved_model_is_said_so(load, folder, tmp_path, monkeypatch):
    """Neither the libraries' list of model types, nor only that the Hub cannot be reached."""
    training = tmp_path / "training"
    shutil.copytree(folder / "student", training / "checkpoint-20")
    sentence = (
        "training cannot be loaded: it holds no config.json, because its training has not ended: .*checkpoint-20"
    )
    with pytest.raises(ValueError, match=sentence):
        load(training)
    monkeypatch.chdir(tmp_path)
    without_waiting(monkeypatch)
    with pytest.raises(ValueError, match="trainig cannot be loaded: there is no folder of this name, and it cannot"):
        load("trainig")


@pytest.mark.parametrize(("name", "value"), [("d_model", "16"), ("encoder_layers", 1.5), ("normalize_before", "yes")])
def test_a_field_of_another_type_is_named(folder, tmp_path, name, value):
    copied = shutil.copytree(folder / "student", tmp_path / "copy")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(ValueError, match=f"copy cannot be loaded: config.json: Validation error for field '{name}': "):
        load_translator(copied)


def test_repeatable_tokens_are_set_and_saved(student, tokenizer, folder, tmp_path):
    """A model alone cannot tell letters from words, so the tokenizer does; a setting in the folder has precedence."""
    assert student.generation_config.repeatable_tokens is None
    model, _ = load_translator(folder / "student")
    assert model.generation_config.repeatable_tokens == repeatable_tokens(tokenizer)
    translate = JMNatTranslationPipeline(copy.deepcopy(student), tokenizer)
    assert translate.model.generation_config.repeatable_tokens == repeatable_tokens(tokenizer)
    model.save_pretrained(tmp_path)
    loaded = JMNatForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.repeatable_tokens == repeatable_tokens(tokenizer)
    loaded.generation_config.repeatable_tokens = []
    loaded.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_translator(tmp_path)[0].generation_config.repeatable_tokens == []


@pytest.mark.parametrize("normalize_before", [True, False])
def test_a_saved_teacher_gives_the_same_logits(tokenizer, tmp_path, normalize_before):
    model = random_teacher(tokenizer, normalize_before)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = load_teacher(tmp_path)
    assert tokenizer_fingerprint(loaded_tokenizer) == tokenizer_fingerprint(tokenizer)
    ids, mask = pad_batch([[7, 8, 9, 2], [11, 2]], 1)
    labels = torch.tensor([[5, 6, 2], [9, 2, 1]])
    with torch.no_grad():
        one = model(input_ids=ids, attention_mask=mask, labels=labels).logits
        two = loaded(input_ids=ids, attention_mask=mask, labels=labels).logits
    assert torch.equal(one, two)


def test_teacher_with_the_tokenizer_of_another_model_is_refused(tokenizer, tmp_path):
    model = random_teacher(tokenizer)
    model.resize_token_embeddings(len(tokenizer) - 3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens and the model \d+: save the tokenizer that"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("load", [load_teacher, load_translator])
def test_a_model_of_two_vocabularies_is_refused(load, tokenizer, tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    halves = [BertConfig(vocab_size=len(tokenizer), **sizes) for _ in range(2)]
    EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(*halves)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a EncoderDecoderModel, whose configuration has no vocab_size: give a"):
        load(tmp_path)


def test_student_is_refused_as_teacher(tokenizer, tmp_path):
    JMNatForConditionalGeneration(JMNatConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="non-autoregressive"):
        load_teacher(tmp_path)


def test_a_missing_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    (tmp_path / "runs" / "file").touch()
    monkeypatch.chdir(tmp_path)
    absent = ["runs/no", "runs/no/teacher", "a/b/c", "./no", "../no", "/no", "~/no", ".no", str(tmp_path / "no")]
    for name in [*absent, "runs/file", tmp_path / "no"]:
        with pytest.raises(ValueError, match=f"^the folder {re.escape(str(name))} does not exist: "):
            load_teacher(name)
    for name in ("runs/teacher", "./runs", tmp_path, "opus", "Helsinki-NLP/opus-mt-de-en"):
        check_folder(name)


def test_codes_of_m2m100_lose_their_underscores():
    class M2M100:
        all_special_tokens = ["</s>", "__de__", "__en__"]
        special_tokens_map = {"eos_token": "</s>"}
        set_src_lang_special_tokens = src_lang = None
        convert_tokens_to_ids = {"__de__": 7, "__en__": 8}.__getitem__

    for codes in (["de", "en"], ["__de__", "__en__"]):
        tokenizer, model = M2M100(), SimpleNamespace(generation_config=GenerationConfig())
        set_languages(model, tokenizer, codes)
        assert (tokenizer.src_lang, model.generation_config.forced_bos_token_id) == ("de", 8)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize(("load", "name"), [(load_translator, "student"), (load_teacher, "teacher")])
def test_nan_weights_are_refused(load, name, value, student, tokenizer, tmp_path):
    model = tiny_student(tokenizer) if name == "student" else random_teacher(tokenizer)
    model.get_encoder().layers[0].fc1.bias.data[3] = value
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the weights of .* are not finite \(model\.encoder\.layers\.0\.fc1\.bias\)"):
        load(tmp_path)


@pytest.mark.parametrize(("layers", "where"), [(3, "but not in"), (1, "only in")])
@pytest.mark.parametrize(("load", "name"), [(load_translator, "student"), (load_teacher, "teacher")])
def test_weights_of_another_number_of_layers_are_refused(load, name, layers, where, folder, tmp_path):
    """Transformers would leave the other layers at random values, or leave them out."""
    copied = shutil.copytree(folder / name, tmp_path / "copy")
    config = json.loads((copied / "config.json").read_text())
    assert config["encoder_layers"] == 2
    (copied / "config.json").write_text(json.dumps(config | {"encoder_layers": layers}))
    with pytest.raises(ValueError, match=rf"config.json and the weights do not belong together: .* is {where} the"):
        load(copied)


@pytest.mark.parametrize(("load", "name"), [(load_translator, "student"), (load_teacher, "teacher")])
def test_weights_of_another_width_are_refused_in_one_sentence(load, name, folder, tmp_path):
    copied = shutil.copytree(folder / name, tmp_path / "copy")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"d_model": 2 * config["d_model"]}))
    with pytest.raises(ValueError, match="config.json and the weights do not belong together, because their shapes"):
        load(copied)


def test_a_tokenizer_that_lacks_a_file_or_is_damaged_is_said_so(folder, tmp_path):
    """Transformers raises a TypeError for what is missing, and the library tokenizers a plain Exception."""
    missing = "copy cannot be loaded: a file of its tokenizer is missing: get the folder again, or copy all files"
    damaged = "copy cannot be loaded: its tokenizer.json is damaged, or was written by a newer version of the package"
    for load, name, change, sentence in (
        (load_translator, "student", {"tokenizer.json": None}, missing),
        (load_translator, "teacher", {"tokenizer_config.json": None}, missing),
        (load_translator, "student", {"tokenizer.json": '{"model": {}, "added_tokens": []}'}, damaged),
        (load_teacher, "teacher", {"tokenizer.json": None}, missing),
        (load_teacher, "teacher", {"tokenizer_config.json": None}, missing),
        (load_teacher, "teacher", {"tokenizer.json": None, "tokenizer_config.json": None}, missing),
        (load_teacher, "teacher", {"tokenizer.json": '{"model": {}, "added_tokens": []}'}, damaged),
    ):
        copied = shutil.copytree(folder / name, tmp_path / "copy")
        for file, content in change.items():
            (copied / file).unlink() if content is None else (copied / file).write_text(content)
        with pytest.raises(ValueError, match=sentence):
            load(copied)
        shutil.rmtree(copied)


def test_weights_without_the_crf_of_the_configuration_are_refused(folder, tmp_path):
    """Transformers would add one with random weights."""
    copied = shutil.copytree(folder / "student", tmp_path / "copy")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"crf_rank": 3}))
    with pytest.raises(ValueError, match=r"do not belong together: crf\.dynamic_in\.bias is but not in the"):
        load_translator(copied)


@pytest.fixture
def foreign(tmp_path, tokenizer):
    """A folder of a model that Transformers does not know, whose code leaves a trace when it is run."""
    folder = tmp_path / "foreign"
    random_teacher(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "evil.Config", "AutoModelForSeq2SeqLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "foreign", "auto_map": code}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Foreign", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    return folder


@pytest.mark.parametrize("load", [load_translator, load_teacher, load_teacher_tokenizer])
def test_code_in_a_folder_is_never_run(load, foreign, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked on standard input"))
    with pytest.raises(ValueError, match="code"):
        load(foreign)
    assert not (tmp_path / "trace").exists()


def test_a_command_does_not_read_its_input_as_an_answer(foreign, tmp_path):
    command = [sys.executable, "-m", "modeling_jmnat.commands", "translate", "--model", str(foreign)]
    done = subprocess.run(command, input="yes, ein Hund\n", capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: model {foreign} cannot be loaded: ")
    assert not (tmp_path / "trace").exists()
