"""`TokenBatchSampler`: every example once, budget kept, the same for the same (seed, epoch), shards even."""

import random

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from torch.utils.data import DataLoader

from modeling_jmnat.training.even_batches import FILLER, EvenBatches, FillerCollator
from modeling_jmnat.training.token_batches import TokenBatchSampler


def corpus_lengths(count, seed=0, longest=60):
    """Skewed lengths, source and target of one pair alike, as in real text."""
    draw = random.Random(seed)
    source = [min(longest, 2 + int(draw.lognormvariate(2.4, 0.5))) for _ in range(count)]
    target = [min(longest, max(1, int(length * draw.gauss(1.0, 0.15)))) for length in source]
    return source, target


def padding_share(batches, source, target):
    source, target = np.array(source), np.array(target)
    real = sum(source[batch].sum() + target[batch].sum() for batch in batches)
    padded = sum(len(batch) * (source[batch].max() + target[batch].max()) for batch in batches)
    return 1 - real / padded


@pytest.mark.parametrize("count", [1, 2, 7, 100, 3000])
@pytest.mark.parametrize(("max_tokens", "max_sentences"), [(60, None), (500, None), (4000, 16), (10**6, None)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_example_once_within_the_budget(count, max_tokens, max_sentences, shuffle):
    source, target = corpus_lengths(count)
    sampler = TokenBatchSampler(source, target, max_tokens, shuffle=shuffle, max_sentences=max_sentences)
    for epoch in (0, 1, 5):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(index for batch in batches for index in batch) == list(range(count))
        for batch in batches:
            assert len(batch) * max(source[i] for i in batch) <= max_tokens
            assert len(batch) * max(target[i] for i in batch) <= max_tokens
            assert len(batch) <= (max_sentences or count)


def test_the_order_is_a_function_of_seed_and_epoch():
    lengths = corpus_lengths(2000)

    def order(seed, epoch):
        sampler = TokenBatchSampler(*lengths, 500, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(first != second for i, first in enumerate(orders) for second in orders[:i])
    sampler = TokenBatchSampler(*lengths, 500)
    assert list(sampler) == list(sampler) == orders[0]  # iterating does not move the epoch


def test_epochs_mix_examples_differently():
    sampler = TokenBatchSampler(*corpus_lengths(3000), 500)
    first = {frozenset(batch) for batch in sampler if len(batch) > 1}
    sampler.set_epoch(1)
    second = {frozenset(batch) for batch in sampler if len(batch) > 1}
    assert len(first & second) < 0.02 * len(first)


def test_without_shuffle_all_epochs_are_alike_and_short_sentences_come_first():
    source, target = corpus_lengths(1000)
    sampler = TokenBatchSampler(source, target, 500, shuffle=False)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == first
    longest = [max(target[i] for i in batch) for batch in first]
    assert longest[0] == min(longest)
    assert longest[-1] == max(longest)


def test_little_padding_and_full_batches():
    source, target = corpus_lengths(20000)
    sampler = TokenBatchSampler(source, target, 1024)
    batches = list(sampler)
    rows = random.Random(0).sample(range(20000), 20000)
    assert padding_share([rows[i : i + 60] for i in range(0, 20000, 60)], source, target) > 0.5
    assert padding_share(batches, source, target) < 0.04
    tokens = sum(max(source[i], target[i]) for batch in batches for i in batch)
    assert tokens / len(batches) > 0.8 * 1024


def test_batches_of_one_bucket_are_nearly_equal():
    sampler = TokenBatchSampler([10] * 101, [10] * 101, 500)  # 50 fit, 3 batches are needed
    assert sorted(map(len, sampler)) == [33, 34, 34]


@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("parts", [1, 3])
def test_shards_are_even_and_together_everything_once(processes, parts):
    source, target = corpus_lengths(700)
    sampler = EvenBatches(TokenBatchSampler(source, target, 500), processes, parts)
    assert len(sampler) % processes == 0
    sampler.set_epoch(3)
    shards = [BatchSamplerShard(sampler, processes, i) for i in range(processes)]
    assert {len(list(shard)) for shard in shards} == {len(shard) for shard in shards} == {len(sampler) // processes}
    single = TokenBatchSampler(source, target, 500)
    single.set_epoch(3)
    cuts = [(part / parts, (part + 1) / parts) for part in range(parts)]
    expected = [batch[int(len(batch) * a + 1e-9) : int(len(batch) * b + 1e-9)] for batch in single for a, b in cuts]
    interleaved = [batch for group in zip(*shards, strict=True) for batch in group]
    assert interleaved[: len(expected)] == expected
    assert interleaved[len(expected) :] == [[]] * (-len(expected) % processes)
    assert sorted(index for batch in interleaved for index in batch) == list(range(700))


def test_more_processes_than_batches():
    sampler = EvenBatches(TokenBatchSampler([5, 5], [5, 5], 100), 4)
    assert len(sampler) == 4
    assert sorted(map(sorted, sampler)) == [[], [], [], [0, 1]]


def test_an_empty_batch_is_collated_to_one_that_counts_for_nothing():
    collator = FillerCollator(lambda features: {"labels": [feature["labels"] for feature in features]}, {"labels": 7})
    assert collator([{"labels": 3}]) == {"labels": [3]}
    assert collator([]) == {"labels": [7], FILLER: True}


def test_a_resumed_epoch_continues_where_it_stopped():
    sampler = TokenBatchSampler(*corpus_lengths(500), 500, seed=2)
    sampler.set_epoch(1)
    rest = SkipBatchSampler(sampler, skip_batches=5)
    assert list(rest) == list(sampler)[5:]
    assert len(rest) == len(sampler) - 5


def test_batches_work_in_a_data_loader():
    source, target = corpus_lengths(50)
    loader = DataLoader(range(50), batch_sampler=TokenBatchSampler(source, target, 200), collate_fn=list)
    assert len(list(loader)) == len(loader)
    assert sorted(index for batch in loader for index in batch) == list(range(50))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3, 9, 3], [3, 4, 3], 8), "example 1 has 9 source and 4 target tokens, more than max_tokens=8"),
        (([3, 3], [3, 30], 8), "example 1 has 3 source and 30 target tokens"),
        (([3, 0], [3, 3], 8), "example 1 has no source or no target token"),
        (([], [], 8), "not empty"),
        (([3], [3, 3], 8), r"shapes \(1,\) and \(2,\)"),
        (([3], [3], 0), "max_tokens=0"),
        (([3], [3], 8, 0, True, 0), "max_sentences=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenBatchSampler(*arguments)
