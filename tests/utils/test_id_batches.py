"""Batches of token ids."""

from modeling_jmnat.utils.id_batches import length_sorted_batches


def test_length_sorted_batches():
    lengths = [3, 9, 1, 9, 4, 20, 2]
    batches = length_sorted_batches(lengths, max_tokens=18)
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    assert batches == [[5], [1, 3], [4, 0, 6, 2]]
    assert all(len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 18 for batch in batches)
    assert length_sorted_batches(lengths, max_tokens=36, rows_per_sentence=2) == batches
