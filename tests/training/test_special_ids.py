"""A tokenizer may number its special tokens in any way: models made for it take the ids from it."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from modeling_jmnat import JMNatConfig, JMNatForConditionalGeneration, JMNatTokenizer
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.inference.translation import translate_lines
from modeling_jmnat.teacher.model import build_teacher
from tests.helpers.tiny_runs import MODEL, prepare_tiny_data
from tests.helpers.translation_samples import load_script

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "mask_token_id")
NAMES = ("train_source", "train_target", "validation_source", "validation_target")


def special_tokens_last(tokenizer: JMNatTokenizer, target: Path) -> JMNatTokenizer:
    """A tokenizer with every id moved, so that the special tokens are the last five, saved in `target`."""
    tokenizer.save_pretrained(target)
    path = target / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    special, size = len(content["added_tokens"]), len(vocab)
    content["model"]["vocab"] = {token: (index - special) % size for token, index in vocab.items()}
    for token in content["added_tokens"]:
        token["id"] = (token["id"] - special) % size
    for token in content["post_processor"]["special_tokens"].values():
        token["ids"] = [(index - special) % size for index in token["ids"]]
    path.write_text(json.dumps(content), encoding="utf-8")
    config = target / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("added_tokens_decoder", None)
    config.write_text(json.dumps(settings), encoding="utf-8")
    return JMNatTokenizer.from_pretrained(target)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared folder, and its tokenizer with other ids."""
    folder = tmp_path_factory.mktemp("tiny")
    first = prepare_tiny_data(folder)
    tokenizer = special_tokens_last(load_prepared(first)[1], folder / "tokenizer")
    files = [f"--{name}={folder / name.replace('_', '.')}" for name in NAMES]
    load_script("prepare_data").main(
        [*files, f"--tokenizer={folder / 'tokenizer'}", f"--output_dir={folder / 'other'}"]
    )
    return folder / "other", tokenizer


@pytest.mark.parametrize("start", ["random", "teacher"])
def test_a_model_is_trained_and_translates(data, start, tmp_path):
    folder, tokenizer = data
    assert min(getattr(tokenizer, name) for name in IDS) == len(tokenizer) - 5
    options = [f"--{name}={value}" for name, value in {**MODEL, "normalize_before": False}.items()]
    options += [f"--data={folder}", "--max_tokens=200", "--use_cpu=true", "--learning_rate=0.003"]
    if start == "teacher":
        preset = tmp_path / "preset.yaml"
        preset.write_text(yaml.safe_dump({"model": {**MODEL, "normalize_before": False}}))
        shared = [f"--data={folder}", "--max_steps=2", "--max_tokens=200", "--use_cpu=true", "--eval_num_beams=2"]
        load_script("train_teacher").main([*shared, f"--preset={preset}", f"--output_dir={tmp_path / 'ar'}"])
        options.append(f"--init_from_teacher={tmp_path / 'ar'}")
    load_script("train_jmnat").main([*options, f"--output_dir={tmp_path / 'run'}", "--max_steps=3"])
    model, loaded = load_translator(tmp_path / "run", device="cpu")
    for name in IDS:
        assert getattr(model.config, name) == getattr(loaded, name) == getattr(tokenizer, name)
    results = translate_lines(model, loaded, ["eins zwei", "drei"], num_iterations=2)
    assert not any(re.search("<pad>|<mask>|<s>", result.text) for result in results)


def test_a_configuration_for_a_tokenizer(data):
    _, tokenizer = data
    config = JMNatConfig.for_tokenizer(tokenizer, d_model=16, max_target_length=9)
    assert (config.vocab_size, config.d_model, config.max_target_length) == (len(tokenizer), 16, 9)
    assert [getattr(config, name) for name in IDS] == [getattr(tokenizer, name) for name in IDS]
    learned = JMNatConfig.for_tokenizer(tokenizer, **{**MODEL, "position_embedding_type": "learned"})
    encoder = JMNatForConditionalGeneration(learned).get_encoder()
    assert encoder.embed_positions.num_embeddings == MODEL["max_position_embeddings"]
    ids = torch.tensor([tokenizer("eins zwei")["input_ids"]])
    assert torch.isfinite(encoder(ids).last_hidden_state).all()
    tokenizer = load_prepared(data[0])[1]
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="the tokenizer has no mask_token_id"):
        JMNatConfig.for_tokenizer(tokenizer)


def test_ids_that_contradict_the_tokenizer_are_refused(data):
    with pytest.raises(ValueError, match="pad_token_id is"):
        build_teacher({**MODEL, "pad_token_id": 1}, data[1])
