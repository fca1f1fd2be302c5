"""The one command for the experiments, really run on 60 sentence pairs: stopped by its budget, resumed, refused."""

import json
import os
import re
import shutil

import pytest
import yaml
from datasets import load_from_disk

from modeling_jmnat.experiments import runner as experiments
from tests.helpers.forked_module import ForkedModule
from tests.helpers.teacher_samples import prepare_words
from tests.helpers.tiny_runs import MODEL, prepare_tiny_data
from tests.helpers.translation_samples import SCRIPTS, load_script

SHIPPED = SCRIPTS.parent / "hub_card" / "multi30k_tiny" / "jmnat"

TRAINING = {
    "max_steps": 12,
    "max_tokens": 100,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "eval_num_iterations": [2],
    "eval_num_length_candidates": 2,
    "eval_sentences": 4,
    "save_steps": 10,
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = prepare_tiny_data(tmp_path_factory.mktemp("tiny"), num_train=60)
    dataset = load_from_disk(str(folder / "dataset"))
    dataset["test"] = dataset["validation"]
    dataset.save_to_disk(str(folder / "new"))
    (folder / "dataset").rename(folder / "old")
    (folder / "new").rename(folder / "dataset")
    return folder


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(yaml.safe_dump({"model": MODEL, "training": TRAINING, "teacher": {"max_steps": 400}}))
    return path


class ForkedCommand(ForkedModule):
    """Takes the place of `subprocess.Popen`: the command in a fork of this process."""

    def __init__(self, command, stdout, stderr, env, preexec_fn, **options):
        module, *arguments = command[2:]
        super().__init__(module, arguments, stdout.fileno(), lambda: (preexec_fn(), os.environ.update(env)))


pytestmark = pytest.mark.usefixtures("one_thread")


def reproduce(capsys, *arguments):
    load_script("reproduce").main([str(argument) for argument in arguments])
    out = capsys.readouterr().out
    return json.loads(out.splitlines()[-1]), out


def test_main_suite_is_stopped_once_and_resumed(data, preset, tmp_path, capsys, monkeypatch):
    output = tmp_path / "run"
    command = [
        "--suite",
        "main",
        "--preset",
        preset,
        "--data",
        data,
        "--output",
        output,
        "--jobs",
        2,
    ]
    command += ["--num_length_candidates", 2, "--seeds", 1]
    monkeypatch.setattr(experiments, "POLL_SECONDS", 0.05)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with monkeypatch.context() as patch:  # the time is over as soon as the teacher has a checkpoint
        over = lambda runner: 0.0 if any(output.glob("teacher/checkpoint-*")) else 600.0  # noqa: E731
        patch.setattr(experiments.StageRunner, "seconds_left", over)
        result, out = reproduce(capsys, *command, "--time_budget", 10)
    assert result == {"finished": False, "stages": {"stopped": 1, "waiting": 7}}
    assert "8 stages, 0 of them done, 2 at a time, on " in out
    assert "the last ones took" not in out
    log = (output / "logs" / "teacher.log").read_text()
    stopped_at = experiments.last_json(log.splitlines())["step"]
    assert 0 < stopped_at < 400

    monkeypatch.setattr(experiments.subprocess, "Popen", ForkedCommand)
    result, out = reproduce(capsys, *command)
    assert result == {"finished": True, "stages": {"done": 8}}
    teacher = json.loads((output / "teacher" / "results.json").read_text())
    assert teacher["steps"] == 400
    steps = [row["step"] for row in json.loads((output / "teacher" / "trainer_state.json").read_text())["log_history"]]
    assert steps == sorted(steps)
    results = json.loads((output / "results" / "test" / "jm-1.json").read_text())
    assert [row["num_iterations"] for row in results["results"]] == [1, 4, 10]
    assert results["settings"]["generation"] == {"num_length_candidates": 2}
    table = (output / "results" / "main.md").read_text()
    assert f"| JM-NAT | {results['results'][0]['sacrebleu']:.2f} |" in table
    assert (output / "results" / "validation" / "jm-1.translations" / "num_iterations-4.txt.gz").is_file()
    assert "| teacher |" in out

    output = output.rename(tmp_path / "moved")  # and called by another spelling
    command[command.index("--output") + 1] = "moved"
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (output / "stages").iterdir()}
    result, out = reproduce(capsys, *command)
    assert result["finished"]
    assert re.search(r"8 stages, 8 of them done, .*\nthe last ones took: (\S+ \d+\.\d minutes(, |\n)){3}", out)
    assert {path: path.stat().st_mtime_ns for path in (output / "stages").iterdir()} == before
    with pytest.raises(SystemExit):
        reproduce(capsys, *command, "--student_steps", 13)
    assert "stage jm-1 was done with other settings" in capsys.readouterr().err

    command[command.index("--output") + 1] = tmp_path / "again"  # with the teacher that is there now
    command += ["--teacher", "moved/teacher", "--only", "prepare|evaluate_teacher"]
    result, out = reproduce(capsys, *command)
    assert result == {"finished": True, "stages": {"done": 4}}
    for name in ("distilled/distilled.tgt", "text/test.src"):
        assert (tmp_path / "again" / name).read_text() == (output / name).read_text()
    scores = [
        json.loads((run / "results" / "test" / "teacher.json").read_text()) for run in (tmp_path / "again", output)
    ]
    assert scores[0]["results"][1]["sacrebleu"] == scores[1]["results"][1]["sacrebleu"]
    command[command.index("--teacher") + 1] = "moved/jm-1"
    with pytest.raises(SystemExit):
        reproduce(capsys, *command)
    assert "moved/jm-1 is a non-autoregressive model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        reproduce(capsys, *command[:-4])
    assert "teacher=None is not that of the run in output=" in (error := capsys.readouterr().err)
    assert "(weights differ)" in error


def test_another_system_of_the_paper_is_reproduced_alone(data, preset, tmp_path, capsys, monkeypatch):
    """NAT-Reg needs most: the teacher, its translations, and a teacher of the other direction."""
    monkeypatch.setattr(experiments, "POLL_SECONDS", 0.05)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(experiments.subprocess, "Popen", ForkedCommand)
    command = ["--suite", "table3", "--only", "evaluate_nat_reg-1", "--seeds", 1, "--teacher_steps", 30]
    result, _ = reproduce(capsys, *command, "--preset", preset, "--data", data, "--output", tmp_path / "run")
    assert result == {"finished": True, "stages": {"done": 7}}
    (row,) = json.loads((tmp_path / "run" / "results" / "validation" / "nat_reg-1.json").read_text())["results"]
    table = (tmp_path / "run" / "results" / "table3.md").read_text()
    assert f"| NAT-Reg | {row['sacrebleu']:.2f} | {row['repeated_tokens_per_sentence']:.3f} |" in table
    assert "| 20.65 | 24.77 | - | - | - | 0.90 |" in table


def replace_test_text(data):
    dataset = load_from_disk(str(data / "dataset"))
    dataset["test"] = dataset["train"].select(range(9))
    dataset.save_to_disk(str(data / "new"))
    shutil.rmtree(data / "dataset")
    (data / "new").rename(data / "dataset")


def add_to_preparation(data):
    written = json.loads((data / "preparation.json").read_text())
    (data / "preparation.json").write_text(json.dumps(written | {"source_lang": "de"}))


def contents(folder):
    return {path: path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def no_stage_runs(monkeypatch):
    def run(self, stages):
        for stage in stages:
            self.log(stage).parent.mkdir(exist_ok=True)
            self.log(stage).touch()
        return {stage.name: "done" for stage in stages}

    monkeypatch.setattr(experiments.StageRunner, "run", run)


@pytest.mark.usefixtures("no_stage_runs")
@pytest.mark.parametrize(
    ("change", "part"), [(replace_test_text, "held_out_text"), (add_to_preparation, "preparation")]
)
def test_other_data_in_the_same_folder_is_refused(data, preset, tmp_path, capsys, change, part):
    mine = shutil.copytree(data, tmp_path / "data")
    command = ["--preset", preset, "--data", mine, "--output", tmp_path / "run"]
    reproduce(capsys, *command)
    before = contents(tmp_path / "run")
    reproduce(capsys, *command)
    change(mine)
    with pytest.raises(SystemExit):
        reproduce(capsys, *command)
    error = capsys.readouterr().err
    assert f"data={mine} is not that of the run in output={tmp_path / 'run'} ({part} differ)" in error
    assert contents(tmp_path / "run") == before


@pytest.mark.usefixtures("no_stage_runs")
def test_other_preset_is_refused(data, preset, tmp_path, capsys, monkeypatch):
    mine = tmp_path / "mine.yaml"
    mine.write_text(preset.read_text())
    command = ["--preset", mine, "--data", data, "--output", tmp_path / "run"]
    mine.write_text(preset.read_text().replace("max_steps: 12", "max_steps: 14"))
    with monkeypatch.context() as patch:  # as if it had ended before any stage began
        patch.setattr(experiments.StageRunner, "run", lambda self, stages: dict.fromkeys(stages, "stopped"))
        reproduce(capsys, *command)
    mine.write_text(preset.read_text())
    reproduce(capsys, *command)
    mine.write_text("# A remark changes nothing.\n" + preset.read_text())
    reproduce(capsys, *command)
    mine.write_text(preset.read_text().replace("max_steps: 12", "max_steps: 13"))
    with pytest.raises(SystemExit):
        reproduce(capsys, *command)
    assert f"preset={mine} is not that of the run in" in (error := capsys.readouterr().err)
    assert "(training.max_steps differ)" in error
    with pytest.raises(SystemExit):
        reproduce(capsys, *command, "--preset", preset, "--teacher_preset", mine)
    assert f"teacher_preset={mine} is not that of the run in" in capsys.readouterr().err


@pytest.mark.usefixtures("no_stage_runs")
def test_a_run_begun_without_the_file_gets_one(data, preset, tmp_path, capsys):
    command = ["--preset", preset, "--data", data, "--output", tmp_path / "run"]
    reproduce(capsys, *command)
    written = tmp_path / "run" / "begun_with.json"
    before = written.read_text()
    written.unlink()
    reproduce(capsys, *command)
    assert written.read_text() == before


@pytest.mark.usefixtures("no_stage_runs")
def test_stages_without_the_file_are_refused(data, preset, tmp_path, capsys):
    command = ["--preset", preset, "--data", data, "--output", tmp_path / "run"]
    reproduce(capsys, *command)
    (tmp_path / "run" / "begun_with.json").unlink()
    (tmp_path / "run" / "logs" / "teacher.log").write_text("begun")
    with pytest.raises(SystemExit):
        reproduce(capsys, *command)
    assert "holds stages of a run but no begun_with.json" in capsys.readouterr().err


@pytest.mark.usefixtures("no_stage_runs")
def test_a_run_with_unversioned_fingerprints_resumes(preset, tmp_path, capsys):
    """With the digests of the data that the code wrote then."""
    held_out = {"test_source": str(tmp_path / "validation.src"), "test_target": str(tmp_path / "validation.tgt")}
    data = prepare_words(tmp_path, train=25, tokenizer=str(SHIPPED), lowercase=True, **held_out)
    written = json.loads((data / "preparation.json").read_text())
    tokenizer = "10c9e5d1462d6a811d8dc6eef66771c55e5a26d4b1e6cb3833ec001a0cd4c6b0"
    (data / "preparation.json").write_text(json.dumps(written | {"tokenizer_sha256": tokenizer}, indent=2) + "\n")
    before = {
        "preparation": "bd8351b9a4de39e7e83aade2b7a94960b01d767e31254d3572ede752c7308558",
        "tokenizer": tokenizer,
        "held_out_text": "b6ed9ac14df26b43f3ac0558df64984e2563415427db7dc95f4482124e706815",
    }
    command = ["--preset", preset, "--data", data, "--output", tmp_path / "run"]
    reproduce(capsys, *command)
    path = tmp_path / "run" / "begun_with.json"
    begun = json.loads(path.read_text())
    assert begun["data"]["tokenizer"].startswith("2:")
    assert begun["data"] | {"tokenizer": tokenizer} == before
    path.write_text(json.dumps(begun | {"data": before}))
    reproduce(capsys, *command)
    assert json.loads(path.read_text()) == begun
    path.write_text(json.dumps(begun | {"data": before | {"tokenizer": tokenizer[::-1]}}))
    with pytest.raises(SystemExit):
        reproduce(capsys, *command)
    assert "(tokenizer differ)" in capsys.readouterr().err


@pytest.mark.usefixtures("no_stage_runs")
def test_second_call_in_a_folder_is_refused(data, preset, tmp_path, capsys):
    output = tmp_path / "run"
    output.mkdir()
    with experiments.exclusive(output), pytest.raises(SystemExit):
        reproduce(capsys, "--preset", preset, "--data", data, "--output", output)
    assert f"output={output} is in use by another process" in capsys.readouterr().err
    assert not (output / "text").exists()


@pytest.mark.parametrize(
    ("gpu", "bf16", "options"),
    [
        (False, False, {}),
        (False, True, {"bf16": True, "use_cpu": True}),
        (True, False, {"tf32": True, "dataloader_num_workers": 1}),
        (True, True, {"bf16": True, "dataloader_num_workers": 1}),
    ],
)
def test_trainings_use_what_the_machine_has(gpu, bf16, options):
    found = load_script("reproduce").training_options(gpu, bf16)
    assert found == options
    assert list(found) == list(options)  # stages are known by their whole command


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--suite", "table9"], "suite='table9' is not one of main, table1"),
        (["--jobs", "0"], "jobs=0 must be at least 1"),
        (["--time_budget", "0"], "time_budget=0.0 must be above 0 minutes"),
        (["--preset", "nothing"], "preset 'nothing' is not one of"),
        (["--teacher", "no/where/at/all"], "no/where/at/all"),
        (
            ["--teacher", "mine", "--teacher_preset", "multi30k_small"],
            "teacher=mine is trained already: give only one of",
        ),
    ],
)
def test_bad_input_has_a_sentence(data, preset, tmp_path, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stopped:
        reproduce(capsys, "--preset", preset, "--data", data, "--output", tmp_path / "run", *arguments)
    assert stopped.value.code == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_preset_without_steps_is_refused(data, tmp_path, capsys):
    endless = tmp_path / "endless.yaml"
    endless.write_text("training: {num_train_epochs: 3}\n")
    with pytest.raises(SystemExit):
        reproduce(capsys, "--preset", endless, "--data", data, "--output", tmp_path / "run")
    assert "has no max_steps: give --teacher_steps and --student_steps" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_data_without_a_test_split_is_refused(preset, tmp_path, capsys):
    data = prepare_tiny_data(tmp_path)
    with pytest.raises(SystemExit):
        reproduce(capsys, "--preset", preset, "--data", data, "--output", tmp_path / "run")
    assert "has no test split: prepare it again with --test_source and --test_target" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_language_that_cannot_be_scored_is_refused_before_any_training(data, preset, tmp_path, capsys):
    other = tmp_path / "data"
    shutil.copytree(data, other)
    preparation = json.loads((other / "preparation.json").read_text())
    (other / "preparation.json").write_text(json.dumps(preparation | {"target_lang": "english"}))
    with pytest.raises(SystemExit):
        reproduce(capsys, "--preset", preset, "--data", other, "--output", tmp_path / "run")
    sentence = f"error: translations of data={other} could not be scored: Moses language 'english' must be a code"
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
