"""What `save_pretrained` writes, and what others load from it: with the package, and by the copied code alone."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import modeling_jmnat
from modeling_jmnat import JMNatConfig, JMNatForConditionalGeneration, JMNatModel
from tests.helpers.random_models import ARCHITECTURES, pad, random_model, random_sources

PACKAGE = Path(modeling_jmnat.__file__).parent
HUB_FILES = {path.name for path in PACKAGE.glob("*_jmnat.py")} - {"tokenization_jmnat.py"}

READ_BACK = """
import json, os, sys
os.environ["HF_HOME"] = sys.argv[4]
folder, inputs, outputs, _, remote = sys.argv[1:]
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM
if remote == "remote":
    sys.modules["modeling_jmnat"] = None  # as if the package were not installed
    kwargs = {"trust_remote_code": True}
else:
    import modeling_jmnat
    kwargs = {}
model = AutoModelForSeq2SeqLM.from_pretrained(folder, **kwargs).eval()
base = AutoModel.from_pretrained(folder, **kwargs).eval()
batch = torch.load(inputs)
with torch.no_grad():
    result = model(**batch)
    states = base(**{name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")})
source = {name: batch[name] for name in ("input_ids", "attention_mask")}
torch.save(
    {
        "module": type(model).__module__,
        "options": type(model.generation_config).__name__,
        "num_iterations": model.generation_config.num_iterations,
        "logits": result.logits,
        "length_logits": result.length_logits,
        "base_states": states.last_hidden_state,
        "ids": model.generate(**source),
        "n_best": model.generate(**source, num_return_sequences=3, early_stop=True),
    },
    outputs,
)
model.save_pretrained(folder + "-again")
"""


def read_back(folder, tmp_path, batch, how):
    """What another process makes of a saved model."""
    torch.save(batch, tmp_path / "inputs.pt")
    arguments = [folder, tmp_path / "inputs.pt", tmp_path / "outputs.pt", tmp_path / "home", how]
    run = subprocess.run(
        [sys.executable, "-c", READ_BACK, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )
    assert run.returncode == 0, run.stderr
    return torch.load(tmp_path / "outputs.pt")


def batch_and_expected(model):
    sources = random_sources(model, 6, 3)
    input_ids, attention_mask = pad(sources)
    canvas, _ = pad(random_sources(model, 6, 4))
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": canvas}
    with torch.no_grad():
        result = model(**batch)
        states = model.model(**batch).last_hidden_state
    source = {"input_ids": input_ids, "attention_mask": attention_mask}
    expected = {
        "logits": result.logits,
        "length_logits": result.length_logits,
        "base_states": states,
        "ids": model.generate(**source),
        "n_best": model.generate(**source, num_return_sequences=3, early_stop=True),
    }
    return batch, expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folder_holds_safetensors_with_each_weight_once(architecture, tmp_path):
    model = random_model(1, **ARCHITECTURES[architecture])
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
        sizes = [file.get_tensor(name).numel() for name in names]
    tied = {"lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"}
    assert names == set(model.state_dict()) - tied
    assert sum(sizes) == sum(parameter.numel() for parameter in model.parameters())  # parameters() counts a tie once
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "jmnat"
    assert config["architectures"] == ["JMNatForConditionalGeneration"]
    assert not set(config) & {"num_iterations", "num_length_candidates", "max_length"}


def test_new_process_gives_identical_logits_and_ids(tmp_path):
    model = random_model(2)
    model.generation_config.num_iterations = 7
    batch, expected = batch_and_expected(model)
    model.save_pretrained(tmp_path / "model")
    found = read_back(str(tmp_path / "model"), tmp_path, batch, "package")
    assert found["module"] == "modeling_jmnat.modeling_jmnat"
    assert found["num_iterations"] == 7
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_copied_code_alone_gives_identical_logits_and_ids(tmp_path, monkeypatch):
    """As from the Hub with `trust_remote_code=True`, where the package is not installed; twice, for what it saves."""
    model = random_model(2, position_embedding_type="learned")
    model.generation_config.num_iterations = 7
    batch, expected = batch_and_expected(model)
    # What register_for_auto_class sets, undone after the test.
    monkeypatch.setattr(JMNatConfig, "_auto_class", "AutoConfig")
    monkeypatch.setattr(JMNatModel, "_auto_class", "AutoModel")
    monkeypatch.setattr(JMNatForConditionalGeneration, "_auto_class", "AutoModelForSeq2SeqLM")
    model.config.auto_map = {"AutoModel": "modeling_jmnat.JMNatModel"}
    model.save_pretrained(tmp_path / "model")
    folder = str(tmp_path / "model")
    for _ in range(2):
        assert {path.name for path in Path(folder).glob("*.py")} == HUB_FILES
        found = read_back(folder, tmp_path, batch, "remote")
        assert found["module"].startswith("transformers_modules.")
        assert (found["options"], found["num_iterations"]) == ("JMNatGenerationConfig", 7)
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
        folder += "-again"


def test_hub_files_import_each_other_and_nothing_else_of_the_package():
    """Every relative import is `from .file import name`, the only form that the library's scanner follows."""
    others = (PACKAGE / f"{name}.py" for name in ("spelling", "plain_text", "segmenters", "pipeline"))
    files = [*sorted(PACKAGE.glob("*_jmnat.py")), *others]
    assert len(files) == 11
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, path.name
                assert f"{node.module}.py" in {file.name for file in files}, (path.name, node.module)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert all(name.split(".")[0] != "modeling_jmnat" for name in names), path.name
