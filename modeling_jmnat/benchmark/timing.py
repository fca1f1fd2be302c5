"""Timing of several translation systems against each other: interleaved, repeated, and with the spread of each figure.

All systems translate the same block of sentences one after another, in an order that rotates from round to round, so
that whatever disturbs the machine disturbs all of them. A ratio is refused if the rounds do not agree on it.
"""

import contextlib
import gc
import importlib
import itertools
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from tqdm import tqdm

from ..evaluation.scores import processor_instructions, processor_name
from ..utils.markdown import markdown
from .systems import REFERENCES, System, load_engine, load_search

LENGTH_BUCKETS = (10, 15, 20, 30)  # source tokens
BLOCK_SENTENCES = 10  # sentences that a system translates before the next system's turn
MIN_ROUNDS = 3  # for a ratio
FEW_ROUNDS = 5  # up to this many rounds all must agree, beyond it the quartiles
MAX_SPREAD = 0.10  # see `spread`
RATIO_NOTE = f"""
A ratio stands where its rounds differ by at most {MAX_SPREAD:.0%} of their median: the lowest and the highest of up to
{FEW_ROUNDS} rounds, the quartiles of more.
"""
PACKAGES = ("torch", "transformers", "onnxruntime", "ctranslate2")


class TooNoisy(Exception):
    """The rounds of a measurement are too few or do not agree on a ratio; `rounds` has the ratio of each."""

    def __init__(self, reason: str, rounds: Sequence[float]):
        super().__init__(reason)
        self.rounds = list(rounds)


def quantile(values: Sequence[float], share: float) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(share).item()


def spread(rounds: Sequence[float]) -> float:
    """The range of up to `FEW_ROUNDS` rounds, or the interquartile range of more, as a share of their median."""
    low, high = (0.0, 1.0) if len(rounds) <= FEW_ROUNDS else (0.25, 0.75)
    return (quantile(rounds, high) - quantile(rounds, low)) / statistics.median(rounds)


def paired_ratio(reference: Sequence[Sequence[float]], times: Sequence[Sequence[float]]) -> float:
    """How many times faster one system is, from seconds [round][block] of two that translated the same blocks.

    Blocks are compared one by one, so that a slow minute of the machine, which affects both, cancels out.

    Returns:
        The median over all blocks and rounds.

    Raises:
        TooNoisy: there are fewer than `MIN_ROUNDS`, or the rounds spread by more than `MAX_SPREAD`.
    """
    rounds = [[slow / fast for slow, fast in zip(*turns, strict=True)] for turns in zip(reference, times, strict=True)]
    medians = [statistics.median(blocks) for blocks in rounds]
    if len(rounds) < MIN_ROUNDS:
        raise TooNoisy(f"ratios need {MIN_ROUNDS} rounds that agree, and there are {len(rounds)}", medians)
    found = spread(medians)
    if found > MAX_SPREAD:
        raise TooNoisy(f"the rounds differ by {found:.0%}, but ratios are given only up to {MAX_SPREAD:.0%}", medians)
    return statistics.median(itertools.chain(*rounds))


def interleaved(
    systems: Sequence[System],
    engines: dict,
    batches: Sequence[Sequence[Sequence[int]]],
    block: int,
    progress: bool,
    outputs: dict | None = None,
    turn: int = 0,
) -> dict[System, list[float]]:
    """Seconds that each system takes for each batch of sources in one round: {system: [batch]}.

    `block` batches belong together: a system warms up with the first of them, untimed, and is then timed on all.
    Blocks of a single batch are so long that only the first needs this. `outputs` collects translations,
    {system: {batch: lists of ids}}. `turn` is the number of the round, with which the order of the systems rotates.
    """
    times: dict[System, list[float]] = {system: [] for system in systems}
    total = len(systems) * len(batches)
    with tqdm(total=total, desc="timing", unit=" translations", disable=not progress) as bar:
        for number, start in enumerate(range(0, len(batches), block)):
            first = (turn + number) % len(systems)
            for system in [*systems[first:], *systems[:first]]:
                engine = engines[system.model_key]
                prepared = [engine.prepare(batch) for batch in batches[start : start + block]]
                if block > 1 or number == 0:
                    engine.translate(prepared[0], system.options)
                for offset, batch in enumerate(prepared):
                    gc.collect(0)
                    begin = time.perf_counter()
                    output = engine.translate(batch, system.options)
                    times[system].append(time.perf_counter() - begin)
                    if outputs is not None:
                        outputs.setdefault(system, {})[start + offset] = engine.read(output)
                bar.update(len(prepared))
    return times


def latency_figures(times: Sequence[Sequence[float]], lengths: Sequence[int]) -> dict:
    """Milliseconds per sentence at batch 1, from seconds [round][sentence].

    `latency_ms` is the mean over sentences in the median round; the quartiles are over the rounds. p50 and p99 are
    over all times; by length, a sentence counts with its median round.
    """
    rounds = [1000 * statistics.mean(turn) for turn in times]
    single = [1000 * seconds for turn in times for seconds in turn]
    sentences = [1000 * statistics.median(turn[index] for turn in times) for index in range(len(lengths))]
    figures = {
        "latency_ms": statistics.median(rounds),
        "latency_quartiles_ms": [quantile(rounds, 0.25), quantile(rounds, 0.75)],
        "latency_spread": spread(rounds),
        "latency_p50_ms": quantile(single, 0.5),
        "latency_p99_ms": quantile(single, 0.99),
        "latency_by_source_length_ms": {},
    }
    bounds = [0, *LENGTH_BUCKETS, float("inf")]
    for low, high in zip(bounds, bounds[1:], strict=False):
        inside = [ms for ms, length in zip(sentences, lengths, strict=True) if low < length <= high]
        if inside:
            name = f"over {low}" if high == float("inf") else f"{low + 1}-{high}"
            figures["latency_by_source_length_ms"][name] = statistics.mean(inside)
    return figures


def throughput_figures(times: Sequence[Sequence[float]], num_sentences: int, batch_size: int) -> dict:
    rounds = [sum(turn) for turn in times]
    median = statistics.median(rounds)
    return {
        "batch_size": batch_size,
        "sentences_per_second": num_sentences / median,
        "sentences_per_second_quartiles": [num_sentences / quantile(rounds, share) for share in (0.75, 0.25)],
        "throughput_spread": spread(rounds),
        "throughput_ms": 1000 * median / num_sentences,
    }


def length_sorted(sources: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Indices of the sources in batches of similar length."""
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _memory_mb(name: str) -> float:
    """A line of /proc/self/status: VmRSS is the memory in use, VmHWM its peak."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith(f"{name}:"))


def _load_and_translate(system: System, sources: list, num_threads: int, connection) -> None:
    torch.set_num_threads(num_threads)
    for name in ("onnxruntime", "ctranslate2"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if system.engine == "ctranslate2":
        load_search(system.folder)  # the other engines load no tokenizer
    before = _memory_mb("VmRSS")
    start = time.perf_counter()
    engine = load_engine(system, num_threads)
    seconds = time.perf_counter() - start
    for source in sources:
        engine.translate(engine.prepare([source]), system.options)
    connection.send({"load_seconds": seconds, "peak_memory_mb": _memory_mb("VmHWM") - before})
    connection.close()


def loading_figures(system: System, sources: Sequence[Sequence[int]], num_threads: int) -> dict:
    """Seconds to load, and peak memory beyond that of libraries and a tokenizer, measured in a separate process.

    Memory is not measured on systems without /proc.
    """
    if not os.path.exists("/proc/self/status"):
        return {}
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_load_and_translate, args=(system, list(sources), num_threads, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise ValueError(f"{system.title} cannot be loaded in a separate process: see the error above") from None
    except KeyboardInterrupt:
        process.terminate()  # SIGTERM reaches only this process
        raise
    finally:
        process.join()


def environment(num_threads: int) -> dict:
    """What the figures depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor_name(),
        "instructions": processor_instructions(),
        "threads": num_threads,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "variables": {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")},
        "versions": versions,
    }


def block_sums(times: Sequence[Sequence[float]], block: int) -> list[list[float]]:
    """Seconds [round][batch] -> [round][block of batches]."""
    return [[sum(turn[start : start + block]) for start in range(0, len(turn), block)] for turn in times]


def add_ratios(
    rows: Sequence[dict], times: dict[str, dict[str, list[list[float]]]], references: Sequence[str] = REFERENCES
) -> list[str]:
    """Put into each row how many times faster it is than the reference systems; the reasons for those left out.

    The ratios are `speed_up` and `batch_speed_up`, {title: ratio}. If a ratio is refused although it was measured
    often enough, `speed_up_rounds` and `batch_speed_up_rounds` have the lowest and the highest round.

    Args:
        times: seconds [round][block] by kind of measurement (`latency`, `throughput`) and title.
        references: titles.
    """
    refused = []
    for kind, name in (("latency", "speed_up"), ("throughput", "batch_speed_up")):
        for title in references:
            for row in rows if title in times[kind] else ():
                try:
                    value = paired_ratio(times[kind][title], times[kind][row["title"]])
                except TooNoisy as reason:
                    refused.append(f"{kind} of {row['title']} against {title}: {reason}")
                    if len(reason.rounds) >= MIN_ROUNDS:
                        row.setdefault(f"{name}_rounds", {})[title] = [min(reason.rounds), max(reason.rounds)]
                else:
                    row.setdefault(name, {})[title] = value
    return refused


def describe_refused(refused: Sequence[str], output: str | Path) -> str:
    """A line for a person about the ratios that `add_ratios` left out; empty if there are none."""
    if not refused:
        return ""
    count = f"{len(refused)} ratio{'s' * (len(refused) > 1)}"
    return (
        f"{count} left out, because the rounds do not agree: refused_ratios in {output}/environment.json says which\n"
    )


def _speed(row: dict, speed: str, size: str) -> str:
    return f"{row[speed]:.1f} at {row[size]}" if speed in row else ""


def markdown_table(rows: Sequence[dict]) -> str:
    """The figures for a person: one line per system."""
    references = [title for title in REFERENCES if any(row["title"] == title for row in rows)]
    with_bleu = any("bleu" in row for row in rows)
    head = ["system"] + (["BLEU"] if with_bleu else []) + ["ms (quartiles)", "p50", "p99"]
    head += [f"times faster than {title}" for title in references]
    with_best = any("best_batch_size" in row for row in rows)
    head += ["sentences/s at batch"] + (["best batch"] if with_best else []) + ["load s", "memory MB"]
    lines = []
    for row in rows:
        low, high = row["latency_quartiles_ms"]
        cells = [row["title"]] + ([f"{row['bleu']:.2f}" if "bleu" in row else ""] if with_bleu else [])
        cells += [f"{row['latency_ms']:.1f} ({low:.1f}-{high:.1f})"]
        cells += [f"{row['latency_p50_ms']:.1f}", f"{row['latency_p99_ms']:.1f}"]
        for title in references:
            value = row.get("speed_up", {}).get(title)
            cells.append("too noisy" if value is None else f"{value:.2f}")
        cells += [_speed(row, "sentences_per_second", "batch_size")]
        cells += [_speed(row, "best_sentences_per_second", "best_batch_size")] if with_best else []
        cells += [f"{row['load_seconds']:.2f}" if "load_seconds" in row else ""]
        cells += [f"{row['peak_memory_mb']:.0f}" if "peak_memory_mb" in row else ""]
        lines.append(cells)
    return markdown(head, lines) + RATIO_NOTE


def length_table(rows: Sequence[dict]) -> str:
    """Milliseconds per sentence by the number of source tokens, a line per system."""
    names = list(dict.fromkeys(name for row in rows for name in row["latency_by_source_length_ms"]))
    names.sort(key=lambda name: int(name.removeprefix("over ").split("-")[0]))
    lines = []
    for row in rows:
        found = row["latency_by_source_length_ms"]
        cells = [f"{found[name]:.1f}" if name in found else "" for name in names]
        lines.append([row["title"], *cells])
    return markdown(("source tokens", *names), lines)
