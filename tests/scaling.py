"""How training scales over processes: an event model, checked against this machine, and then asked about larger ones.

    python -m tests.scaling --output hub_card/results/scaling/scaling.json

The parts (making a batch, computing a step, summing the gradients) are measured one by one; the model puts them
together for 1, 2 and 4 processes; `jmnat train` under torchrun tells what it really takes. Run it on a quiet machine.
"""

import argparse
import heapq
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from modeling_jmnat.utils.markdown import markdown

ROOT = Path(__file__).resolve().parents[1]
PRESET, TOKENS = "multi30k_tiny", 1024  # target tokens of the batch of a process
STEPS = 60
ROUNDS = 20


def simulate(
    processes: int,
    steps: int,
    load: Sequence[float],
    compute: Sequence[float],
    all_reduce: float,
    cores: int | None = None,
    prefetch: int = 0,
    seed: int = 0,
) -> float:
    """Seconds of a step in the long run, by events: a batch is there, a process has its gradients, all are summed.

    Args:
        load, compute: seconds to draw from, of making a batch and of a step without communication.
        all_reduce: seconds that summing the gradients takes when the last process is there.
        cores: that all processes share; None for one of their own for each.
        prefetch: batches that are made beside the step; 0: the process makes them itself.
    """
    generator = random.Random(seed)
    slowdown = 1.0 if cores is None else max(1.0, processes / cores)
    events: list[tuple[float, int, str]] = []  # time, process, what has ended
    ready = [0] * processes  # batches
    loading, waiting = [False] * processes, [True] * processes
    arrived, now = 0, 0.0
    done = 0

    def begin(process: int, kind: str, times: Sequence[float]) -> None:
        heapq.heappush(events, (now + generator.choice(times) * slowdown, process, kind))

    def go_on(process: int) -> None:
        """Start what this process can do now."""
        if waiting[process] and ready[process]:
            ready[process] -= 1
            waiting[process] = False
            begin(process, "computed", compute)
        room = prefetch or int(waiting[process] and not ready[process])
        if not loading[process] and ready[process] < room:
            loading[process] = True
            begin(process, "loaded", load)

    for process in range(processes):
        go_on(process)
    while done < steps:
        now, process, kind = heapq.heappop(events)
        if kind == "loaded":
            loading[process] = False
            ready[process] += 1
            go_on(process)
        elif kind == "computed":
            arrived += 1
            if arrived == processes:
                arrived = 0
                heapq.heappush(events, (now + (all_reduce if processes > 1 else 0.0), 0, "summed"))
        else:
            done += 1
            waiting[:] = [True] * processes
            for each in range(processes):
                go_on(each)
    return now / steps


# The parts -----------------------------------------------------------------------------------------------------------


def measure_parts(data: Path, bf16: bool) -> tuple[list[float], list[float], int]:
    """Seconds of making each batch and of each step on it, and the bytes of the gradients."""
    import torch

    from modeling_jmnat import DataCollatorForJMNat, JMNatConfig, JMNatForConditionalGeneration
    from modeling_jmnat.benchmark.training import Hardware, TrainingStep
    from modeling_jmnat.data.preparation import load_prepared
    from modeling_jmnat.training.presets import load_preset

    torch.set_num_threads(1)
    dataset, tokenizer = load_prepared(data)
    model = JMNatForConditionalGeneration(JMNatConfig(vocab_size=len(tokenizer), **load_preset(PRESET).model))
    hardware = Hardware("cpu", "bfloat16" if bf16 else "float32")
    collator = DataCollatorForJMNat(tokenizer)
    step = TrainingStep(model, lambda batch: model(**batch).loss, collator, hardware)
    rows, load, compute = iter(dataset["train"]), [], []
    for _ in range(ROUNDS + 3):
        features, tokens = [], 0
        while tokens < TOKENS:
            row = next(rows)
            features.append({"input_ids": row["input_ids"], "labels": row["labels"]})
            tokens += len(row["labels"])
        times = [time.perf_counter()]
        batch = step.batch(step.collate(features))
        times.append(time.perf_counter())
        step.run(batch)
        times.append(time.perf_counter())
        load.append(times[1] - times[0])
        compute.append(times[2] - times[1])
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return load[3:], compute[3:], size


ALL_REDUCE = """
import sys, time, statistics, torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.set_num_threads(1)
gradients, times = torch.zeros(int(sys.argv[1]) // 4), []
for _ in range(20):
    dist.barrier()
    start = time.perf_counter()
    dist.all_reduce(gradients)
    times.append(time.perf_counter() - start)
if dist.get_rank() == 0:
    print(statistics.median(times))
dist.destroy_process_group()
"""


def torchrun(processes: int, script: Path, *arguments) -> str:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if run.returncode:
        raise SystemExit(run.stderr)
    return run.stdout


def measure_all_reduce(processes: int, size: int, folder: Path) -> float:
    script = folder / "all_reduce.py"
    script.write_text(ALL_REDUCE)
    return float(torchrun(processes, script, size).splitlines()[-1])


# The whole -----------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> Path:
    """Random words in sentences of one length."""
    from modeling_jmnat.data.preparation import PreparationArguments
    from modeling_jmnat.data.preparation import prepare as prepare_data

    generator, files = random.Random(0), {}
    words = [f"w{number}" for number in range(5500)]
    for split, count in (("train", 4000), ("validation", 20)):
        for side in ("source", "target"):
            path = folder / f"{split}.{side}"
            lines = [" ".join(generator.choices(words, k=5)) for _ in range(count)]
            path.write_text("\n".join(lines) + "\n")
            files[f"{split}_{side}"] = str(path)
    prepare_data(PreparationArguments(output_dir=str(folder / "data"), vocab_size=6000, **files))
    return folder / "data"


def measure_training(processes: int, data: Path, folder: Path, bf16: bool) -> tuple[float, float]:
    """Seconds of a step of `jmnat train` in the long run, and target tokens a second of all processes together."""
    output = folder / f"run-{processes}"
    options = {"preset": PRESET, "data": data, "output_dir": output, "max_steps": STEPS}
    options |= {"max_tokens": TOKENS, "eval_strategy": "no", "save_steps": STEPS, "logging_steps": 5}
    options |= {"bf16": bf16, "use_cpu": True, "disable_tqdm": True}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    torchrun(processes, ROOT / "run_scripts" / "train_jmnat.py", *words)
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    speeds = [row["target_tokens_per_second"] for row in log if "nll_loss" in row][2:]
    speed = statistics.median(speeds)
    return processes * TOKENS / speed, speed


def measure(counts: Sequence[int], bf16: bool) -> dict:
    cores = os.cpu_count() or 1
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare(folder)
        load, compute, size = measure_parts(data, bf16)
        for processes in counts:
            summed = measure_all_reduce(processes, size, folder) if processes > 1 else 0.0
            simulated = simulate(processes, 200, load, compute, summed, cores)
            seconds, tokens = measure_training(processes, data, folder, bf16)
            rows.append(
                {
                    "processes": processes,
                    "all_reduce_ms": round(1000 * summed, 1),
                    "simulated_step_ms": round(1000 * simulated, 1),
                    "measured_step_ms": round(1000 * seconds, 1),
                    "target_tokens_per_second": round(tokens, 1),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return {
        "command": "python -m tests.scaling" + " --bf16" * bf16,
        "machine": {"cores": cores, "architecture": platform.machine()},
        "batch_ms": round(1000 * statistics.median(load), 2),
        "step_ms": round(1000 * statistics.median(compute), 1),
        "gradient_mb": round(size / 1e6, 1),
        "rows": rows,
    }


# Larger machines -----------------------------------------------------------------------------------------------------

# Assumed, not measured: bytes a second of the slowest link in a ring, and cores of a CPU node.
LINKS = {"in one machine": 200e9, "between machines": 25e9}
GPUS_OF_A_MACHINE, CORES_OF_A_NODE = 8, 16
TOKENS_A_GPU = 8192  # of the preset wmt_base in each step of each GPU
CORPORA = (4_500_000, 1_000_000_000)


def stored(folder: str, **conditions) -> dict:
    """The row of results with these values."""
    with open(ROOT / "hub_card" / "results" / folder / "results.jsonl", encoding="utf-8") as file:
        rows = map(json.loads, file)
        return next(row for row in rows if all(row.get(name) == value for name, value in conditions.items()))


def measured_speeds() -> dict[str, float]:
    """What one core or GPU does in a second with a base model and 25 tokens a sentence, from the stored results."""
    prepared = json.loads((ROOT / "hub_card" / "results" / "preparation" / "preparation.json").read_text())
    largest = max(prepared["runs"], key=lambda run: run["pairs"])
    on_gpu, on_core = {"run": "random_base_on_h100"}, {"run": "random_base_on_xeon"}
    gpu_beam, gpu_ours = "Transformers float16, beam 5", "JM-NAT graphs float16, C = 4, k = 4"
    core_beam, core_ours = "CTranslate2 int8, beam 5", "JM-NAT ONNX int8, C = 4, k = 4"
    training = stored("speed_training", run="gpu", size="base")["student"]
    return {
        "prepared_pairs_a_core": largest["pairs"] / largest["cpu_seconds"],
        "distilled_sentences_a_gpu": stored("speed_gpu", **on_gpu, title=gpu_beam)["throughput"]["32"][
            "sentences_per_second"
        ],
        "distilled_sentences_a_core": stored("speed_cpu", **on_core, title=core_beam)["sentences_per_second"],
        "trained_tokens_a_gpu": training["target_tokens_per_second"],
        "gradient_bytes": 4.0 * training["parameters"],
        "translated_sentences_a_gpu": stored("speed_gpu", **on_gpu, title=gpu_ours)["throughput"]["32"][
            "sentences_per_second"
        ],
        "translated_sentences_a_core": stored("speed_cpu", **on_core, title=core_ours)["sentences_per_second"],
    }


def training_efficiency(gpus: int, speeds: dict[str, float]) -> float:
    """Tokens a second of all GPUs over those of as many single ones, by the event model."""
    compute = TOKENS_A_GPU / speeds["trained_tokens_a_gpu"]
    link = LINKS["in one machine" if gpus <= GPUS_OF_A_MACHINE else "between machines"]
    all_reduce = 2 * (gpus - 1) / gpus * speeds["gradient_bytes"] / link
    # Steps differ by a twentieth, as those that were timed; workers make batches beside them.
    times = [compute * factor for factor in (0.95, 1.0, 1.05)]
    return compute / simulate(gpus, 200, [0.3 * compute], times, all_reduce, prefetch=2)


def estimate() -> dict:
    """Hours for each corpus on 8 and 64 GPUs and on 100 CPU nodes."""
    speeds = measured_speeds()
    cores = 100 * CORES_OF_A_NODE
    updates, tokens = 300_000, 8 * TOKENS_A_GPU  # of the preset, over all GPUs
    efficiency = {gpus: training_efficiency(gpus, speeds) for gpus in (GPUS_OF_A_MACHINE, 64)}
    hours = []
    for pairs in CORPORA:
        row = {"pairs": pairs}
        row["prepare_16_cores"] = pairs / speeds["prepared_pairs_a_core"] / CORES_OF_A_NODE
        for gpus in efficiency:
            row[f"distill_{gpus}_gpus"] = pairs / speeds["distilled_sentences_a_gpu"] / gpus
            row[f"translate_{gpus}_gpus"] = pairs / speeds["translated_sentences_a_gpu"] / gpus
        row["distill_100_nodes"] = pairs / speeds["distilled_sentences_a_core"] / cores
        row["translate_100_nodes"] = pairs / speeds["translated_sentences_a_core"] / cores
        hours.append({name: value if name == "pairs" else round(value / 3600, 2) for name, value in row.items()})
    training = {
        f"{gpus}_gpus": round(updates * tokens / (speeds["trained_tokens_a_gpu"] * gpus * share) / 3600, 2)
        for gpus, share in efficiency.items()
    }
    return {
        "speeds": {name: round(value, 1) for name, value in speeds.items()},
        "assumed": {"links": LINKS, "cores_of_a_node": CORES_OF_A_NODE, "gpus_of_a_machine": GPUS_OF_A_MACHINE},
        "efficiency": {str(gpus): round(share, 2) for gpus, share in efficiency.items()},
        "training_hours": training,
        "hours": hours,
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output")
    parser.add_argument("--estimate", action="store_true", help="For larger machines, from the stored results alone.")
    arguments = parser.parse_args(argv)
    if arguments.estimate:
        return print(json.dumps(estimate(), indent=2))
    report = measure(arguments.processes, arguments.bf16)
    print(markdown(list(report["rows"][0]), [list(map(str, row.values())) for row in report["rows"]]))
    if arguments.output:
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
