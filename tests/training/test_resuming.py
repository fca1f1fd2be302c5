"""What a training that resumes, stops or is repeated does to the checkpoints of the one before."""

import errno
import os
import shutil
import signal
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import transformers
from huggingface_hub.utils import filter_repo_objects
from transformers import TrainerCallback

from modeling_jmnat import DataCollatorForJMNat, JMNatTrainer, JMNatTrainingArguments
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.training import checkpoints
from modeling_jmnat.training.callbacks import StopCallback
from tests.helpers.tiny_runs import prepare_tiny_data, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "seed": 3, "max_tokens": 100, "save_steps": 2}
SCORED = {"eval_strategy": "steps", "eval_steps": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(data set, tokenizer)"""
    return load_prepared(prepare_tiny_data(tmp_path_factory.mktemp("tiny")))


def make_trainer(tiny, output_dir, callbacks=(), **settings):
    data, tokenizer = tiny
    arguments = JMNatTrainingArguments(str(output_dir), **{**BASE, **settings})
    sets = {"train_dataset": data["train"], "eval_dataset": data["validation"]}
    collator, callbacks = DataCollatorForJMNat(tokenizer, seed=3), list(callbacks)
    return JMNatTrainer(
        tiny_model(tokenizer), arguments, collator, processing_class=tokenizer, callbacks=callbacks, **sets
    )


@pytest.fixture(scope="module")
def eight_steps(tiny, tmp_path_factory):
    """The folder of a run with checkpoints 2, 4, 6 and 8."""
    folder = tmp_path_factory.mktemp("eight")
    make_trainer(tiny, folder, max_steps=8, save_total_limit=0).train()
    return folder


def names(folder):
    return [path.name for path in checkpoints.list_checkpoints(folder)]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class At(TrainerCallback):
    """Does something at the end of one step, once."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.action is not None:
            action, self.action = self.action, None
            action()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def fail():
    raise RuntimeError("on purpose")


def test_a_checkpoint_without_an_average_is_refused_and_kept(tiny, eight_steps, tmp_path):
    run = shutil.copytree(eight_steps, tmp_path / "run")
    before = contents(run)
    sentence = (
        r"holds checkpoints but none to resume from; of checkpoint-8: training_weights.safetensors is missing, as in "
        r"checkpoints that were made without ema_decay\..* delete its checkpoints"
    )
    with pytest.raises(ValueError, match=sentence):
        make_trainer(tiny, run, max_steps=9, ema_decay=0.9).train(resume_from_checkpoint=True)
    assert contents(run) == before


def test_newer_checkpoints_stay_until_a_new_one_stands(tiny, eight_steps, tmp_path):
    """Checkpoints 4 and 6 are the best ones, of which only the weights were kept, and 8 is damaged."""
    run = shutil.copytree(eight_steps, tmp_path / "run")
    for step in (4, 6):
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (run / f"checkpoint-{step}" / name).unlink()
    optimizer = run / "checkpoint-8" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    before = contents(run)
    with pytest.raises(RuntimeError, match="on purpose"):
        make_trainer(tiny, run, [At(3, fail)], max_steps=8).train(resume_from_checkpoint=True)
    assert contents(run) == before
    trainer = make_trainer(tiny, run, [At(5, interrupt)], max_steps=8)
    trainer.train(resume_from_checkpoint=True)
    assert names(run) == ["checkpoint-4", "checkpoint-5"]
    assert all(checkpoints.is_whole(path) for path in checkpoints.list_checkpoints(run))
    aside = contents(run / checkpoints.REPLACED)
    assert aside == {path: content for path, content in before.items() if path.parts[0] in names(eight_steps)[2:]}


def test_the_damage_that_is_named_is_not_that_of_the_best_weights(tiny, eight_steps, tmp_path):
    run = tmp_path / "run"
    for step in (4, 6):
        shutil.copytree(eight_steps / f"checkpoint-{step}", run / f"checkpoint-{step}")
    (run / "checkpoint-6" / "optimizer.pt").unlink()
    (run / "checkpoint-4" / "scheduler.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"of checkpoint-4: scheduler\.pt is not as it was written"):
        checkpoints.checkpoint_to_resume(run)
    shutil.rmtree(run / "checkpoint-4")
    with pytest.raises(ValueError, match=r"of checkpoint-6: optimizer\.pt is missing"):
        checkpoints.checkpoint_to_resume(run)
    shutil.rmtree(run / "checkpoint-6")
    assert checkpoints.checkpoint_to_resume(run) is None


def test_a_file_that_cannot_be_read_is_not_called_damaged(eight_steps, monkeypatch):
    def unreadable(path, **options):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(checkpoints, "safe_open", unreadable)
    with pytest.raises(OSError, match=r"checkpoint-8 cannot be read .*Input/output error.*: repeat"):
        checkpoints.newest_whole(eight_steps)
    monkeypatch.undo()
    assert checkpoints.newest_whole(eight_steps).name == "checkpoint-8"


def test_work_after_an_older_checkpoint_is_not_lost(tiny, eight_steps, tmp_path):
    run = tmp_path / "run"
    for step in (6, 8):
        shutil.copytree(eight_steps / f"checkpoint-{step}", run / f"checkpoint-{step}")
    trainer = make_trainer(tiny, run, [At(7, interrupt)], max_steps=9, save_total_limit=1)
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-6"))
    assert (trainer.stopper.stopped, trainer.state.global_step) == (True, 7)
    assert names(run) == ["checkpoint-7"]
    assert checkpoints.newest_whole(run).name == "checkpoint-7"
    assert checkpoints.is_whole(run / checkpoints.REPLACED / "checkpoint-8")


def test_training_goes_on_after_it_was_interrupted(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, [At(2, interrupt)], max_steps=5)
    reached = []
    for _ in range(2):
        trainer.train(resume_from_checkpoint=True)
        reached.append((trainer.state.global_step, trainer.stopper.stopped))
    assert reached == [(2, True), (5, False)]


def test_each_training_has_the_whole_time(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stopper = StopCallback(time_budget=2.0)
    state, control = transformers.TrainerState(global_step=1, max_steps=9), transformers.TrainerControl()
    for _ in range(2):
        stopper.restart()
        now += 119
        stopper.on_step_end(None, state, control)
        assert not stopper.stopped
        now += 2
        stopper.on_step_end(None, state, control)
        assert stopper.stopped


# Scores of several evaluation settings -------------------------------------------------------------------------------


def script_scores(monkeypatch, scores):
    scores = iter(scores)
    monkeypatch.setattr(JMNatTrainer, "_translation_scores", lambda self, data: {"bleu": next(scores)})


def test_scores_of_other_settings_do_not_count():
    def entry(step, score, **settings):
        return {"step": step, "eval_bleu": score, **settings}

    ten, one = ({checkpoints.SCORE_SETTINGS: name} for name in ("ten passes", "one pass"))
    log = [entry(1, 9.0, **ten), entry(2, 8.0, **ten), entry(3, 1.0, **one), {"step": 3, "loss": 2.0}]
    for length, best in ((2, [1, 2]), (3, [3]), (4, [3])):
        assert checkpoints.best_steps(log[:length], "eval_bleu", 3, range(9)) == best
    earlier_version = [entry(1, 9.0), entry(2, 8.0)]
    assert checkpoints.best_steps(earlier_version, "eval_bleu", 3, range(9)) == [1, 2]
    assert checkpoints.best_steps([*earlier_version, entry(3, 8.5, **one)], "eval_bleu", 3, range(9)) == [1, 3, 2]


@pytest.mark.parametrize(
    "changed",
    [
        {"eval_num_iterations": [4, 1]},
        {"eval_num_length_candidates": 2},
        {"eval_sentences": 3},
        {"bleu_tokenize": "char"},
    ],
)
def test_each_setting_that_changes_bleu_is_recorded(tiny, tmp_path, changed):
    before = {"eval_num_iterations": [1, 4]}
    recorded = {make_trainer(tiny, tmp_path, **before, **more)._score_settings() for more in ({}, {"seed": 4})}
    assert len(recorded) == 1
    assert make_trainer(tiny, tmp_path, **{**before, **changed})._score_settings() not in recorded


def test_a_run_resumed_with_other_evaluations_ends_with_the_best_of_these(tiny, tmp_path, monkeypatch):
    script_scores(monkeypatch, [90.0, 80.0, 20.0, 10.0])
    first = make_trainer(
        tiny, tmp_path, max_steps=4, keep_best=1, save_total_limit=1, eval_num_iterations=[10], **SCORED
    )
    first.train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    resumed = {"max_steps": 8, "keep_best": 1, "save_total_limit": 1, "eval_num_iterations": [1]}
    stopped = make_trainer(tiny, tmp_path, [At(5, interrupt)], **resumed, **SCORED)
    stopped.train(resume_from_checkpoint=True)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-5"]  # nothing is scored yet that could replace it
    last = make_trainer(tiny, tmp_path, **resumed, **SCORED)
    last.train(resume_from_checkpoint=True)
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-8"]
    assert last.choose_final_weights() == {"best_step": 6, "best_bleu": 20.0, "final_model": "step 6"}


def test_an_average_is_compared_with_the_best_by_the_same_settings(tiny, tmp_path, monkeypatch):
    """The run has ended; the best checkpoint is scored again, by 12, and the average by 11."""
    settings = {"max_steps": 4, "keep_best": 2, **SCORED}
    script_scores(monkeypatch, [5.0, 6.0, 12.0, 11.0])
    make_trainer(tiny, tmp_path, eval_num_iterations=[10], **settings).train()
    trainer = make_trainer(tiny, tmp_path, eval_num_iterations=[1], **settings)
    trainer.train(resume_from_checkpoint=True)
    report = trainer.choose_final_weights()
    assert (report["best_bleu"], report["average_bleu"], report["final_model"]) == (12.0, 11.0, "step 4")


# The Hub -------------------------------------------------------------------------------------------------------------


class RecordingHub:
    """Takes the place of `HfApi` and records of each upload the folder, the files and its whole checkpoints."""

    def __init__(self):
        self.uploads = []

    def upload_folder(self, folder_path, ignore_patterns=None, **options):
        paths = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        whole = {path.name: checkpoints.is_whole(path) for path in checkpoints.list_checkpoints(folder_path)}
        self.uploads.append(
            (Path(folder_path), set(filter_repo_objects(paths, ignore_patterns=ignore_patterns)), whole)
        )
        done = Future()
        done.set_result(None)
        return done


def test_only_whole_checkpoints_are_uploaded(tiny, tmp_path, monkeypatch):
    hub = RecordingHub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda *arguments, **options: hub)
    names_of_hub = {"hub_model_id": "a/b", "push_in_progress": None}
    monkeypatch.setattr(JMNatTrainer, "init_hf_repo", lambda self, **options: vars(self).update(names_of_hub))
    for folder in (checkpoints.STAGING, checkpoints.REPLACED):
        (tmp_path / folder / "checkpoint-9").mkdir(parents=True)
        (tmp_path / folder / "checkpoint-9" / "optimizer.pt").write_bytes(b"half")
    options = {"push_to_hub": True, "hub_model_id": "a/b", "hub_strategy": "checkpoint", "hub_always_push": True}
    make_trainer(tiny, tmp_path, max_steps=4, **options).train()
    of_model, of_checkpoint = hub.uploads[::2], hub.uploads[1::2]
    assert [folder.name for folder, _, _ in of_checkpoint] == ["checkpoint-2", "checkpoint-4"]
    assert [list(whole.items()) for _, _, whole in of_model] == [
        [("checkpoint-2", True)],
        [("checkpoint-2", True), ("checkpoint-4", True)],
    ]
    for folder, files, _ in of_model:
        assert folder == tmp_path
        assert "model.safetensors" in files
        assert not any("/" in name or name in ("optimizer.pt", "rng_state.pth") for name in files), files
