"""Time and memory of `prepare_data.py` for corpora of several sizes, generated from the halves of real sentence pairs.

    python hub_card/results/preparation/measure.py --source train.de.gz --target train.en.gz --folder scratch

Several source and target files are read one after the other. `preparation.json` and `preparation.png` are written
beside this script after each run; runs that are in the file already are not repeated.
"""

import argparse
import json
import random
import resource
import shutil
import sys
import time
from pathlib import Path

import matplotlib
import psutil

from modeling_jmnat.utils.text_files import read_parallel, write_lines

HERE = Path(__file__).resolve().parent
RESULT = HERE / "preparation.json"
SAMPLE_SECONDS = 0.25
VALIDATION = 1000
REPEATED_EVERY = 50  # pairs, of which one is that of another place


def halves(text: str) -> tuple[str, str]:
    words = text.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def generate(pairs: list[tuple[str, str]], count: int, folder: Path) -> None:
    """Files of `count` pairs: the first half of one pair and the second half of another, on both sides."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(count)
    cut = [(*halves(source), *halves(target)) for source, target in pairs if source and target]
    drawn = [(draw.randrange(len(cut)), draw.randrange(len(cut))) for _ in range(count + VALIDATION)]
    for number in range(0, count, REPEATED_EVERY):
        drawn[number] = drawn[draw.randrange(count)]
    for side, language in ((0, "de"), (2, "en")):
        for name, numbers in (("train", drawn[:count]), ("valid", drawn[count:])):
            lines = (f"{cut[one][side]} {cut[two][side + 1]}" for one, two in numbers)
            write_lines(folder / f"{name}.{language}", lines)


def memory_of(process: psutil.Process) -> tuple[int, int]:
    """Resident bytes of a process, and those of them that are its own: no pages of mapped files."""
    rss = anonymous = 0
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(("VmRSS:", "RssAnon:")):
            number = int(line.split()[1]) * 1024
            rss, anonymous = (number, anonymous) if line.startswith("VmRSS:") else (rss, number)
    return rss, anonymous


def cpu_seconds() -> float:
    """Of all processes that were started here and have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def prepare(folder: Path, num_proc: int) -> dict:
    """Run the command and watch its processes."""
    files = [f"--{split}_{side}" for split in ("train", "validation") for side in ("source", "target")]
    names = ("train.de", "train.en", "valid.de", "valid.en")
    options = [word for pair in zip(files, (str(folder / name) for name in names), strict=True) for word in pair]
    output = folder / "prepared"
    command = [sys.executable, "-m", "modeling_jmnat.commands", "prepare", *options, "--drop_duplicates", "True"]
    command += ["--vocab_size", "32000", "--num_proc", str(num_proc), "--output_dir", str(output)]
    start, cpu = time.perf_counter(), cpu_seconds()
    with open(folder / "output.json", "w") as file:
        main = psutil.Popen(command, stdout=file)
        most = {"rss": 0, "own": 0, "disk": 0}
        while main.poll() is None:
            for process in [main, *main.children(recursive=True)]:
                try:
                    rss, own = memory_of(process)
                except (FileNotFoundError, ProcessLookupError):
                    continue
                most |= {"rss": max(most["rss"], rss), "own": max(most["own"], own)}
            used = 0
            for path in output.rglob("*"):
                try:
                    used += path.stat().st_size
                except FileNotFoundError:
                    continue
            most["disk"] = max(most["disk"], used)
            time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - start
    if main.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {main.returncode}")
    counts = json.loads((folder / "output.json").read_text())["pairs"]["train"]
    shutil.rmtree(output)
    return {
        "kept": counts["kept"],
        "duplicates": counts["duplicate"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds() - cpu, 1),
        "pairs_per_second": round(counts["read"] / seconds),
        "rss_mb": round(most["rss"] / 1e6),
        "own_mb": round(most["own"] / 1e6),
        "disk_mb": round(most["disk"] / 1e6),
    }


def draw(runs: list[dict]) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for num_proc, marker in ((1, "o"), (2, "s")):
        chosen = sorted((run for run in runs if run["num_proc"] == num_proc), key=lambda run: run["pairs"])
        sizes = [run["pairs"] for run in chosen]
        name = f"--num_proc {num_proc}"
        left.loglog(sizes, [run["cpu_seconds"] / 60 for run in chosen], marker=marker, label=name)
        right.semilogx(sizes, [run["rss_mb"] / 1000 for run in chosen], marker=marker, label=f"{name}, resident")
        right.semilogx(
            sizes, [run["own_mb"] / 1000 for run in chosen], marker=marker, ls=":", label=f"{name}, of that its own"
        )
    right.axhline(2.0, color="grey", lw=0.8)
    left.set(xlabel="pairs", ylabel="minutes of a core", title="Time")
    right.set(xlabel="pairs", ylabel="GB", title="Largest process", ylim=(0, 3.0))
    for axes in (left, right):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(HERE / "preparation.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", required=True)
    parser.add_argument("--target", nargs="+", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for the generated text and the prepared data")
    parser.add_argument("--pairs", nargs="+", type=int, default=[50_000, 500_000, 5_000_000])
    parser.add_argument("--num_proc", nargs="+", type=int, default=[1, 2])
    options = parser.parse_args()
    runs = json.loads(RESULT.read_text())["runs"] if RESULT.exists() else []
    for count in options.pairs:
        missing = {*options.num_proc} - {run["num_proc"] for run in runs if run["pairs"] == count}
        if missing:
            files = zip(options.source, options.target, strict=True)
            pairs = [pair for source, target in files for pair in zip(*read_parallel(source, target), strict=True)]
            generate(pairs, count, options.folder)
            del pairs
        for num_proc in sorted(missing):
            runs.append({"pairs": count, "num_proc": num_proc, **prepare(options.folder, num_proc)})
            print(runs[-1], flush=True)
            RESULT.write_text(json.dumps({"runs": runs}, indent=2) + "\n")
            draw(runs)
        shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
