"""How long a suite will take on this machine, from a few seconds of each kind of work."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from datasets import DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_jmnat import JMNatConfig
from ..data.dataset_columns import column_lengths, without_text
from ..modeling_jmnat import JMNatForConditionalGeneration
from ..teacher.backends import CTranslate2Decoder, choose_backend
from ..teacher.model import build_teacher, pad_batch
from ..teacher.run import teacher_defaults
from ..teacher.trainer import DataCollatorForTeacher
from ..training.cpu_attention import choose_cpu_attention
from ..training.data_collator import DataCollatorForJMNat
from ..training.presets import Preset, load_preset
from ..training.token_batches import TokenBatchSampler
from .runner import Stage
from .work import DISTILLING, STUDENT, Kind

PROBE_STEPS = 3
PROBE_SECONDS = 5.0  # no further step begins after that
CPU_PROBE_TOKENS = 1024  # of a probe's batch on a CPU; the time of larger ones is taken in proportion
PROBE_SENTENCES, PROBE_PASSES, PROBE_CANDIDATES, PROBE_BEAMS = 32, 3, 4, 5


class Probe:
    """Measures kinds of work on the data of a run, with random weights.

    Args:
        splits: prepared data with a training split.
        bf16: as the trainings are.
    """

    def __init__(self, splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, bf16: bool = False):
        self.tokenizer, self.bf16 = tokenizer, bf16
        self.examples = without_text(splits["train"])
        self.lengths = [column_lengths(splits["train"], name) for name in ("input_ids", "labels")]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def seconds(self, kind: Kind) -> float:
        """Of one unit of work."""
        preset = load_preset(kind.preset)
        model = self.build(preset, kind.who)
        try:
            if kind.update:
                return self.update_seconds(preset, kind.who, model)
            return self.translation_seconds(kind.who, model)
        finally:
            del model
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # the stages want it

    def build(self, preset: Preset, who: str) -> PreTrainedModel:
        if who == STUDENT:
            model = JMNatForConditionalGeneration(JMNatConfig(vocab_size=len(self.tokenizer), **preset.model))
        else:
            model = build_teacher(preset.model, self.tokenizer)
        return model.to(self.device)

    def update_seconds(self, preset: Preset, who: str, model: PreTrainedModel) -> float:
        """Forward, backward and AdamW at the preset's batch size."""
        if who == STUDENT:
            training, collator = preset.training, DataCollatorForJMNat(self.tokenizer, **preset.masking)
        else:
            training, collator = teacher_defaults(preset), DataCollatorForTeacher(self.tokenizer)
        tokens = training.get("max_tokens") or 8 * int(self.lengths[1].mean())  # Trainer's default are 8 sentences
        probed = tokens if self.device.type == "cuda" else min(tokens, CPU_PROBE_TOKENS)
        probed = max(probed, int(max(side.max() for side in self.lengths)))
        sampler = TokenBatchSampler(*self.lengths, probed, shuffle=True)
        batches = list(itertools.islice(sampler, PROBE_STEPS))
        choose_cpu_attention(model.train(), self.device.type, self.bf16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

        def update(indices: list[int]) -> None:
            batch = collator([self.examples[index] for index in indices])
            batch = {name: value.to(self.device) for name, value in batch.items()}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        mean = self.mean_seconds([lambda indices=indices: update(indices) for indices in [batches[0], *batches]])
        return mean * tokens / probed * training.get("gradient_accumulation_steps", 1)

    def translation_seconds(self, who: str, model: PreTrainedModel) -> float:
        """Of one beam of a sentence, or one pass over one candidate, at the usual lengths."""
        count = min(PROBE_SENTENCES, len(self.examples))
        sources = [self.examples[index * len(self.examples) // count]["input_ids"] for index in range(count)]
        length = max(2, round(float(self.lengths[1].mean())))
        input_ids, attention_mask = pad_batch(sources, self.tokenizer.pad_token_id, self.device)
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        units, model = count * PROBE_BEAMS, model.eval()
        if who == STUDENT:
            passes = PROBE_PASSES if model.config.decoder_input == "mask" else 1  # the basic NAT refines nothing
            units = count * passes * PROBE_CANDIDATES
            lengths = torch.full((count,), length, device=self.device)
            options = {"num_iterations": passes, "num_length_candidates": PROBE_CANDIDATES}
            translate = lambda: model.generate(**given, target_lengths=lengths, **options)  # noqa: E731
        elif who == DISTILLING and choose_backend("auto", model, self.device) == "ctranslate2":
            decoder = CTranslate2Decoder(model, self.tokenizer, shares_vocabulary=True)
            tokens = [self.tokenizer.convert_ids_to_tokens(list(ids)) for ids in sources]
            limits = {"min_decoding_length": length, "max_decoding_length": length, "beam_size": PROBE_BEAMS}
            shares = max(1, count // decoder.num_workers)
            translate = lambda: decoder.translator.translate_batch(tokens, max_batch_size=shares, **limits)  # noqa: E731
        else:
            model.generation_config.max_length = None
            search = {"num_beams": PROBE_BEAMS, "min_new_tokens": length, "max_new_tokens": length}
            translate = lambda: model.generate(**given, **search)  # noqa: E731
        with torch.inference_mode():
            return self.mean_seconds([translate, translate]) / units

    def mean_seconds(self, steps: Sequence[Callable[[], object]]) -> float:
        """Of all but the first, which warms up."""
        seconds = []
        for step in steps:
            start = time.perf_counter()
            step()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            if len(seconds) > 1 and sum(seconds) > PROBE_SECONDS:
                break
        return sum(seconds[1:]) / (len(seconds) - 1)


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
    stages: Sequence[Stage], work: Mapping[str, Counter[Kind]], done: set[str], probe: Probe, jobs: int
) -> str:
    """One sentence on the time that is still needed; it takes a few seconds to find out.

    Args:
        work: of each stage, see `work_of`; that of a teacher which is not trained counts as one of the preset's size.
        done: names of stages.
    """
    left = {name: amounts for name, amounts in work.items() if name not in done}
    kinds = sorted({kind for amounts in left.values() for kind, amount in amounts.items() if amount})
    if not kinds:
        return "nothing that takes long is left to do"
    seconds = {kind: probe.seconds(kind) for kind in kinds}
    minutes = {
        name: sum(amount * seconds[kind] for kind, amount in amounts.items() if amount) / 60
        for name, amounts in left.items()
    }
    updates = sum(amount for amounts in left.values() for kind, amount in amounts.items() if kind.update)
    trainings = sum(stage.trains for stage in stages if stage.name in left)
    measured = ", ".join(f"{seconds[kind]:.2g} s for {kind}" for kind in kinds)
    return (
        f"about {duration(longest_way(stages, minutes, jobs))} for {trainings} trainings with {round(updates)} "
        f"updates and {len(left) - trainings} other stages ({measured}), {jobs} at a time if they do not slow each "
        "other down"
    )
