"""Two and four processes on a CPU train what one process trains with as many accumulated batches."""

import functools
import json
import math
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from modeling_jmnat import (
    DataCollatorForJMNat,
    JMNatForConditionalGeneration,
    JMNatTrainer,
    JMNatTrainingArguments,
)
from modeling_jmnat.commands.train import main as train
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.teacher.model import build_teacher
from modeling_jmnat.teacher.trainer import TeacherTrainer
from modeling_jmnat.training import elastic
from modeling_jmnat.training.arguments import TeacherTrainingArguments
from modeling_jmnat.training.presets import accelerate_config
from modeling_jmnat.training.sharding import is_sharded
from tests.helpers.tiny_runs import MODEL, prepare_tiny_data, run_together, tiny_model
from tests.helpers.translation_samples import command_line

pytestmark = pytest.mark.usefixtures("one_thread")

LOSSES = {"dropout": 0.0, "encoder_loss_weight": 0.5, "ngram_loss_weight": 0.5, "length_loss_weight": 0.5}
# Adam would make large steps of gradients that are nothing but rounding, such as that of the keys' bias.
BASE = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "save_strategy": "no", "seed": 3, "logging_steps": 1}
BASE |= {"warmup_steps": 2, "adam_epsilon": 1e-4, "predict_with_generate": True, "generation_max_length": 12}
# A step has four batches in each: number of sentences, settings. The last steps of an epoch have fewer.
RUNS = {
    "sentences": (13, {"per_device_train_batch_size": 2, "num_train_epochs": 2}),
    "tokens": (17, {"max_tokens": 24, "num_train_epochs": 2}),
    "fewer_than_processes": (3, {"per_device_train_batch_size": 1, "max_steps": 2}),
    "correction_and_glancing": (9, {"max_tokens": 24, "max_steps": 3}),
    "second_masks": (9, {"max_tokens": 24, "max_steps": 3, "encoder_loss_weight_start": 2.0}),
    "teacher": (9, {"max_tokens": 24, "max_steps": 3}),
}
VARYING = {"epoch", "eval_runtime", "target_tokens_per_second"}  # where an epoch ends unevenly, its fractions differ
GLANCING = {"full_mask_ratio": 0.5, "glancing_ratio": 0.5}
MASKS = {
    "correction_and_glancing": {**GLANCING, "correction_ratio": 0.3},
    "second_masks": {**GLANCING, "glancing_ratio_end": 0.1, "source_mask_ratio_full": 0.4, "second_mask_ratio": 0.7},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare_tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(folder):
    """(data set, tokenizer)"""
    return load_prepared(folder)


def train_all(tiny, output_dir, processes, names=tuple(RUNS)):
    """The log, the weights and Adam's means of the gradients of each of RUNS."""
    data, tokenizer = tiny
    found = {}
    for name in names:
        sentences, settings = RUNS[name]
        settings = {**BASE, **settings, "gradient_accumulation_steps": 4 // processes}
        datasets = {"train_dataset": data["train"].select(range(sentences)), "eval_dataset": data["validation"]}
        if name == "teacher":
            torch.manual_seed(0)
            model = build_teacher({**MODEL, "dropout": 0.0}, tokenizer, 1)
            arguments = TeacherTrainingArguments(str(output_dir), **settings, eval_sentences=3)
            trainer = TeacherTrainer(model, arguments, processing_class=tokenizer, **datasets)
        else:
            arguments = JMNatTrainingArguments(str(output_dir), **settings, eval_num_iterations=[2], eval_sentences=3)
            collator = DataCollatorForJMNat(tokenizer, seed=3, **MASKS.get(name, {}))
            model = tiny_model(tokenizer, **LOSSES)
            trainer = JMNatTrainer(model, arguments, collator, processing_class=tokenizer, **datasets)
        trainer.train()
        scores = trainer.evaluate()
        found[name] = {
            "log": trainer.state.log_history[:-2] + [scores],
            "weights": model.state_dict(),
            "predicted": torch.tensor(trainer.predict(data["validation"].select(range(5))).predictions),
            "moments": [values["exp_avg"] for values in trainer.optimizer.state_dict()["state"].values()],
        }
    return found


def save_all(tiny, output_dir, processes, names, result):
    found = train_all(tiny, output_dir, processes, names)
    if os.environ["RANK"] == "0":
        torch.save(found, result)


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    return train_all(tiny, tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.parametrize(
    ("processes", "names"), [(2, list(RUNS)), (4, ["sentences", "tokens", "fewer_than_processes"])]
)
def test_several_processes_equal_one_with_accumulation(tiny, alone, tmp_path, processes, names):
    run_together(processes, tmp_path, save_all, tiny, tmp_path / "run", processes, names, tmp_path / "result.pt")
    for name, found in torch.load(tmp_path / "result.pt").items():
        expected = alone[name]
        assert len(found["log"]) == len(expected["log"]) >= 3
        for one, other in zip(expected["log"], found["log"], strict=True):
            assert one.keys() == other.keys()
            for key in one.keys() - VARYING:
                assert other[key] == pytest.approx(one[key], rel=1e-5, abs=1e-7), (name, key)
        assert found["predicted"].tolist() == expected["predicted"].tolist()
        for what in ("weights", "moments"):
            torch.testing.assert_close(found[what], expected[what], rtol=1e-5, atol=1e-6)


def begin(folder, output_dir, processes):
    """Run 6 steps of two batches, an epoch and a half, and leave what the run would be after its second step."""
    run_together(processes, output_dir.parent, command, folder, output_dir)
    for step in (4, 6):
        shutil.rmtree(output_dir / f"checkpoint-{step}")
    (output_dir / "results.json").unlink()
    return load_file(output_dir / "model.safetensors")


def command(folder, output_dir, **options):
    fields = {name: value for name, value in MODEL.items() if name != "normalize_before"}
    settings = {"max_steps": 6, "save_steps": 2, "save_total_limit": 0, "max_tokens": 60, "learning_rate": 1e-2}
    settings |= {"adam_epsilon": 1e-4, "warmup_steps": 2, "dropout": 0.0, "ema_decay": 0.5, "disable_tqdm": True}
    train(command_line({**fields, **settings, "data": folder, "output_dir": output_dir, **options}))


def refused_then_elastic(folder, output_dir):
    with pytest.raises(SystemExit):
        command(folder, output_dir)
    own = output_dir.parent / f"disk{os.environ['RANK']}"
    if os.environ["RANK"] == "0":
        shutil.copytree(output_dir, own)
    trainer = plain_trainer(load_prepared(folder), own)
    with pytest.raises(ValueError, match=r"of the steps \[2, 0, 0, 0\] .* one folder that all machines share"):
        trainer.train(resume_from_checkpoint=True)
    command(folder, output_dir, elastic=True)


def plain_trainer(tiny, output_dir, **settings):
    data, tokenizer = tiny
    arguments = JMNatTrainingArguments(str(output_dir), **BASE, **settings)
    collator = DataCollatorForJMNat(tokenizer)
    return JMNatTrainer(tiny_model(tokenizer), arguments, collator, data["train"], processing_class=tokenizer)


def test_a_run_of_two_processes_resumes_with_four_or_one(folder, tmp_path, capfd):
    expected = begin(folder, tmp_path / "two", 2)
    for processes in (4, 1):
        run = shutil.copytree(tmp_path / "two", tmp_path / str(processes))
        if processes == 1:
            capfd.readouterr()
            with pytest.raises(SystemExit):
                command(folder, run)
            assert "holds a run with training world_size=2, and now it is 1: --elastic True" in capfd.readouterr().err
            with pytest.raises(SystemExit):
                command(folder, run, elastic=True, gradient_accumulation_steps=2)
            assert "gradient_accumulation_steps=1, and now it is 2" in capfd.readouterr().err
            command(folder, run, elastic=True, batch_parts=2)
            assert "is now world_size=1, gradient_accumulation_steps=4, batch_parts=2" in capfd.readouterr().err
        else:
            run_together(processes, tmp_path, refused_then_elastic, folder, run)
        torch.testing.assert_close(load_file(run / "model.safetensors"), expected, rtol=1e-5, atol=1e-6)
        assert json.loads((run / "results.json").read_text())["steps"] == 6


def divided(folder, output_dir, **options):
    """The command under FSDP 2."""
    launch = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(accelerate_config("fsdp2")), "train.py"])
    )[0]
    os.environ.update(prepare_multi_gpu_env(launch))
    command(folder, output_dir, **options)


def divided_twice(folder, output_dir, options):
    """The command under FSDP 2, then what is only available in Python."""
    divided(folder, output_dir, **options)
    data, tokenizer = load_prepared(folder)
    settings = {**BASE, "max_steps": 2, "per_device_train_batch_size": 2}
    arguments = TeacherTrainingArguments(str(output_dir / "teacher"), **settings, eval_sentences=2)
    teacher = build_teacher({**MODEL, "dropout": 0.0}, tokenizer, 1)
    few = data["validation"].select(range(5))
    trainer = TeacherTrainer(teacher, arguments, processing_class=tokenizer, train_dataset=few, eval_dataset=few)
    trainer.train()
    assert is_sharded(trainer.model)
    assert len(trainer.predict(few).predictions) == 5
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    trainer.save_model()
    assert is_sharded(trainer.model)
    arguments = JMNatTrainingArguments(str(output_dir / "glancing"), **settings)
    collator = DataCollatorForJMNat(tokenizer, **GLANCING)
    with pytest.raises(ValueError, match="glancing_ratio is not possible with FSDP"):
        JMNatTrainer(tiny_model(tokenizer), arguments, collator, few, processing_class=tokenizer)


def test_a_sharded_model_trains_saves_evaluates_and_resumes_as_a_whole_one(folder, tmp_path):
    """FSDP 2: two processes train what one trains, and three resume from their checkpoint."""
    evaluated = {"eval_strategy": "steps", "eval_steps": 3, "eval_num_iterations": 2, "eval_sentences": 3}
    options = {**evaluated, "keep_best": 2, "load_best_model_at_end": False, "crf_rank": 3}
    command(folder, tmp_path / "whole", gradient_accumulation_steps=2, **options)
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    run_together(2, tmp_path, divided_twice, folder, tmp_path / "divided", options)
    run = tmp_path / "divided"
    torch.testing.assert_close(load_file(run / "model.safetensors"), expected, rtol=1e-5, atol=1e-6)
    files = [{path.name for path in (folder / "checkpoint-6").iterdir()} for folder in (tmp_path / "whole", run)]
    assert files[1] - files[0] == {"rng_state_0.pth", "rng_state_1.pth"}
    assert files[0] - files[1] == {"rng_state.pth"}
    for step in (3, 4, 6):
        shutil.rmtree(run / f"checkpoint-{step}")
    (run / "results.json").unlink()
    run_together(3, tmp_path, functools.partial(divided, folder, run, elastic=True, **options))
    torch.testing.assert_close(load_file(run / "model.safetensors"), expected, rtol=1e-5, atol=1e-6)
    model = JMNatForConditionalGeneration.from_pretrained(run)
    assert model.generate(torch.tensor([[5, 6, 2]])).shape[0] == 1
    AutoModelForSeq2SeqLM.from_pretrained(run / "teacher")


@pytest.mark.parametrize(
    ("begun", "processes", "asked_parts", "accumulation", "parts"),
    [
        ((2, 1, 1), 4, 1, 1, 2),
        ((2, 4, 1), 4, 1, 2, 1),
        ((4, 2, 1), 2, 1, 4, 1),
        ((2, 1, 1), 3, 1, 2, 3),
        ((1, 6, 1), 4, 1, 3, 2),
        ((2, 2, 2), 1, 4, 8, 4),
        ((2, 1, 1), 2, 3, 3, 3),
    ],
)
def test_steps_keep_their_batches(begun, processes, asked_parts, accumulation, parts):
    names = ("world_size", "gradient_accumulation_steps", "batch_parts")
    now = SimpleNamespace(
        world_size=processes, gradient_accumulation_steps=begun[1], batch_parts=asked_parts, process_index=1
    )
    elastic.keep_steps(now, dict(zip(names, begun, strict=True)))
    assert (now.gradient_accumulation_steps, now.batch_parts) == (accumulation, parts)
    assert begun[0] * begun[1] / begun[2] == processes * accumulation / parts


def test_bad_settings_are_named(tiny, tmp_path):
    data, tokenizer = tiny
    with pytest.raises(ValueError, match="batch_parts=0 must be at least 1"):
        JMNatTrainingArguments(str(tmp_path), batch_parts=0)
    stream = ({"train": data["train"].to_iterable_dataset()}, tokenizer)
    with pytest.raises(ValueError, match="elastic=True is not possible: the order of a stream"):
        plain_trainer(stream, tmp_path, elastic=True, max_tokens=60, max_steps=3)


def test_a_trainer_refuses_other_steps(tmp_path):
    now = SimpleNamespace(world_size=4, gradient_accumulation_steps=1, batch_parts=1, elastic=False)
    elastic.check_step(now, tmp_path)  # of an earlier version
    step = {"world_size": 2, "gradient_accumulation_steps": 1, "batch_parts": 1}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {}, "step": step}))
    with pytest.raises(ValueError, match="by 2 processes and now there are 4: start as many, or resume with elastic"):
        elastic.check_step(now, tmp_path)
    now.elastic = True
    with pytest.raises(ValueError, match=r"keep world_size \* gradient_accumulation_steps / batch_parts as it was"):
        elastic.check_step(now, tmp_path)
    now.batch_parts = 2
    elastic.check_step(now, tmp_path)
