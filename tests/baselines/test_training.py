"""A system's training resumes exactly, and its steps do not depend on how their sentences are divided."""

import os
import shutil
from functools import partial

import pytest
import torch

from modeling_jmnat import JMNatTrainingArguments
from modeling_jmnat.baselines import BASIC_NAT, SYSTEMS
from modeling_jmnat.baselines.training import DataCollatorForNat, NatTrainer, system_class
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.teacher.model import build_teacher
from tests.helpers.tiny_runs import MODEL, prepare_tiny_data, run_together

pytestmark = pytest.mark.usefixtures("one_thread")

# Adam would make large steps of gradients that are nothing but rounding.
BASE = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "seed": 3, "logging_steps": 1, "warmup_steps": 2}
BASE |= {"adam_epsilon": 1e-4, "max_steps": 6, "save_strategy": "no", "learning_rate": 0.003}
# So that what changes in the course of a training changes within six steps.
FIELDS = {
    "nat_ft": {"fine_tuning_begin": 0.5, "max_fertility": 5},
    "nat_ir": {"refining_passes": 2},
    "fcl_nat": {"curriculum_begin": 0.1, "curriculum_end": 0.9},
    "imitate_nat": {"num_actions": 4},
    "nat_dcrf": {"crf_rank": 4},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(data set, tokenizer)"""
    return load_prepared(prepare_tiny_data(tmp_path_factory.mktemp("tiny")))


def make_trainer(tiny, output_dir, name, dropout=0.0, sentences=29, **settings):
    data, tokenizer = tiny
    torch.manual_seed(0)
    model_class = system_class(name)
    model = model_class(model_class.config_class(
        vocab_size=len(tokenizer), **{**MODEL, "dropout": dropout, "decoder_layers": 2, **FIELDS.get(name, {})}
    ))  # fmt: skip
    guide = None
    if model_class.needs_guide:
        guide = build_teacher({**MODEL, "dropout": 0.1, "decoder_layers": 2}, tokenizer, 1)
        for layer in guide.get_decoder().layers:  # so that fertilities differ
            layer.encoder_attn.q_proj.weight.data *= 30
    masks = {key: BASIC_NAT[key] for key in ("source_mask_ratio", "target_mask")}
    return NatTrainer(
        model, JMNatTrainingArguments(str(output_dir), **{**BASE, **settings}),
        DataCollatorForNat(tokenizer, seed=3, **masks), guide, processing_class=tokenizer,
        train_dataset=data["train"].select(range(sentences)), eval_dataset=data["validation"],
    )  # fmt: skip


def trained(trainer, **resume):
    trainer.train(**resume)
    return {"log": trainer.state.log_history[:-1], "weights": trainer.model.state_dict(), "loss": trainer.evaluate()}


def assert_same(found, expected, rel, atol):
    for one, other in zip(expected["log"], found["log"], strict=True):
        for key in one.keys() - {"epoch", "target_tokens_per_second"}:
            assert other[key] == pytest.approx(one[key], rel=rel, abs=atol), key
    for key, tensor in expected["weights"].items():
        assert torch.allclose(found["weights"][key], tensor, rtol=rel, atol=atol), key
    assert found["loss"]["eval_loss"] == pytest.approx(expected["loss"]["eval_loss"], rel=rel)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_resumed_run_has_the_weights_of_one_that_ran_through(name, tiny, tmp_path):
    settings = {"max_tokens": 40, "dropout": 0.1, "ema_decay": 0.9, "save_strategy": "steps", "save_steps": 4}
    whole = make_trainer(tiny, tmp_path / "whole", name, **settings)
    expected = trained(whole)
    assert len(expected["log"]) >= 6
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "killed" / "checkpoint-4")
    again = make_trainer(tiny, tmp_path / "killed", name, **settings)
    for parameter in again.model.parameters():  # nothing may be left of what it began with
        parameter.data.add_(1.0)
    found = trained(again, resume_from_checkpoint=True)
    assert again.state.global_step == 6
    for key, tensor in expected["weights"].items():
        assert torch.equal(found["weights"][key], tensor), key
    assert found["loss"]["eval_loss"] == expected["loss"]["eval_loss"]
    changes = {"nat_ft": "fertility_head.weight", "imitate_nat": "model.decoder.layers.1.centroids"}
    if name in changes:
        assert found["weights"][changes[name]].any()


@pytest.mark.parametrize("name", SYSTEMS)
def test_eight_sentences_at_once_or_two_by_two_are_one_step(name, tiny, tmp_path):
    train = partial(make_trainer, tiny, tmp_path, name, sentences=24)
    at_once = trained(train(per_device_train_batch_size=8))
    parts = trained(train(per_device_train_batch_size=2, gradient_accumulation_steps=4))
    assert_same(parts, at_once, rel=1e-4, atol=2e-5)


def train_all(tiny, output_dir, processes):
    settings = {"max_tokens": 40, "gradient_accumulation_steps": 4 // processes, "sentences": 32}
    return {name: trained(make_trainer(tiny, output_dir, name, **settings)) for name in SYSTEMS}


def save_all(tiny, output_dir, processes, result):
    found = train_all(tiny, output_dir, processes)
    if os.environ["RANK"] == "0":
        torch.save(found, result)


def test_two_processes_train_what_one_does_by_accumulation(tiny, tmp_path):
    """The last step of an epoch has one batch, and the other process an empty one."""
    assert len(make_trainer(tiny, tmp_path, "nat_ir", max_tokens=40, sentences=32).train_batches) % 4 == 1
    expected = train_all(tiny, tmp_path / "alone", 1)
    run_together(2, tmp_path, save_all, tiny, tmp_path / "run", 2, tmp_path / "result.pt")
    for name, found in torch.load(tmp_path / "result.pt").items():
        assert_same(found, expected[name], rel=1e-4, atol=2e-5)
