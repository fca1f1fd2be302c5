"""Trainings that fail say where and what to do, and leave a state to resume from."""

import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import Seq2SeqTrainer

from modeling_jmnat import DataCollatorForJMNat, JMNatTrainer, JMNatTrainingArguments
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.training import checkpoints
from modeling_jmnat.training.even_batches import EvenBatches
from modeling_jmnat.training.failures import place_of_step
from modeling_jmnat.utils.command_line import describe_error
from tests.helpers.tiny_runs import prepare_tiny_data, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "seed": 3, "save_steps": 2, "logging_steps": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(data set, tokenizer)"""
    return load_prepared(prepare_tiny_data(tmp_path_factory.mktemp("tiny")))


class SpyingCollator(DataCollatorForJMNat):
    """Records the ids of the sentences of each batch."""

    def __call__(self, features):
        self.seen = [*getattr(self, "seen", []), [feature["id"] for feature in features]]
        return super().__call__(features)


def make_trainer(tiny, output_dir, **settings):
    data, tokenizer = tiny
    arguments = JMNatTrainingArguments(str(output_dir), **{**BASE, **settings})
    sets = {"train_dataset": data["train"].select(range(2, 25)), "eval_dataset": data["validation"]}
    collator = SpyingCollator(tokenizer, seed=3)
    return JMNatTrainer(tiny_model(tokenizer), arguments, collator, processing_class=tokenizer, **sets)


def fail_at(trainer, batch, failure):
    """In batch number `batch`, from 1, `failure(outputs)` takes the place of the outputs."""
    loss_outputs, count = trainer.loss_outputs, iter(range(1, 1000))

    def failing(*arguments):
        outputs = loss_outputs(*arguments)
        return failure(outputs) if next(count) == batch else outputs

    trainer.loss_outputs = failing


def without_a_number(outputs):
    outputs.loss = outputs.loss * math.nan
    return outputs


@pytest.mark.parametrize(
    ("settings", "batches_of_epoch"),
    [
        ({"per_device_train_batch_size": 4}, 6),
        ({"max_tokens": 40}, None),
        ({"max_tokens": 40, "batch_parts": 2}, None),
    ],
)
def test_the_sentences_of_a_step_without_a_number_are_named(tiny, tmp_path, settings, batches_of_epoch):
    """The fourth step of the second epoch; two batches make a step."""
    trainer = make_trainer(tiny, tmp_path, max_steps=90, gradient_accumulation_steps=2, **settings)
    length = len(trainer.get_train_dataloader())
    in_epoch = 2 * min(4, length // 2)
    number = length + in_epoch
    fail_at(trainer, number, without_a_number)
    with pytest.raises(FloatingPointError) as stopped:
        trainer.train()
    ids = [str(i) for batch in trainer.data_collator.seen[number - 2 : number] for i in batch]
    step = -(-length // 2) + in_epoch // 2
    place = f"step {step} (batch {in_epoch} of epoch 2, sentences with the ids {', '.join(ids)})"
    assert f"the loss is no longer finite at {place} and was not saved" in str(stopped.value)
    assert f"the last good checkpoint is {tmp_path}/checkpoint-{(step - 1) // 2 * 2}." in str(stopped.value)


def test_each_process_names_its_own_sentences():
    batches = EvenBatches([[number] for number in range(30, 37)], 2)
    rows = {number: {} if number == 34 else {"id": 2 * number} for number in range(30, 37)}
    places = []
    for process in (0, 1):
        own = list(batches)[process::2]
        loader = type("Loader", (), {"dataset": rows, "batch_sampler": own, "__len__": lambda self: 4})()
        places.append([place_of_step(step, loader, 2) for step in (2, 4)])
    sentences = "(batch 4 of epoch {}, sentences with the ids {})"
    assert places[0] == [f"step {step} {sentences.format(step // 2, '34, 72')}" for step in (2, 4)]
    assert places[1] == [f"step {step} {sentences.format(step // 2, '70')}" for step in (2, 4)]


def test_on_a_gpu_the_first_bad_step_is_found_when_numbers_are_read(tiny, tmp_path, monkeypatch):
    trainer = make_trainer(tiny, tmp_path, per_device_train_batch_size=4)
    monkeypatch.setattr(Seq2SeqTrainer, "_maybe_log_save_evaluate", lambda *arguments: None)
    trainer.callback_handler.train_dataloader = trainer.get_train_dataloader()
    trainer.args = SimpleNamespace(**{**vars(trainer.args), "device": SimpleNamespace(type="cuda")})
    for step, loss in ((7, 1.0), (8, math.inf), (9, math.nan)):
        trainer.state.global_step = step
        trainer._maybe_log_save_evaluate(torch.tensor(loss), torch.tensor(1.0))
    trainer.control.should_log = True
    with pytest.raises(FloatingPointError, match=r"the loss is no longer finite at step 8 \(batch 2 of epoch 2, "):
        trainer._maybe_log_save_evaluate(torch.tensor(math.nan), torch.tensor(1.0))


def no_memory(outputs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


@pytest.mark.parametrize(
    ("settings", "where", "advice"),
    [
        (
            {"max_tokens": 40},
            "step 2: a batch of max_tokens=40 is too large",
            "batch_parts=2 and gradient_accumulation_steps=2",
        ),
        (
            {"per_device_train_batch_size": 4, "batch_parts": 2, "gradient_accumulation_steps": 1},
            "step 2: a batch of per_device_train_batch_size=4 is too large",
            "batch_parts=4 and gradient_accumulation_steps=2; on the command line, resume with --elastic True",
        ),
        ({"eval_strategy": "steps", "eval_steps": 1, "eval_batch_tokens": 64}, "evaluation at step 1: ", "now 64"),
    ],
)
def test_out_of_memory_names_the_setting_to_lower(tiny, tmp_path, settings, where, advice):
    trainer = make_trainer(tiny, tmp_path, max_steps=3, **settings)
    fail_at(trainer, 2, no_memory)
    with pytest.raises(MemoryError) as stopped:
        trainer.train()
    sentence = describe_error(stopped.value, memory="--max_tokens")
    assert sentence.startswith("out of memory (2.00 GiB more were requested) in ")
    assert where in sentence
    assert advice in sentence


def test_the_last_checkpoint_is_kept_beside_the_best(tiny, tmp_path):
    """`Trainer` alone would leave the best one, which has no optimizer state, so nothing to resume from."""
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 1}
    best |= {"metric_for_best_model": "eval_loss", "greater_is_better": True, "learning_rate": 1e-2, "warmup_steps": 1}
    trainer = make_trainer(tiny, tmp_path, max_steps=6, **best)
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-6"]
    assert trainer.args.save_total_limit == 1
    trainer = make_trainer(tiny, tmp_path, max_steps=8, **best)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 8
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-8"]
    (tmp_path / "checkpoint-2" / checkpoints.WEIGHTS).write_bytes(b"damaged")
    trainer = make_trainer(tiny, tmp_path, max_steps=10, **best)
    with pytest.raises(ValueError, match="checkpoint-2 cannot be loaded: model.safetensors is not as it was written"):
        trainer.train(resume_from_checkpoint=True)
    assert checkpoints.newest_whole(tmp_path).name == "checkpoint-10"


def test_a_checkpoint_of_deepspeed_is_whole_with_the_optimizer_in_its_own_folder(tiny, tmp_path):
    make_trainer(tiny, tmp_path, max_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    parts = checkpoint / "global_step2"
    parts.mkdir()
    optimizer = (checkpoint / "optimizer.pt").rename(parts / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (checkpoint / checkpoints.DEEPSPEED).write_text("global_step2")
    step = {"world_size": 1, "gradient_accumulation_steps": 1, "batch_parts": 1}
    checkpoints.write_manifest(checkpoint, step)
    assert checkpoints.newest_whole(tmp_path) == checkpoint
    content = optimizer.read_bytes()
    optimizer.write_bytes(content[:-1])
    assert "optim_states.pt is not as it was written" in checkpoints.damage_of(checkpoint)
    optimizer.write_bytes(content)
    checkpoint.rename(tmp_path / "checkpoint-1")
    shutil.copytree(tmp_path / "checkpoint-1", checkpoint)
    checkpoints.thin_out(tmp_path, 1, [1])
    assert not (tmp_path / "checkpoint-1" / "global_step2").exists()
    assert (tmp_path / "checkpoint-1" / checkpoints.WEIGHTS).exists()
    assert checkpoints.newest_whole(tmp_path) == checkpoint
