"""Pure functions that draw the masks of sections 4.1 and 4.2 of the paper.

All random numbers are drawn first, for each example by a generator seeded with (seed, epoch, example id); everything
after that is deterministic and vectorised over the batch. The masks of an example thus do not depend on its batch, on
padding, on workers or processes, or on whether the run was resumed.

Shapes: B sentences, S source and T target tokens (`</s>` included), L either of the two.
"""

from collections.abc import Sequence

import torch

_MASK_64 = (1 << 64) - 1


def mix_seed(*parts: int) -> int:
    """Mix any integers into 64 bits (SplitMix64 after each), so that similar parts give unrelated seeds.

    `torch.Generator` on a CPU keeps only 32 bits of its seed; with a plain sum or shift, (seed 0, epoch 1)
    and (seed 1, epoch 0) would get the same masks.
    """
    state = 0
    for part in parts:
        state = (state + (int(part) & _MASK_64) + 0x9E3779B97F4A7C15) & _MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
        state ^= state >> 31
    return state


def draw_uniforms(seed: int, epoch: int, example_ids: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    """(B, max(sizes)) float64: row b holds `sizes[b]` numbers from [0, 1) of example b's generator, then zeros."""
    uniforms = torch.zeros(len(sizes), max(sizes), dtype=torch.float64)
    generator = torch.Generator()  # reseeding it takes half the time of making a new one for each example
    for row, example_id, size in zip(uniforms, example_ids, sizes, strict=True):
        row[:size].uniform_(generator=generator.manual_seed(mix_seed(seed, epoch, example_id)))
    return uniforms


def choose_source_positions(
    lengths: torch.Tensor, uniforms: torch.Tensor, ratio: float | torch.Tensor
) -> torch.Tensor:
    """Choose exactly max(1, round(ratio * S)) independent positions of each source sentence (section 4.1).

    Halves round to even, as in Python: 0.10 * 25 gives 2.

    Args:
        lengths: (B,), the S of each sentence.
        uniforms: (B, S), one number per position.
        ratio: share of tokens, above 0; or one share for each sentence (B,), where 0 chooses none.

    Returns:
        (B, S) bool, True where a token is chosen, never at padding.
    """
    counts = (ratio * lengths.double()).round().clamp(min=1) * (torch.as_tensor(ratio) > 0)
    is_padding = torch.arange(uniforms.shape[1]) >= lengths.unsqueeze(1)
    order = uniforms.masked_fill(is_padding, 2.0).argsort(dim=1, stable=True)
    ranks = order.argsort(dim=1)  # (B, S): place of each position in a random permutation
    return (ranks < counts.unsqueeze(1)) & ~is_padding


def draw_num_masked(lengths: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """(B,) int64: M uniform on 1..T (section 4.2), for lengths (B,) and uniforms (B,)."""
    return (uniforms * lengths).long() + 1  # u < 1 in float64: the product never rounds up to T


def choose_target_positions(
    lengths: torch.Tensor, num_masked: torch.Tensor, uniforms: torch.Tensor, set_size: int = 2
) -> torch.Tensor:
    """Choose M target positions in ceil(M / n) sets of n consecutive ones, the last set shorter (section 4.2).

    The sets, including the shorter one, are permuted together with the T - M unmasked tokens. All arrangements are
    equally likely, so the head and the tail of a sentence, and `</s>`, are masked equally often. `set_size=1` gives
    independent positions.

    Args:
        lengths: (B,), the T of each sentence.
        num_masked: (B,), M in 1..T.
        uniforms: (B, T), one number per position.
        set_size: n.

    Returns:
        (B, T) bool with M True entries a row, never at padding.
    """
    max_length = uniforms.shape[1]
    positions = torch.arange(max_length).expand(len(lengths), -1)
    lengths, num_masked = lengths.unsqueeze(1), num_masked.unsqueeze(1)  # (B, 1)
    num_sets = (num_masked + set_size - 1) // set_size
    num_units = num_sets + lengths - num_masked
    # Units 0..num_sets-1 are the sets, the last of them the shorter one; the others are single unmasked tokens.
    # Numbers from num_units on are not units; with size 0, their places do not matter.
    units = uniforms.argsort(dim=1, stable=True)  # (B, T), in text order
    last_set_size = num_masked - (num_sets - 1) * set_size
    is_set = units < num_sets
    sizes = torch.where(units < num_sets - 1, set_size, torch.where(is_set, last_set_size, 1))
    sizes = sizes.masked_fill(units >= num_units, 0)
    unit_of_position = torch.searchsorted(sizes.cumsum(dim=1), positions.contiguous(), right=True)
    is_masked = is_set.gather(1, unit_of_position.clamp(max=max_length - 1))
    return is_masked & (positions < lengths)


def corrupt_tokens(
    token_ids: torch.Tensor,
    chosen: torch.Tensor,
    uniforms: torch.Tensor,
    mask_token_id: int,
    random_token_ids: torch.Tensor,
    mask_token_prob: float = 0.8,
    random_token_prob: float = 0.1,
) -> torch.Tensor:
    """Replace chosen tokens by `<mask>` (80 %) or by a random token (10 %); the rest stay as they are.

    Args:
        token_ids: (B, L).
        chosen: (B, L) bool.
        uniforms: (B, L, 2), to choose among the three, and to choose the random token.
        random_token_ids: (K,), the tokens to draw from; one may be drawn in its own place.

    Returns:
        (B, L), a new tensor.
    """
    kind = uniforms[..., 0]
    becomes_mask = chosen & (kind < mask_token_prob)
    corrupted = token_ids.masked_fill(becomes_mask, mask_token_id)
    if random_token_prob == 0.0:
        return corrupted
    becomes_random = chosen & ~becomes_mask & (kind < mask_token_prob + random_token_prob)
    drawn = (uniforms[..., 1] * len(random_token_ids)).long()
    return torch.where(becomes_random, random_token_ids[drawn], corrupted)
