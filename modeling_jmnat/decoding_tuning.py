"""Options of decoding that are chosen by BLEU on validation text.

The mean log-probability prefers short candidates. An exponent of the length above 1 makes up for that: for JM-NAT
`length_normalization`, for the beam search of autoregressive models `length_penalty`. T tokens, C length candidates.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence

from .translation import Translation, translate_lines

EXPONENTS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5)
# They give candidates up by scores that the exponent changes.
PRUNING = ("length_threshold", "prune_candidates", "prune_to", "prune_threshold")


def combinations(grid: Mapping[str, Sequence]) -> list[dict]:
    """`{"a": [1, 2], "b": [3]}` -> `[{"a": 1, "b": 3}, {"a": 2, "b": 3}]`."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def best_text(translation: Translation, num_candidates: int, exponent: float) -> str:
    """The text that wins among the `num_candidates` most probable lengths.

    Args:
        translation: with all candidates, scored by the sum of their log-probabilities.
        exponent: of T, which divides the sum.
    """
    if translation.lengths is None:  # a blank line
        return translation.text
    tried = translation.candidate_lengths[:num_candidates]
    candidates = zip(translation.candidates, translation.lengths, strict=True)
    scores = [(score / length**exponent, text) for (text, score), length in candidates if length in tried]
    return max(scores, key=lambda pair: pair[0])[1]


def candidate_settings(
    model,
    tokenizer,
    sources: Sequence[str],
    grid: Mapping[str, Sequence],
    num_candidates: Sequence[int],
    exponents: Sequence[float] = EXPONENTS,
    generation: dict | None = None,
    **options,
) -> Iterator[tuple[dict, list[str]]]:
    """Yield settings of a JM-NAT model, as options of `generate`, and the translations that each leads to.

    It decodes once for each combination of `grid`, with the most candidates: fewer of them, and every exponent, follow
    from their scores.

    Args:
        grid: values to be tried of options, such as `{"num_iterations": [4, 10]}`.
        generation: options that all settings share, a reranker among them.
        options: of `translate_lines`.

    Raises:
        ValueError: an option that gives candidates up, or one that `generate` refuses.
    """
    for name in PRUNING:
        if name in grid or name in (generation or {}):
            raise ValueError(f"{name} cannot be tuned, nor be on: every candidate is compared")
    most = max(num_candidates)
    every = {"num_length_candidates": most, "num_return_sequences": most}
    sums = {"length_normalization": 0.0, "length_offset": 0.0}
    for setting in combinations(grid):
        decoding = {**(generation or {}), **setting, **every, **sums}
        translations = list(translate_lines(model, tokenizer, sources, total=len(sources), **options, **decoding))
        for count, exponent in itertools.product(num_candidates, exponents):
            chosen = {"num_length_candidates": count, "length_normalization": exponent, "length_offset": 0.0}
            yield setting | chosen, [best_text(translation, count, exponent) for translation in translations]


def beam_settings(
    model, tokenizer, sources: Sequence[str], grid: Mapping[str, Sequence], generation: dict | None = None, **options
) -> Iterator[tuple[dict, list[str]]]:
    """As `candidate_settings`, for an autoregressive model, which searches anew for each combination of `grid`."""
    for setting in combinations(grid):
        decoding = {**(generation or {}), **setting}
        translations = translate_lines(model, tokenizer, sources, total=len(sources), **options, **decoding)
        yield setting, [translation.text for translation in translations]


def best_setting(rows: Sequence[dict]) -> dict:
    """Of the settings, rows without "num_iterations", the one with the highest mean of "sacrebleu" over its rows.

    Of equals, the first.
    """
    apart = ("num_iterations", "sacrebleu")
    scores: dict[str, list[float]] = {}
    for row in rows:
        setting = json.dumps({name: value for name, value in row.items() if name not in apart})
        scores.setdefault(setting, []).append(row["sacrebleu"])
    return json.loads(max(scores, key=lambda setting: sum(scores[setting]) / len(scores[setting])))
