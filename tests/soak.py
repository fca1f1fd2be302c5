"""Commands killed, terminated, starved of disk, damaged and run twice at random moments, and given again.

    python -m tests.soak --minutes 60

Each command runs once undisturbed; its results are what every other run must end with, bit for bit. Then trial follows
trial until the time is over: a random command in a folder of its own, one disturbance at a random moment, and the same
command again. The table says how many trials of each kind ended with the same results; the exit code is 1 if one did
not, and its folder is kept.
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
import torch
import transformers
import yaml

import modeling_jmnat
from modeling_jmnat.utils.markdown import markdown
from tests.helpers.forked_module import ForkedModule
from tests.helpers.teacher_samples import random_lines, random_teacher, write_text
from tests.helpers.tiny_runs import MODEL, prepare_tiny_data
from tests.helpers.translation_samples import tiny_student

ATTEMPTS = 3  # to finish after a disturbance: a checkpoint may be lost with it
REFUSED = "another process"
TRAINING = {
    "max_steps": 60,
    "max_tokens": 100,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "ema_decay": 0.9,
    "eval_strategy": "steps",
    "eval_steps": 20,
    "eval_num_iterations": [1, 2],
    "eval_num_length_candidates": 2,
    "save_steps": 5,
    "keep_best": 2,
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder.

    Args:
        words: the command line, by the inputs and the folder.
        results: what must be the same in the end, by name: files, or the rows of prepared data for a folder.
        checkpoints: pattern of the folders that may be damaged.
    """

    words: Callable[[Path, Path], list]
    results: tuple[str, ...]
    checkpoints: str | None = None


JOBS = {
    "prepare": Job(
        lambda inputs, work: [
            *("prepare", "--vocab_size", 320, "--output_dir", work / "data", "--overwrite", True),
            *("--train_source", inputs / "train.source", "--train_target", inputs / "train.target"),
            *("--validation_source", inputs / "validation.source"),
            *("--validation_target", inputs / "validation.target"),
        ],
        ("data/dataset", "data/tokenizer/tokenizer.json"),
    ),
    "train": Job(
        lambda inputs, work: [
            *("train", "--preset", inputs / "preset.yaml", "--data", inputs / "data", "--output_dir", work / "run"),
        ],
        ("run/model.safetensors", "run/generation_config.json"),
        "run/checkpoint-*",
    ),
    "train_teacher": Job(
        lambda inputs, work: [
            *("train_teacher", "--preset", inputs / "preset.yaml", "--data", inputs / "data"),
            *("--output_dir", work / "run"),
        ],
        ("run/model.safetensors",),
        "run/checkpoint-*",
    ),
    "distill": Job(
        lambda inputs, work: [
            *("distill", "--teacher", inputs / "teacher", "--data", inputs / "data", "--output_dir", work / "text"),
            *("--num_beams", 2, "--shards", 8, "--backend", "transformers"),
        ],
        ("text/distilled.src", "text/distilled.tgt"),
    ),
    "translate": Job(
        lambda inputs, work: [
            *("translate", "--model", inputs / "student", "--input", inputs / "lines", "--output", work / "lines"),
            *("--batch_tokens", 400),
        ],
        ("lines",),
    ),
    "translate-corpus": Job(
        lambda inputs, work: [
            *("translate-corpus", "--model", inputs / "student", "--input", inputs / "lines"),
            *("--output_dir", work / "out", "--source_text", work / "source", "--target_text", work / "lines"),
            *("--block_lines", 40, "--num_actors", 1),
        ],
        ("lines",),
    ),
    "reproduce": Job(
        lambda inputs, work: [
            *("reproduce", "--preset", inputs / "preset.yaml", "--data", inputs / "data", "--output", work / "run"),
            *("--seeds", 1, "--only", "^prepare_distilled$"),
        ],
        ("run/teacher/model.safetensors", "run/distilled/distilled.tgt", "run/distilled/data/dataset"),
        "run/teacher/checkpoint-*",
    ),
}


if importlib.util.find_spec("ray") is None:
    del JOBS["translate-corpus"]


def make_inputs(folder: Path) -> None:
    """Text, prepared data with a test split, a preset, a student and a teacher."""
    from modeling_jmnat.data.preparation import load_prepared

    data = prepare_tiny_data(folder, num_train=160)
    dataset, tokenizer = load_prepared(data)
    dataset["test"] = dataset["validation"]
    dataset.save_to_disk(str(folder / "with_test"))
    shutil.rmtree(data / "dataset")
    (folder / "with_test").rename(data / "dataset")
    for name, model in (("student", tiny_student(tokenizer)), ("teacher", random_teacher(tokenizer))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    preset = {"model": MODEL, "masking": {"source_mask_ratio": 0.2}, "training": TRAINING}
    (folder / "preset.yaml").write_text(yaml.safe_dump(preset))
    write_text(folder, "lines", random_lines(400, seed=3))


def digest(path: Path) -> str:
    """Of a file's bytes, or of the rows of prepared data, whose files hold random names."""
    found = hashlib.sha256()
    if path.is_dir():
        for split, rows in sorted(datasets.load_from_disk(str(path), keep_in_memory=True).items()):
            found.update(json.dumps([split, rows.to_dict()], sort_keys=True).encode())
    else:
        found.update(path.read_bytes())
    return found.hexdigest()


def results_of(job: Job, work: Path) -> dict[str, str]:
    return {name: digest(work / name) for name in job.results}


class Run(ForkedModule):
    """A command in a fork of this process; its output is in a file."""

    def __init__(self, words: list, log: Path, file_limit: int | None = None):
        def limit():
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))

        self.log, self.since = log, time.monotonic()
        with open(log, "a") as file:
            super().__init__("modeling_jmnat.commands", list(map(str, words)), file.fileno(), limit)

    def runs(self) -> bool:
        return self.poll() is None

    def wait(self, seconds: float = 600) -> int:
        self.sleep(seconds)
        if self.runs():
            self.signal(signal.SIGKILL)
            raise AssertionError(f"it did not end within {seconds} seconds")
        return self.returncode

    def signal(self, number: int) -> None:
        """To the command and its own children, if it still runs."""
        if self.runs():
            (os.killpg if number == signal.SIGKILL else os.kill)(self.pid, number)

    def sleep(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Wait, but not beyond the end of the command, nor once `until` holds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.runs() and not until():
            time.sleep(0.02)

    def finished(self) -> bool:
        if self.wait() != 0:
            return False
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("{")]
        return not lines or json.loads(lines[-1]).get("finished") is not False


class Undisturbed(NamedTuple):
    """A run that nothing disturbed: its results, and the sizes in bytes of all that it wrote."""

    seconds: float
    results: dict[str, str]
    space: int
    largest_file: int


class Trial:
    """One command in a folder of its own."""

    def __init__(self, name: str, inputs: Path, folder: Path, normal: Undisturbed, generator: random.Random):
        self.job, self.inputs, self.normal, self.random = JOBS[name], inputs, normal, generator
        self.work, self.log = folder / "work", folder / "log"
        self.work.mkdir(parents=True)

    def start(self, **options) -> Run:
        return Run(self.job.words(self.inputs, self.work), self.log, **options)

    def wait_somewhere(self, run: Run) -> None:
        """Until a random moment, in half of the cases of the time in which the command writes."""
        left = self.normal.seconds
        if self.random.random() < 0.5:
            run.sleep(2 * left, until=lambda: any(self.work.iterdir()))
            left = max(0.5, left - (time.monotonic() - run.since))
        run.sleep(self.random.uniform(0, left))

    def end(self) -> dict[str, str]:
        """Give the command again until it has finished, and read its results."""
        for _ in range(ATTEMPTS):
            if self.start().finished():
                return results_of(self.job, self.work)
        raise AssertionError(f"not finished after {ATTEMPTS} more attempts")

    def complain(self) -> None:
        """Whether a failing command prints one sentence."""
        assert "Traceback" not in self.log.read_text(errors="replace"), "a traceback in place of a sentence"


def kill(trial: Trial) -> None:
    run = trial.start()
    trial.wait_somewhere(run)
    run.signal(signal.SIGKILL)
    run.wait()


def terminate(trial: Trial) -> None:
    run = trial.start()
    trial.wait_somewhere(run)
    run.signal(signal.SIGTERM)
    run.wait()
    trial.complain()


def second_process(trial: Trial) -> None:
    """The first one ends well. The second is refused or, where it may be, writes the same."""
    first = trial.start()
    trial.wait_somewhere(first)
    log = trial.log.with_suffix(".second")
    second = Run(trial.job.words(trial.inputs, trial.work), log)
    assert second.wait() == 0 or REFUSED in log.read_text(), log.read_text()[-500:]
    assert first.wait() == 0, "the first process failed beside the second"


def full_disk(trial: Trial) -> dict[str, str]:
    """Less space than the command needs, then enough; the results are read while the disk is there."""
    share = trial.random.uniform(0.05, 0.95)
    with small_disk(trial.work, max(64 << 10, int(share * trial.normal.space))) as grow:
        if grow is None:  # mounting takes rights that this user lacks: no large file instead
            trial.start(file_limit=int(share * trial.normal.largest_file)).wait()
        else:
            trial.start().wait()
            grow()
        trial.complain()
        return trial.end()


def damage(trial: Trial) -> None:
    """A file of the newest checkpoint is cut short or has another byte."""
    kill(trial)
    folders = sorted(trial.work.glob(trial.job.checkpoints or ""), key=lambda path: path.stat().st_mtime)
    files = [path for path in sorted(folders[-1].iterdir()) if path.stat().st_size > 0] if folders else []
    if not files:
        return
    path = trial.random.choice(files)
    content = bytearray(path.read_bytes())
    place = trial.random.randrange(len(content))
    if trial.random.random() < 0.5:
        content = content[:place]
    else:
        content[place] ^= 1 << trial.random.randrange(8)
    path.write_bytes(content)


# Each may return the results; otherwise the command is given again for them.
DISTURBANCES = {
    "SIGKILL": kill,
    "SIGTERM": terminate,
    "disk full": full_disk,
    "second process": second_process,
    "damaged checkpoint": damage,
}


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None] | None]:
    """A file system of this size at the folder, and what makes it large; None where it cannot be mounted."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        yield None
        return
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def undisturbed(name: str, inputs: Path, folder: Path) -> Undisturbed:
    job, work = JOBS[name], folder / name
    work.mkdir(parents=True)
    run = Run(job.words(inputs, work), folder / f"{name}.log")
    if not run.finished():
        raise SystemExit(f"{name} fails undisturbed: {run.log.read_text()[-2000:]}")
    seconds = time.monotonic() - run.since
    sizes = [path.stat().st_size for path in work.rglob("*") if path.is_file()]
    print(f"{name}: {seconds:.1f} s undisturbed", flush=True)
    return Undisturbed(seconds, results_of(job, work), sum(sizes), max(sizes))


def import_everything() -> None:
    """What the commands import when they run, so that their forks need not."""
    for room in ("data", "teacher", "training", "inference", "evaluation", "experiments"):
        for path in sorted((Path(modeling_jmnat.__file__).parent / room).glob("*.py")):
            if path.stem != "corpus_translation":  # Ray is not made for forks
                importlib.import_module(f"modeling_jmnat.{room}.{path.stem}")


def chosen(only: str) -> list[tuple[str, str]]:
    """The commands with their disturbances whose description matches."""
    pairs = [
        (name, kind)
        for name, job in JOBS.items()
        for kind in DISTURBANCES
        if kind != "damaged checkpoint" or job.checkpoints
    ]
    found = [(name, kind) for name, kind in pairs if re.search(only, f"{name}, {kind}")]
    if not found:
        raise SystemExit(f"only={only!r} matches none of {', '.join(map(', '.join, pairs))}")
    return found


def soak(minutes: float, seed: int, folder: Path, only: str = "") -> tuple[Counter, Counter, list[str]]:
    """Trials until the time is over: how many there were and how many ended the same, by command and disturbance."""
    end, generator = time.monotonic() + 60 * minutes, random.Random(seed)
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false")
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    import_everything()
    inputs = folder / "inputs"
    inputs.mkdir()
    make_inputs(inputs)
    pairs = chosen(only)
    expected: dict[str, Undisturbed] = {}
    trials: Counter = Counter()
    same: Counter = Counter()
    failures, waiting = [], []
    while time.monotonic() < end:
        if not waiting:  # each pair once, then each again in another order
            waiting = generator.sample(pairs, len(pairs))
        name, kind = waiting.pop()
        if name not in expected:
            expected[name] = undisturbed(name, inputs, folder / "undisturbed")
        number = sum(trials.values())
        trial = Trial(name, inputs, folder / f"trial-{number}", expected[name], generator)
        trials[name, kind] += 1
        try:
            results = DISTURBANCES[kind](trial) or trial.end()
            assert results == trial.normal.results, "other results"
        except (AssertionError, OSError) as problem:
            failures.append(f"trial {number}, {name}, {kind}: {problem} ({trial.log})")
            print(failures[-1], flush=True)
            continue
        same[name, kind] += 1
        shutil.rmtree(trial.work.parent)
        print(f"{number}: {name}, {kind}: the same", flush=True)
    return trials, same, failures


def table(trials: Counter, same: Counter) -> str:
    rows = []
    for name in dict(sorted(trials)):
        rows.append([name, *(f"{same[name, kind]} of {trials[name, kind]}" for kind in DISTURBANCES)])
    return markdown(("command", *DISTURBANCES), rows)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="Time for all trials, undisturbed runs included.")
    parser.add_argument(
        "--seed", type=int, default=0, help="Of the choice of trials; moments differ on every machine."
    )
    parser.add_argument("--only", default="", help="Regular expression, such as 'train, |disk full'.")
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    trials, same, failures = soak(arguments.minutes, arguments.seed, folder, arguments.only)
    print("\n" + table(trials, same))
    print(json.dumps({"trials": sum(trials.values()), "same": sum(same.values()), "failures": failures}))
    if failures:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
