"""Timing on a GPU: JM-NAT with and without CUDA graphs against its teacher in Transformers and CTranslate2.

Rounds are added one by one until the time is up, and all figures are given out after each round, so an interrupted
measurement still has figures.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from ..utils.markdown import markdown
from .systems import System, load_engine
from .timing import (
    RATIO_NOTE,
    add_ratios,
    block_sums,
    interleaved,
    latency_figures,
    length_sorted,
    throughput_figures,
)

REFERENCES = ("Transformers float32, beam 5", "Transformers float16, beam 5", "CTranslate2 float16, greedy")
NEEDED_ROUNDS = 3  # ratios need as many; later ones only while there is time


def gpu_systems(
    teacher: str,
    student: str,
    passes: Sequence[int],
    num_candidates: Sequence[int],
    dtypes: Sequence[str],
    length: int | None = None,
    device: str = "cuda",
) -> list[System]:
    """The teacher's two engines, then ours for each format, number of passes and of candidates."""
    passes, num_candidates, dtypes = (list(dict.fromkeys(values)) for values in (passes, num_candidates, dtypes))
    fixed = {} if length is None else {"length": length}
    systems = []
    for num_beams, search in ((5, "beam 5"), (1, "greedy")):
        options = {"num_beams": num_beams, **fixed}
        for dtype in dtypes:
            name = f"Transformers {dtype}"
            systems.append(System(name, "transformers", teacher, search, False, options, dtype, device))
        name = "CTranslate2 float16"
        systems.append(System(name, "ctranslate2", teacher, search, False, options, "float16", device))
    for graphs, how in ((False, "plain"), (True, "graphs")):
        for dtype in dtypes:
            for candidates in num_candidates:
                for k in passes:
                    options = {"num_iterations": k, "num_length_candidates": candidates, **fixed}
                    name = f"JM-NAT {how} {dtype}, C = {candidates}"
                    systems.append(System(name, "torch", student, f"k = {k}", False, options, dtype, device, graphs))
    return systems


def load_engines(systems: Sequence[System]) -> tuple[dict, dict[str, str]]:
    """Engines by `model_key`, and the reasons why others cannot be used here.

    CTranslate2 finds out only when it translates whether it can use the GPU, so each engine translates two tokens.
    """
    engines: dict = {}
    missing: dict[str, str] = {}
    for system in systems:
        if system.model_key in engines or system.name in missing:
            continue
        try:
            engine = load_engine(system)
            engine.translate(engine.prepare([[5, 2]]), system.options)
        except (ImportError, RuntimeError, ValueError) as error:
            if system.engine != "ctranslate2":
                raise
            missing[system.name] = " ".join(str(error).split())
        else:
            engines[system.model_key] = engine
    return engines, missing


def timed_rounds(systems, engines, batches, block: int, num_rounds: int, deadline: float, outputs: dict) -> Iterator:
    """Yield {system: seconds [round][batch]} after each of `num_rounds`; the last until `deadline`.

    Shapes are captured as graphs in a round of their own, before the first; `outputs` are that of `interleaved`.
    """
    captured = [system for system in systems if system.graphs]
    if captured:
        interleaved(captured, engines, batches, len(batches), False)
    times: dict = {system: [] for system in systems}
    for turn in range(num_rounds):
        if turn >= NEEDED_ROUNDS and time.monotonic() > deadline:
            return
        found = interleaved(systems, engines, batches, block, False, outputs if turn == 0 else None, turn)
        for system in systems:
            times[system].append(found[system])
        yield times


def run_gpu_benchmark(
    systems: Sequence[System],
    sources: Sequence[Sequence[int]],
    num_sentences: int,
    num_rounds: int,
    batch_sizes: Sequence[int],
    time_budget: float,
    num_batches: int | None = None,
    score: Callable[[list[list[int]]], dict] | None = None,
) -> Iterator[dict]:
    """Measure latency at batch 1, then throughput at each of `batch_sizes`; yield all figures after each round.

    Args:
        sources: token ids. Latency is measured on `num_sentences` of them, spread evenly; throughput on all.
        time_budget: seconds, shared evenly between the measurements.
        num_batches: batches of each size, from the first sources, that throughput is measured on; None takes all.
        score: computes figures from the translations of all sources.

    Yields:
        `rows`, one for each system; `missing`, the systems that cannot be used, with reasons; and `refused`, the
        ratios that are not reported, with reasons.
    """
    start = time.monotonic()
    engines, missing = load_engines(systems)
    systems = [system for system in systems if system.model_key in engines]
    rows = {
        system: {"system": system.name, "label": system.label, "title": system.title, "options": system.options}
        for system in systems
    }
    references = [title for title in REFERENCES if any(system.title == title for system in systems)]
    num_sentences = min(num_sentences, len(sources))
    chosen = [sources[index * len(sources) // num_sentences] for index in range(num_sentences)]
    stages = 1 + len(batch_sizes)
    refused: dict[str, list[str]] = {}

    def report() -> dict:
        reasons = [reason for of_stage in refused.values() for reason in of_stage]
        return {"rows": list(rows.values()), "missing": missing, "refused": reasons}

    deadline = start + time_budget / stages
    for times in timed_rounds(
        systems, engines, [[source] for source in chosen], len(chosen), num_rounds, deadline, {}
    ):
        refused["latency"] = add_latency(rows, times, chosen, references)
        yield report()
    for stage, batch_size in enumerate(batch_sizes, start=2):
        deadline = start + time_budget * stage / stages
        taken = sources if num_batches is None else sources[: num_batches * batch_size]
        indices = length_sorted(taken, batch_size)
        batches = [[taken[index] for index in batch] for batch in indices]
        outputs: dict = {}
        for times in timed_rounds(systems, engines, batches, 1, num_rounds, deadline, outputs):
            refused[str(batch_size)] = add_throughput(rows, times, len(taken), batch_size, references)
            if len(times[systems[0]]) == 1:
                compare_translations(rows, outputs, indices, score if num_batches is None and stage == 2 else None)
            yield report()


def add_latency(rows: dict, times: dict, chosen: Sequence[Sequence[int]], references: Sequence[str]) -> list[str]:
    """Put the latency of the sources `chosen` into the row of each system; returns why some ratios are refused."""
    for system, row in rows.items():
        row |= latency_figures(times[system], [len(source) for source in chosen])
        row["rounds"] = len(times[system])
    blocks = {system.title: block_sums(times[system], len(chosen)) for system in rows}
    return add_ratios(list(rows.values()), {"latency": blocks, "throughput": {}}, references)


def add_throughput(
    rows: dict, times: dict, num_sentences: int, batch_size: int, references: Sequence[str]
) -> list[str]:
    """Put the throughput at a batch size into the row of each system; returns why some ratios are refused."""
    of_batch = []
    for system, row in rows.items():
        figures = {"title": system.title, **throughput_figures(times[system], num_sentences, batch_size)}
        row.setdefault("throughput", {})[str(batch_size)] = figures
        of_batch.append(figures)
    by_title = {system.title: times[system] for system in rows}
    return add_ratios(of_batch, {"latency": {}, "throughput": by_title}, references)


def compare_translations(rows: dict, outputs: dict, indices: Sequence[Sequence[int]], score) -> None:
    """Put its `score` into the row of each system, and for graphs the share of texts equal to those without graphs."""
    translations = {system: in_order(outputs[system], indices) for system in rows}
    for system, row in rows.items():
        plain = plain_twin(system, list(rows))
        if plain is not None:
            pairs = list(zip(translations[system], translations[plain], strict=True))
            row["same_as_plain"] = sum(texts_equal(*pair) for pair in pairs) / len(pairs)
        if score is not None:
            figures = score(translations[system])
            figures.pop("texts", None)
            row |= figures


def in_order(of_batches: dict[int, list], indices: Sequence[Sequence[int]]) -> list[list[int]]:
    """Reorder translations by batch to the order of the sources."""
    translations: list[list[int]] = [[]] * sum(map(len, indices))
    for number, batch in enumerate(indices):
        for index, ids in zip(batch, of_batches[number], strict=True):
            translations[index] = ids
    return translations


def plain_twin(system: System, systems: Sequence[System]) -> System | None:
    """The same system without graphs."""
    if not system.graphs:
        return None
    twins = [other for other in systems if other.engine == "torch" and not other.graphs]
    return next((twin for twin in twins if twin.dtype == system.dtype and twin.options == system.options), None)


def texts_equal(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two texts are equal apart from padding on the right."""
    shared = min(len(first), len(second))
    rest = {*first[shared:], *second[shared:]}
    return list(first[:shared]) == list(second[:shared]) and len(rest) <= 1


def least_ratio(rows: Sequence[dict], title: str, row: dict) -> float:
    """A lower bound if rounds differ too much for a ratio: the reference's lower quartile over `row`'s upper one."""
    reference = next(other for other in rows if other["title"] == title)
    return reference["latency_quartiles_ms"][0] / row["latency_quartiles_ms"][1]


def gpu_table(rows: Sequence[dict]) -> str:
    """A table of the figures with one line per system; "over" marks a `least_ratio`."""
    references = [title for title in REFERENCES if any(row["title"] == title for row in rows)]
    sizes = list(dict.fromkeys(size for row in rows for size in row.get("throughput", {})))
    with_bleu = any("bleu" in row for row in rows)
    head = ["system"] + (["BLEU"] if with_bleu else []) + ["ms (quartiles)", "p99"]
    head += [f"times faster than {title}" for title in references]
    head += [f"sentences/s at {size}" for size in sizes] + ["same as plain"]
    lines = []
    for row in rows:
        cells = [row["title"]] + ([f"{row['bleu']:.2f}" if "bleu" in row else ""] if with_bleu else [])
        low, high = row["latency_quartiles_ms"]
        cells += [f"{row['latency_ms']:.2f} ({low:.2f}-{high:.2f})", f"{row['latency_p99_ms']:.2f}"]
        for title in references:
            ratio = row.get("speed_up", {}).get(title)
            cells.append(f"over {least_ratio(rows, title, row):.1f}" if ratio is None else f"{ratio:.2f}")
        measured = [row.get("throughput", {}).get(size) for size in sizes]
        cells += ["" if found is None else f"{found['sentences_per_second']:.0f}" for found in measured]
        cells += [f"{row['same_as_plain']:.1%}" if "same_as_plain" in row else ""]
        lines.append(cells)
    return markdown(head, lines) + RATIO_NOTE
