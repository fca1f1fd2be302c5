"""Batches for several processes: all processes get equally many, and no sentence counts twice."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler

FILLER = "is_filler"  # key of a batch that counts for nothing


class EvenBatches(Sampler[list[int]]):
    """The batches of another sampler, followed by empty ones until their number is a multiple of `num_processes`.

    `accelerator.prepare` gives each process every n-th batch of this common order. `FillerCollator` turns an empty
    batch into one that counts for nothing, which keeps a process in step with those that have one more batch.

    Args:
        batches: lists of example indices; `set_epoch` is passed on to it and to its `sampler`.
        num_processes: number of processes that share the batches.
        parts: cut each batch into this many consecutive batches, some of which may be empty. Doubling the number
            cuts each of them in two.
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
    """Collates with another collator; an empty list becomes a batch of `example` marked by `FILLER`."""

    def __init__(self, collator: Callable[[Sequence[dict]], dict], example: dict[str, Any]):
        self.collator, self.example = collator, example

    def __call__(self, features: Sequence[dict]) -> dict:
        return self.collator(features) if features else {**self.collator([self.example]), FILLER: True}
