"""How well and how fast a model translates: the figures of the paper's tables 2 and 3, for JM-NAT and its teachers.

To compare with other work, use sacreBLEU with its signature; the paper reports tokenised BLEU.
"""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from ..inference.loading import is_jmnat
from ..inference.translation import Translation, translate_lines
from ..utils.bleu import DEFAULT_TOKENIZER, bleu_metric
from ..utils.translation_scores import Scorer, scored
from .source_words import word_finder

LATENCY_ROUNDS = 3
WARM_UP_SENTENCES = 8
CPUINFO = Path("/proc/cpuinfo")
# Instructions on which the speed of a CPU depends: wide registers, integer products and bfloat16 products.
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "avx512_bf16", "amx_bf16")
SOURCE_WORDS = (5, 10, 15, 20, 30)  # upper limits of the length groups; one more group has the rest


def score_by_source_words(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    lowercase: bool = False,
    tokenizer: str = DEFAULT_TOKENIZER,
) -> dict[str, dict]:
    """sacreBLEU by sentence length: `{"1-5": {"sentences": 120, "sacrebleu": 31.2}, ...}`.

    Lengths are counted in source words, so they do not depend on a system's vocabulary; in languages without spaces
    between words, in characters (see `word_finder`). Empty groups are left out.
    """
    groups, lengths = {}, list(map(len, map(word_finder(sources), sources)))
    for low, high in zip((0, *SOURCE_WORDS), (*SOURCE_WORDS, float("inf")), strict=True):
        inside = [row for row, length in enumerate(lengths) if low < length <= high]
        if inside:
            name = f"over {low}" if high == float("inf") else f"{low + 1}-{high}"
            texts, targets = ([lines[row] for row in inside] for lines in (hypotheses, references))
            score = bleu_metric(tokenizer, lowercase).corpus_score(texts, [targets]).score
            groups[name] = {"sentences": len(inside), "sacrebleu": score}
    return groups


def evaluate_model(
    model,
    tokenizer,
    sources: Sequence[str],
    references: Sequence[str],
    settings: Sequence[dict],
    *,
    original: Sequence[str] | None = None,
    generation: dict | None = None,
    scorer: Scorer | None = None,
    batch_tokens: int | None = None,
    latency_sentences: int = 0,
    split_sentences: bool = False,
    long_lines: str = "error",
    progress: bool = False,
    **scoring,
) -> Iterator[tuple[dict, list[str]]]:
    """Translate `sources` once per entry of `settings` and yield the figures with the translations.

    Args:
        settings: the options that differ, such as `[{"num_iterations": 1}, {"num_iterations": 4}]`.
        original: the sources without noise and prefix, whose words the groups of lengths count. Default: `sources`.
        generation: the options that all settings share, such as `{"num_length_candidates": 4}`.
        scorer: scorer with the references; by default one for English.
        scoring: `resamples`, `seed` and `baselines` as in `score_translations`.
        latency_sentences: also translate this many sentences, spread over the file, one at a time, and report the
            milliseconds from text to text; 0 for none.
        split_sentences, long_lines: as in `translate_lines`. The figure `long_lines` counts the affected lines.
    """
    scorer = scorer or Scorer(references)
    reading = {"split_sentences": split_sentences, "long_lines": long_lines}
    for setting in settings:
        translate = _translator(model, tokenizer, {**(generation or {}), **setting, **reading}, batch_tokens)
        translate(sources[:WARM_UP_SENTENCES])
        start = time.perf_counter()
        translations = translate(sources, progress=progress, total=len(sources))
        seconds = time.perf_counter() - start
        texts = [translation.text for translation in translations]
        figures = {
            **setting,
            **scored(scorer, texts, **scoring),
            "by_source_words": score_by_source_words(
                original or sources, texts, references, scorer.lowercase, scorer.bleu_tokenizer
            ),
            **(decoding_figures(tokenizer, translations, references) if is_jmnat(model) else {}),
            "long_lines": sum(translation.too_long for translation in translations),
            "seconds": seconds,
            "sentences_per_second": len(sources) / seconds,
            "tokens_per_second": sum(len(translation.token_ids) for translation in translations) / seconds,
        }
        if latency_sentences:
            figures["latency_ms"] = measure_latency(translate, sources, latency_sentences)
        yield _rounded(figures), texts


def _translator(model, tokenizer, options: dict, batch_tokens: int | None) -> Callable[..., list[Translation]]:
    def translate(lines, **kwargs):
        return list(translate_lines(model, tokenizer, lines, max_batch_tokens=batch_tokens, **kwargs, **options))

    return translate


def decoding_figures(tokenizer, translations: Sequence[Translation], references: Sequence[str]) -> dict:
    """Passes and lengths of a JM-NAT decoding; lengths are counted in tokens, `</s>` included.

    Returns:
        `mean_passes`; `length_recall`, the share of sentences whose reference length is among the `length_recall_at`
        lengths that were tried; `length_accuracy`, the share whose translation is as long as the reference. Blank
        lines are left out; figures of lengths also leave out lines that were translated in several pieces.
    """
    lengths = [len(ids) for ids in tokenizer(text_target=list(references), verbose=False)["input_ids"]]
    decoded = [(item, length) for item, length in zip(translations, lengths, strict=True) if item.num_passes]
    mean_passes = _mean([item.num_passes for item, _ in decoded])
    decoded = [(item, length) for item, length in decoded if item.candidate_lengths is not None]
    return {
        "mean_passes": mean_passes,
        "length_recall": _mean([length in item.candidate_lengths for item, length in decoded]),
        "length_recall_at": max((len(item.candidate_lengths) for item, _ in decoded), default=0),
        "length_accuracy": _mean([len(item.token_ids) + 1 == length for item, length in decoded]),
    }


def measure_latency(translate: Callable[..., list[Translation]], sources: Sequence[str], number: int) -> dict:
    """Milliseconds per sentence at batch 1, from text to text: mean, median and 99th percentile.

    The sentences are spread evenly over the file. `WARM_UP_SENTENCES` are translated before timing starts. Each
    sentence counts with its median over `LATENCY_ROUNDS` rounds.
    """
    number = min(number, len(sources))
    chosen = [sources[position * len(sources) // number] for position in range(number)]
    for source in chosen[:WARM_UP_SENTENCES]:
        translate([source])
    times: list[list[float]] = [[] for _ in chosen]
    for _ in range(LATENCY_ROUNDS):
        for source, rounds in zip(chosen, times, strict=True):
            start = time.perf_counter()
            translate([source])
            rounds.append(1000 * (time.perf_counter() - start))
    ordered = torch.tensor(times, dtype=torch.float64).quantile(0.50, dim=1)
    return {
        "sentences": number,
        "rounds": LATENCY_ROUNDS,
        "mean": ordered.mean().item(),
        "p50": ordered.quantile(0.50).item(),
        "p99": ordered.quantile(0.99).item(),
    }


def describe_environment(model) -> dict:
    """The versions and the device that figures were measured with."""
    import sacrebleu

    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "sacrebleu": sacrebleu.__version__,
        },
        "device": {
            "type": device.type,
            "name": name,
            "threads": torch.get_num_threads(),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
    }


def machine_in_words(device: Mapping[str, Any]) -> str:
    """Device, threads of a processor, and dtype, of the `device` of `describe_environment`."""
    threads = f", {device['threads']} thread{'s' * (device['threads'] != 1)}" if device["type"] == "cpu" else ""
    return f"{device['name']}{threads}, {device['dtype']}"


def processor_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_instructions() -> list[str]:
    """The members of `INSTRUCTIONS` that the processor has; none if that is unknown."""
    flags = _cpuinfo("flags").split()
    return [name for name in INSTRUCTIONS if name in flags]


def _cpuinfo(field: str) -> str:
    """A field of the first processor in /proc/cpuinfo, or an empty string."""
    fields = (line.partition(":") for line in CPUINFO.read_text().splitlines()) if CPUINFO.is_file() else ()
    return next((value.strip() for name, _, value in fields if name.strip() == field), "")


def _rounded(value):
    """Round floats in nested dicts and lists to four decimal places; further digits of these figures are noise."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
