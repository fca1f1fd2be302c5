"""How long the trainings of a suite will take on this machine, from a few steps of each kind of model."""

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from .batching import TokenBatchSampler
from .configuration_jmnat import JMNatConfig
from .cpu_attention import choose_cpu_attention
from .data_collator import DataCollatorForJMNat
from .dataset_columns import column_lengths, without_text
from .experiments import Stage
from .modeling_jmnat import JMNatForConditionalGeneration
from .preparation import load_prepared
from .presets import load_preset
from .suites import Work
from .teacher import build_teacher
from .teacher_trainer import DataCollatorForTeacher
from .teacher_training import teacher_defaults

PROBE_STEPS = 3
PROBE_SECONDS = 5.0  # no further step begins after that
CPU_PROBE_TOKENS = 1024  # of a probe's batch on a CPU; the time of larger ones is taken in proportion


def step_seconds(preset_name: str, data: Path, autoregressive: bool, bf16: bool = False) -> float:
    """Seconds of one update of a preset's model at its batch size: forward, backward and AdamW, without evaluation."""
    preset = load_preset(preset_name)
    training = teacher_defaults(preset) if autoregressive else preset.training
    dataset, tokenizer = load_prepared(data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if autoregressive:
        model, collator = build_teacher(preset.model, tokenizer), DataCollatorForTeacher(tokenizer)
    else:
        model = JMNatForConditionalGeneration(JMNatConfig(vocab_size=len(tokenizer), **preset.model))
        collator = DataCollatorForJMNat(tokenizer, **preset.masking)
    lengths = [column_lengths(dataset["train"], name) for name in ("input_ids", "labels")]
    tokens = training.get("max_tokens") or 8 * int(lengths[1].mean())  # Trainer's default are 8 sentences
    probed = tokens if device.type == "cuda" else min(tokens, CPU_PROBE_TOKENS)
    probed = max(probed, int(max(side.max() for side in lengths)))
    sampler = TokenBatchSampler(*lengths, probed, shuffle=True)
    batches = list(itertools.islice(sampler, PROBE_STEPS))
    examples = without_text(dataset["train"])
    model.to(device).train()
    choose_cpu_attention(model, device.type, bf16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    seconds = []
    for indices in [batches[0], *batches]:  # the first one warms up
        start = time.perf_counter()
        batch = {name: value.to(device) for name, value in collator([examples[i] for i in indices]).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if len(seconds) > 1 and sum(seconds) > PROBE_SECONDS:
            break
    mean = sum(seconds[1:]) / (len(seconds) - 1)
    return mean * tokens / probed * training.get("gradient_accumulation_steps", 1)


def longest_way(stages: Sequence[Stage], minutes: Mapping[str, float], jobs: int) -> float:
    """Minutes until all stages are done, `jobs` at a time and each after what it needs, in their order."""
    ends: dict[str, float] = {}
    waiting = list(stages)
    running: list[tuple[float, str]] = []
    now = 0.0
    while waiting or running:
        ready = [stage for stage in waiting if all(ends.get(name, now + 1) <= now for name in stage.needs)]
        for stage in ready[: jobs - len(running)]:
            waiting.remove(stage)
            running.append((now + minutes.get(stage.name, 0.0), stage.name))
        now, name = min(running)
        running.remove((now, name))
        ends[name] = now
    return now


def duration(minutes: float) -> str:
    """Minutes, hours or days, whichever reads best."""
    if minutes < 120:
        return f"{minutes:.1f} minutes"
    return f"{minutes / 60:.1f} hours" if minutes < 48 * 60 else f"{minutes / (24 * 60):.1f} days"


def estimate(
    stages: Sequence[Stage], work: Mapping[str, Work], done: set[str], data: Path, jobs: int, bf16: bool = False
) -> str:
    """One sentence on the time that the trainings still need; it takes a few seconds to find out."""
    left = {name: item for name, item in work.items() if name not in done}
    others = sum(stage.name not in done and stage.name not in work for stage in stages)
    if not left:
        return "no training is left to do" + (f", but {others} evaluations and other stages" if others else "")
    kinds = sorted({(item.preset, item.autoregressive) for item in left.values()})
    seconds = {kind: step_seconds(kind[0], data, kind[1], bf16) for kind in kinds}
    minutes = {name: item.updates * seconds[item.preset, item.autoregressive] / 60 for name, item in left.items()}
    measured = ", ".join(
        f"{seconds[kind]:.3g} s for an update of {kind[0]}{' (teacher)' if kind[1] else ''}" for kind in kinds
    )
    return (
        f"about {duration(longest_way(stages, minutes, jobs))} for {len(left)} trainings with "
        f"{round(sum(item.updates for item in left.values()))} updates ({measured}), {jobs} at a time if they do not "
        f"slow each other down, and {others} evaluations and other stages, which are not in this time"
    )
