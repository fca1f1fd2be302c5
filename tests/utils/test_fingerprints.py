"""Fingerprints: whatever changes a tokenizer's ids changes its own, nothing else does; bare digests still count."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, NllbTokenizer, PreTrainedTokenizerFast

from modeling_jmnat import tokenization_jmnat
from modeling_jmnat.hub.fairseq_tokenizer import build_tokenizer
from modeling_jmnat.tokenization_jmnat import SPECIAL_TOKENS, JMNatTokenizer
from modeling_jmnat.utils.fingerprints import (
    ID_OPTIONS,
    data_settings,
    digest,
    file_digest,
    ids_digest,
    json_digest,
    legacy_folder_digest,
    legacy_sources_digest,
    legacy_tokenizer_digest,
    model_digest,
    same_fingerprint,
    shown,
    sources_fingerprint,
    tokenizer_fingerprint,
    weights_digest,
)
from tests.helpers.translation_samples import tiny_tokenizer

SHIPPED = Path(__file__).resolve().parents[2] / "hub_card" / "multi30k_tiny"
PIECES = ["low", "lo@@", "w@@", "er", "l@@", "o", "&apos;s", "@-@"]
TEXTS = ["low lower LOW", "low-low's </s> l&o", 'l\'o "low" 1990']


def converted(**options):
    """A tokenizer with every option of our own switched on."""
    return build_tokenizer([*SPECIAL_TOKENS, *PIECES], ["l o", "lo w</w>", "e r</w>"], "de", "en", **options)


@pytest.fixture
def folder(tmp_path):
    converted(lowercase=True).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def load(folder):
    return JMNatTokenizer.from_pretrained(folder)


def ids_and_texts(tokenizer):
    ids = tokenizer(TEXTS, text_target=TEXTS)
    return ids["input_ids"], ids["labels"], tokenizer.batch_decode(ids["input_ids"])


def change_file(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


SEGMENTER = Tokenizer(models.Unigram([("\0", 0.0), ("l", -1.0), ("o", -1.0)], unk_id=0)).to_str()
OTHER_VALUES = {
    "lowercase": False,
    "split_special_tokens": False,
    "moses_source_lang": "fr",
    "moses_target_lang": "fr",
    "moses_escape": False,
    "moses_split_dashes": False,
    "bpe_merges": ["l o"],
    "bpe_end_of_word_pieces": True,
    "source_segmenter": SEGMENTER,
    "target_segmenter": SEGMENTER,
    "source_start": "low",
    "target_start": "low",
}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_every_option_counts_in_the_folder_and_in_the_loaded_tokenizer(folder, name):
    if name == "split_special_tokens":  # Moses would split them anyway
        tiny_tokenizer().save_pretrained(folder)
    before, results = tokenizer_fingerprint(folder), ids_and_texts(load(folder))
    change_file(folder / "tokenizer_config.json", lambda config: config.update({name: OTHER_VALUES[name]}))
    assert tokenizer_fingerprint(folder) == tokenizer_fingerprint(load(folder)) != before
    assert ids_and_texts(load(folder)) != results


def test_no_option_that_the_tokenizer_reads_is_left_out():
    code = Path(tokenization_jmnat.__file__).read_text(encoding="utf-8")
    read = set(re.findall(r'init_kwargs\.get\(\s*"(\w+)"', code))
    (tuples,) = re.findall(r"init_kwargs\.get\(name, False\) for name in \(([^)]*)\)", code)
    read.update(re.findall(r'"(\w+)"', tuples))
    of_sides = re.findall(r'init_kwargs\.get\(f"\{\w+\}_(\w+)"', code)
    read.update(f"{side}_{name}" for name in of_sides for side in ("source", "target"))
    assert read == set(OTHER_VALUES) - {"split_special_tokens"}
    assert read < set(ID_OPTIONS)


def other_vocabulary(backend):
    backend["model"]["vocab"].update({"low": backend["model"]["vocab"]["o"], "o": backend["model"]["vocab"]["low"]})


PARTS = {
    "vocabulary": other_vocabulary,
    "unknown": lambda backend: backend["model"].update(unk_token="<mask>"),
    "normalizer": lambda backend: backend.update(normalizer=None),
    "pre_tokenizer": lambda backend: backend.update(pre_tokenizer={"type": "WhitespaceSplit"}),
    "post_processor": lambda backend: backend.update(post_processor=None),
    "decoder": lambda backend: backend.update(decoder=None),
    "added_tokens": lambda backend: backend["added_tokens"].pop(),
}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_backend_counts(folder, part):
    before = tokenizer_fingerprint(folder)
    change_file(folder / "tokenizer.json", PARTS[part])
    assert tokenizer_fingerprint(folder) != before


def test_merges_change_the_fingerprint(tmp_path):
    fingerprints = set()
    for merges in ([("l", "o"), ("lo", "w")], [("l", "o"), ("o", "w")], [("o", "w"), ("l", "o")]):
        vocabulary = {
            piece: number for number, piece in enumerate([*SPECIAL_TOKENS, "l", "o", "w", "lo", "ow", "low"])
        }
        backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
        fingerprints.add(tokenizer_fingerprint(JMNatTokenizer(tokenizer_object=backend)))
    assert len(fingerprints) == 3


@pytest.mark.parametrize("make", [tiny_tokenizer, converted, lambda: load(SHIPPED / "jmnat")])
def test_use_saving_and_loading_do_not_change_the_fingerprint(make, tmp_path):
    tokenizer = make()
    before = tokenizer_fingerprint(tokenizer)
    assert re.fullmatch("2:[0-9a-f]{64}", before)
    assert shown(before) == before[2:14]
    tokenizer(TEXTS, text_target=TEXTS, padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.save_pretrained(tmp_path / "once")
    again = AutoTokenizer.from_pretrained(tmp_path / "once")
    again(TEXTS, padding="max_length", max_length=9)
    again.save_pretrained(tmp_path / "twice")
    for source in (tmp_path / "once", str(tmp_path / "twice"), again, load(tmp_path / "twice")):
        assert tokenizer_fingerprint(source) == before


def reversed_keys(value):
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(entry) for entry in value] if isinstance(value, list) else value


def test_format_padding_truncation_and_neutral_entries_do_not_count(folder):
    before = tokenizer_fingerprint(folder)
    for path in folder.iterdir():
        content = reversed_keys(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(content, indent=7, ensure_ascii=True), encoding="utf-8")
    assert tokenizer_fingerprint(folder) == before
    config = {"name_or_path": "elsewhere", "model_max_length": 3, "src_lang": None, "moses_languages": "none of ours"}
    change_file(folder / "tokenizer_config.json", lambda content: content.update(config))
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_padding(length=9)
    backend.enable_truncation(3)
    backend.save(str(folder / "tokenizer.json"))
    assert tokenizer_fingerprint(folder) == tokenizer_fingerprint(load(folder)) == before


def test_options_that_are_off_may_be_written_or_left_out():
    """Versions of the libraries and of ours differ in that; numbers that are 0 count."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    fingerprints = set()
    for options in ({}, {"lowercase": False, "moses_source_lang": None, "bpe_merges": []}, {"lowercase": True}):
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        fingerprints.add(tokenizer_fingerprint(JMNatTokenizer(tokenizer_object=backend, **options)))
    assert len(fingerprints) == 2
    moved = dict(zip(vocabulary, [1, 0, 2, 3, 4], strict=True))
    backend = Tokenizer(models.WordLevel(moved, unk_token="<unk>"))
    assert tokenizer_fingerprint(JMNatTokenizer(tokenizer_object=backend)) not in fingerprints


def test_options_of_the_loaded_tokenizer_count_as_they_are_now(tmp_path):
    tokenizer = tiny_tokenizer()
    before, ids = tokenizer_fingerprint(tokenizer), tokenizer("low </s>")["input_ids"]
    tokenizer.split_special_tokens = False
    assert tokenizer("low </s>")["input_ids"] != ids
    assert tokenizer_fingerprint(tokenizer) != before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(tmp_path) == tokenizer_fingerprint(tokenizer)


def test_classes_of_equal_ids_are_equal():
    ours = tiny_tokenizer()
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    same = PreTrainedTokenizerFast(tokenizer_object=ours.backend_tokenizer, split_special_tokens=True, **marks)
    other = PreTrainedTokenizerFast(tokenizer_object=ours.backend_tokenizer, **marks)
    assert tokenizer_fingerprint(same) == tokenizer_fingerprint(ours) != tokenizer_fingerprint(other)
    assert same("ban </s>")["input_ids"] == ours("ban </s>")["input_ids"] != other("ban </s>")["input_ids"]


def test_languages_of_a_multilingual_tokenizer_count(tmp_path):
    letters = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = NllbTokenizer(vocab={token: index for index, token in enumerate(letters)}, merges=[])
    fingerprints = []
    for source, target in (("eng_Latn", None), ("deu_Latn", None), ("deu_Latn", "fra_Latn")):
        tokenizer.src_lang, tokenizer.tgt_lang = source, target
        tokenizer.save_pretrained(tmp_path)
        fingerprints.append(tokenizer_fingerprint(tokenizer))
        assert tokenizer_fingerprint(tmp_path) == fingerprints[-1]
        assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == fingerprints[-1]
    assert len(set(fingerprints)) == 3


class Slow:
    """A tokenizer that is written in Python."""

    is_fast = False

    def __init__(self, *tokens, **options):
        self.tokens, self.init_kwargs = tokens, options

    def get_vocab(self):
        return {token: number for number, token in enumerate(self.tokens)}


def test_tokenizers_written_in_python_have_fingerprints():
    different = [Slow("a", "b"), Slow("b", "a"), Slow("a", "b", tgt_lang="de")]
    fingerprints = {tokenizer_fingerprint(tokenizer) for tokenizer in different}
    assert len(fingerprints) == 3
    assert tokenizer_fingerprint(Slow("a", "b", name_or_path="c")) in fingerprints


def test_folders_without_a_tokenizer_are_named(folder):
    (folder / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a complete tokenizer \("):
        tokenizer_fingerprint(folder)
    (folder / "tokenizer.json").unlink()
    for function in (tokenizer_fingerprint, legacy_folder_digest):
        with pytest.raises(ValueError, match=r"tokenizer holds no tokenizer \(tokenizer\.json is missing\)"):
            function(folder)
    shutil.copy(SHIPPED / "jmnat" / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text("{cut")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is damaged"):
        tokenizer_fingerprint(folder)


def test_a_version_is_compared_as_it_is_and_a_bare_digest_with_the_old_computation():
    def never():
        raise AssertionError("a value with a version needs no old computation")

    assert same_fingerprint("2:abc", "2:abc", never)
    assert not same_fingerprint("2:abd", "2:abc", never)
    assert not same_fingerprint("3:abc", "2:abc", never)
    assert not same_fingerprint(None, "2:abc", never)
    assert same_fingerprint("abc", "2:def", lambda: "abc")
    assert not same_fingerprint("def", "2:def", lambda: "abc")


# What the code wrote before fingerprints had a version ---------------------------------------------------------------

LOADED_BEFORE = "3cbdc8878ccd75363e0ad4ee65c56082a3b6e20947dce6aa66704d1c681d0176"  # run_settings.json of SHIPPED
FOLDER_BEFORE = "10c9e5d1462d6a811d8dc6eef66771c55e5a26d4b1e6cb3833ec001a0cd4c6b0"  # preparation.json
CONVERTED_LOADED_BEFORE = "09b3deb0ef599ce56d00352be6eef2cb51bf783e6b22eef4ecfc71d746132354"
CONVERTED_FOLDER_BEFORE = "798510ab6b0fb135a23aa5dceb0af56599bef0fbcb70b9b704f6e9aeeffa6d7d"


def test_legacy_digests_of_tokenizers_are_accepted(folder):
    for name in ("jmnat", "teacher"):
        assert legacy_tokenizer_digest(load(SHIPPED / name)) == LOADED_BEFORE
        assert legacy_folder_digest(SHIPPED / name) == FOLDER_BEFORE
    assert legacy_tokenizer_digest(load(folder)) == CONVERTED_LOADED_BEFORE
    assert legacy_folder_digest(folder) == CONVERTED_FOLDER_BEFORE


def test_other_digests_have_not_changed():
    model = "2437088c2856f86ff017c32e4169b0c84cb7d3c4a21661c8d16d0e9516e6b197"
    assert model_digest(str(SHIPPED / "teacher")) == model_digest(SHIPPED / "teacher") == model
    name = "608a4bb295e27b1cd2117b715391263f1695cc92f4807b6eb363c61025b65457"
    assert model_digest("Helsinki-NLP/opus-mt-de-en") == name
    weights = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor([1, 2])}
    assert weights_digest(weights) == "7874adfc41ccb6d4f11a2c6607595904dc6aa6e384f73dbae83beee48496abe3"
    assert digest(["ab", b"c"]) == "43ee655579de01ca739b3f95c1c2d3f46d353b2c0df818064ea594506cdb2617"
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert file_digest(SHIPPED / "teacher" / "config.json")[:16] == "4ac319e44fc3c41b"
    assert json_digest({"b": ["ä"], "a": 1}) == "71b7d66c981a7823e8f0b4deb08e9b5b7480b5746ea339bc53441ee449a563ce"


def test_fingerprints_of_data():
    kind = datasets.List(datasets.Value("int32"))
    columns = {"input_ids": [[5, 6, 2], [7, 2]], "labels": [[8, 2], [9, 9, 9, 2]]}
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, kind)))
    tokenizer = load(SHIPPED / "jmnat")
    ids = "84bae3f7787c625eb67197b3edaf0134"  # as before
    expected = {"pairs": 2, "ids": ids, "tokenizer": tokenizer_fingerprint(tokenizer)}
    assert data_settings(data, tokenizer) == expected
    assert ids_digest(data.data.column(name) for name in columns) == ids
    lines = ["ein haus", "zwei"]
    before = "23740ee70faf694dff7231e7a0d286071f10d6de1ca0485dad35ee1a5f902191"
    assert legacy_sources_digest(tokenizer, lines) == before
    now = sources_fingerprint(tokenizer, lines)
    assert now.startswith("2:")
    assert len({now, sources_fingerprint(tokenizer, lines[:1]), sources_fingerprint(converted(), lines)}) == 3
