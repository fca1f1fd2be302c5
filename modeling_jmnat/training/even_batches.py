"""Batches for several processes: each gets as many as the others, and no sentence counts twice."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler

FILLER = "is_filler"  # in a batch that counts for nothing


class EvenBatches(Sampler[list[int]]):
    """The batches of another sampler, then empty ones until their number is a multiple of `num_processes`.

    `accelerator.prepare` gives each process every n-th batch of this common order. An empty batch, which
    `FillerCollator` turns into one that counts for nothing, keeps a process in step with those that have one more.

    Args:
        batches: lists of example indices; `set_epoch` reaches it, or its `sampler`.
        num_processes: how many processes divide the batches.
        parts: cut each batch into this many, each in its place a batch of its own; some may be empty. Twice as many
            cut each of these in two.
    """

    def __init__(self, batches: Sampler[list[int]], num_processes: int, parts: int = 1):
        self.batches, self.num_processes, self.parts = batches, num_processes, parts

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        for sampler in (self.batches, getattr(self.batches, "sampler", None)):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.batches) * self.parts // self.num_processes) * self.num_processes

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            bounds = [part * len(batch) // self.parts for part in range(self.parts + 1)]
            yield from (batch[first:last] for first, last in itertools.pairwise(bounds))
        for _ in range(len(self) - len(self.batches) * self.parts):
            yield []


class FillerCollator:
    """Collates with another collator; no features at all give a batch of `example` that is marked by `FILLER`."""

    def __init__(self, collator: Callable[[Sequence[dict]], dict], example: dict[str, Any]):
        self.collator, self.example = collator, example

    def __call__(self, features: Sequence[dict]) -> dict:
        return self.collator(features) if features else {**self.collator([self.example]), FILLER: True}
