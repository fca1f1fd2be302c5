"""Batches of token ids: which sentences go together, and how they are padded."""

from collections.abc import Sequence

import torch


def length_sorted_batches(lengths: Sequence[int], max_tokens: int, rows_per_sentence: int = 1) -> list[list[int]]:
    """Batches of sentence indices of similar length, longest first, with rows * longest length <= `max_tokens`.

    A sentence that exceeds the limit alone is a batch of its own. The first batch needs the most memory.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        batch = batches[-1] if batches else None
        if batch and (len(batch) + 1) * rows_per_sentence * lengths[batch[0]] <= max_tokens:
            batch.append(index)
        else:
            batches.append([index])
    return batches


def pad_batch(
    sequences: Sequence[Sequence[int]], pad_token_id: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` (B, S), padded on the right, and `attention_mask` (B, S), 1 at tokens."""
    longest = max(len(sequence) for sequence in sequences)
    rows = [list(sequence) + [pad_token_id] * (longest - len(sequence)) for sequence in sequences]
    masks = [[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences]
    return torch.tensor(rows, device=device), torch.tensor(masks, device=device)
