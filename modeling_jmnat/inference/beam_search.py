"""Limits and options of beam search, the same for every engine and for translating lines."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedConfig, PreTrainedTokenizerBase

# A translation may have MAX_LENGTH_FACTOR * S + MAX_LENGTH_MARGIN tokens before `</s>`, S being its source's tokens.
MAX_LENGTH_FACTOR = 1.5
MAX_LENGTH_MARGIN = 10


def target_limit(source_length: int) -> int:
    """Most tokens in the translation of a source of so many tokens, rounded up."""
    return math.ceil(MAX_LENGTH_FACTOR * source_length) + MAX_LENGTH_MARGIN


def max_source_length(config: PreTrainedConfig) -> int:
    """Longest source in tokens (1,024 if the configuration sets no limit)."""
    return getattr(config, "max_position_embeddings", None) or 1024


def max_target_length(config: PreTrainedConfig, source_length: int) -> int:
    """Most tokens in a translation before `</s>`; depends only on its own source, never on the batch."""
    return min(target_limit(source_length), max_source_length(config) - 2)


def length_penalty(generation_config: GenerationConfig) -> float:
    """Exponent of the length in beam search, 1.0 if none is set."""
    value = generation_config.length_penalty
    return 1.0 if value is None else float(value)


def search_options(generation_config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A generation configuration as options of CTranslate2, which does not read the file itself."""
    never = [[token] for token in generation_config.suppress_tokens or ()] + (generation_config.bad_words_ids or [])
    never = [ids for ids in never if ids != [tokenizer.pad_token_id]]
    return {
        "length_penalty": length_penalty(generation_config),
        "repetition_penalty": generation_config.repetition_penalty or 1.0,
        "no_repeat_ngram_size": generation_config.no_repeat_ngram_size or 0,
        # without `<pad>`, which is never written, and which some converted models lack
        "suppress_sequences": [tokenizer.convert_ids_to_tokens(ids) for ids in never] or None,
    }


def beam_search_batch_tokens(device: torch.device | str) -> int:
    """Default size of a batch of beam search: padded source tokens times beams."""
    return 131_072 if torch.device(device).type == "cuda" else 16_384


class LengthLimit(LogitsProcessor):
    """Allows only `</s>` once a row has reached its own limit, so that a row's result does not depend on the others.

    Args:
        limits: (B,) tokens before `</s>`.
        end_ids: the ids that end a sentence.
    """

    def __init__(self, limits: Sequence[int], num_beams: int, end_ids: Collection[int], device: torch.device):
        self.smallest = min(limits)
        self.limits = torch.tensor(limits, device=device).repeat_interleave(num_beams)  # (B * beams,)
        self.end_ids = torch.tensor(sorted(end_ids), device=device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        generated = input_ids.shape[1] - 1  # without the start token
        if generated < self.smallest:
            return scores
        full = (generated >= self.limits).unsqueeze(1)  # (B * beams, 1)
        limited = torch.full_like(scores, float("-inf"))
        limited[:, self.end_ids] = scores[:, self.end_ids]
        return torch.where(full, limited, scores)  # type: ignore[return-value]
