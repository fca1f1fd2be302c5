import pytest
import yaml

from modeling_jmnat.commands import train_teacher
from modeling_jmnat.data.preparation import PreparationArguments, prepare
from tests.helpers.tiny_runs import MODEL, prepare_tiny_data

WIDER = {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "dropout": 0.0}
TRAINING = {
    "max_steps": 150,
    "max_tokens": 300,
    "learning_rate": 0.003,
    "warmup_steps": 20,
    "lr_scheduler_type": "linear",
    "logging_steps": 50,
    "eval_strategy": "steps",
    "eval_steps": 75,
    "eval_num_iterations": [1],
    "save_steps": 75,
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


@pytest.fixture(scope="session")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(yaml.safe_dump({"model": MODEL | WIDER, "training": TRAINING, "teacher": {"max_steps": 300}}))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return prepare_tiny_data(tmp_path_factory.mktemp("tiny"), num_train=400)


@pytest.fixture(scope="session")
def teacher(data, preset, tmp_path_factory):
    return train_tiny_teacher(data, preset, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def backward_teacher(data, preset, tmp_path_factory):
    """Of the same vocabulary, from the target language to the source language."""
    folder = tmp_path_factory.mktemp("backward")
    names = {f"{split}_{side}": str(data.parent / f"{split}.{other}") for split in ("train", "validation")
             for side, other in (("source", "target"), ("target", "source"))}  # fmt: skip
    prepare(PreparationArguments(output_dir=str(folder / "data"), tokenizer=str(data / "tokenizer"), **names))
    return train_tiny_teacher(folder / "data", preset, folder)


def train_tiny_teacher(data, preset, folder):
    command = ["--preset", preset, "--data", data, "--output_dir", folder / "model"]
    train_teacher.main([str(word) for word in command])
    return folder / "model"
