"""Batches within a token budget from a stream of examples that is longer than memory."""

import itertools
from collections.abc import Iterable, Iterator

from torch.utils.data import IterableDataset, get_worker_info

from .data_collator import example_id
from .masking import mix_seed
from .token_batches import TokenBatchSampler


class StreamedTokenBatches(IterableDataset):
    """Yields lists of examples, batched as by `TokenBatchSampler`, without end: the stream is read repeatedly.

    Examples are read into a buffer, batched and shuffled there. The order depends only on the seed, the round and the
    stream. A stream with `set_epoch`, such as a shuffled one of `datasets`, has another order in each round, and the
    masks of an example are drawn again.

    Each of several processes reads its own part: shards of a `datasets.IterableDataset` if it has enough, otherwise
    every n-th example. Workers of a data loader share the shards of their process.

    Args:
        examples: `datasets.IterableDataset` or another iterable that can be read repeatedly, of dictionaries with
            `input_ids`, `labels` and optionally an integer `id`.
        max_tokens, max_sentences: see `TokenBatchSampler`.
        buffer_size: examples in the buffer. More mean less padding and better shuffling, and need more memory.
        process, num_processes: index of this process, and how many there are.

    Raises:
        ValueError: while reading, if the stream has no examples or one that is longer than `max_tokens`.
    """

    def __init__(
        self,
        examples: Iterable[dict],
        max_tokens: int,
        seed: int = 0,
        max_sentences: int | None = None,
        buffer_size: int = 10_000,
        process: int = 0,
        num_processes: int = 1,
    ):
        self.examples, self.seed, self.buffer_size = examples, seed, buffer_size
        self.max_tokens, self.max_sentences = max_tokens, max_sentences
        self.process, self.num_processes = process, num_processes

    def __iter__(self) -> Iterator[list[dict]]:
        for round_number in itertools.count():
            is_empty = True
            for buffer_number, examples in enumerate(self._buffers(round_number)):
                is_empty = False
                for indices in self._batches(examples, mix_seed(self.seed, round_number, buffer_number)):
                    yield [examples[index] for index in indices]
            if is_empty and get_worker_info() is None:
                raise ValueError(
                    f"train_dataset has no example for process {self.process + 1} of {self.num_processes}: it needs "
                    "at least one for each"
                )
            if is_empty:  # there are fewer shards than workers
                return

    def _buffers(self, round_number: int) -> Iterator[list[dict]]:
        if hasattr(self.examples, "set_epoch"):
            self.examples.set_epoch(round_number)
        examples = iter(self._own_part())
        while buffer := list(itertools.islice(examples, self.buffer_size)):
            yield [{**example, "id": mix_seed(example_id(example), round_number)} for example in buffer]

    def _own_part(self) -> Iterable[dict]:
        """The examples of this process, and of this worker unless the stream divides them among workers itself."""
        if hasattr(self.examples, "n_shards"):
            from datasets.distributed import split_dataset_by_node

            return split_dataset_by_node(self.examples, self.process, self.num_processes)
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        first, step = self.process * workers + own, self.num_processes * workers
        return itertools.islice(self.examples, first, None, step)

    def _batches(self, examples: list[dict], seed: int) -> Iterator[list[int]]:
        lengths = ([len(example[name]) for example in examples] for name in ("input_ids", "labels"))
        return iter(TokenBatchSampler(*lengths, self.max_tokens, seed, max_sentences=self.max_sentences))
