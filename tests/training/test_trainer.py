import logging
import math
import os
import resource
import shutil
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modeling_jmnat import DataCollatorForJMNat, JMNatTrainer, JMNatTrainingArguments
from modeling_jmnat.data.dataset_columns import column_lengths
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.training import checkpoints
from modeling_jmnat.training.arguments import TeacherTrainingArguments
from modeling_jmnat.training.token_batches import TokenBatchSampler
from modeling_jmnat.training.weight_ema import WeightEMA
from modeling_jmnat.utils.atomic_files import remove_folder
from tests.helpers.tiny_runs import MODEL, Child, prepare_tiny_data, run_together, tiny_model

BASE = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "save_strategy": "no", "seed": 3}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(data set, tokenizer)"""
    return load_prepared(prepare_tiny_data(tmp_path_factory.mktemp("tiny")))


class GradientRecorder(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {
            name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
        }


def make_trainer(tiny, output_dir, model_fields=None, collator=None, callbacks=(), **fields):
    data, tokenizer = tiny
    arguments = JMNatTrainingArguments(output_dir=str(output_dir), **{**BASE, **fields})
    return JMNatTrainer(
        tiny_model(tokenizer, **(model_fields or {})),
        arguments,
        collator or DataCollatorForJMNat(tokenizer, seed=arguments.seed),
        processing_class=tokenizer,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        callbacks=list(callbacks),
    )


def one_step(tiny, output_dir, batch_size, accumulation, collator=None, **fields):
    """Logged losses and gradients of one optimizer step, without dropout and clipping."""
    recorder = GradientRecorder()
    trainer = make_trainer(
        tiny,
        output_dir,
        {"dropout": 0.0, "encoder_loss_weight": 0.5, "ngram_loss_weight": 0.5, "length_loss_weight": 0.5},
        collator,
        callbacks=[recorder],
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        logging_steps=1,
        max_grad_norm=0.0,
        **fields,
    )
    trainer.train()
    return trainer.state.log_history[0], recorder.gradients


PARTS = ("loss", "nll_loss", "encoder_loss", "ngram_loss", "length_loss", "grad_norm")


def assert_same_step(first, second):
    for name in PARTS:
        assert first[0][name] == pytest.approx(second[0][name], rel=1e-5), name
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        torch.testing.assert_close(second[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_accumulation_gives_the_same_loss_and_gradients(tiny, tmp_path):
    whole = one_step(tiny, tmp_path, 8, 1)
    assert_same_step(whole, one_step(tiny, tmp_path, 2, 4))
    assert_same_step(whole, one_step(tiny, tmp_path, 1, 8))
    log = whole[0]
    parts = log["nll_loss"] + 0.5 * (log["encoder_loss"] + log["ngram_loss"] + log["length_loss"])
    assert log["loss"] == pytest.approx(parts, rel=1e-5)
    assert min(log[name] for name in PARTS) > 0


def test_bf16_on_a_cpu_is_the_same_step_but_for_rounding(tiny, tmp_path):
    exact, (log, gradients) = one_step(tiny, tmp_path, 8, 1), one_step(tiny, tmp_path, 8, 1, bf16=True, use_cpu=True)
    assert log["loss"] != exact[0]["loss"]
    assert log["loss"] == pytest.approx(exact[0]["loss"], rel=0.01)
    whole = [torch.cat([found[name].flatten() for name in exact[1]]) for found in (exact[1], gradients)]
    assert torch.cosine_similarity(*whole, dim=0) > 0.99


@pytest.mark.parametrize("bf16", [False, True])
def test_attention_of_bf16_on_a_cpu_is_plain(tiny, tmp_path, bf16):
    trainer = make_trainer(tiny, tmp_path, bf16=bf16, use_cpu=True)
    assert trainer.model.config._attn_implementation == ("eager" if bf16 else "sdpa")


def _save_one_step(tiny, output_dir, batch_size, accumulation, result):
    log, gradients = one_step(tiny, output_dir, batch_size, accumulation)
    if os.environ["RANK"] == "0":
        torch.save((log, gradients), result)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (2, 2)])
def test_two_processes_give_the_same_loss_and_gradients(tiny, tmp_path, batch_size, accumulation):
    result = tmp_path / "result.pt"
    run_together(2, tmp_path, _save_one_step, tiny, tmp_path / "run", batch_size, accumulation, result)
    assert_same_step(one_step(tiny, tmp_path, 8, 1), torch.load(result))


def test_logged_parts_add_up_and_are_means_over_steps(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, max_tokens=64, max_steps=6, logging_steps=3, learning_rate=1e-3)
    trainer.train()
    config = trainer.model.config
    for log in trainer.state.log_history[:2]:
        expected = (
            log["nll_loss"]
            + config.encoder_loss_weight * log["encoder_loss"]
            + config.ngram_loss_weight * log["ngram_loss"]
            + config.length_loss_weight * log["length_loss"]
        )
        assert log["loss"] == pytest.approx(expected, rel=1e-5)
        assert log["target_tokens_per_second"] > 0


def test_parts_that_are_switched_off_are_not_logged(tiny, tmp_path):
    data, tokenizer = tiny
    collator = DataCollatorForJMNat(tokenizer, source_mask_ratio=0.0)
    trainer = make_trainer(tiny, tmp_path, {"ngram_loss_weight": 0.0}, collator, max_steps=1, logging_steps=1)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["nll_loss"] > 0 < logged["length_loss"]
    assert not {"ngram_loss", "encoder_loss"} & set(logged)
    assert not {"eval_ngram_loss", "eval_encoder_loss"} & set(trainer.evaluate())


def test_collator_takes_the_models_ngram_size(tiny, tmp_path):
    data, tokenizer = tiny
    arguments = JMNatTrainingArguments(output_dir=str(tmp_path), **BASE)
    model = tiny_model(tokenizer, ngram_size=3)
    trainer = JMNatTrainer(model, arguments, processing_class=tokenizer, train_dataset=data["train"])
    assert trainer.data_collator.ngram_size == trainer.eval_data_collator.ngram_size == 3
    with pytest.raises(ValueError, match="ngram_size is 2 in the collator and 3 in the model"):
        make_trainer(tiny, tmp_path, {"ngram_size": 3})
    make_trainer(tiny, tmp_path, {"ngram_size": 3}, DataCollatorForJMNat(tokenizer, target_mask="random"))


def test_evaluation_losses_are_exact_corpus_means(tiny, tmp_path):
    """Against one sentence at a time; the batches of the evaluation have another padding and other sizes."""
    data, tokenizer = tiny
    trainer = make_trainer(tiny, tmp_path, max_tokens=40)
    metrics = trainer.evaluate()
    collator = DataCollatorForJMNat(tokenizer).evaluation()
    sums, masked = np.zeros(3), 0
    model = trainer.model.eval()
    for row in data["validation"]:
        batch = collator([row])
        assert "encoder_targets" not in batch
        with torch.no_grad():
            outputs = model(**batch, loss_denominators=torch.ones(2))
        sums += [float(outputs.nll_loss), float(outputs.ngram_loss), float(outputs.length_loss)]
        masked += int(batch["masked_positions"].sum())
    expected = sums / [masked, masked, len(data["validation"])]
    assert metrics["eval_nll_loss"] == pytest.approx(expected[0], rel=1e-5)
    assert metrics["eval_ngram_loss"] == pytest.approx(expected[1], rel=1e-5)
    assert metrics["eval_length_loss"] == pytest.approx(expected[2], rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(expected[0] + 0.01 * expected[1] + 0.1 * expected[2], rel=1e-5)
    assert trainer.evaluate() == pytest.approx(metrics | {"eval_runtime": pytest.approx(0, abs=60)})


def test_evaluation_translates_and_scores(tiny, tmp_path, monkeypatch):
    """With a translator that knows the answer BLEU is 100, and only the sentences asked for are translated."""
    data, _ = tiny
    answers = dict(zip(data["validation"]["source"][:], data["validation"]["target"][:], strict=True))
    seen = []

    def translate_lines(model, tokenizer, lines, **options):
        assert not model.training
        seen.append((len(lines), options["num_iterations"], options["num_length_candidates"]))
        for line in lines:
            yield SimpleNamespace(text="no no no no" if options["num_iterations"] == 1 else answers[line])

    monkeypatch.setattr("modeling_jmnat.training.validation.translate_lines", translate_lines)
    trainer = make_trainer(tiny, tmp_path, eval_num_iterations=[1, 4], eval_sentences=5, eval_num_length_candidates=2)
    metrics = trainer.evaluate()
    assert seen == [(5, 1, 2), (5, 4, 2)]
    assert metrics["eval_bleu_k1"] < 1
    assert metrics["eval_bleu_k4"] == metrics["eval_bleu"] == pytest.approx(100)


def test_token_batches_reach_the_model_and_respect_the_budget(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, max_tokens=40, max_sentences=5)
    loader = trainer.get_train_dataloader()
    rows = 0
    for batch in loader:
        assert len(batch["labels"]) <= 5
        assert batch["input_ids"].numel() <= 40
        assert batch["labels"].numel() <= 40
        rows += len(batch["labels"])
    assert rows == len(tiny[0]["train"])
    assert isinstance(trainer.train_batches, TokenBatchSampler)


def test_column_lengths_follow_a_selection(tiny):
    data = tiny[0]["train"].select([5, 2, 9])
    expected = [len(row["input_ids"]) for row in data]
    assert column_lengths(data, "input_ids").tolist() == expected
    assert column_lengths(list(data), "input_ids").tolist() == expected


class EpochSpy(TrainerCallback):
    """Epoch of the masks and of the batches at each step."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen.append((state.global_step, self.trainer.data_collator.epoch, self.trainer.train_batches.epoch))


def test_masks_and_batches_learn_the_epoch_after_a_restart(tiny, tmp_path):
    spy = EpochSpy()
    options = {"max_tokens": 100, "save_strategy": "steps", "save_steps": 1, "max_steps": 9}
    trainer = spy.trainer = make_trainer(tiny, tmp_path, callbacks=[spy], **options)
    steps = len(trainer.get_train_dataloader())
    assert 1 < steps < 8
    trainer.train()
    assert spy.seen == [(step, step // steps, step // steps) for step in range(9)]
    for left in checkpoints.list_checkpoints(tmp_path):
        if checkpoints.checkpoint_step(left) > 8:
            remove_folder(left)
    again = EpochSpy()
    again.trainer = make_trainer(tiny, tmp_path, callbacks=[again], **options)
    again.trainer.train(resume_from_checkpoint=True)
    assert again.seen == [(8, 8 // steps, 8 // steps)]


def test_workers_give_the_same_run(tiny, tmp_path):
    """Persistent worker processes see the epochs; two epochs, so that the second one's masks come from them, too."""
    weights = []
    for workers in (0, 2):
        trainer = make_trainer(
            tiny, tmp_path, max_tokens=150, num_train_epochs=2, dataloader_num_workers=workers, learning_rate=1e-2
        )
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert_equal_weights(*weights)


class Failure(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise RuntimeError("on purpose")


def test_failure_does_not_wait_for_workers(tiny, tmp_path):
    def run():
        make_trainer(tiny, tmp_path, max_tokens=100, dataloader_num_workers=2, callbacks=[Failure()]).train()

    child = Child(tmp_path / "log", run, clean_exit=True)
    assert child.join(timeout=30) == 1
    assert "on purpose" in child.log.read_text()


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_plain_trainers_train_the_model(tiny, tmp_path):
    data, tokenizer = tiny
    common = {**BASE, "output_dir": str(tmp_path), "max_steps": 12, "logging_steps": 4, "learning_rate": 1e-2}
    for trainer_class, arguments in (
        (Trainer, TrainingArguments(**common)),
        (Trainer, TrainingArguments(**common, remove_unused_columns=False, gradient_accumulation_steps=2)),
        (Seq2SeqTrainer, Seq2SeqTrainingArguments(**common, predict_with_generate=True)),
    ):
        metrics = {}
        if trainer_class is Seq2SeqTrainer:
            metrics["compute_metrics"] = lambda output: {"rows": len(output.predictions)}
        trainer = trainer_class(
            tiny_model(tokenizer, dropout=0.0),
            arguments,
            DataCollatorForJMNat(tokenizer),
            data["train"],
            data["validation"],
            processing_class=tokenizer,
            **metrics,
        )
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        assert losses[-1] < losses[0] - 0.3
        result = trainer.evaluate()
        assert math.isfinite(result["eval_loss"])
        if metrics:
            assert result["eval_rows"] == len(data["validation"])


def test_defaults_are_those_of_the_model_family(tiny, tmp_path):
    """Adam (0.9, 0.98) and the inverse square root schedule: half the highest rate at four times the warm-up."""
    trainer = make_trainer(tiny, tmp_path, warmup_steps=4, learning_rate=0.01, max_steps=20)
    trainer.create_optimizer_and_scheduler(20)
    trainer.optimizer.step()
    assert trainer.optimizer.defaults["betas"] == (0.9, 0.98)
    rates = []
    for _ in range(17):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.lr_scheduler.step()
    assert rates[2] == pytest.approx(0.005)
    assert rates[4] == pytest.approx(0.01)
    assert rates[16] == pytest.approx(0.005)


def test_moving_average_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = WeightEMA(model, decay=0.5)
    model.weight.data.fill_(2.0)
    average.update(1)  # d = min(0.5, 2 / 11)
    first = 2 / 11 * 1.0 + 9 / 11 * 2.0
    model.weight.data.fill_(4.0)
    average.update(30)  # d = min(0.5, 31 / 40)
    with average.applied():
        assert model.weight.item() == pytest.approx(0.5 * first + 0.5 * 4.0)
    assert model.weight.item() == 4.0


def test_checkpoint_holds_average_and_training_weights(tiny, tmp_path):
    options = {"max_tokens": 100, "max_steps": 3, "save_strategy": "steps", "save_steps": 3, "ema_decay": 0.9}
    trainer = make_trainer(tiny, tmp_path, learning_rate=0.01, warmup_steps=1, **options)
    trainer.train()
    folder = tmp_path / "checkpoint-3"
    saved, training = (load_file(folder / name) for name in (checkpoints.WEIGHTS, checkpoints.TRAINING_WEIGHTS))
    parameters = dict(trainer.model.named_parameters())
    assert torch.equal(training["model.shared.weight"], parameters["model.shared.weight"])
    assert not torch.equal(saved["model.shared.weight"], training["model.shared.weight"])
    assert not any("lm_head" in name or "embed_tokens" in name for name in (*saved, *training))  # tied: once
    averaged = make_trainer(tiny, tmp_path)
    averaged.model.load_state_dict(saved, strict=False)
    assert trainer.evaluate()["eval_nll_loss"] == averaged.evaluate()["eval_nll_loss"]
    assert torch.equal(dict(trainer.model.named_parameters())["model.shared.weight"], training["model.shared.weight"])
    assert trainer.choose_final_weights() == {"final_model": "step 3"}
    assert_equal_weights(saved, {name: trainer.model.state_dict()[name] for name in saved})


def test_predicts_and_saves_the_average(tiny, tmp_path):
    options = {"max_tokens": 100, "max_steps": 3, "ema_decay": 0.9, "learning_rate": 0.01, "warmup_steps": 1}
    trainer = make_trainer(tiny, tmp_path, **options)
    trainer.train()
    raw = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    of_average = trainer.predict(trainer.eval_dataset).metrics["test_loss"]
    trainer.save_model(tmp_path / "saved")
    assert_equal_weights(raw, dict(trainer.model.named_parameters()))
    assert trainer.predict(trainer.eval_dataset).metrics["test_loss"] == of_average
    saved = load_file(tmp_path / "saved" / checkpoints.WEIGHTS)
    assert not torch.equal(saved["model.shared.weight"], raw["model.shared.weight"])
    plain = make_trainer(tiny, tmp_path)
    plain.model.load_state_dict(saved, strict=False)
    assert plain.predict(plain.eval_dataset).metrics["test_loss"] == of_average


def test_evaluates_each_of_several_data_sets(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path)
    parts = {"first": trainer.eval_dataset.select(range(4)), "rest": trainer.eval_dataset.select(range(4, 9))}
    metrics = trainer.evaluate(parts)
    for name, part in parts.items():
        assert metrics[f"eval_{name}_loss"] == trainer.evaluate(part)["eval_loss"]


def test_evaluation_losses_respect_the_token_budget(tiny, tmp_path):
    few, many = make_trainer(tiny, tmp_path, eval_batch_tokens=40), make_trainer(tiny, tmp_path)
    sizes = {trainer: [] for trainer in (few, many)}
    metrics = []
    for trainer, seen in sizes.items():
        trainer.model.register_forward_pre_hook(
            lambda m, a, batch, seen=seen: seen.append(batch["labels"].numel()), with_kwargs=True
        )
        metrics.append(trainer.evaluate())
    assert max(sizes[few]) <= 40 < max(sizes[many])
    assert metrics[0]["eval_loss"] == pytest.approx(metrics[1]["eval_loss"], rel=1e-5)


SEVEN_STEPS = {"max_tokens": 100, "save_strategy": "steps", "save_steps": 2, "max_steps": 7, "ema_decay": 0.9}
SEVEN_STEPS |= {"learning_rate": 0.01, "warmup_steps": 1}


def run_steps(tiny, output_dir, **options):
    trainer = make_trainer(tiny, output_dir, **{**SEVEN_STEPS, **options})
    trainer.train(resume_from_checkpoint=True)
    return trainer


@pytest.mark.parametrize("damage", ["optimizer.pt", "model.safetensors", "trainer_state.json", "scheduler.pt"])
def test_a_run_without_a_whole_checkpoint_is_refused_and_kept(tiny, tmp_path, damage):
    run_steps(tiny, tmp_path)
    remove_folder(tmp_path / "checkpoint-7")
    content = (tmp_path / "checkpoint-6" / damage).read_bytes()
    (tmp_path / "checkpoint-6" / damage).write_bytes(content[: len(content) // 2])
    assert not checkpoints.is_whole(tmp_path / "checkpoint-6")
    assert checkpoints.newest_whole(tmp_path) is None  # two are kept, 6 and 7
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"holds checkpoints but none to resume from; of checkpoint-6: .*{damage}"):
        run_steps(tiny, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def flip(path, position=0.5):
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("manifest", ["whole", "cut", "none"])
@pytest.mark.parametrize(
    "damage",
    [
        "training_weights.safetensors missing",
        "training_weights.safetensors flipped",
        "model.safetensors flipped",
        "optimizer.pt flipped",
        "rng_state.pth flipped",
        "trainer_state.json {}",
        "trainer_state.json []",
        "trainer_state.json of another step",
    ],
)
def test_resumes_from_a_checkpoint_before_a_changed_one(tiny, tmp_path, caplog, damage, manifest, through):
    name, _, how = damage.partition(" ")
    if manifest == "none" and how == "flipped":
        pytest.skip("a checkpoint without checksums")
    run_steps(tiny, tmp_path, max_steps=4)
    file = tmp_path / "checkpoint-4" / name
    if how == "missing":
        file.unlink()
    elif how == "flipped":
        flip(file, position=0.9)
    elif how == "of another step":
        file.write_bytes((tmp_path / "checkpoint-2" / name).read_bytes())
    else:
        file.write_text(how)
    listed = tmp_path / "checkpoint-4" / checkpoints.MANIFEST
    if manifest == "cut":
        listed.write_text(listed.read_text()[:100])
    elif manifest == "none":
        listed.unlink()
    trainer = run_steps(tiny, tmp_path)
    assert_equal_weights(trainer.model.state_dict(), through)
    warning = caplog.messages[0]
    assert warning.startswith(f"{tmp_path / 'checkpoint-4'} is damaged and is skipped: ")
    assert name in warning or manifest == "cut"
    assert all(checkpoints.is_whole(path) for path in checkpoints.list_checkpoints(tmp_path))


def test_damaged_checkpoints_do_not_displace_good_ones(tiny, tmp_path):
    run_steps(tiny, tmp_path, max_steps=4)
    flip(tmp_path / "checkpoint-4" / "optimizer.pt")
    for step in (6, 8):  # written by a run that goes on meanwhile
        shutil.copytree(tmp_path / "checkpoint-2", tmp_path / f"checkpoint-{step}")
    checkpoints.thin_out(tmp_path, 3, [])
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (2, 4, 6, 8)]
    checkpoints.thin_out(tmp_path, 2, [])
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-8"]


def test_a_lost_process_is_not_reported_as_a_full_disk(tiny, tmp_path, monkeypatch):
    trainer = make_trainer(tiny, tmp_path, **SEVEN_STEPS)
    error = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:18599: Connection reset by peer.")
    monkeypatch.setattr(trainer.accelerator, "wait_for_everyone", MagicMock(side_effect=[None, error]))
    with pytest.raises(RuntimeError, match="^.gloo"):
        trainer.train(resume_from_checkpoint=True)
    assert not checkpoints.list_checkpoints(tmp_path)


def test_a_forbidden_pickle_in_a_checkpoint_gets_one_sentence(tiny, tmp_path):
    run_steps(tiny, tmp_path, max_steps=2)
    torch.save({"state": shutil.rmtree}, tmp_path / "checkpoint-2" / "optimizer.pt")
    (tmp_path / "checkpoint-2" / checkpoints.MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"checkpoint-2 is refused: its optimizer\.pt.*; delete it$"):
        run_steps(tiny, tmp_path)


def test_resuming_does_not_warn(tiny, tmp_path, caplog):
    run_steps(tiny, tmp_path, max_steps=2)
    caplog.set_level(logging.WARNING, "transformers")  # a command of another test may have silenced it
    logging.getLogger("transformers").propagate, before = True, logging.getLogger("transformers").propagate
    try:
        run_steps(tiny, tmp_path, max_steps=4)
    finally:
        logging.getLogger("transformers").propagate = before
    assert "missing keys" not in caplog.text
    trainer = make_trainer(tiny, tmp_path)
    weights = dict(load_file(tmp_path / "checkpoint-4" / checkpoints.WEIGHTS))
    del weights["model.shared.weight"]
    result = trainer.model.load_state_dict(weights, strict=False)
    with caplog.at_level(logging.WARNING, "transformers"):
        logging.getLogger("transformers").propagate = True
        trainer._issue_warnings_after_load(result)
        logging.getLogger("transformers").propagate = before
    assert "model.shared.weight" in caplog.text


@pytest.fixture(scope="module")
def through(tiny, tmp_path_factory):
    """Weights of `run_steps` without interruption."""
    return run_steps(tiny, tmp_path_factory.mktemp("through")).model.state_dict()


def test_resumes_from_the_checkpoint_before_a_damaged_one(tiny, tmp_path, through):
    run_steps(tiny, tmp_path, save_total_limit=5)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (2, 4, 6, 7)]
    for number in (6, 7):
        (tmp_path / f"checkpoint-{number}" / "optimizer.pt").write_bytes(b"half")
    assert checkpoints.newest_whole(tmp_path) == tmp_path / "checkpoint-4"
    trainer = run_steps(tiny, tmp_path, save_total_limit=5)
    assert_equal_weights(trainer.model.state_dict(), through)
    assert all(checkpoints.is_whole(path) for path in checkpoints.list_checkpoints(tmp_path))


def test_finished_training_is_not_resumed(tiny, tmp_path, through):
    run_steps(tiny, tmp_path)
    trainer = run_steps(tiny, tmp_path)
    assert trainer.state.global_step == 7
    saved = load_file(tmp_path / "checkpoint-7" / checkpoints.TRAINING_WEIGHTS)
    assert_equal_weights(saved, {name: through[name] for name in saved})


class FileSizeLimit(TrainerCallback):
    """From a step on no file may grow beyond some bytes: what a full disk looks like from inside."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_full_disk_leaves_the_last_good_checkpoint(tiny, tmp_path, through):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        trainer = make_trainer(tiny, tmp_path, callbacks=[FileSizeLimit(3)], **SEVEN_STEPS, save_total_limit=1)
        with pytest.raises(OSError, match="checkpoint-4 cannot be saved"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert checkpoints.is_whole(tmp_path / "checkpoint-2")
    assert_equal_weights(run_steps(tiny, tmp_path).model.state_dict(), through)


class Poison(TrainerCallback):
    """Makes the fourth step diverge: its loss, a gradient, or a weight after it."""

    def __init__(self, what, value):
        self.what, self.value = what, value

    def now(self, what, state):
        return what == self.what and state.global_step == 3 + (what == "weight")

    def on_step_begin(self, args, state, control, **kwargs):
        if self.now("loss", state):
            loss_outputs = self.trainer.loss_outputs

            def poisoned(*arguments):
                outputs = loss_outputs(*arguments)
                outputs.loss = outputs.loss * self.value
                return outputs

            self.trainer.loss_outputs = poisoned

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.now("weight", state):
            model.get_decoder().layers[0].fc1.bias.data[0] = self.value

    def attach(self, trainer):
        self.trainer = trainer
        bias = trainer.model.get_decoder().layers[0].fc1.bias
        if self.what == "gradient":
            bias.register_hook(lambda grad: grad * self.value if trainer.state.global_step == 3 else grad)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("loss", "the loss"),
        ("gradient", "the norm of the gradients"),
        ("weight", r"the weight model\.decoder\.layers\.0\.fc1\.bias"),
    ],
)
def test_divergence_ends_training_and_keeps_checkpoints(tiny, tmp_path, through, what, sentence, value, max_grad_norm):
    """`save_total_limit` would leave only the diverged weights."""
    poison = Poison(what, value)
    options = {**SEVEN_STEPS, "save_total_limit": 1, "max_grad_norm": max_grad_norm}
    trainer = make_trainer(tiny, tmp_path, callbacks=[poison], **options)
    poison.attach(trainer)
    place = r"at step 4 \(batch 4 of epoch 1, .*\).* the last good checkpoint is .*checkpoint-2\."
    with pytest.raises(FloatingPointError, match=f"{sentence} is no longer finite {place}"):
        trainer.train()
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["checkpoint-2"]
    if max_grad_norm:
        assert_equal_weights(run_steps(tiny, tmp_path).model.state_dict(), through)


def test_divergence_before_the_first_checkpoint_is_found_in_the_second_epoch(tiny, tmp_path):
    poison = Poison("loss", math.nan)
    trainer = make_trainer(tiny, tmp_path, callbacks=[poison], per_device_train_batch_size=20, max_steps=6)
    poison.attach(trainer)
    assert len(trainer.get_train_dataloader()) == 3
    with pytest.raises(FloatingPointError, match=r"at step 4 \(batch 1 of epoch 2, .*; there is no checkpoint yet\."):
        trainer.train()


def test_resume_false_starts_anew(tiny, tmp_path):
    run_steps(tiny, tmp_path, max_steps=2)
    trainer = make_trainer(tiny, tmp_path, max_steps=1)
    trainer.train(resume_from_checkpoint=False)
    assert trainer.state.global_step == 1


def test_best_steps_by_hand():
    log = [{"step": 1, "eval_bleu": 3.0}, {"step": 2, "loss": 9}, {"step": 3, "eval_bleu": 5.0}]
    log += [{"step": 4, "eval_bleu": 3.0}, {"step": 5, "eval_bleu": 1.0}]
    assert checkpoints.best_steps(log, "eval_bleu", 3, range(6)) == [3, 1, 4]
    assert checkpoints.best_steps(log, "eval_bleu", 3, {1, 5}) == [1, 5]
    assert checkpoints.best_steps(log, "eval_bleu", 0, range(6)) == []


@pytest.mark.parametrize(("newest", "left"), [(None, 4), (0, 4), (-1, 4), (1, 1), (3, 3), (9, 4)])
def test_a_limit_below_one_keeps_all_checkpoints(tmp_path, newest, left):
    for step in (2, 4, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoints.thin_out(tmp_path, newest, [])
    steps = [checkpoints.checkpoint_step(path) for path in checkpoints.list_checkpoints(tmp_path)]
    assert steps == [2, 4, 10, 12][-left:]


def test_an_evaluation_before_the_first_step_is_not_chosen(tiny, tmp_path, monkeypatch):
    """Its scripted BLEU is the highest, but it has no checkpoint."""
    scores = iter([90.0, 10.0, 20.0])
    monkeypatch.setattr(JMNatTrainer, "_translation_scores", lambda self, data: {"bleu": next(scores)})
    options = {"eval_strategy": "steps", "eval_steps": 2, "eval_num_iterations": [4], "keep_best": 1}
    trainer = run_steps(tiny, tmp_path, max_steps=4, save_steps=100, eval_on_start=True, **options)
    assert trainer.choose_final_weights() == {"best_step": 4, "best_bleu": 20.0, "final_model": "step 4"}


@pytest.mark.parametrize("average_score", [29.0, 31.0])
def test_keeps_the_best_and_averages_them_if_that_helps(tiny, tmp_path, monkeypatch, average_score):
    """BLEU is scripted: steps 2 and 6 are the best of 2, 4, 6, 8; then the average is scored."""
    scores = iter([30.0, 10.0, 20.0, 5.0, average_score])
    monkeypatch.setattr(JMNatTrainer, "_translation_scores", lambda self, data: {"bleu": next(scores)})
    trainer = run_steps(
        tiny,
        tmp_path,
        max_steps=8,
        save_steps=100,
        eval_strategy="steps",
        eval_steps=2,
        eval_num_iterations=[4],
        keep_best=2,
        save_total_limit=1,
    )
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (2, 6, 8)]
    assert not (tmp_path / "checkpoint-2" / "optimizer.pt").exists()
    assert checkpoints.newest_whole(tmp_path) == tmp_path / "checkpoint-8"
    if average_score > 30:  # and the same with a bad one among the best
        copy = shutil.copytree(tmp_path / "checkpoint-6", tmp_path / "copy")
        flip(tmp_path / "checkpoint-6" / checkpoints.WEIGHTS)
        assert trainer.choose_final_weights() == {"best_step": 2, "best_bleu": 30.0, "final_model": "step 2"}
        remove_folder(tmp_path / "checkpoint-6")
        copy.rename(tmp_path / "checkpoint-6")
    report = trainer.choose_final_weights()
    assert report["best_step"] == 2
    assert report["average_of_steps"] == [2, 6]
    assert (report["best_bleu"], report["average_bleu"]) == (30.0, average_score)
    best, other = (load_file(tmp_path / f"checkpoint-{n}" / checkpoints.WEIGHTS) for n in (2, 6))
    final = trainer.model.state_dict()
    for name, tensor in best.items():
        expected = (tensor + other[name]) / 2 if average_score > 30 else tensor
        torch.testing.assert_close(final[name], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"eval_num_iterations": [4, 0]}, "eval_num_iterations"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"time_budget": 0}, "time_budget=0"),
        ({"keep_best": 3}, "keep_best=3"),
        (
            {
                **{"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
                **{"keep_best": 2, "eval_num_iterations": [1]},
            },
            "load_best_model_at_end=True and keep_best=2",
        ),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"save_only_model": True}, "save_only_model=True is not possible"),
        ({"label_smoothing_factor": 0.2}, "label_smoothing_factor=0.2 must be 0: set label_smoothing of"),
    ],
)
def test_bad_arguments_are_named(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        JMNatTrainingArguments(output_dir=str(tmp_path), **fields)


def test_bad_use_of_the_trainer_is_named(tiny, tmp_path):
    model, tokenizer = tiny_model(tiny[1]), tiny[1]
    own = JMNatTrainingArguments(str(tmp_path), **BASE)
    scored, averaged = (
        JMNatTrainingArguments(str(tmp_path), **BASE, **more)
        for more in ({"eval_num_iterations": [4], "keep_best": 1}, {"ema_decay": 0.9})
    )
    collator = DataCollatorForJMNat(tokenizer)
    for message, arguments, options in (
        ("compute_loss_func is not used", own, {"compute_loss_func": len}),
        ("args is a TrainingArguments but must be a JMNatTr", TrainingArguments(str(tmp_path), use_cpu=True), {}),
        ("args is a TeacherTrainingArguments but must be a JMNatTr", TeacherTrainingArguments(str(tmp_path)), {}),
        ("processing_class is None: give the tokenizer", own, {"processing_class": None}),
        ("evaluations that translate need the", scored, {"processing_class": None, "data_collator": collator}),
        ("is a DataCollatorForSeq2Seq but", own, {"data_collator": DataCollatorForSeq2Seq(tokenizer)}),
        ("keep_best=1 needs a single eval_dataset", scored, {"eval_dataset": {"a": tiny[0]["validation"]}}),
        ("ema_decay=0.9 needs a model that exists already", averaged, {"model_init": lambda: model}),
    ):
        with pytest.raises(ValueError, match=message):
            JMNatTrainer(
                None if "model_init" in options else model, arguments, **{"processing_class": tokenizer} | options
            )
    trainer = make_trainer(tiny, tmp_path)
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match="eval_dataset"):
        trainer.evaluate()
    rows = [{name: row[name] for name in ("id", "input_ids", "labels")} for row in tiny[0]["validation"]]
    with pytest.raises(ValueError, match="no column 'source'"):
        make_trainer(tiny, tmp_path, eval_num_iterations=[1]).evaluate(rows)
    with pytest.raises(ValueError, match="max_tokens"):
        make_trainer(tiny, tmp_path, max_tokens=MODEL["d_model"] // 4)


def test_a_copied_source_counts_all_targets(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, model_fields={"decoder_input": "source_copy"})
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(8)])
    targets = batch["labels"].ne(-100)
    assert trainer.count_predicted(batch) == targets.sum() > batch["masked_positions"].sum()
    outputs = trainer.model.eval()(**batch)
    denominators = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    assert trainer.loss_outputs(trainer.model, batch, denominators).loss.item() == pytest.approx(outputs.loss.item())


def test_predict_uses_evaluation_masks(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path)
    rows = trainer.train_dataset.select(range(8))
    losses = []
    for epoch in (0, 1):
        trainer.data_collator.set_epoch(epoch)
        losses.append(trainer.predict(rows).metrics["test_loss"])
    assert losses[0] == losses[1]
    batch = trainer.eval_data_collator([rows[index] for index in range(8)])
    with torch.no_grad():
        assert losses[0] == pytest.approx(trainer.model.eval()(**batch).loss.item(), rel=1e-5)
