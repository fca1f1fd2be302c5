"""Batches of examples with similar lengths, within a token budget."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from .masking import mix_seed

BATCHES_PER_BUCKET = 2  # at least: more give more variety between epochs, fewer give less padding


class TokenBatchSampler(Sampler[list[int]]):
    """Yields lists of example indices whose padded sources and padded targets have at most `max_tokens` tokens each.

    Examples are divided once into buckets of similar (source, target) lengths. Each epoch shuffles within the buckets,
    cuts every bucket into batches of nearly equal size and shuffles the batches, depending only on (seed, epoch). The
    size of a bucket's batches follows from the longest lengths in the bucket, so the number of batches is the same in
    every epoch, as `Trainer` requires.

    Args:
        source_lengths: tokens of each example's source, `</s>` included.
        target_lengths: tokens of each example's target, `</s>` included.
        max_tokens: upper bound of sentences * longest source and of sentences * longest target in a batch.
        seed: seed of the order.
        shuffle: False gives the same batches in every epoch, short sentences first.
        max_sentences: upper bound of the sentences in a batch; None: unlimited.

    Raises:
        ValueError: an argument is out of range, or a single example is longer than `max_tokens`.
    """

    def __init__(
        self,
        source_lengths: Sequence[int],
        target_lengths: Sequence[int],
        max_tokens: int,
        seed: int = 0,
        shuffle: bool = True,
        max_sentences: int | None = None,
    ):
        source_lengths = np.asarray(source_lengths, dtype=np.int64)
        target_lengths = np.asarray(target_lengths, dtype=np.int64)
        _check_lengths(source_lengths, target_lengths, max_tokens)
        if max_sentences is not None and max_sentences < 1:
            raise ValueError(f"max_sentences={max_sentences} must be at least 1")
        self.max_tokens = max_tokens
        self.max_sentences = max_sentences
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self._buckets = self._make_buckets(source_lengths, target_lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return sum(count for _, count in self._buckets)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        batches = []
        for indices, num_batches in self._buckets:
            if self.shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator).numpy()]
            batches.extend(np.array_split(indices, num_batches))
        if self.shuffle:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator)]
        for batch in batches:
            yield batch.tolist()

    def _batch_sizes(self, longest: np.ndarray | int) -> np.ndarray | int:
        """Sentences that fit into a batch whose longest side is `longest`."""
        sizes = self.max_tokens // longest
        return sizes if self.max_sentences is None else np.minimum(sizes, self.max_sentences)

    def _make_buckets(self, source_lengths: np.ndarray, target_lengths: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """Pairs of example indices and number of batches, one per bucket, short sentences first."""
        # Examples with the same two lengths are one item to divide, so the cost hardly grows with the corpus. Both
        # lengths are put into one number, because sorting pairs takes 30 times as long.
        width = int(target_lengths.max()) + 1
        numbers, item_of_example, counts = np.unique(
            source_lengths * width + target_lengths, return_inverse=True, return_counts=True
        )
        pairs = np.stack(np.divmod(numbers, width), axis=1)
        items_of_buckets, pending = [], [np.arange(len(pairs))]
        while pending:
            items = pending.pop()
            halves = self._divide(pairs[items], counts[items])
            if halves is None:
                items_of_buckets.append(items)
            else:
                pending.extend(items[half] for half in halves)
        items_of_buckets.sort(key=lambda items: tuple(pairs[items].max(axis=0)[::-1]))

        bucket_of_item = np.empty(len(pairs), dtype=np.int64)
        for bucket, items in enumerate(items_of_buckets):
            bucket_of_item[items] = bucket
        bucket_of_example = bucket_of_item[item_of_example.reshape(-1)]
        order = np.argsort(bucket_of_example, kind="stable")
        bounds = np.cumsum(np.bincount(bucket_of_example))[:-1]
        buckets = []
        for items, indices in zip(items_of_buckets, np.split(order, bounds), strict=True):
            size = self._batch_sizes(int(pairs[items].max()))
            buckets.append((indices, -(-len(indices) // int(size))))
        return buckets

    def _divide(self, pairs: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Cut items (K, 2) by source or target length where that saves the most padding; None if nothing is saved."""
        total = counts.sum()
        best_cost, best = total * pairs.max(axis=0).sum(), None
        for side in (0, 1):
            order = np.argsort(pairs[:, side], kind="stable")
            left_counts = np.cumsum(counts[order])[:-1]
            right_counts = total - left_counts
            left_longest = np.maximum.accumulate(pairs[order], axis=0)[:-1]  # (K - 1, 2)
            right_longest = np.maximum.accumulate(pairs[order][::-1], axis=0)[::-1][1:]
            costs = left_counts * left_longest.sum(axis=1) + right_counts * right_longest.sum(axis=1)
            left_batches = left_counts / self._batch_sizes(left_longest.max(axis=1))
            right_batches = right_counts / self._batch_sizes(right_longest.max(axis=1))
            too_small = np.minimum(left_batches, right_batches) < BATCHES_PER_BUCKET
            costs = np.where(too_small, np.inf, costs)
            if len(costs) and costs.min() < best_cost:
                cut = int(costs.argmin())
                best_cost, best = costs[cut], (order[: cut + 1], order[cut + 1 :])
        return best


def _check_lengths(source_lengths: np.ndarray, target_lengths: np.ndarray, max_tokens: int) -> None:
    if source_lengths.ndim != 1 or source_lengths.shape != target_lengths.shape or not len(source_lengths):
        raise ValueError(
            f"source_lengths and target_lengths have shapes {source_lengths.shape} and {target_lengths.shape} but "
            "must be one-dimensional, equally long and not empty"
        )
    shortest, longest = (function(source_lengths, target_lengths) for function in (np.minimum, np.maximum))
    if shortest.min() < 1:
        raise ValueError(f"example {int(shortest.argmin())} has no source or no target token: leave it out")
    if longest.max() > max_tokens:
        example = int((longest > max_tokens).argmax())
        raise ValueError(
            f"example {example} has {source_lengths[example]} source and {target_lengths[example]} target tokens, "
            f"more than max_tokens={max_tokens}: leave the example out or raise max_tokens"
        )
