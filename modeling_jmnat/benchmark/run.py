"""A benchmark in stages, whose measurements are saved after each step so that a stopped run can be resumed."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ..utils.atomic_files import write_json
from ..utils.json_files import read_json
from ..utils.text_files import write_lines
from .systems import System, load_engine
from .timing import (
    BLOCK_SENTENCES,
    add_ratios,
    block_sums,
    interleaved,
    latency_figures,
    length_sorted,
    loading_figures,
    throughput_figures,
)


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often.

    Args:
        num_sentences: sentences for latency, spread evenly over all sources; each is timed once per round.
        num_rounds: rounds of latency.
        batch_size: sentences per batch for throughput, which is measured on the first `batch_lines` sources.
        batch_lines: number of those sources; None takes all.
        batch_rounds: rounds of throughput.
        batch_sizes: batch sizes that are timed once each on the same sources; the best is reported.
    """

    num_threads: int = 1
    num_sentences: int = 100
    num_rounds: int = 5
    batch_size: int = 32
    batch_lines: int | None = None
    batch_rounds: int = 3
    batch_sizes: tuple[int, ...] = ()


def described(machine: dict) -> str:
    """A machine in words."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['processor']} with {versions}"


class Benchmark:
    """Measurements of several systems on the same sources.

    Args:
        sources: token ids of all sentences.
        path: JSON file of the measurements. Those it already has are not repeated.
        settings: everything (as JSON) that the measurements depend on; a file with other settings is not resumed.
        score: computes figures from the translations of all sources (lists of ids, which may go beyond `</s>`), or
            None. Its `texts`, if any, are written to `translations/` beside the file.
        machine: processor and versions; a file of another machine is not resumed, because its times would be mixed
            with those of this one.

    Raises:
        ValueError: the file belongs to other settings or to another machine.
    """

    def __init__(
        self,
        systems: Sequence[System],
        sources: Sequence[Sequence[int]],
        plan: Plan,
        path: str | Path,
        settings: dict | None = None,
        score: Callable[[list[list[int]]], dict] | None = None,
        progress: bool = False,
        machine: dict | None = None,
    ):
        self.systems, self.sources, self.plan, self.path = systems, sources, plan, Path(path)
        self.score, self.progress = score, progress
        self.engines: dict = {}
        settings = json.loads(json.dumps({"systems": [system.title for system in systems], **(settings or {})}))
        self.found: dict = {"settings": settings, "loading": {}, "scores": {}, "batch_sizes": {}}
        self.found |= {"latency": {}, "throughput": {}, "machine": machine}
        if self.path.is_file():
            self.found = read_json(self.path, ("settings",), "delete it, and everything is measured anew")
            self.found["settings"].pop("size", None)  # of earlier versions: it chose a table
            if self.found["settings"] != settings:
                raise ValueError(
                    f"{self.path} holds measurements with other settings: remove it or name another folder"
                )
            if machine is not None and self.found.get("machine") not in (None, machine):
                raise ValueError(
                    f"{self.path} was measured on {described(self.found['machine'])}, and this is "
                    f"{described(machine)}: remove it or name another folder"
                )

    def run(self) -> Iterator[str]:
        """Run the missing measurements; yields the name of each finished stage."""
        torch.set_num_threads(self.plan.num_threads)
        count = min(self.plan.num_sentences, len(self.sources))
        self.chosen = [self.sources[index * len(self.sources) // count] for index in range(count)]
        self.lines = self.sources[: self.plan.batch_lines]
        self.measure_loading()
        yield "loading"
        for system in self.systems:
            if system.model_key not in self.engines:
                self.engines[system.model_key] = load_engine(system, self.plan.num_threads)
        self.measure_rounds("latency", [[source] for source in self.chosen], self.plan.num_rounds, BLOCK_SENTENCES)
        yield "latency"
        self.measure_rounds("throughput", self.batches(self.plan.batch_size), self.plan.batch_rounds, 1)
        yield "throughput"
        self.measure_batch_sizes()
        yield "batch sizes"
        self.measure_scores()
        yield "scores"

    def save(self) -> None:
        write_json(self.path, self.found)

    def batches(self, size: int) -> list[list[Sequence[int]]]:
        return [[self.lines[index] for index in batch] for batch in length_sorted(self.lines, size)]

    def measure_loading(self) -> None:
        for system in tqdm(self.systems, desc="loading", disable=not self.progress):
            key = system.loaded
            if key not in self.found["loading"]:
                self.found["loading"][key] = loading_figures(system, self.chosen[:3], self.plan.num_threads)
                self.save()

    def measure_rounds(self, stage: str, batches: list, num_rounds: int, block: int) -> None:
        """Measure the missing rounds, and save each as it ends."""
        times = self.found[stage]
        for turn in range(len(times.get(self.systems[0].title, ())), num_rounds):
            found = interleaved(self.systems, self.engines, batches, block, self.progress, turn=turn)
            for system in self.systems:
                times.setdefault(system.title, []).append(found[system])
            self.save()

    def measure_batch_sizes(self) -> None:
        for size in self.plan.batch_sizes:
            if str(size) in self.found["batch_sizes"]:
                continue
            found = interleaved(self.systems, self.engines, self.batches(size), 1, self.progress)
            speeds = {system.title: len(self.lines) / sum(times) for system, times in found.items()}
            self.found["batch_sizes"][str(size)] = speeds
            self.save()

    def measure_scores(self) -> None:
        for system in self.systems if self.score is not None else ():
            if system.title in self.found["scores"]:
                continue
            translations: list[list[int]] = [[]] * len(self.sources)
            engine = self.engines[system.model_key]
            batches = length_sorted(self.sources, self.plan.batch_size)
            for batch in tqdm(batches, desc=f"BLEU of {system.title}", leave=False, disable=not self.progress):
                prepared = engine.prepare([self.sources[index] for index in batch])
                output = engine.read(engine.translate(prepared, system.options))
                for index, ids in zip(batch, output, strict=True):
                    translations[index] = ids
            figures = self.score(translations)
            if texts := figures.pop("texts", None):
                file = Path("translations") / f"{re.sub('[^a-z0-9]+', '_', system.title.lower())}.txt.gz"
                (self.path.parent / file.parent).mkdir(exist_ok=True)
                write_lines(self.path.parent / file, texts)
                figures["translations"] = str(file)
            self.found["scores"][system.title] = figures
            self.save()

    def rows(self) -> tuple[list[dict], list[str]]:
        """One row of figures per system, and the reasons why some ratios are missing."""
        found, rows = self.found, []
        for system in self.systems:
            if not found["latency"].get(system.title):
                continue
            row = {"system": system.name, "label": system.label, "title": system.title, "options": system.options}
            row |= latency_figures(found["latency"][system.title], [len(source) for source in self.chosen])
            if system.title in found["throughput"]:
                row |= throughput_figures(found["throughput"][system.title], len(self.lines), self.plan.batch_size)
                row |= self.best_batch(system, row)
            row |= found["loading"].get(system.loaded, {})
            row |= found["scores"].get(system.title, {})
            rows.append(row)
        times = {
            "latency": {title: block_sums(rounds, BLOCK_SENTENCES) for title, rounds in found["latency"].items()},
            "throughput": found["throughput"],
        }
        return rows, add_ratios(rows, times)

    def best_batch(self, system: System, row: dict) -> dict:
        """The batch size with the highest throughput among those tried."""
        speeds = {int(size): by_title[system.title] for size, by_title in self.found["batch_sizes"].items()}
        if not speeds:
            return {}
        # The batch size that throughput was measured at counts with its median round.
        speeds[self.plan.batch_size] = row["sentences_per_second"]
        best = max(speeds, key=speeds.get)
        return {"best_batch_size": best, "best_sentences_per_second": speeds[best]}
