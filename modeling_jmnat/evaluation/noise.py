"""Noise on the input or the hidden states of a trained model during decoding (section 3, Figures 1 and 3).

Words of the source are dropped or replaced (Figure 3), or random vectors are added to the input of the encoder or
decoder, or to the encoder's output (Figure 1).
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from .options import STATE_NOISES, WORD_NOISES
from .source_words import word_finder


def noisy_lines(lines: Sequence[str], kind: str, share: float, seed: int = 0) -> list[str]:
    """Lines in which a share of the words is dropped, or replaced by words drawn from all lines.

    The choice depends only on (seed, line number), so that every system is given the same text. At least one word of a
    line is kept. In languages without spaces between words, every character counts as a word (see `word_finder`).

    Raises:
        ValueError: the kind is unknown, or the share is outside [0, 1].
    """
    if kind not in WORD_NOISES:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(WORD_NOISES)}")
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must lie in [0, 1]")
    split_lines = list(map(word_finder(lines), lines))
    vocabulary = [word for words in split_lines for word, _ in words]  # frequent words are drawn more often
    noisy = []
    for number, (line, words) in enumerate(zip(lines, split_lines, strict=True)):
        draw = random.Random(f"{seed} {number}")
        # The fraction of a word is rounded at random, so that short lines get their share, too.
        count = min(int(share * len(words) + draw.random()), max(len(words) - 1, 0))
        chosen = set(draw.sample(range(len(words)), count))
        if kind == "drop":
            words = [pair for position, pair in enumerate(words) if position not in chosen]
        else:
            words = [
                (draw.choice(vocabulary) if position in chosen else word, space)
                for position, (word, space) in enumerate(words)
            ]
        noisy.append("".join(map("".join, words)).rstrip() if chosen else line)
    return noisy


@contextmanager
def noisy_states(model: PreTrainedModel, place: str, level: float) -> Iterator[None]:
    """A context in which Gaussian noise is added to the states (.., D) at `place`, drawn again in each call.

    Args:
        place: `encoder_input` and `decoder_input` are token embeddings, `encoder_output` the last hidden states.
        level: standard deviation of the noise, relative to the root mean square of each token's state.

    Raises:
        ValueError: the place is unknown, or the level is below 0.
    """
    if place not in STATE_NOISES:
        raise ValueError(f"place={place!r} is not one of {', '.join(STATE_NOISES)}")
    if not (math.isfinite(level) and level >= 0):
        raise ValueError(f"level={level} must be a number of at least 0")
    generator = torch.Generator(model.device).manual_seed(0)

    def disturb(states: torch.Tensor) -> torch.Tensor:
        size = states.float().square().mean(dim=-1, keepdim=True).sqrt()
        noise = torch.randn(states.shape, generator=generator, device=states.device)
        return states + (level * size * noise).to(states.dtype)

    def hook(module, inputs, output):
        if torch.is_tensor(output):
            return disturb(output)
        output["last_hidden_state"] = disturb(output["last_hidden_state"])
        return output

    half = model.get_decoder() if place == "decoder_input" else model.get_encoder()
    handle = (half if place == "encoder_output" else half.embed_tokens).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def disturbed(model: PreTrainedModel, lines: Sequence[str], noise: str, level: float) -> Iterator[Sequence[str]]:
    """A context that yields the lines to translate under a noise; noise on hidden states lasts until it exits."""
    if noise in WORD_NOISES:
        yield noisy_lines(lines, noise, level)
    else:
        with noisy_states(model, noise, level):
            yield lines
