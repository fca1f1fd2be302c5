"""Choice of decoding options by BLEU on validation text.

The mean log-probability prefers short candidates. An exponent of the length above 1 compensates for that:
`length_normalization` for JM-NAT, `length_penalty` for the beam search of autoregressive models. Agreement with the
other candidates, weighted by `consensus_weight`, also separates good from bad ones. T tokens, C length candidates.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from ..inference.translation import Translation, translate_lines
from ..passes_jmnat import consensus
from .options import CONSENSUS_WEIGHTS, EXPONENTS

# Options that drop candidates by scores which the exponent changes.
PRUNING = ("prune_candidates", "prune_to")


def combinations(grid: Mapping[str, Sequence]) -> list[dict]:
    """`{"a": [1, 2], "b": [3]}` -> `[{"a": 1, "b": 3}, {"a": 2, "b": 3}]`."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


class Candidate(NamedTuple):
    """Text, sum of log-probabilities, T, and consensus with the other candidates of its sentence."""

    text: str
    score: float
    length: int
    consensus: float


def tried_candidates(translation: Translation, num_candidates: int, min_length: int = 0) -> list[Candidate]:
    """The candidates with the `num_candidates` most probable lengths, from a translation with all candidates.

    Args:
        min_length: `consensus_min_length`.
    """
    if translation.lengths is None:  # a blank line
        return [Candidate(translation.text, 0.0, 1, 0.0)]
    indices = translation.candidate_indices
    if indices is None:
        indices = [translation.candidate_lengths.index(length) for length in translation.lengths]
    candidates = zip(translation.candidates, translation.lengths, translation.candidate_ids, strict=True)
    candidates = [one for one, index in zip(candidates, indices, strict=True) if index < num_candidates]
    ids = [torch.tensor(ids) for _, _, ids in candidates]
    ends = torch.tensor([list(map(len, ids))])
    shares = consensus(pad_sequence(ids, batch_first=True)[None], ends, torch.ones_like(ends, dtype=torch.bool))
    shares *= int(ends.min()) >= min_length
    return [
        Candidate(text, score, length, share)
        for ((text, score), length, _), share in zip(candidates, shares[0].tolist(), strict=True)
    ]


def best_text(candidates: Sequence[Candidate], exponent: float, weight: float = 0.0) -> str:
    """The best text with this exponent of T and this consensus weight; the first one if several are equally good."""
    return max(candidates, key=lambda one: one.score / one.length**exponent + weight * one.consensus).text


def candidate_settings(
    model,
    tokenizer,
    sources: Sequence[str],
    grid: Mapping[str, Sequence],
    num_candidates: Sequence[int],
    exponents: Sequence[float] = EXPONENTS,
    weights: Sequence[float] = CONSENSUS_WEIGHTS,
    generation: dict | None = None,
    rules: Sequence[dict] = ({},),
    **options,
) -> Iterator[tuple[dict, list[str]]]:
    """Yield settings of a JM-NAT model, as options of `generate`, and the translations that each leads to.

    It decodes once for each combination of `grid` and `rules`, with the largest number of candidates. Results for
    fewer candidates, every exponent and every consensus weight follow from the scores and tokens.

    Args:
        grid: values to try for each option, such as `{"num_iterations": [4, 10]}`.
        generation: options that all settings share, including a reranker.
        rules: options to try together, such as some of `REPEAT_RULES`.
        options: options of `translate_lines`.

    Raises:
        ValueError: an option drops candidates, or `generate` refuses it.
    """
    for name in PRUNING:
        if name in grid or name in (generation or {}):
            raise ValueError(f"{name} cannot be tuned or set, because every candidate is compared: leave it out")
    most = max(num_candidates)
    every = {"num_length_candidates": most, "num_return_sequences": most}
    sums = {"length_normalization": 0.0, "length_offset": 0.0, "consensus_weight": 0.0}
    for rule, combination in itertools.product(rules, combinations(grid)):
        setting = rule | combination
        decoding = {**(generation or {}), **setting, **every, **sums}
        min_length = decoding.get("consensus_min_length", model.generation_config.consensus_min_length) or 0
        translations = list(translate_lines(model, tokenizer, sources, total=len(sources), **options, **decoding))
        for count in num_candidates:
            tried = [tried_candidates(translation, count, min_length) for translation in translations]
            for exponent, weight in itertools.product(exponents, weights):
                chosen = {"num_length_candidates": count, "length_normalization": exponent, "length_offset": 0.0}
                chosen["consensus_weight"] = weight
                yield setting | chosen, [best_text(candidates, exponent, weight) for candidates in tried]


def beam_settings(
    model, tokenizer, sources: Sequence[str], grid: Mapping[str, Sequence], generation: dict | None = None, **options
) -> Iterator[tuple[dict, list[str]]]:
    """As `candidate_settings`, for an autoregressive model, which is decoded again for each combination of `grid`."""
    for setting in combinations(grid):
        decoding = {**(generation or {}), **setting}
        translations = translate_lines(model, tokenizer, sources, total=len(sources), **options, **decoding)
        yield setting, [translation.text for translation in translations]


def best_setting(rows: Sequence[dict]) -> dict:
    """The setting with the highest mean "sacrebleu" over its rows, which differ only in "num_iterations".

    The first one, if several are equally good.
    """
    apart = ("num_iterations", "sacrebleu")
    scores: dict[str, list[float]] = {}
    for row in rows:
        setting = json.dumps({name: value for name, value in row.items() if name not in apart})
        scores.setdefault(setting, []).append(row["sacrebleu"])
    return json.loads(max(scores, key=lambda setting: sum(scores[setting]) / len(scores[setting])))
