"""What a benchmark translates: a test set with its scores, or random tokens for untrained models."""

from collections.abc import Callable
from pathlib import Path

import torch

from ..configuration_jmnat import JMNatConfig
from ..inference.lines import LineReader
from ..inference.loading import load_translator
from ..utils.text_files import read_parallel
from ..utils.translation_scores import RESAMPLES, score_translations

FIXED_LENGTH = 25  # tokens of source and target with random weights


def scored_text(
    student: str | Path, source: str, reference: str, limit: int | None = None
) -> tuple[list[list[int]], Callable[[list[list[int]]], dict]]:
    """Source ids of the first `limit` lines, and a function that scores their translations (ids).

    It returns `bleu`, the number of `sentences`, the 95% interval over them as `bleu_interval`, the `signature` of the
    score, and the `texts`.

    Raises:
        ValueError: a line is too long for the student.
    """
    model, tokenizer = load_translator(student, device="cpu")
    lines, references = (side[:limit] for side in read_parallel(source, reference))
    LineReader(model, tokenizer).check(lines)  # otherwise it would stop the benchmark at its last stage

    def before_end(ids: list[int]) -> list[int]:
        return ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids

    def score(translations: list[list[int]]) -> dict:
        texts = [tokenizer.decode(before_end(ids), skip_special_tokens=True) for ids in translations]
        how = {"lowercase": tokenizer.lowercase, "metrics": ["sacrebleu"], "resamples": RESAMPLES}
        scores = score_translations(texts, references, **how)
        figures = {"bleu": scores["sacrebleu"], "bleu_interval": scores["intervals"]["sacrebleu"]}
        return figures | {"sentences": len(texts), "signature": scores["sacrebleu_signature"], "texts": texts}

    return tokenizer(lines)["input_ids"], score


def random_sources(config: JMNatConfig, count: int) -> list[list[int]]:
    """`count` sources of `FIXED_LENGTH` random tokens, `</s>` included."""
    ids = torch.randint(5, config.vocab_size, (count, FIXED_LENGTH), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = config.eos_token_id
    return ids.tolist()
