"""Named stages of an experiment, each a command: skipped when done, resumed when interrupted, run in parallel.

A stage is done when its command ended with exit code 0 and its last line of JSON did not say `"finished": false`. Its
mark, a file in `OUTPUT/stages/`, then holds the command, its options and its figures. A stage without a mark is run
again: the commands resume by themselves. Stages end with the process that started them.
"""

import ctypes
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..utils.atomic_files import same_path, write_json
from ..utils.command_line import GPU_MEMORY_SHARE
from ..utils.json_files import read_json
from ..utils.locks import folder_lock, try_lock
from ..utils.signals import ENDING, received

POLL_SECONDS = 0.5
GRACE_SECONDS = 90  # for a stage to write its checkpoint after it was asked to stop
LOG_TAIL_LINES = 5
ATTEMPTS = 2  # a failed stage is started once more, after the others: by then a GPU may have free memory again
MEMORY_SHARE = 0.9  # of a GPU's memory, divided among the stages that share it
DELETE_MARK = "delete it, and its stage is run again"
LAST_STAGES = 3  # how many finished stages are listed with their times
PROGRAM = (sys.executable, "-m", "modeling_jmnat.commands")
# Marks of earlier versions name the script of a command.
COMMAND_OF_SCRIPT = {"train_jmnat.py": "train", "prepare_data.py": "prepare", "tune_decoding.py": "tune"}
STAGES_LOCK = ".stages.lock"
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


@dataclass(frozen=True)
class Stage:
    """One command with its options.

    Args:
        name: name of the stage, its log and its mark; unique within a run.
        command: name of its module in `modeling_jmnat.commands`, such as "train".
        options: values by name, as JSON holds them; a list or tuple gives several values to one option.
        needs: names of the stages that must be done first.
        trains: the command takes `--time_budget MINUTES` and then stops by itself with a checkpoint.
        alone: the command measures time, so it runs only when nothing else does.
    """

    name: str
    command: str
    options: Mapping[str, object] = field(default_factory=dict, hash=False)
    needs: tuple[str, ...] = ()
    trains: bool = False
    alone: bool = False

    def words(self) -> list[str]:
        """The command and its options as words of a command line."""
        return [self.command, *flags(self.options)]


def flags(options: Mapping[str, object]) -> list[str]:
    """Options as words of a command line; a list or tuple gives several values to one option."""
    words = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return words


def chosen_stages(stages: Sequence[Stage], pattern: str) -> list[Stage]:
    """The stages whose names match a regular expression, and all stages that these need, in the given order.

    Raises:
        ValueError: no stage matches, or the expression is invalid.
    """
    try:
        wanted = [stage.name for stage in stages if re.search(pattern, stage.name)]
    except re.error as error:
        raise ValueError(f"only={pattern!r} is not a regular expression: {error}") from None
    if not wanted:
        raise ValueError(f"only={pattern!r} matches no stage; the first are {', '.join(s.name for s in stages[:5])}")
    by_name, chosen = {stage.name: stage for stage in stages}, set()
    while wanted:
        name = wanted.pop()
        if name not in chosen:
            chosen.add(name)
            wanted += by_name[name].needs
    return [stage for stage in stages if stage.name in chosen]


@dataclass
class Running:
    stage: Stage
    process: subprocess.Popen
    since: float


@dataclass
class StageRunner:
    """Runs stages in order, up to `jobs` at a time, until all are done or the time is up.

    Args:
        output_dir: folder with `stages/` (marks) and `logs/`.
        jobs: number of commands at a time.
        time_budget: minutes, None for no limit. At the end running stages are asked to stop (SIGTERM).
        threads: number of threads of each command; None leaves the number to the command.
        pass_fds: file descriptors that the commands inherit, such as that of `exclusive`.
    """

    output_dir: Path
    jobs: int = 1
    time_budget: float | None = None
    threads: int | None = None
    pass_fds: tuple[int, ...] = ()
    started: float = field(default_factory=time.monotonic)

    def run(self, stages: Sequence[Stage]) -> dict[str, str]:
        """Run the stages that are not done and return the state of each: done, stopped, failed or waiting.

        SIGTERM, SIGHUP and SIGINT stop all stages as the end of the time budget does, and then raise
        `KeyboardInterrupt`.

        Raises:
            ValueError: a stage was done with other options, or needs a stage that does not exist.
        """
        states = self.initial_states(stages)
        attempts = dict.fromkeys(states, 0)
        running: list[Running] = []
        done = sum(state == "done" for state in states.values())
        with tqdm(total=len(stages), initial=done, desc="stages", unit="stage", disable=None) as bar:
            try:
                # Signals are noted, not raised: an exception while a process is being started would lose it.
                with received(signal.SIGINT, *ENDING) as signals:
                    while not signals:
                        bar.update(self.collect(running, states, attempts))
                        if self.seconds_left() <= 0:
                            break
                        for stage in self.startable(stages, states, attempts, [item.stage for item in running]):
                            running.append(self.start(stage))
                            states[stage.name] = "running"
                            attempts[stage.name] += 1
                        if not running:
                            break
                        bar.set_postfix_str(", ".join(item.stage.name for item in running)[:60])
                        time.sleep(POLL_SECONDS)
                if signals:
                    raise KeyboardInterrupt
            finally:
                for item, state in zip(running, self.stop(running), strict=True):
                    states[item.stage.name] = state
        return states

    def initial_states(self, stages: Sequence[Stage]) -> dict[str, str]:
        states = {stage.name: "done" if self.is_done(stage) else "waiting" for stage in stages}
        for stage in stages:
            unknown = [name for name in stage.needs if name not in states]
            if unknown:
                raise ValueError(f"stage {stage.name} needs {unknown[0]}, which is not a stage")
        return states

    def collect(self, running: list[Running], states: dict[str, str], attempts: Mapping[str, int]) -> int:
        """Take processes that have ended out of `running`, set their states and return how many stages they finished.

        A stage that failed waits for its next attempt, if it has one left.
        """
        newly_done = 0
        for item in [item for item in running if item.process.poll() is not None]:
            running.remove(item)
            name, state = item.stage.name, self.finish(item)
            states[name] = "waiting" if state == "failed" and attempts[name] < ATTEMPTS else state
            newly_done += state == "done"
        if newly_done:
            tqdm.write(progress(states))
        return newly_done

    def startable(
        self, stages: Sequence[Stage], states: dict[str, str], attempts: dict[str, int], running: Sequence[Stage]
    ) -> list[Stage]:
        """The stages to start now, in order; failed ones come last, and one that runs alone waits for all others."""
        ready = [
            stage
            for stage in stages
            if states[stage.name] == "waiting" and all(states[name] == "done" for name in stage.needs)
        ]
        ready.sort(key=lambda stage: (stage.alone, attempts[stage.name]))  # stable: equals stay in order
        together = [stage for stage in ready if not stage.alone]
        if together or running:
            return together[: self.jobs - len(running)]
        return ready[:1]

    def seconds_left(self) -> float:
        if self.time_budget is None:
            return float("inf")
        return self.time_budget * 60 - (time.monotonic() - self.started)

    def mark(self, stage: Stage) -> Path:
        return self.output_dir / "stages" / f"{stage.name}.json"

    def log(self, stage: Stage) -> Path:
        return self.output_dir / "logs" / f"{stage.name}.log"

    def last_times(self, stages: Sequence[Stage]) -> str:
        """How long the most recent stages took, for a person to read; empty before the first one."""
        marks = sorted(
            (path for path in map(self.mark, stages) if path.is_file()), key=lambda path: path.stat().st_mtime
        )
        written = [read_json(path, ("stage", "seconds"), DELETE_MARK) for path in marks[-LAST_STAGES:]]
        return ", ".join(f"{mark['stage']} {mark['seconds'] / 60:.1f} minutes" for mark in written)

    def is_done(self, stage: Stage) -> bool:
        mark = self.mark(stage)
        if not mark.is_file():
            return False
        written = read_json(mark, ("command", "output_dir"), DELETE_MARK)
        folders = (written["output_dir"], str(self.output_dir.resolve()))
        if changed := changed_parts(words_of_mark(written), stage.words(), *folders):
            raise ValueError(
                f"stage {stage.name} was done with other settings ({' '.join(changed)}): choose another --output "
                f"or delete {mark} and the stage's folder"
            )
        return True

    def start(self, stage: Stage) -> Running:
        command = [*PROGRAM, *stage.words()]
        if stage.trains and self.time_budget is not None:
            command += ["--time_budget", f"{max(self.seconds_left() / 60, 0.01):.2f}"]
        environment = dict(os.environ, TOKENIZERS_PARALLELISM="false")
        # Several trainings share a GPU: none may keep in its cache what another needs.
        environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        share = MEMORY_SHARE if stage.alone else MEMORY_SHARE / self.jobs
        environment.setdefault(GPU_MEMORY_SHARE, f"{share:.3f}")
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        log = self.log(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=self.pass_fds,
                preexec_fn=functools.partial(end_with_parent, os.getpid()),
            )
        return Running(stage, process, time.monotonic())

    def finish(self, item: Running) -> str:
        """Return the state of a stage whose process has ended, and write its mark if it is done."""
        lines = self.log(item.stage).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if item.process.returncode != 0:
            tqdm.write(f"{item.stage.name} failed (exit code {item.process.returncode}), the end of its log:")
            tqdm.write("\n".join(lines[-LOG_TAIL_LINES:]))
            return "failed"
        figures = last_json(lines)
        if figures.get("finished") is False:
            return "stopped"
        mark = {
            "stage": item.stage.name,
            "command": item.stage.command,
            "options": dict(item.stage.options),
            "output_dir": str(self.output_dir.resolve()),
            "seconds": round(time.monotonic() - item.since, 1),
            "figures": figures,
        }
        self.mark(item.stage).parent.mkdir(exist_ok=True)
        write_json(self.mark(item.stage), mark)
        tqdm.write(f"{item.stage.name}: done in {mark['seconds'] / 60:.1f} minutes")
        return "done"

    def stop(self, running: Sequence[Running]) -> list[str]:
        """Ask the running stages to stop, wait for their checkpoints, and return the state of each."""
        for item in running:
            item.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for item in running:
            try:
                item.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(item.process.pid, signal.SIGKILL)
                item.process.wait()
        return [self.finish(item) if item.process.returncode == 0 else "stopped" for item in running]


def progress(states: Mapping[str, str]) -> str:
    """How many stages are in each state, for a person to read."""
    count = Counter(states.values())
    others = [f"{count[state]} {state}" for state in ("running", "waiting", "stopped", "failed") if count[state]]
    return ", ".join([f"{count['done']} of {len(states)} stages are done", *others])


def words_of_mark(mark: dict) -> list[str]:
    """The command and the options of a stage that is done, as words of a command line.

    Marks of earlier versions hold these words themselves, the path of a script first.
    """
    if isinstance(mark["command"], str):
        return [mark["command"], *flags(mark["options"])]
    script, *words = mark["command"]
    script = Path(script).name
    return [COMMAND_OF_SCRIPT.get(script, script.removesuffix(".py")), *words]


def changed_parts(done_by: Sequence[str], words: Sequence[str], before: str, now: str) -> list[str]:
    """What differs between two commands; the first was given when the run folder was `before`.

    Different spellings of the same path are no difference.
    """
    then = [moved(word, before, now) for word in done_by]
    if len(then) == len(words) and all(map(same_path, then, words)):
        return []
    lost, new = (
        [word for word in one if not any(same_path(word, candidate) for candidate in other)]
        for one, other in ((then, words), (words, then))
    )
    return sorted({*lost, *new}) or ["in another order"]


def moved(part: str, before: str, now: str) -> str:
    """The present path of a file in a folder that has moved; any other word of a command stays as it is."""
    inside = part == before or part.startswith(before + os.sep)
    return now + part[len(before) :] if inside else part


def end_with_parent(parent: int) -> None:
    """In a freshly forked process: have SIGTERM sent when the thread that forked it ends (Linux only)."""
    if LIBC is None:
        return
    LIBC.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
    if os.getppid() != parent:  # it ended before
        os._exit(1)


@contextmanager
def exclusive(output_dir: Path) -> Iterator[int]:
    """Lock a run folder for this process; yields the file descriptor that its stages inherit.

    One lock ends with this process, the other with its last stage, so that the next call waits until the stages of a
    killed process have written their checkpoints.

    Raises:
        ValueError: another call has the lock, or its stages still have it after `GRACE_SECONDS`.
    """
    with folder_lock(output_dir, "output"), open(output_dir / STAGES_LOCK, "a") as stages:
        if not try_lock(stages.fileno()):
            print("waiting for the stages of an earlier call to end", file=sys.stderr, flush=True)
            if not try_lock(stages.fileno(), GRACE_SECONDS):
                raise ValueError(
                    f"output={output_dir} is in use by stages of an earlier call: wait until they end, or name another"
                )
        yield stages.fileno()


def last_json(lines: Sequence[str]) -> dict:
    """The JSON object of the last line that is one, or an empty dictionary."""
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except json.JSONDecodeError:
                continue
    return {}
