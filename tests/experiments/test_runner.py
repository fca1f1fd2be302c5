"""The stage runner on tiny Python commands: order, resuming, stopping, failing."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from modeling_jmnat.commands import COMMANDS
from modeling_jmnat.experiments import runner as experiments
from modeling_jmnat.experiments.runner import (
    Stage,
    StageRunner,
    changed_parts,
    chosen_stages,
    exclusive,
    flags,
    last_json,
    words_of_mark,
)
from modeling_jmnat.utils.command_line import GPU_MEMORY_SHARE, limit_gpu_memory
from tests.helpers.tiny_runs import Child
from tests.helpers.translation_samples import load_script


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """The commands of these tests are scripts of their own."""
    monkeypatch.setattr(experiments, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(experiments, "PROGRAM", (sys.executable,))


def stage(folder, name, code="", needs=(), **fields):
    """A command that writes its name and the time of begin and end into `folder`/trace, around `code`."""
    trace = folder / "trace"
    script = folder / f"{name}.py"
    script.write_text(
        "import sys, time, os, signal, json\n"
        f"def trace(what):\n    with open({str(trace)!r}, 'a') as file:\n"
        f"        file.write(json.dumps([{name!r}, what, time.monotonic(), sys.argv[1:]]) + chr(10))\n"
        f"trace('begin')\n{code}\ntrace('end')\nprint(json.dumps({{'name': {name!r}}}))\n"
    )
    return Stage(name, str(script), {"option": 1}, tuple(needs), **fields)


def read_trace(folder):
    path = folder / "trace"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def events(folder):
    return [(name, what) for name, what, *_ in read_trace(folder)]


def test_stages_run_after_what_they_need_and_once(tmp_path):
    stages = [stage(tmp_path, "c", needs=["a", "b"]), stage(tmp_path, "b", needs=["a"]), stage(tmp_path, "a")]
    assert StageRunner(tmp_path, jobs=3).run(stages) == {"a": "done", "b": "done", "c": "done"}
    assert events(tmp_path) == [(name, what) for name in "abc" for what in ("begin", "end")]
    mark = json.loads((tmp_path / "stages" / "b.json").read_text())
    assert mark["figures"] == {"name": "b"}
    assert (mark["command"], mark["options"]) == (stages[1].command, {"option": 1})
    assert StageRunner(tmp_path).run(stages) == {"a": "done", "b": "done", "c": "done"}
    assert len(events(tmp_path)) == 6


def test_chosen_stages_come_with_what_they_need():
    needs = {"a": (), "b": ("a",), "c": ("b",), "d": ("a",), "bc": ()}
    stages = [Stage(name, "x", needs=needs[name]) for name in needs]

    def names(pattern):
        return [stage.name for stage in chosen_stages(stages, pattern)]

    assert names("c$") == ["a", "b", "c", "bc"]
    assert names("^c|d") == ["a", "b", "c", "d"]
    assert names("") == list(needs)
    with pytest.raises(ValueError, match="only='x' matches no stage; the first are a, b, c, d, bc"):
        names("x")
    with pytest.raises(ValueError, match=r"only='\(' is not a regular expression"):
        names("(")


def test_other_settings_and_unknown_needs_are_refused(tmp_path):
    first = stage(tmp_path, "a")
    StageRunner(tmp_path).run([first])
    changed = Stage("a", first.command, {"option": 2})
    with pytest.raises(ValueError, match=r"stage a was done with other settings \(1 2\)"):
        StageRunner(tmp_path).run([changed])
    with pytest.raises(ValueError, match="stage b needs nobody, which is not a stage"):
        StageRunner(tmp_path).run([stage(tmp_path, "b", needs=["nobody"])])


def test_damaged_marks_are_named(tmp_path):
    stages = [stage(tmp_path, "a")]
    StageRunner(tmp_path).run(stages)
    mark = tmp_path / "stages" / "a.json"
    for content in ('{"stage": ', "{}", "[]"):
        mark.write_text(content)
        for use in (lambda: StageRunner(tmp_path).run(stages), lambda: StageRunner(tmp_path).last_times(stages)):
            with pytest.raises(ValueError, match=rf"^{mark} .*: delete it, and its stage is run again$"):
                use()


def test_done_stages_are_known_in_a_folder_that_was_moved_and_by_other_spellings(tmp_path, monkeypatch):
    script = tmp_path / "a.py"
    script.write_text("print('{}')")

    def command(output, value=1):
        return Stage("a", str(script), {"model": str(output / "teacher"), "seed": value})

    before, after = tmp_path / "run", tmp_path / "elsewhere" / "renamed"
    before.mkdir()
    StageRunner(before).run([command(before)])
    monkeypatch.chdir(tmp_path)
    assert StageRunner(Path("run")).is_done(command(Path("run")))
    after.parent.mkdir()
    before.rename(after)
    assert StageRunner(after).is_done(command(after))
    with pytest.raises(ValueError, match=r"stage a was done with other settings \(1 2\)"):
        StageRunner(after).is_done(command(after, 2))
    with pytest.raises(ValueError, match=f"{before / 'teacher'}"):  # a model of the former folder is another one
        StageRunner(after).is_done(command(before))


OLD_MARK = """{
  "stage": "jm-1",
  "command": [
    "/home/me/jmnat/run_scripts/train_jmnat.py",
    "--preset",
    "multi30k_tiny",
    "--data",
    "/home/me/run/distilled/data",
    "--output_dir",
    "/home/me/run/jm-1",
    "--seed",
    "1",
    "--bf16",
    "True",
    "--use_cpu",
    "True",
    "--eval_num_iterations",
    "4",
    "10",
    "--dropout",
    "0.2",
    "--init_from_teacher",
    "/home/me/teacher"
  ],
  "output_dir": "/home/me/run",
  "seconds": 754.2,
  "figures": {
    "finished": true,
    "steps": 3200
  }
}
"""


def test_marks_of_earlier_versions_are_read(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "jm-1.json").write_text(OLD_MARK)
    options = {
        "preset": "multi30k_tiny",
        "data": str(tmp_path / "distilled" / "data"),
        "output_dir": str(tmp_path / "jm-1"),
        "seed": 1,
        "bf16": True,
        "use_cpu": True,
        "eval_num_iterations": (4, 10),
        "dropout": 0.2,
        "init_from_teacher": "/home/me/teacher",
    }
    runner = StageRunner(tmp_path)
    done = Stage("jm-1", "train", options)
    assert runner.is_done(done)
    assert runner.run([done]) == {"jm-1": "done"}
    assert runner.last_times([done]) == "jm-1 12.6 minutes"
    with pytest.raises(ValueError, match=r"stage jm-1 was done with other settings \(0.2 0.3\)"):
        runner.is_done(Stage("jm-1", "train", options | {"dropout": 0.3}))
    with pytest.raises(ValueError, match=r"\(train train_teacher\)"):
        runner.is_done(Stage("jm-1", "train_teacher", options))


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("train_jmnat", "train"),
        ("train_teacher", "train_teacher"),
        ("prepare_data", "prepare"),
        ("distill", "distill"),
        ("evaluate", "evaluate"),
        ("tune_decoding", "tune"),
        ("translate", "translate"),
    ],
)
def test_scripts_of_earlier_marks_are_commands_of_today(script, command):
    assert words_of_mark({"command": [f"/some/where/{script}.py", "--seed", "1"]}) == [command, "--seed", "1"]
    assert command.replace("_", "-") in COMMANDS
    assert load_script(script).__name__ == f"modeling_jmnat.commands.{command}"


def test_only_what_is_inside_the_folder_moves_with_it():
    done_by = ["a", "/runs/one", "/runs/one/x", "/runs/one_more/x"]
    assert changed_parts(done_by, ["a", "/two", "/two/x", "/runs/one_more/x"], "/runs/one", "/two") == []
    assert changed_parts(done_by, ["a", "/two", "/two/x", "/two_more/x"], "/runs/one", "/two") == [
        "/runs/one_more/x",
        "/two_more/x",
    ]
    assert changed_parts(["a", "1", "2"], ["b", "1", "2"], "", "") == ["a", "b"]
    assert changed_parts(["a", "1", "2"], ["a", "2", "1"], "", "") == ["in another order"]


def test_options_are_read_back_from_a_mark_as_they_were(tmp_path):
    script = tmp_path / "a.py"
    script.write_text("print('{}')")
    options = {"levels": (0.0, 0.1), "passes": [4, 10], "lowercase": False, "grid": '{"a": [true, "ü"]}', "rate": 1.0}
    stage = Stage("a", str(script), options)
    StageRunner(tmp_path).run([stage])
    assert StageRunner(tmp_path).is_done(stage)
    assert json.loads((tmp_path / "stages" / "a.json").read_text())["options"] == options | {"levels": [0.0, 0.1]}


def test_flags_give_lists_and_truth_values():
    assert flags({"a": 1, "b": [1, 2], "c": True}) == ["--a", "1", "--b", "1", "2", "--c", "True"]


def test_stages_run_the_commands_of_the_package(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(experiments, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(experiments, "ATTEMPTS", 1)
    assert StageRunner(tmp_path).run([Stage("a", "prepare", {"output_dir": str(tmp_path)})]) == {"a": "failed"}
    assert (
        "train_source=None and train_target=None: both files are needed" in (tmp_path / "logs" / "a.log").read_text()
    )


def test_progress_is_reported(tmp_path, capsys):
    stages = [
        stage(tmp_path, "a"),
        stage(tmp_path, "b", "time.sleep(1)"),
        stage(tmp_path, "c", "sys.exit(1)", needs=["a"]),
        stage(tmp_path, "d", needs=["c"]),
    ]
    assert StageRunner(tmp_path).last_times(stages) == ""
    StageRunner(tmp_path, jobs=2).run(stages)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["a: done in 0.0 minutes", "1 of 4 stages are done, 1 running, 2 waiting"]
    assert lines[-2:] == ["b: done in 0.0 minutes", "2 of 4 stages are done, 1 waiting, 1 failed"]
    for name, seconds in (("a", 90.0), ("b", 30.0)):
        path = tmp_path / "stages" / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds}))
        os.utime(path, (seconds, seconds))
    assert StageRunner(tmp_path).last_times(stages) == "b 0.5 minutes, a 1.5 minutes"


def test_jobs_run_side_by_side_up_to_their_number(tmp_path):
    stages = [stage(tmp_path, name, "time.sleep(0.6)") for name in "abcd"]
    StageRunner(tmp_path, jobs=2).run(stages)
    trace = read_trace(tmp_path)
    running, most = 0, 0
    for _, what, *_ in sorted(trace, key=lambda entry: entry[2]):
        running += 1 if what == "begin" else -1
        most = max(most, running)
    assert most == 2


def test_a_stage_that_measures_time_runs_alone_and_last(tmp_path):
    stages = [stage(tmp_path, "timed", "time.sleep(0.2)", alone=True)]
    stages += [stage(tmp_path, name, "time.sleep(0.3)") for name in "abc"]
    StageRunner(tmp_path, jobs=2).run(stages)
    order = events(tmp_path)
    assert order[-2:] == [("timed", "begin"), ("timed", "end")]
    assert len(order) == 8


def test_failed_stage_is_tried_once_more_and_others_go_on(tmp_path, capsys):
    stages = [
        stage(tmp_path, "bad", "print('the reason'); sys.exit(3)"),
        stage(tmp_path, "behind", needs=["bad"]),
        stage(tmp_path, "good", "time.sleep(0.2)"),
    ]
    states = StageRunner(tmp_path).run(stages)
    assert states == {"bad": "failed", "behind": "waiting", "good": "done"}
    # The second attempt comes behind what has not been tried.
    assert [name for name, what in events(tmp_path) if what == "begin"] == ["bad", "good", "bad"]
    assert "bad failed (exit code 3)" in capsys.readouterr().out
    assert (tmp_path / "logs" / "bad.log").read_text().count("the reason") == 2


def test_stage_that_fails_once_is_done_in_the_end(tmp_path):
    once = "if not os.path.exists(sys.argv[0] + '.tried'):\n    open(sys.argv[0] + '.tried', 'w'); sys.exit(1)"
    stages = [stage(tmp_path, "flaky", once), stage(tmp_path, "behind", needs=["flaky"])]
    assert StageRunner(tmp_path).run(stages) == {"flaky": "done", "behind": "done"}


STOPPABLE = """
done = sys.argv[0] + '.half'
if not os.path.exists(done):
    def stop(number, frame):
        open(done, 'w').close()
        trace('stopped')
        print(json.dumps({'finished': False}))
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    time.sleep(30)
"""


def test_budget_stops_a_stage_with_a_signal_and_the_next_run_resumes(tmp_path):
    stages = [
        stage(tmp_path, "quick"),
        stage(tmp_path, "long", STOPPABLE, trains=True),
        stage(tmp_path, "deaf", "time.sleep(30)" if not (tmp_path / "again").exists() else ""),
        stage(tmp_path, "behind", needs=["long"]),
    ]
    begin = time.monotonic()
    states = StageRunner(tmp_path, jobs=3, time_budget=1.5 / 60).run(stages)
    assert time.monotonic() - begin < 10
    assert states == {"quick": "done", "long": "stopped", "deaf": "stopped", "behind": "waiting"}
    assert ("long", "stopped") in events(tmp_path)
    arguments = next(entry[3] for entry in read_trace(tmp_path) if entry[0] == "long")
    assert arguments[:3] == ["--option", "1", "--time_budget"]
    assert 0 < float(arguments[3]) <= 0.03
    stage(tmp_path, "deaf")  # the same command, quick now
    states = StageRunner(tmp_path, jobs=3).run(stages)
    assert set(states.values()) == {"done"}
    assert [name for name, what in events(tmp_path) if what == "begin"].count("quick") == 1


def test_stage_that_did_not_finish_by_itself_is_not_done(tmp_path):
    unfinished = stage(tmp_path, "a", "trace('end'); print(json.dumps({'finished': False})); sys.exit(0)")
    assert StageRunner(tmp_path).run([unfinished]) == {"a": "stopped"}
    assert not (tmp_path / "stages").exists()


def test_stage_that_ignores_the_signal_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "GRACE_SECONDS", 0.3)
    deaf = stage(tmp_path, "a", "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(30)")
    begin = time.monotonic()
    assert StageRunner(tmp_path, time_budget=1.0 / 60).run([deaf]) == {"a": "stopped"}
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_runner_stops_its_stages(tmp_path, number):
    long = stage(tmp_path, "a", STOPPABLE, trains=True)
    child = Child(tmp_path / "log", StageRunner(tmp_path).run, [long])
    while not events(tmp_path):
        time.sleep(0.02)
    time.sleep(0.2)  # until the stage listens
    child.signal(number)
    assert child.join(20) == 99
    assert "KeyboardInterrupt" in (tmp_path / "log").read_text()
    assert events(tmp_path) == [("a", "begin"), ("a", "stopped")]
    assert StageRunner(tmp_path).run([long]) == {"a": "done"}


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def run_exclusively(folder, stages):
    with exclusive(folder) as lock:
        StageRunner(folder, pass_fds=(lock,)).run(stages)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_stages_of_a_killed_runner_write_their_checkpoint(tmp_path):
    slow = STOPPABLE.replace("        trace('stopped')", "        time.sleep(0.5); trace('stopped')")
    child = Child(tmp_path / "log", run_exclusively, tmp_path, [stage(tmp_path, "a", slow)])
    wait_for(lambda: events(tmp_path))
    time.sleep(0.2)  # until the stage listens
    child.signal(signal.SIGKILL)
    child.join(20)
    with exclusive(tmp_path):  # comes after the checkpoint
        assert events(tmp_path) == [("a", "begin"), ("a", "stopped")]


def test_folder_in_use_is_refused(tmp_path):
    child = Child(tmp_path / "log", run_exclusively, tmp_path, [stage(tmp_path, "a", STOPPABLE)])
    wait_for(lambda: events(tmp_path))
    with pytest.raises(ValueError, match=f"output={tmp_path} is in use by another process: wait"), exclusive(tmp_path):
        pass
    time.sleep(0.2)  # until the stage listens
    child.signal(signal.SIGTERM)
    child.join(20)
    with exclusive(tmp_path):
        pass


def test_stages_that_outlive_their_runner_are_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "LIBC", None)  # as on a system where they do
    child = Child(tmp_path / "log", run_exclusively, tmp_path, [stage(tmp_path, "a", "time.sleep(2)")])
    wait_for(lambda: events(tmp_path))
    child.signal(signal.SIGKILL)
    child.join(20)
    with monkeypatch.context() as patch:
        patch.setattr(experiments, "GRACE_SECONDS", 0.1)
        with pytest.raises(ValueError, match="is in use by stages of an earlier call"), exclusive(tmp_path):
            pass
    with exclusive(tmp_path):
        assert events(tmp_path) == [("a", "begin"), ("a", "end")]
    assert "waiting for the stages of an earlier call to end" in capsys.readouterr().err


def test_threads_and_memory_are_shared(tmp_path):
    code = f"trace([os.environ['OMP_NUM_THREADS'], os.environ[{GPU_MEMORY_SHARE!r}]])"
    stages = [stage(tmp_path, "a", code), stage(tmp_path, "b", code, alone=True)]
    StageRunner(tmp_path, jobs=3, threads=2).run(stages)
    shares = {name: what for name, what, *_ in read_trace(tmp_path) if isinstance(what, list)}
    assert shares == {"a": ["2", "0.300"], "b": ["2", "0.900"]}


def test_commands_keep_to_their_share_of_the_memory(monkeypatch):
    import torch

    shares = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    monkeypatch.setitem(os.environ, GPU_MEMORY_SHARE, "")
    limit_gpu_memory()
    monkeypatch.setitem(os.environ, GPU_MEMORY_SHARE, "0.125")
    limit_gpu_memory()
    assert shares == [0.125]


def test_last_json_is_the_last_object():
    assert last_json(['{"a": 1}', '{"b": 2}', "text", "{broken"]) == {"b": 2}
    assert last_json(["nothing"]) == {}
