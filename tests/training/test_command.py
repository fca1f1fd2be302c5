import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from modeling_jmnat import JMNatConfig, JMNatForConditionalGeneration
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.teacher.command import parse_teacher_command
from modeling_jmnat.teacher.model import build_teacher
from modeling_jmnat.training import checkpoints
from modeling_jmnat.training.arguments import TeacherTrainingArguments
from modeling_jmnat.training.command import parse_command
from modeling_jmnat.training.data_collator import DataCollatorForJMNat
from modeling_jmnat.training.initial_weights import copy_teacher_weights
from modeling_jmnat.training.presets import load_preset, preset_names
from modeling_jmnat.training.run import ADDED_FIELDS, compare_settings
from modeling_jmnat.utils.locks import folder_lock
from tests.helpers.teacher_samples import prepare_words
from tests.helpers.tiny_runs import MODEL, Child, prepare_tiny_data, tiny_model
from tests.helpers.translation_samples import SCRIPTS, load_script

SHIPPED = SCRIPTS.parent / "hub_card" / "multi30k_tiny" / "jmnat"
TRAINING = {
    "max_steps": 24,
    "max_tokens": 100,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "ema_decay": 0.9,
    "logging_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 8,
    "eval_num_iterations": [1, 2],
    "eval_num_length_candidates": 2,
    "save_steps": 3,
    "keep_best": 2,
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(yaml.safe_dump({"model": MODEL, "masking": {"source_mask_ratio": 0.2}, "training": TRAINING}))
    return path


def train(*arguments):
    load_script("train_jmnat").main([str(argument) for argument in arguments])


def last_json(text: str) -> dict:
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


@pytest.fixture(scope="module")
def through(data, preset, tmp_path_factory):
    """Folder of the run without interruption."""
    output_dir = tmp_path_factory.mktemp("through") / "run"
    train("--preset", preset, "--data", data, "--output_dir", output_dir)
    return output_dir


def assert_same_model(first: Path, second: Path):
    weights = [load_file(folder / "model.safetensors") for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_run_folder_is_complete(through, data):
    names = {path.name for path in through.iterdir()}
    assert names >= {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "results.json"}
    assert not any("bin" in name for name in names)
    results = json.loads((through / "results.json").read_text())
    assert results["finished"]
    assert results["steps"] == 24
    assert results["average_bleu"] is not None
    log = json.loads((through / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "eval_bleu_k1" in entry] == [8, 16, 24]
    model = AutoModelForSeq2SeqLM.from_pretrained(through)
    tokenizer = AutoTokenizer.from_pretrained(through)
    assert model.config.vocab_size == len(tokenizer) == len(load_prepared(data)[1])
    assert model.config.d_model == MODEL["d_model"]


def test_finished_run_is_left_alone(through, data, preset, capfd):
    before = {path: path.stat().st_mtime_ns for path in through.rglob("*") if path.name != ".lock"}
    train("--preset", preset, "--data", data, "--output_dir", through)
    output = capfd.readouterr()
    assert last_json(output.out)["finished"]
    assert "nothing is left to do" in output.err
    assert before == {path: path.stat().st_mtime_ns for path in through.rglob("*") if path.name != ".lock"}


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        train(*arguments)
    assert stopped.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["run_settings.json", "results.json"])
@pytest.mark.parametrize("content", ['{"model": {', "[]", ""])
def test_damaged_files_of_a_run_are_named(through, data, preset, tmp_path, capsys, name, content):
    run = shutil.copytree(through, tmp_path / "run")
    (run / name).write_text(content)
    sentence = refused(capsys, "--preset", preset, "--data", data, "--output_dir", run)
    assert sentence.startswith(f"error: {run / name} ")


@pytest.mark.parametrize("left", ["checkpoint-24", "results.json"])
def test_a_run_without_its_settings_is_refused(through, data, preset, tmp_path, capsys, left):
    run = shutil.copytree(through, tmp_path / "run")
    (run / "run_settings.json").unlink()
    if left == "results.json":
        for checkpoint in checkpoints.list_checkpoints(run):
            shutil.rmtree(checkpoint)
    else:
        (run / "results.json").unlink()
    before = sorted(run.rglob("*"))
    sentence = refused(capsys, "--preset", preset, "--data", data, "--output_dir", run, "--seed", 5)
    assert sentence.startswith(f"error: output_dir {run} holds {left} but no run_settings.json, which identifies")
    assert sorted(run.rglob("*")) == before


def wait_for_checkpoint(run: Path, child: Child, step: int = 1) -> None:
    deadline = time.monotonic() + 60
    while not any(checkpoints.checkpoint_step(path) >= step for path in checkpoints.list_checkpoints(run)):
        assert child.process.is_alive(), child.log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(through, data, preset, tmp_path):
    run = tmp_path / "run"
    arguments = ("--preset", preset, "--data", data, "--output_dir", run)
    rng = random.Random()
    for attempt in range(3):
        child = Child(tmp_path / f"log{attempt}", train, *arguments)
        if attempt == 0:
            wait_for_checkpoint(run, child, step=rng.randint(1, 15))
        time.sleep(rng.uniform(0.0, 0.1 + attempt))
        child.signal(signal.SIGKILL)
        code = child.join()
        assert attempt or code == -signal.SIGKILL
    last = Child(tmp_path / "log", train, *arguments)
    assert last.join() == 0, last.log.read_text()
    assert_same_model(run, through)
    assert checkpoints.list_checkpoints(run)
    assert not (run / checkpoints.UNFINISHED).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_stop_with_a_checkpoint(through, data, preset, tmp_path, number):
    run = tmp_path / "run"
    arguments = ("--preset", preset, "--data", data, "--output_dir", run)
    child = Child(tmp_path / "log", train, *arguments)
    wait_for_checkpoint(run, child)
    child.signal(number)
    assert child.join() == 0, child.log.read_text()
    figures = last_json(child.log.read_text())
    assert not figures["finished"]
    assert 3 <= figures["step"] < 24
    assert checkpoints.newest_whole(run).name == f"checkpoint-{figures['step']}"
    assert not (run / "results.json").exists()
    train(*arguments)
    assert_same_model(run, through)


def test_a_finished_run_without_its_weights_is_not_called_finished(through, data, preset, tmp_path, capfd):
    run = shutil.copytree(through, tmp_path / "run")
    (run / "model.safetensors").unlink()
    arguments = ("--preset", preset, "--data", data, "--output_dir", run)
    expect_error(capfd, f"{run} holds results.json but no weights", *arguments)
    (run / "results.json").unlink()
    train(*arguments)
    assert_same_model(run, through)


def in_own_group(function, *arguments):
    os.setpgrp()
    function(*arguments)


def test_signal_to_the_group_spares_the_workers(through, data, preset, tmp_path):
    """As Ctrl-C in a terminal: the data loader's processes must go on until the step is done."""
    run = tmp_path / "run"
    arguments = ("--preset", preset, "--data", data, "--output_dir", run, "--dataloader_num_workers", 2)
    child = Child(tmp_path / "log", in_own_group, train, *arguments)
    wait_for_checkpoint(run, child)
    os.killpg(child.process.pid, signal.SIGINT)
    assert child.join() == 0, child.log.read_text()
    assert not last_json(child.log.read_text())["finished"]
    train(*arguments[:-2])
    assert_same_model(run, through)


def test_time_budget_stops_and_the_next_call_resumes(through, data, preset, tmp_path, capfd):
    run = tmp_path / "run"
    arguments = ("--preset", preset, "--data", data, "--output_dir", run)
    train(*arguments, "--time_budget", "0.00001")
    figures = last_json(capfd.readouterr().out)
    assert (figures["finished"], figures["step"], figures["max_steps"]) == (False, 1, 24)
    train(*arguments)
    assert last_json(capfd.readouterr().out)["finished"]
    assert_same_model(run, through)


def expect_error(capfd, message: str, *arguments) -> None:
    with pytest.raises(SystemExit) as end:
        train(*arguments)
    assert end.value.code == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_other_settings_and_a_second_process_are_refused(through, data, preset, tmp_path, capfd):
    base = ("--preset", preset, "--data", data, "--output_dir")
    expect_error(capfd, "learning_rate=0.01, and now it is 0.5", *base, through, "--learning_rate", "0.5")
    expect_error(capfd, "d_model=16, and now it is 32", *base, through, "--d_model", "32")
    with folder_lock(tmp_path / "locked", "output_dir"):
        child = Child(tmp_path / "log", train, *base, tmp_path / "locked")
        assert child.join() == 1
    assert "another process" in child.log.read_text()


@pytest.mark.parametrize("command", ["train_jmnat", "train_teacher"])
def test_a_run_with_unversioned_fingerprints_resumes(preset, tmp_path, capfd, command):
    """With the digests of the data that the code wrote then; afterwards they are those of now."""
    data = prepare_words(tmp_path, train=25, tokenizer=str(SHIPPED), lowercase=True)
    line = ["--preset", preset, "--data", data, "--output_dir", tmp_path / "run", "--max_steps", 2, "--use_cpu", True]

    def run():
        load_script(command).main([str(word) for word in line])
        return last_json(capfd.readouterr().out)

    figures = run()
    path = tmp_path / "run" / "run_settings.json"
    settings = json.loads(path.read_text())
    before = {
        "pairs": 25,
        "ids": "f3c1a1204273e13aeff77e0cc8bbe653",
        "tokenizer": "3cbdc8878ccd75363e0ad4ee65c56082a3b6e20947dce6aa66704d1c681d0176",
    }
    assert settings["data"]["tokenizer"].startswith("2:")
    assert settings["data"] | {"tokenizer": before["tokenizer"]} == before
    path.write_text(json.dumps(settings | {"data": before}))
    assert run() == figures  # nothing is left to do
    (tmp_path / "run" / "results.json").unlink()
    assert run()["finished"]
    assert json.loads(path.read_text()) == settings
    other = before | {"tokenizer": before["tokenizer"][::-1]}
    path.write_text(json.dumps(settings | {"data": other}))
    with pytest.raises(SystemExit):
        run()
    assert f"holds a run with data tokenizer={other['tokenizer']}, and now it is 2:" in capfd.readouterr().err


def test_another_spelling_of_the_same_start_resumes(through, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = json.loads((through / "run_settings.json").read_text())
    settings["start"]["init_from"] = str(tmp_path / "model")
    (tmp_path / "run_settings.json").write_text(json.dumps(settings))
    settings["start"]["init_from"] = "model"
    compare_settings(tmp_path, settings)
    for other in ("other", None):
        settings["start"]["init_from"] = other
        with pytest.raises(ValueError, match=f"start init_from={tmp_path / 'model'}, and now it is {other}"):
            compare_settings(tmp_path, settings)


def test_another_number_of_processes_is_refused(through, tmp_path):
    settings = json.loads((through / "run_settings.json").read_text())
    assert settings["training"]["world_size"] == 1
    settings["training"]["world_size"] = 2
    (tmp_path / "run_settings.json").write_text(json.dumps(settings))
    compare_settings(tmp_path, settings)
    settings["training"]["world_size"] = 1
    with pytest.raises(ValueError, match="training world_size=2, and now it is 1"):
        compare_settings(tmp_path, settings)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("masking", "second_mask_ratio", 0.5), ("masking", "source_mask_ratio_full", 0.0)]
    + [("masking", "length_noise", 0.3), ("model", "length_smoothing", 1.0), ("masking", "glancing_ratio_end", 0.1)]
    + [("model", "crf_rank", 32), ("model", "crf_loss_weight", 0.5)],
)
def test_a_run_older_than_an_option_resumes_without_it(tmp_path, section, name, value):
    command = parse_command(["--preset", "multi30k_tiny", "--data", "data", "--output_dir", "run"], "")
    settings = {"model": command.model, "masking": command.masking}
    before = json.loads(json.dumps(settings))
    del before[section][name]
    (tmp_path / "run_settings.json").write_text(json.dumps(before))
    compare_settings(tmp_path, settings)
    settings[section][name] = value
    with pytest.raises(
        ValueError, match=f"holds a run with {section} {name}=.*, and now it is {value}: choose another"
    ):
        compare_settings(tmp_path, settings)


DEFAULTS = {"optim": "adamw_torch_fused", "neftune_noise_alpha": None, "lr_scheduler_kwargs": None, "optim_args": None}
# What the first version recorded of a run.
FIRST_RECORDED = {
    *("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "decoder_layers"),
    *("decoder_attention_heads", "decoder_ffn_dim", "dropout", "attention_dropout", "activation_dropout"),
    *("activation_function", "normalize_before", "position_embedding_type", "scale_embedding"),
    *("positional_attention", "exclude_self_attention", "decoder_input", "max_position_embeddings"),
    *("max_target_length", "init_std", "ngram_size", "ngram_alignment", "encoder_loss_weight", "ngram_loss_weight"),
    *("length_loss_weight", "label_smoothing", "source_mask_ratio", "target_mask", "mask_token_prob"),
    *("random_token_prob", "full_mask_ratio", "correction_ratio", "glancing_ratio", "pad_to_multiple_of"),
}


def test_every_option_added_since_has_a_value_for_runs_older_than_it():
    command = parse_command(["--data", "data", "--output_dir", "run"], "")
    settings = command.model | command.masking
    assert settings.keys() >= FIRST_RECORDED
    added = {name: settings[name] for name in settings.keys() - FIRST_RECORDED}
    assert added == {name: ADDED_FIELDS.get(name) for name in added}


def test_a_model_that_no_run_wrote_is_not_overwritten(through, data, preset, tmp_path, capfd):
    """Not even by the run that begins with it."""
    JMNatForConditionalGeneration.from_pretrained(through).save_pretrained(tmp_path / "start")
    before = (tmp_path / "start" / "model.safetensors").read_bytes()
    start = ("--data", data, "--init_from", tmp_path / "start", "--output_dir", tmp_path / "start")
    expect_error(capfd, "start holds config.json but no run_settings.json", *start, "--max_steps", 1)
    (tmp_path / "start" / "config.json").unlink()
    from_random = ("--preset", preset, "--data", data, "--output_dir", tmp_path / "start")
    expect_error(capfd, "start holds model.safetensors but no run_settings.json", *from_random)
    assert (tmp_path / "start" / "model.safetensors").read_bytes() == before


def test_an_option_replaces_that_of_the_preset_beside_which_it_has_no_effect():
    common = ["--preset", "multi30k_tiny", "--data", "data", "--output_dir", "run"]
    preset = parse_command(common, "").training
    assert (preset.max_steps, preset.max_tokens) == (3200, 1024)
    epochs = parse_command([*common, "--num-train-epochs", "2"], "").training
    assert (epochs.max_steps, epochs.num_train_epochs, epochs.max_tokens) == (-1, 2, 1024)
    sentences = parse_command([*common, "--per_device_train_batch_size=7"], "").training
    assert (sentences.max_tokens, sentences.per_device_train_batch_size, sentences.max_steps) == (None, 7, 3200)
    both = parse_command([*common, "--num_train_epochs", "2", "--max_steps", "9"], "").training
    assert both.max_steps == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [("optim", "sgd"), ("neftune_noise_alpha", 5.0), ("lr_scheduler_kwargs", {"timescale": 9}), ("optim_args", "x=1")],
)
def test_training_may_not_change_when_it_resumes(name, value, through, tmp_path):
    settings = json.loads((through / "run_settings.json").read_text())
    now = json.loads(json.dumps(settings))
    now["training"][name] = value
    for recorded in (True, False):  # runs of the first version recorded fewer training arguments
        if not recorded:
            del settings["training"][name]
        (tmp_path / "run_settings.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match=f"training {name}=.*, and now it is"):
            compare_settings(tmp_path, now)
        compare_settings(tmp_path, {**now, "training": {**now["training"], name: DEFAULTS[name]}})


def test_bad_input_is_named(data, preset, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = ("--output_dir", tmp_path / "run")
    expect_error(capfd, "preset 'nonsense' is not one of", "--preset", "nonsense", "--data", data, *output)
    expect_error(capfd, "output_dir is missing", "--preset", preset, "--data", data)
    expect_error(capfd, "make one with `jmnat prepare`", "--preset", preset, "--data", tmp_path, *output)
    expect_error(
        capfd, "max_target_length is 4", "--preset", preset, "--data", data, *output, "--max_target_length", 4
    )
    padded = ("--max_target_length", 63, "--max_position_embeddings", 64, "--pad_to_multiple_of", 64)
    message = "padded to 64, and max_target_length is 63"
    expect_error(capfd, message, "--preset", preset, "--data", data, *output, *padded)
    expect_error(capfd, "is not the folder of a saved model", "--data", data, "--init_from", tmp_path, *output)
    for option, message in (
        (("--max_steps", 0), "max_steps=0 must be at least 1, or -1"),
        (("--gradient_accumulation_steps", 0), "gradient_accumulation_steps=0 must be at least 1"),
        (("--learning_rate", "nan"), "learning_rate=nan must be a finite number"),
        (("--init_std", -1), "init_std=-1.0 must be None or above 0"),
        (("--num_train_epochs", 0), "num_train_epochs=0.0 must be above 0 without max_steps"),
        (("--num_train_epochs", -1), "num_train_epochs=-1.0 must be above 0 without max_steps"),
        (("--save_steps", 0), "save_steps=0.0 must be above 0; --save_strategy no switches it off"),
        (("--eval_steps", -4), "eval_steps=-4.0 must be above 0; --eval_strategy no switches it off"),
        (("--per_device_train_batch_size", 3, "--max_sentences", 2), "max_sentences=2 needs max_tokens"),
        (("--train_sampling_strategy", "sequential"), "train_sampling_strategy=sequential has no use with max_tokens"),
        (("--lr_scheduler_kwargs", "{bad"), "lr_scheduler_kwargs='{bad' is not JSON (Expecting property name"),
        (
            ("--lr_scheduler_kwargs", '{"x": 1}'),
            "lr_scheduler_kwargs={'x': 1} do not fit lr_scheduler_type=inverse",
        ),
        (("--resume_from_checkpoint", "run/checkpoint-8"), "resume_from_checkpoint=run/checkpoint-8 is not an option"),
        (("--report_to", "wandb"), "WandbCallback requires wandb to be installed. Run `pip install wandb`."),
    ):
        expect_error(capfd, message, "--preset", preset, "--data", data, *output, *option)
    (tmp_path / "marian").mkdir()
    (tmp_path / "marian" / "config.json").write_text('{"model_type": "marian"}')
    message = "is a marian model but must be a JM-NAT: use --init_from_teacher"
    expect_error(capfd, message, "--data", data, "--init_from", tmp_path / "marian", *output)
    both = ("--init_from", tmp_path, "--init_from_teacher", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "jmnat"}')
    expect_error(capfd, "set only one of them", "--data", data, *both, *output)
    (tmp_path / "file").write_text("")
    expect_error(capfd, "file", "--preset", preset, "--data", data, "--output_dir", tmp_path / "file" / "run")
    expect_error(capfd, "file is a file: name a folder", "--preset", preset, "--data", data, "--output_dir", "file")


def test_a_run_that_diverges_fails_and_keeps_no_weights(data, preset, tmp_path, capfd):
    run = tmp_path / "run"
    base = ("--preset", preset, "--data", data, "--output_dir", run, "--save_steps", 1)
    message = "is no longer finite at step"
    expect_error(capfd, message, *base, "--learning_rate", 1e30, "--warmup_steps", 0, "--max_grad_norm", 0)
    assert not (run / "results.json").exists()
    assert not (run / "model.safetensors").exists()
    for checkpoint in checkpoints.list_checkpoints(run):
        assert all(value.isfinite().all() for value in load_file(checkpoint / checkpoints.WEIGHTS).values())


def test_another_tokenizer_is_refused(through, preset, tmp_path, capfd):
    (tmp_path / "other").mkdir()
    other = prepare_tiny_data(tmp_path / "other", num_train=20)
    output = ("--data", other, "--output_dir", tmp_path / "run", "--use_cpu", "true")
    expect_error(capfd, "prepare the data with --tokenizer", "--init_from", through, *output)
    assert not checkpoints.list_checkpoints(tmp_path / "run")


def test_trains_on_from_another_model(through, data, tmp_path, capfd):
    """With a learning rate of 0 the weights are those of the start; the sizes need no preset."""
    start = ("--data", data, "--init_from", through, "--output_dir", tmp_path / "run", "--max_steps", 1)
    train(*start, "--learning_rate", 0, "--dropout", 0.3, "--max_tokens", 100, "--use_cpu", "true")
    assert last_json(capfd.readouterr().out)["final_model"] == "step 1"
    assert_same_model(tmp_path / "run", through)
    assert JMNatConfig.from_pretrained(tmp_path / "run").dropout == 0.3
    assert "dropout" not in json.loads((tmp_path / "run" / "generation_config.json").read_text())
    expect_error(capfd, "d_model is 16", *start[:-4], "--output_dir", tmp_path / "x", "--d_model", 32)


def test_a_trained_model_gets_a_crf_and_keeps_its_network(through, data, tmp_path, capfd):
    run = tmp_path / "run"
    start = ("--preset", "crf", "--data", data, "--init_from", through, "--use_cpu", "true", "--eval_strategy", "no")
    few = ("--max_steps", 6, "--warmup_steps", 1, "--save_steps", 3, "--max_tokens", 60, "--logging_steps", 3)
    train(*start, *few, "--freeze", "network", "--crf_rank", 4, "--output_dir", run)
    weights, before = (load_file(folder / "model.safetensors") for folder in (run, through))
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    assert {name for name in weights if name not in before} == {
        *("crf.left.weight", "crf.right.weight"),
        *(f"crf.dynamic_{part}.{kind}" for part in ("in", "out") for kind in ("weight", "bias")),
    }
    logs = json.loads((run / "trainer_state.json").read_text())["log_history"]
    losses = [entry["crf_loss"] for entry in logs if "crf_loss" in entry]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    configs = [JMNatConfig.from_pretrained(folder).to_dict() for folder in (run, through)]
    assert {name for name in configs[0] if configs[0][name] != configs[1][name]} == {"crf_rank"}
    assert configs[0]["crf_rank"] == 4
    capfd.readouterr()
    again = ("--data", data, "--init_from", run, "--use_cpu", "true")
    expect_error(capfd, "crf_rank is 4", *again, "--crf_rank", 8, "--output_dir", tmp_path / "x")
    message = "freeze=network leaves nothing to train with crf_rank=0: give --crf_rank 32"
    expect_error(capfd, message, *start[2:], "--freeze", "network", "--output_dir", tmp_path / "x")
    message = "freeze=network leaves nothing to train with crf_loss_weight=0: give --crf_loss_weight 1"
    frozen = ("--freeze", "network", "--output_dir", tmp_path / "x")
    expect_error(capfd, message, *start, *frozen, "--crf_loss_weight", 0)
    message = "freeze=network needs init_from without restart: a random network would stay random"
    expect_error(capfd, message, *start, *frozen, "--restart", "decoder")
    expect_error(capfd, message, "--preset", "crf", "--data", data, *frozen)
    trained_on = parse_command(["--preset", "crf", "--data", "any", "--init_from", str(run), "--output_dir", "x"], "")
    assert trained_on.model["crf_rank"] == 4  # not the preset's, which would not fit
    message = "restart='network' is not one of encoder, decoder"
    expect_error(capfd, message, *start[2:], "--restart", "network", "--output_dir", tmp_path / "x")


@pytest.mark.parametrize("option", ["--init_from", "--init-from"])
def test_init_from_takes_sizes_from_the_weights_and_the_rest_from_the_preset(through, tmp_path, option):
    start = ["--preset", "wmt_base", option, str(through), "--data", "any", "--output_dir", str(tmp_path)]
    model = parse_command(start, "").model
    assert (model["d_model"], model["dropout"]) == (16, load_preset("wmt_base").model["dropout"])


@pytest.mark.parametrize("normalize_before", [True, False])
def test_fitting_weights_of_the_teacher_are_copied(data, normalize_before):
    """M2M100 (layer norm before) and Marian (after): shared blocks are copied, positional attention adds nothing."""
    tokenizer = load_prepared(data)[1]
    fields = {**MODEL, "normalize_before": normalize_before}
    torch.manual_seed(1)
    teacher = build_teacher(fields, tokenizer)
    student = tiny_model(tokenizer, normalize_before=normalize_before)
    report = copy_teacher_weights(student, teacher)
    theirs = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        own = "position_attn" in name or "embed_lengths" in name
        assert (name in report.left) == own, name
        assert own or torch.equal(parameter, theirs[name])
    assert len(report.copied) > 30
    assert report.describe().endswith(". Set to zero: model.decoder.layers.*.position_attn.out_proj")
    assert ". Not in the teacher: model.encoder.embed_lengths, " in report.describe()
    if normalize_before:  # the block is a residual that is zero: the same as a decoder without it
        plain = tiny_model(tokenizer, normalize_before=True, positional_attention=False, dropout=0.0).eval()
        plain.load_state_dict(student.state_dict(), strict=False)
        inputs = {"input_ids": torch.tensor([[7, 8, 9, 2]]), "decoder_input_ids": torch.tensor([[4, 9, 4]])}
        torch.testing.assert_close(student.eval()(**inputs).logits, plain(**inputs).logits)


def test_teacher_of_another_size_is_refused(data):
    tokenizer = load_prepared(data)[1]
    teacher = build_teacher({**MODEL, "d_model": 32}, tokenizer)
    with pytest.raises(ValueError, match="fit this teacher"):
        copy_teacher_weights(tiny_model(tokenizer), teacher)
    shallow = build_teacher({**MODEL, "encoder_ffn_dim": 64}, tokenizer)
    report = copy_teacher_weights(tiny_model(tokenizer), shallow)
    assert report.left["model.encoder.layers.0.fc1.weight"] == "is (64, 16) there and (32, 16) here"


@pytest.mark.parametrize("normalize_before", [True, False])
def test_start_from_a_teacher_by_the_command(data, preset, normalize_before, tmp_path, capfd):
    tokenizer = load_prepared(data)[1]
    teacher = build_teacher({**MODEL, "normalize_before": normalize_before}, tokenizer)
    if not normalize_before:  # a MarianMTModel
        torch.nn.init.normal_(teacher.final_logits_bias)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    train(
        *("--preset", preset, "--data", data, "--init_from_teacher", tmp_path / "teacher"),
        *("--output_dir", tmp_path / "run", "--max_steps", 1, "--learning_rate", 0, "--eval_strategy", "no"),
        *("--keep_best", 0, "--normalize_before", normalize_before),
    )
    output = capfd.readouterr()
    assert "Set to zero" in output.err
    assert last_json(output.out)["finished"]
    student = JMNatForConditionalGeneration.from_pretrained(tmp_path / "run")
    fc1 = "model.decoder.layers.0.fc1.weight"
    torch.testing.assert_close(student.state_dict()[fc1], teacher.state_dict()[fc1], rtol=1e-6, atol=1e-7)
    assert student.config.position_offset == (None if normalize_before else 0)
    assert student.config.output_bias != normalize_before
    if not normalize_before:
        torch.testing.assert_close(student.lm_head.bias, teacher.final_logits_bias[0], rtol=1e-6, atol=1e-7)


def test_every_preset_makes_a_model_a_collator_and_arguments(data, tmp_path):
    tokenizer = load_prepared(data)[1]
    assert set(preset_names()) >= {"deep_shallow", "demo", "iwslt14", "multi30k_tiny", "wmt_base"}
    for name in preset_names():
        preset = load_preset(name)
        config = JMNatConfig(vocab_size=len(tokenizer), **preset.model)
        DataCollatorForJMNat(tokenizer, **preset.masking)
        command = parse_command(["--preset", name, "--data", "x", "--output_dir", str(tmp_path)], "")
        assert command.model["d_model"] == config.d_model
        assert config.d_model == preset.model.get("d_model", 512)  # one without sizes takes those of its start
        assert command.masking == {**command.masking, **preset.masking}
        for field, value in preset.training.items():
            assert getattr(command.training, field) == value, (name, field)
        teacher = TeacherTrainingArguments(**preset.teacher_training(), output_dir=str(tmp_path))
        assert all(getattr(teacher, field) == value for field, value in preset.teacher.items())
    for name, encoder, decoder, width, inner, heads, dropout in (
        ("iwslt14", 5, 5, 256, 512, 4, 0.3),
        ("wmt_base", 6, 6, 512, 2048, 8, 0.1),
        ("deep_shallow", 10, 2, 512, 2048, 8, 0.1),
    ):
        model = load_preset(name).model
        assert (model["encoder_layers"], model["decoder_layers"]) == (encoder, decoder)
        assert model["d_model"] == width
        assert model["encoder_ffn_dim"] == model["decoder_ffn_dim"] == inner
        assert model["encoder_attention_heads"] == model["decoder_attention_heads"] == heads
        assert model["dropout"] == dropout


def test_options_override_the_preset(preset, tmp_path):
    options = ["--d_model", "8", "--target_mask", "random", "--eval_num_iterations", "3", "--no_positional_attention"]
    command = parse_command(["--preset", str(preset), "--data", "x", "--output_dir", str(tmp_path), *options], "")
    assert command.model["d_model"] == 8
    assert command.model["encoder_ffn_dim"] == MODEL["encoder_ffn_dim"]
    assert not command.model["positional_attention"]
    assert command.masking["target_mask"] == "random"
    assert command.masking["source_mask_ratio"] == 0.2
    assert command.training.eval_num_iterations == [3]
    assert command.training.learning_rate == 0.01


@pytest.mark.parametrize("parse", [parse_command, parse_teacher_command])
def test_help_shows_our_options_and_few_of_transformers(parse, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--preset", "demo", "--help"], "What it does.")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--max_tokens" in text
    assert (
        "Number of optimizer steps; -1: train for num_train_epochs. (default: -1)" not in text
    )  # the preset's number
    assert "Number of optimizer steps; -1: train for num_train_epochs." in text
    assert "hub_token" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {}", "section 'models' is not one of"),
        ("model: {d_modle: 3}", "'d_modle' is not a field of section model"),
        ("training: {output_dir: x}", "'output_dir' is not a field"),
        ("model: 3", "section model must hold fields"),
        ("model: {d_model: 32.5}", "model.d_model=32.5 is not of the type int"),
        ("model: {normalize_before: 1}", "model.normalize_before=1 is not of the type bool"),
        ("masking: {source_mask_ratio: much}", "masking.source_mask_ratio='much' is not of the type float"),
        ("training: {eval_num_iterations: 2}", r"training.eval_num_iterations=2 is not of the type list\[int\]"),
        ("training: {max_tokens: [600]}", r"training.max_tokens=\[600\] is not of the type int \| None"),
        ("training: {learning_rate: }", "training.learning_rate=None is not of the type float"),
        ("- a", "holds no sections"),
        ("{", "is not a YAML file"),
    ],
)
def test_bad_presets_are_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_preset(path)


def test_yaml_numbers_without_a_point_are_read_as_numbers(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("training: {learning_rate: 1e-3, lr_scheduler_type: linear}")
    assert load_preset(path).training == {"learning_rate": 0.001, "lr_scheduler_type": "linear"}


def test_the_basic_nat_is_evaluated_and_saved_with_one_pass():
    nat = ["--preset", "multi30k_tiny", "--data", "data", "--output_dir", "run", "--decoder_input", "source_copy"]
    command = parse_command(nat, "")
    assert command.training.eval_num_iterations == [1]
    assert parse_command([*nat, "--eval_num_iterations", "1"], "").training.eval_num_iterations == [1]
    with pytest.raises(ValueError, match=r"eval_num_iterations=\[1, 4\] must be 1 with decoder_input=source_copy"):
        parse_command([*nat, "--eval_num_iterations", "1", "4"], "")
    model = JMNatForConditionalGeneration(JMNatConfig(**{**MODEL, "vocab_size": 30, "decoder_input": "source_copy"}))
    assert model.generation_config.num_iterations == 1
    assert model.generate(torch.tensor([[7, 8, 2]])).shape[0] == 1
