"""The published folder: what it holds, who can load it, and its way to a stand-in of the Hub."""

import json
import re
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file

import modeling_jmnat
from modeling_jmnat import (
    JMNatForConditionalGeneration,
    JMNatTokenizer,
    JMNatTranslationPipeline,
    ORTJMNatForConditionalGeneration,
)
from modeling_jmnat.hub.publishing import ENDPOINT_FILES, load_for_publishing, push, save_for_everyone
from modeling_jmnat.utils.locks import folder_lock
from tests.helpers.fresh_process import run_without_package
from tests.helpers.hub_server import TOKEN, stand_in_hub, take_for_the_hub
from tests.helpers.teacher_samples import random_lines
from tests.helpers.translation_samples import command_line, load_script, tiny_student, tiny_tokenizer

PACKAGE = Path(modeling_jmnat.__file__).parent
SHIPPED = PACKAGE.parent / "hub_card" / "de-en"
OTHER_FILES = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
REBUILD = "run_scripts/publish.py --model hub_card/de-en --output hub_card/de-en --card hub_card/de-en.yaml --fp16"

LOOK = """
import os, sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

folder, repository, copy, inputs, outputs = sys.argv[1:]
texts = torch.load(inputs)
trust = {"trust_remote_code": True}

def look(source):
    config = AutoConfig.from_pretrained(source, **trust)
    model = AutoModelForSeq2SeqLM.from_pretrained(source, **trust)
    base = AutoModel.from_pretrained(source, **trust)
    tokenizer = AutoTokenizer.from_pretrained(source, **trust)
    translate = pipeline("translation", model=source, **trust)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=batch["input_ids"]).logits
        states = base(**batch, decoder_input_ids=batch["input_ids"]).last_hidden_state
    assert not model.training and type(base).__name__ == "JMNatModel"
    classes = [type(part) for part in (config, model, tokenizer, model.generation_config, translate)]
    assert all(cls.__module__.startswith("transformers_modules.") for cls in classes), classes
    return translate, {
        "classes": [cls.__name__ for cls in classes],
        "source_ids": batch["input_ids"],
        "logits": logits,
        "states": states,
        "ids": model.generate(**batch),
        "num_iterations": model.generation_config.num_iterations,
        "translations": translate(texts, batch_size=3, split_sentences=False),
    }

translate, first = look(folder)
translate.save_pretrained(copy)
for part in (translate.model, translate.tokenizer):
    part.save_pretrained(copy + " in parts")
sources = {"copy": copy, "parts": copy + " in parts", "hub": repository}
torch.save({"folder": first} | {name: look(source)[1] for name, source in sources.items()}, outputs)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output of a training: a model with its tokenizer, and more files."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = tiny_tokenizer()
    model = tiny_student(tokenizer)
    model.generation_config.num_iterations = 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "trainer_state.json").write_text("{}")
    return folder


def build(trained, output, *options):
    load_script("publish").main(["--model", str(trained), "--output", str(output), *options])
    return output


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    return build(trained, tmp_path_factory.mktemp("published") / "model")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in that this process takes for the Hub, with its token."""
    with stand_in_hub() as server:
        take_for_the_hub(monkeypatch, server, tmp_path / "hub_cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def no_token(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))


def test_folder_holds_weights_tokenizer_options_and_the_code_they_need(published):
    code = {path.name for path in published.glob("*.py")}
    assert {path.name for path in published.iterdir()} == OTHER_FILES | code | {
        "model.safetensors",
        "requirements.txt",
    }
    assert code >= {
        f"{name}_jmnat.py" for name in ("configuration", "modeling", "generation", "losses", "tokenization")
    }
    for name in code:
        source = PACKAGE / "hub" / name if name == "handler.py" else PACKAGE / name
        assert (published / name).read_bytes() == source.read_bytes()
    config = json.loads((published / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_jmnat.JMNatConfig",
        "AutoModel": "modeling_jmnat.JMNatModel",
        "AutoModelForSeq2SeqLM": "modeling_jmnat.JMNatForConditionalGeneration",
    }
    assert config["custom_pipelines"]["translation"]["impl"] == "pipeline.JMNatTranslationPipeline"
    options = json.loads((published / "tokenizer_config.json").read_text())
    assert options["auto_map"]["AutoTokenizer"][0] == "tokenization_jmnat.JMNatTokenizer"
    assert not set(options) & {"is_local", "local_files_only", "name_or_path"}


def test_saving_after_publishing_copies_no_code(published, tmp_path):
    model, tokenizer = load_for_publishing(published)
    save_for_everyone(model, tokenizer, tmp_path / "published")
    tiny_student(tokenizer).save_pretrained(tmp_path / "later")
    tokenizer.save_pretrained(tmp_path / "later")
    assert not list((tmp_path / "later").glob("*.py"))


def test_a_copy_without_code_names_none(published, tmp_path):
    """As after fine-tuning with the package. What lies in a repository is named on."""
    model, tokenizer = load_for_publishing(published)
    named = model.config.auto_map
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config, options = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("config", "tokenizer_config"))
    assert not {"auto_map", "custom_pipelines"} & {*config, *options}
    assert model.config.auto_map == named  # the model in memory is as it was
    remote = {"AutoModel": "you/name--modeling_jmnat.JMNatModel"}
    model.config.auto_map = named | remote
    model.config.custom_pipelines["translation"]["impl"] = "you/name--pipeline.JMNatTranslationPipeline"
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == remote
    assert list(config["custom_pipelines"]) == ["translation"]


def test_half_precision_is_stored_and_single_precision_loaded(trained, tmp_path):
    folder = build(trained, tmp_path / "half", "--fp16")
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    full = load_file(trained / "model.safetensors")
    assert stored.keys() == full.keys()
    for name, tensor in stored.items():
        assert torch.equal(tensor, full[name].half())
    model = JMNatForConditionalGeneration.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert torch.equal(model.lm_head.weight, full["model.shared.weight"].half().float())
    again = build(folder, tmp_path / "again", "--fp16")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_weights_too_large_for_half_precision_are_refused(trained, tmp_path, capsys):
    model = JMNatForConditionalGeneration.from_pretrained(trained)
    with torch.no_grad():
        model.model.encoder.layers[0].fc1.weight[0, 0] = 7e4
    model.save_pretrained(tmp_path / "large")
    JMNatTokenizer.from_pretrained(trained).save_pretrained(tmp_path / "large")
    with pytest.raises(SystemExit) as exit_code:
        build(tmp_path / "large", tmp_path / "half", "--fp16")
    assert exit_code.value.code == 1
    assert (
        "encoder.layers.0.fc1.weight has a weight of 70000, above 65504 of half precision" in capsys.readouterr().err
    )
    assert not (tmp_path / "half").exists()


def test_rebuilding_replaces_weights_and_code_and_leaves_other_files(trained, tmp_path):
    folder = build(trained, tmp_path / "model", "--max_shard_size", "60KB")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert (folder / "model.safetensors.index.json").is_file()
    sharded = JMNatForConditionalGeneration.from_pretrained(folder)
    whole = JMNatForConditionalGeneration.from_pretrained(trained)
    for (name, value), other in zip(sharded.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    own = ("picture.png", "lexicon.safetensors", "handler.py", "onnx/lexicon.safetensors")
    (folder / "onnx").mkdir()
    for name in own:
        (folder / name).write_bytes(b"kept")
    (folder / "onnx" / "encoder.onnx").write_bytes(b"of an earlier version")
    (folder / "old_jmnat.py").write_text("# of an earlier version")
    build(folder, folder)  # in place
    assert not list(folder.glob("model-*"))
    assert not (folder / "model.safetensors.index.json").exists()
    assert not (folder / "old_jmnat.py").exists()
    assert not (folder / "onnx" / "encoder.onnx").exists()
    assert all((folder / name).read_bytes() == b"kept" for name in own)
    assert (folder / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*")), "no temporary folder is left"


def test_a_card_of_other_weights_is_kept_with_a_warning(trained, tmp_path, capsys):
    folder = build(trained, tmp_path / "model")
    (folder / "README.md").write_text("BLEU 34")
    capsys.readouterr()
    build(trained, folder)  # the same weights again
    assert capsys.readouterr().err == ""
    build(trained, folder, "--fp16")
    assert (folder / "README.md").read_text() == "BLEU 34"
    sentence = "is the card of other weights and stays: give --card to write a new one"
    assert capsys.readouterr().err == f"warning: {folder / 'README.md'} {sentence}\n"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "README.md").write_text("written before the first build")
    build(trained, tmp_path / "new")
    assert capsys.readouterr().err == ""


def test_private_without_push_is_refused(trained, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        build(trained, tmp_path / "model", "--private")
    assert stopped.value.code == 1
    assert "error: private=True needs push, the repository to make private" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_second_build_of_the_folder_is_refused(published, tmp_path, capsys):
    with folder_lock(tmp_path / "model", "output"), pytest.raises(SystemExit):
        build(SHIPPED, tmp_path / "model")
    message = f"output={tmp_path / 'model'} is in use by another process: wait until it ends or choose another folder"
    assert capsys.readouterr().err == f"error: {message}\n"
    assert list(tmp_path.iterdir()) == []
    assert {path.stat().st_mode & 0o777 for path in published.iterdir()} == {published.stat().st_mode & 0o666}


def test_other_models_and_missing_folders_get_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        build(tmp_path / "nothing", tmp_path / "model")
    assert "nothing does not exist: give the folder of a saved model, or a name on the Hub" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        build(SHIPPED, tmp_path / "file")
    assert "is a file: name a folder" in capsys.readouterr().err


def expected_of(folder, texts):
    """What the package itself makes of a folder, loaded without trust."""
    from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model) is JMNatForConditionalGeneration
    assert type(tokenizer) is JMNatTokenizer
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=batch["input_ids"]).logits
        states = AutoModel.from_pretrained(folder)(**batch, decoder_input_ids=batch["input_ids"]).last_hidden_state
    translate = JMNatTranslationPipeline(model, tokenizer, device="cpu")
    return {
        "classes": ["JMNatConfig", "JMNatForConditionalGeneration", "JMNatTokenizer", "JMNatGenerationConfig"]
        + ["JMNatTranslationPipeline"],
        "source_ids": batch["input_ids"],
        "logits": logits,
        "states": states,
        "ids": model.generate(**batch),
        "num_iterations": 3,
        "translations": translate(texts, batch_size=3, split_sentences=False),
    }


def test_loads_without_the_package_from_folder_copy_and_hub(published, hub, tmp_path):
    """In a new process that has no package, by the Auto classes and by the pipeline; what it saves loads again."""
    push(published, "someone/tiny")
    texts = random_lines(5, seed=3)
    torch.save(texts, tmp_path / "inputs.pt")
    paths = (published, "someone/tiny", tmp_path / "copy", tmp_path / "inputs.pt", tmp_path / "outputs.pt")
    run_without_package(LOOK, tmp_path / "home", tmp_path, *paths, blocked=("sentencex",), HF_ENDPOINT=hub.endpoint)
    expected = expected_of(published, texts)
    for source, found in torch.load(tmp_path / "outputs.pt").items():
        for name, value in expected.items():
            same = torch.equal(value, found[name]) if torch.is_tensor(value) else value == found[name]
            assert same, (source, name)
    for copy in ("copy", "copy in parts"):
        names = {path.name for path in published.iterdir()} - {*ENDPOINT_FILES}
        assert {path.name for path in (tmp_path / copy).iterdir()} == names


def test_pushing_again_replaces_what_was_there(published, trained, hub, tmp_path):
    sharded = build(trained, tmp_path / "sharded", "--max_shard_size", "60KB", "--push", "someone/tiny", "--private")
    assert hub.private["someone/tiny"]
    assert set(hub.repositories["someone/tiny"]) == {path.name for path in sharded.iterdir()}
    assert push(published, "someone/tiny") == f"{hub.endpoint}/someone/tiny"
    files = hub.repositories["someone/tiny"]
    assert files == {path.name: path.read_bytes() for path in published.iterdir()}
    assert len(hub.commits) == 2


def test_a_public_repository_is_not_taken_for_a_private_one(trained, hub, tmp_path, capsys):
    hub.repositories["someone/tiny"], hub.private["someone/tiny"] = {}, False
    with pytest.raises(SystemExit):
        build(trained, tmp_path / "model", "--push", "someone/tiny", "--private")
    sentence = "someone/tiny exists already and is public: make it private on the Hub, or leave --private out"
    assert sentence in capsys.readouterr().err
    assert hub.repositories["someone/tiny"] == {}


def test_a_push_takes_what_belongs_to_the_model_alone(published, trained, hub, tmp_path):
    """From a training's folder, and leaves what others have put into the repository."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    training = ("training_args.bin", "run_settings.json", ".hidden.png", "checkpoint-1/optimizer.pt")
    belonging = ("README.md", "bleu [1].png", "onnx/README.md")
    more = ("checkpoint-1/model.safetensors", "checkpoint-1/modeling_jmnat.py", "checkpoint-1/curve.png")
    for name in (*training, *belonging, *more):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"content")
    others = {"handler.py": b"own", "lexicon.safetensors": b"own"}
    hub.repositories["someone/tiny"] = {**others, "old_jmnat.py": b"", "model-00001-of-00002.safetensors": b""}
    build(folder, folder, "--push", "someone/tiny")
    pushed = hub.repositories["someone/tiny"]
    assert pushed.keys() == {path.name for path in published.iterdir()} - {*ENDPOINT_FILES} | {*belonging, *others}
    assert others.items() <= pushed.items()
    assert all((folder / name).is_file() for name in (*training, *more))


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "curve.png", "onnx/notes", "onnx", "own_jmnat.py"])
def test_links_are_not_followed(trained, hub, tmp_path, capsys, name):
    """In a folder that is renewed in place, and in one that is pushed as it is; other links may stay."""
    folder, secret = tmp_path / "run", tmp_path / "secret"
    shutil.copytree(trained, folder)
    if name == "onnx":
        secret.mkdir()
    else:
        secret.write_text("not for everyone")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    for arguments in ([folder, folder], [trained, folder], [folder, folder, "--push", "someone/tiny"]):
        model, output, *others = map(str, arguments)
        with pytest.raises(SystemExit):
            load_script("publish").main(["--model", model, "--output", output, *others])
        assert f"error: {folder / name} is a link to {secret}, which would be" in capsys.readouterr().err
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(ValueError, match="is a link to"):
        push(folder, "someone/tiny")
    assert not hub.repositories
    (folder / name).unlink()
    (folder / "training.log").symlink_to(secret)
    build(trained, folder, "--push", "someone/tiny")
    assert "training.log" not in hub.repositories["someone/tiny"]


def test_commands_take_a_model_from_the_hub(published, hub, tmp_path, capsys):
    push(published, "someone/tiny")
    lines = [line for line in random_lines(5, seed=4) if line.strip()]
    (tmp_path / "source").write_text("\n".join(lines) + "\n")
    for model in ("someone/tiny", str(published)):
        output = tmp_path / Path(model).name
        load_script("translate").main(["--model", model, "--input", str(tmp_path / "source"), "--output", str(output)])
    assert (tmp_path / "tiny").read_text() == (tmp_path / "model").read_text() != ""
    capsys.readouterr()
    text = ["--source", str(tmp_path / "source"), "--reference", str(tmp_path / "source")]
    for script, arguments, sentence in (
        ("export_onnx", [], "model someone/tiny is not a folder: give --output DIR for the graphs"),
        ("tune_decoding", text, "model someone/tiny is not a folder, so settings cannot be saved in it"),
        ("translate", ["--backend", "onnx"], "someone/tiny holds no translator.onnx"),
    ):
        with pytest.raises(SystemExit):
            load_script(script).main(["--model", "someone/tiny", *arguments])
        assert sentence in capsys.readouterr().err


def test_training_starts_from_a_model_on_the_hub(trained, published, hub, tmp_path):
    """Data with its tokenizer, training from its weights; they come out unchanged when nothing is learned."""
    push(published, "someone/tiny")
    options = {"output_dir": tmp_path / "data", "tokenizer": "someone/tiny"}
    for seed, name in enumerate(("train_source", "train_target", "validation_source", "validation_target")):
        options[name] = tmp_path / name
        options[name].write_text("".join(f"{line}\n" for line in random_lines(20, seed=seed) if line.strip()))
    load_script("prepare_data").main(command_line(options))
    options = {
        "data": tmp_path / "data",
        "init_from": "someone/tiny",
        "output_dir": tmp_path / "run",
        "max_steps": 1,
        "learning_rate": 0.0,
        "use_cpu": True,
        "eval_strategy": "no",
        "disable_tqdm": True,
    }
    load_script("train_jmnat").main(command_line(options))
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path / "run"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_what_the_hub_does_not_have_is_named(hub, capsys):
    for backend in ("torch", "onnx"):
        with pytest.raises(SystemExit):
            load_script("translate").main(["--model", "someone/absent", "--backend", backend])
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert "someone/absent" in text
        assert text.count("\n") == 1


def test_graphs_are_published_and_fetched_from_the_hub(trained, hub, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra `bench` is not installed")
    folder = build(trained, tmp_path / "model", "--onnx", "--push", "someone/graphs")
    kinds = {f"onnx/{part}{kind}" for part in ("translator", "encoder", "decoder") for kind in (".onnx", "_int8.onnx")}
    assert kinds <= set(hub.repositories["someone/graphs"])
    inputs = JMNatTokenizer.from_pretrained(trained)(random_lines(3, seed=5), return_tensors="pt", padding=True)
    for int8 in (True, False):
        cache = tmp_path / f"cache_{int8}"
        fetched = ORTJMNatForConditionalGeneration.from_pretrained("someone/graphs", int8=int8, cache_dir=cache)
        local = ORTJMNatForConditionalGeneration.from_pretrained(folder, int8=int8)
        options = {"return_dict_in_generate": True, "prune_candidates": 1}  # by the graphs of single passes, too
        for which in ({}, options):
            for found, expected in zip(*(m.generate(**inputs, **which) for m in (fetched, local)), strict=True):
                assert torch.equal(found, expected) if torch.is_tensor(found) else found == expected
        names = {path.relative_to(path.parents[1]).as_posix() for path in cache.rglob("snapshots/*/onnx/*.onnx")}
        assert names == {name for name in kinds if name.endswith("_int8.onnx") == int8}
        assert not list(cache.rglob("model.safetensors"))
    (folder / "onnx" / "browser_translator.json").write_text("{}")
    build(trained, folder, "--push", "someone/graphs")
    assert not list((folder / "onnx").glob("*")), "graphs and settings of an earlier build may be another model's"
    assert not [name for name in hub.repositories["someone/graphs"] if name.startswith("onnx/")]


def one_sentence(capsys, trained, output, *options):
    """The error of a push that fails; the folder must be complete all the same."""
    with pytest.raises(SystemExit) as exit_code:
        build(trained, output, *options)
    assert exit_code.value.code == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert JMNatForConditionalGeneration.from_pretrained(output).config.vocab_size
    return text


def test_push_without_a_token(trained, tmp_path, no_token, capsys):
    text = one_sentence(capsys, trained, tmp_path / "model", "--push", "someone/tiny")
    assert "there is no token for the Hub" in text
    assert "hf auth login" in text


def test_push_with_a_token_that_is_refused(trained, tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    text = one_sentence(capsys, trained, tmp_path / "model", "--push", "someone/tiny")
    assert "does not accept the token for someone/tiny (401: Invalid credentials" in text
    assert "hf_wrong" not in text
    assert not hub.repositories


def test_push_without_network(trained, tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    text = one_sentence(capsys, trained, tmp_path / "model", "--push", "someone/tiny")
    assert "http://127.0.0.1:9 cannot be reached" in text


def test_push_that_the_hub_fails_leaves_the_repository_as_it_was(trained, tmp_path, hub, capsys):
    hub.fail_on = "/commit/"
    text = one_sentence(capsys, trained, tmp_path / "model", "--push", "someone/tiny")
    assert "answered 500 for someone/tiny (out of order)" in text
    assert hub.repositories == {"someone/tiny": {}}
    hub.fail_on = None
    build(trained, tmp_path / "model", "--push", "someone/tiny")
    assert "model.safetensors" in hub.repositories["someone/tiny"]


def test_push_to_an_invalid_name_is_refused(trained, tmp_path, hub, capsys):
    text = one_sentence(capsys, trained, tmp_path / "model", "--push", "some one/tiny/model")
    assert "some one/tiny/model" in text


def test_first_lines_that_tell_our_endpoint_files_stay_as_they_were():
    """Otherwise folders published before keep their old handler, as if it were the user's own."""
    lines = [(PACKAGE / "hub" / name).read_text(encoding="utf-8").splitlines()[0] for name in ENDPOINT_FILES]
    assert lines == [
        '"""JM-NAT behind a Hugging Face Inference Endpoint: `publish.py` writes this file beside the weights.',
        "# What handler.py needs beside the weights: an endpoint installs it when it starts.",
    ]


def test_shipped_model_carries_the_code_of_this_package():
    names = sorted(path.name for path in SHIPPED.glob("*.py"))
    assert {"pipeline.py", "segmenters.py", "handler.py"} < set(names)
    sources = {name: PACKAGE / ("hub" if name == "handler.py" else "") / name for name in names}
    differing = [name for name, source in sources.items() if (SHIPPED / name).read_bytes() != source.read_bytes()]
    assert not differing, f"rebuild the folder: python {REBUILD}"


def test_snippets_of_the_shipped_card_answer_as_they_say(tmp_path):
    """Each block of the card, as pasted, in a process without the package; comments after it are what it prints."""
    blocks = re.findall(r"```python\n(.*?)```", (SHIPPED / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    run_all = """
import contextlib, io, json, sys
printed = []
for block in json.load(open(sys.argv[1])):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(block, {})
    printed.append(output.getvalue().splitlines())
json.dump(printed, open(sys.argv[2], "w"))
"""
    (tmp_path / "blocks.json").write_text(json.dumps(blocks))
    root = PACKAGE.parent
    run_without_package(run_all, tmp_path / "home", root, tmp_path / "blocks.json", tmp_path / "printed.json")
    for block, printed in zip(blocks, json.loads((tmp_path / "printed.json").read_text()), strict=True):
        assert printed == [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
        assert printed


def test_shipped_model_loads_without_trust_where_the_package_is(monkeypatch):
    """With the same calls as the commands, and without a prompt."""
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked for trust"))
    model, tokenizer = load_for_publishing(SHIPPED)
    assert type(model).__module__ == "modeling_jmnat.modeling_jmnat"
    assert type(tokenizer).__module__ == "modeling_jmnat.tokenization_jmnat"
