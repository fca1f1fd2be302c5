"""Speed of training: target tokens per second, use of the hardware and the share of each part of a step.

Steps of the student alternate with those of the autoregressive teacher of the same widths, each with its own
collator, loss and optimiser, as in training. The peak of the hardware is measured, not looked up: by plain matrix
products of all shapes in the model's linear layers.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..configuration_jmnat import JMNatConfig
from ..inference.engines import wait_for
from ..modeling_jmnat import JMNatForConditionalGeneration, JMNatSeq2SeqLMOutput, JMNatSeq2SeqModelOutput
from ..teacher.model import build_teacher
from ..teacher.trainer import DataCollatorForTeacher, teacher_losses
from ..training.data_collator import DataCollatorForJMNat
from ..training.trainer import choose_cpu_attention
from ..utils.markdown import markdown
from .options import TRAINING_SIZES
from .systems import random_tokenizer, sized_config
from .timing import spread

LABEL_SMOOTHING = 0.1
MASKS = "masks and padding"
LONGEST_PRODUCT = 0.05  # seconds for which products of one shape are repeated, at least once


@dataclass
class Hardware:
    """Where and how a step runs.

    Args:
        device: "cpu" or "cuda".
        dtype: "float32", or "bfloat16" by autocast.
        compiled: whether layers are compiled by `torch.compile`.
    """

    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = False

    @property
    def in_workers(self) -> bool:
        """Whether batches are collated in parallel to the step, as by a `DataLoader` with workers."""
        return self.device == "cuda"

    def autocast(self):
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device, getattr(torch, self.dtype))


class TrainingStep:
    """One optimiser step of one model; its batch is collated again each time.

    Args:
        loss: batch on the device -> scalar.
        collator: list of features -> batch.
    """

    def __init__(self, model: nn.Module, loss: Callable[[dict], torch.Tensor], collator, hardware: Hardware):
        self.model = model.to(hardware.device).train()
        choose_cpu_attention(model, hardware.device, hardware.dtype == "bfloat16")
        self.loss = loss
        self.collator = collator
        self.hardware = hardware
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True)
        if hardware.compiled:
            for module in model.modules():
                if isinstance(module, nn.ModuleList):
                    for layer in module:
                        layer.compile()

    def collate(self, features: Sequence[dict]) -> dict[str, torch.Tensor]:
        """What the worker processes of a training do when there is a GPU: batches in pinned memory."""
        batch = self.collator(features)
        return {name: value.pin_memory() for name, value in batch.items()} if self.hardware.in_workers else batch

    def batch(self, collated: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value.to(self.hardware.device, non_blocking=True) for name, value in collated.items()}

    def optimise(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self, batch: dict[str, torch.Tensor]) -> None:
        with self.hardware.autocast():
            loss = self.loss(batch)
        loss.backward()
        self.optimise()


def build_steps(size: str, hardware: Hardware) -> dict[str, TrainingStep]:
    """The student's and the teacher's step, with random weights."""
    config = sized_config("size", size, TRAINING_SIZES)
    tokenizer = random_tokenizer(config.vocab_size)
    torch.manual_seed(0)
    student = JMNatForConditionalGeneration(config)
    teacher = build_teacher(config, tokenizer)
    return {
        "student": TrainingStep(
            student, lambda batch: student(**batch).loss, DataCollatorForJMNat(tokenizer), hardware
        ),
        "teacher": TrainingStep(
            teacher,
            lambda batch: teacher_losses(teacher, batch, LABEL_SMOOTHING).loss,
            DataCollatorForTeacher(tokenizer),
            hardware,
        ),
    }


def random_features(config: JMNatConfig, num_sentences: int, length: int, seed: int = 0) -> list[dict]:
    """Pairs of `length` tokens each, `</s>` included."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, config.vocab_size, (2, num_sentences, length), generator=generator)
    ids[:, :, -1] = config.eos_token_id
    sources, targets = ids.tolist()
    return [
        {"id": number, "input_ids": source, "labels": target}
        for number, (source, target) in enumerate(zip(sources, targets, strict=True))
    ]


class Stopwatch:
    """Measures the seconds between its calls, by name."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: Counter = Counter()
        self.last = self.now()

    def now(self) -> float:
        wait_for(self.device)
        return time.perf_counter()

    def __call__(self, *names: str) -> None:
        now = self.now()
        for name in names:
            self.seconds[name] += now - self.last
        self.last = self.now()


def cut(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a leaf, so that the autograd graph of the next part begins here."""
    return tensor.detach().requires_grad_()


def step_in_parts(step: TrainingStep, features: Sequence[dict], ngram_last: bool) -> dict[str, float]:
    """Seconds of each part of one step of the student, forward and backward.

    The losses (projection included) are computed with and without the n-gram term, to show its cost.
    """
    model, config = step.model, step.model.config
    watch = Stopwatch(step.hardware.device)
    collated = step.collate(features)
    watch(MASKS)
    batch = step.batch(collated)
    watch("unused")
    with step.hardware.autocast():
        encoded = model.model.encoder(batch["input_ids"], batch["attention_mask"])
        watch("encoder")
        states, length_logits = cut(encoded.last_hidden_state), cut(encoded.length_logits)
        decoded = model.model.decoder(
            batch["decoder_input_ids"], batch["decoder_attention_mask"], states, batch["attention_mask"]
        ).last_hidden_state
        watch("decoder")
    targets = (batch["labels"], batch["masked_positions"], batch["encoder_targets"], None)
    weight = config.ngram_loss_weight
    weights = {"losses": 0.0, "losses with n-gram term": weight}
    for name in weights if ngram_last else reversed(weights):
        config.ngram_loss_weight = weights[name]
        outputs = JMNatSeq2SeqModelOutput(cut(decoded), encoder_last_hidden_state=cut(states))
        step.optimizer.zero_grad(set_to_none=True)  # of the other turn
        length_logits.grad = None
        watch("unused")
        with step.hardware.autocast():
            result = JMNatSeq2SeqLMOutput(length_logits=length_logits)
            model.add_losses(result, outputs, *targets)
        result.loss.backward()
        watch(name)
    config.ngram_loss_weight = weight
    decoded.backward(outputs.last_hidden_state.grad)
    watch("decoder")
    grads = [states.grad + outputs.encoder_last_hidden_state.grad, length_logits.grad]
    torch.autograd.backward([encoded.last_hidden_state, encoded.length_logits], grads)
    watch("encoder")
    step.optimise()
    watch("optimiser")
    return dict(watch.seconds)


def shares_of_parts(step: TrainingStep, batches: Sequence[Sequence[dict]], num_rounds: int) -> dict[str, float]:
    """Each part's share of the total time, from medians over rounds; the total excludes masks that workers draw."""
    rounds = []
    for turn in range(1 + num_rounds):
        rounds.append(step_in_parts(step, batches[turn % len(batches)], turn % 2 == 0))
    rounds = rounds[1:]
    names = (MASKS, "encoder", "decoder", "losses", "optimiser")
    seconds = {name: statistics.median(found[name] for found in rounds) for name in names}
    more = statistics.median(found["losses with n-gram term"] - found["losses"] for found in rounds)
    seconds["n-gram term"] = max(0.0, more)
    total = sum(seconds.values()) - (seconds[MASKS] if step.hardware.in_workers else 0.0)
    return {name: value / total for name, value in seconds.items()}


def product_shapes(step: TrainingStep, batch: dict) -> Counter:
    """(rows, width in, width out) of all linear layers in a forward pass, with how often each occurs."""
    shapes: Counter = Counter()

    def count(module, inputs, output):
        shapes[inputs[0].numel() // module.in_features, module.in_features, module.out_features] += 1

    linears = [module for module in step.model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(count) for module in linears]
    with torch.no_grad():
        step.loss(batch)
    for handle in handles:
        handle.remove()
    return shapes


def seconds_of(function: Callable[[], object], device: str) -> float:
    """Median over repeated calls, after one call to warm up."""
    function()
    found: list[float] = []
    start = time.perf_counter()
    while not found or (time.perf_counter() - start < LONGEST_PRODUCT and len(found) < 20):
        watch = Stopwatch(device)
        function()
        watch("call")
        found.append(watch.seconds["call"])
    return statistics.median(found)


def product_peak(shapes: Counter, hardware: Hardware) -> float:
    """FLOP/s of plain matrix products of these shapes, including the backward pass."""
    operations = seconds = 0.0
    kind = {"device": hardware.device, "dtype": getattr(torch, hardware.dtype)}
    for (rows, width_in, width_out), count in shapes.items():
        states, weight = torch.randn(rows, width_in, **kind), torch.randn(width_out, width_in, **kind)
        grad = torch.randn(rows, width_out, **kind)
        products = (lambda: states @ weight.T, lambda: grad @ weight, lambda: grad.T @ states)  # noqa: B023
        seconds += count * sum(seconds_of(product, hardware.device) for product in products)
        operations += count * len(products) * 2 * rows * width_in * width_out
    return operations / seconds


def operations_of(step: TrainingStep, batch: dict) -> float:
    """Floating-point operations that a forward and backward pass needs mathematically."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step.loss(batch).backward()
    step.optimizer.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


@dataclass
class StepTimes:
    """Seconds of the steps of one model: wall-clock time, and CPU time over all cores."""

    wall: list[float] = field(default_factory=list)
    core: list[float] = field(default_factory=list)


def timed_steps(steps: dict[str, TrainingStep], batches, num_rounds: int, deadline: float) -> dict[str, StepTimes]:
    """Times of the models' steps, alternating; after three rounds only until `deadline`. Workers do not count."""
    found = {name: StepTimes() for name in steps}
    names = list(steps)
    for turn in range(num_rounds + 1):  # the first does not count
        if turn > 3 and time.monotonic() > deadline:
            break
        for name in names[turn % 2 :] + names[: turn % 2]:
            step = steps[name]
            before = time.process_time()
            watch = Stopwatch(step.hardware.device)
            collated = step.collate(batches[turn % len(batches)])
            watch("collation")
            step.run(step.batch(collated))
            watch("step")
            if turn:
                collation = 0.0 if step.hardware.in_workers else watch.seconds["collation"]
                found[name].wall.append(watch.seconds["step"] + collation)
                found[name].core.append(time.process_time() - before)
    return found


def run_training_benchmark(
    size: str,
    hardware: Hardware,
    max_tokens: int,
    length: int = 25,
    num_rounds: int = 20,
    time_budget: float = 60.0,
    num_threads: int = 1,
) -> Iterator[dict]:
    """Yield the figures twice: after timing the steps, and again with hardware use and the shares of parts.

    Args:
        size: a name in `TRAINING_SIZES`.
        max_tokens: source or target tokens in a batch.
        length: tokens of every source and target.
        num_rounds: the most steps of each model; fewer if `time_budget` (seconds) is spent.
    """
    deadline = time.monotonic() + time_budget
    torch.set_num_threads(num_threads)
    steps = build_steps(size, hardware)
    count = max(1, max_tokens // length)
    config = steps["student"].model.config
    batches = [random_features(config, count, length, seed) for seed in range(4)]
    times = timed_steps(steps, batches, num_rounds, deadline)
    figures: dict = {"size": size, "device": hardware.device, "dtype": hardware.dtype, "compiled": hardware.compiled}
    figures |= {"batch_tokens": count * length, "length": length, "threads": num_threads, "rounds": num_rounds}
    for name, found in times.items():
        median = statistics.median(found.wall)
        figures[name] = {"seconds": median, "spread": spread(found.wall), "rounds": len(found.wall)}
        figures[name]["target_tokens_per_second"] = count * length / median
        if hardware.device == "cpu":  # CPU time, which other processes on the machine do not affect
            figures[name]["target_tokens_per_core_second"] = count * length / statistics.median(found.core)
        trained = [parameter for parameter in steps[name].model.parameters() if parameter.requires_grad]
        figures[name]["parameters"] = sum(parameter.numel() for parameter in trained)
    pairs = zip(*(times[name].core if hardware.device == "cpu" else times[name].wall for name in times), strict=True)
    figures["cost_against_teacher"] = statistics.median(ours / theirs for ours, theirs in pairs)
    yield figures
    plain = Hardware(hardware.device, hardware.dtype)
    for name, step in steps.items():
        batch = step.batch(step.collate(batches[0]))
        if hardware.compiled:  # operations are counted, and parts cut, on the same layers without the compiler
            for module in step.model.modules():
                module._compiled_call_impl = None
        operations, peak = operations_of(step, batch), product_peak(product_shapes(step, batch), plain)
        achieved = operations / figures[name]["seconds"]
        figures[name] |= {"operations": operations, "operations_per_second": achieved, "product_peak": peak}
        figures[name]["utilisation"] = achieved / peak
    figures["shares"] = shares_of_parts(steps["student"], batches, max(3, min(num_rounds, 10)))
    yield figures


def training_table(rows: Sequence[dict]) -> str:
    """The figures for a person: one line per setting."""
    head = ["setting", "target tokens/s", "teacher's", "per core", "cost against teacher", "utilisation", "teacher's"]
    parts = list(dict.fromkeys(name for row in rows for name in row.get("shares", {})))
    lines = []
    for row in rows:
        setting = f"{row['size']}, {row['device']}, {row['dtype']}{', compiled' if row['compiled'] else ''}"
        cells = [f"{setting}, {row['batch_tokens']} tokens"]
        cells += [f"{row[name]['target_tokens_per_second']:.0f}" for name in ("student", "teacher")]
        per_core = row["student"].get("target_tokens_per_core_second")
        cells += ["" if per_core is None else f"{per_core:.0f}", f"{row['cost_against_teacher']:.2f}"]
        used = [row[name].get("utilisation") for name in ("student", "teacher")]
        cells += ["" if value is None else f"{value:.1%}" for value in used]
        shares = [row.get("shares", {}).get(name) for name in parts]
        cells += ["" if share is None else f"{share:.1%}" for share in shares]
        lines.append(cells)
    return markdown(head + parts, lines)
