"""Disturbances of a trained model at decoding: what does it hold out (section 3, Figures 1 and 3)?

Words of the source are dropped or replaced (Figure 3), or random vectors are added to what encoder or decoder read or
to what the encoder hands over (Figure 1).
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from .options import STATE_NOISES, WORD_NOISES


def noisy_lines(lines: Sequence[str], kind: str, share: float, seed: int = 0) -> list[str]:
    """Lines in which that share of the words is dropped, or replaced by words drawn from all lines.

    Which words these are depends on (seed, line number) alone, so every system is given the same text. One word of a
    line stays in any case.

    Raises:
        ValueError: an unknown kind, or a share outside [0, 1].
    """
    if kind not in WORD_NOISES:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(WORD_NOISES)}")
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must lie in [0, 1]")
    split_lines = [line.split() for line in lines]
    vocabulary = [word for words in split_lines for word in words]  # frequent words are drawn more often
    noisy = []
    for number, (line, words) in enumerate(zip(lines, split_lines, strict=True)):
        draw = random.Random(f"{seed} {number}")
        # What is below one word happens by chance, so that short lines get their share, too.
        count = min(int(share * len(words) + draw.random()), max(len(words) - 1, 0))
        chosen = set(draw.sample(range(len(words)), count))
        if kind == "drop":
            words = [word for position, word in enumerate(words) if position not in chosen]
        else:
            words = [draw.choice(vocabulary) if position in chosen else word for position, word in enumerate(words)]
        noisy.append(" ".join(words) if chosen else line)
    return noisy


@contextmanager
def noisy_states(model: PreTrainedModel, place: str, level: float) -> Iterator[None]:
    """While this lasts, normal noise is added to the states (.., D) at `place`, drawn anew in each call.

    Args:
        place: `encoder_input` and `decoder_input` are token embeddings, `encoder_output` the encoder's last states.
        level: standard deviation of the noise, relative to the root mean square of each token's state.

    Raises:
        ValueError: an unknown place, or a level below 0.
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
    """Gives the lines to translate under a noise; the model's states are disturbed until the block ends."""
    if noise in WORD_NOISES:
        yield noisy_lines(lines, noise, level)
    else:
        with noisy_states(model, noise, level):
            yield lines
