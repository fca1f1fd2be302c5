"""Masks against their loop-written twins and, for what is random, against the exact distributions."""

from collections import Counter

import pytest
import torch

import tests.helpers.reference as reference
from modeling_jmnat.training.masking import (
    choose_source_positions,
    choose_target_positions,
    corrupt_tokens,
    draw_num_masked,
    draw_uniforms,
    mix_seed,
)


def uniforms_of(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positions_of(mask):
    return frozenset(mask.nonzero()[:, 0].tolist())


# ---------------------------------------------------------------------------------------------------------- seeds


def test_seeds_of_near_examples_are_all_different():
    seeds = {mix_seed(seed, epoch, i) for seed in range(4) for epoch in range(20) for i in range(-50, 500)}
    assert len(seeds) == 4 * 20 * 550
    assert len({seed & 0xFFFFFFFF for seed in seeds}) > len(seeds) - 10  # the generator keeps 32 bits


def test_uniforms_of_one_example_over_near_seeds_are_uniform_and_independent():
    for varied in range(3):  # seed, epoch, id
        parts = [[7, 3, 11] for _ in range(4000)]
        for value, part in enumerate(parts):
            part[varied] = value
        draws = [draw_uniforms(seed, epoch, [i], [2])[0].tolist() for seed, epoch, i in parts]
        cells = Counter((int(4 * first), int(4 * second)) for first, second in draws)
        assert reference.chi_square_score(cells, {(i, j): 1 / 16 for i in range(4) for j in range(4)}) < 5


def test_uniforms_do_not_depend_on_the_batch():
    alone = draw_uniforms(1, 2, [5], [8])[0]
    together = draw_uniforms(1, 2, [9, 5, 4], [3, 8, 20])
    assert together.shape == (3, 20)
    assert torch.equal(together[1, :8], alone)
    assert (together[1, 8:] == 0).all()
    for other in ((2, 2, [5], [8]), (1, 3, [5], [8]), (1, 2, [6], [8])):
        assert not torch.equal(draw_uniforms(*other)[0], alone)


# --------------------------------------------------------------------------------------------------------- source


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.15, 0.5, 1.0])
def test_source_count_is_exact_and_positions_are_those_of_the_oracle(ratio):
    lengths = torch.arange(1, 201)
    uniforms = uniforms_of(200, 200)
    chosen = choose_source_positions(lengths, uniforms, ratio)
    for row, length, numbers in zip(chosen, lengths.tolist(), uniforms.tolist(), strict=True):
        assert positions_of(row) == reference.source_positions(length, numbers, ratio)
        assert row.sum() == max(1, round(ratio * length))


@pytest.mark.parametrize(("length", "count"), [(1, 1), (4, 1), (5, 1), (14, 1), (15, 2), (25, 2), (35, 4), (36, 4)])
def test_source_count_by_hand(length, count):
    assert choose_source_positions(torch.tensor([length]), uniforms_of(1, length), 0.1).sum() == count


def test_source_positions_are_independent():
    num_draws, length = 20000, 10
    chosen = choose_source_positions(torch.full((num_draws,), length), uniforms_of(num_draws, length), 0.2)
    pairs = Counter(map(positions_of, chosen))
    every_pair = {frozenset((i, j)): 1 / 45 for i in range(length) for j in range(i)}
    assert reference.chi_square_score(pairs, every_pair) < 5


# --------------------------------------------------------------------------------------------------------- target


def test_number_of_masked_tokens_is_uniform():
    for length in (1, 2, 7, 20):
        lengths = torch.full((20000,), length)
        counts = Counter(draw_num_masked(lengths, uniforms_of(20000, seed=length)).tolist())
        assert reference.chi_square_score(counts, dict.fromkeys(range(1, length + 1), 1 / length)) < 5
    almost_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    for length in (1, 3, 33, 100):
        assert draw_num_masked(torch.tensor([length]), almost_one).item() == length


@pytest.mark.parametrize("set_size", [1, 2, 3, 5])
def test_target_positions_equal_the_oracle(set_size):
    lengths = torch.arange(1, 31).repeat(8)
    num_masked = draw_num_masked(lengths, uniforms_of(240))
    uniforms = uniforms_of(240, 30, seed=1)
    chosen = choose_target_positions(lengths, num_masked, uniforms, set_size)
    assert torch.equal(chosen.sum(dim=1), num_masked)
    for row, length, count, numbers in zip(
        chosen, lengths.tolist(), num_masked.tolist(), uniforms.tolist(), strict=True
    ):
        assert positions_of(row) == reference.target_positions(length, count, numbers, set_size)


PLACEMENTS = [(5, 3, 2), (6, 4, 2), (7, 5, 3), (6, 2, 1), (4, 4, 2), (7, 3, 2), (8, 5, 2), (3, 1, 2), (3, 2, 5)]


@pytest.mark.parametrize(("length", "num_masked", "set_size"), PLACEMENTS)
def test_placement_is_uniform_over_arrangements(length, num_masked, set_size):
    num_draws = 20000
    chosen = choose_target_positions(
        torch.full((num_draws,), length),
        torch.full((num_draws,), num_masked),
        uniforms_of(num_draws, length, seed=length),
        set_size,
    )
    distribution = reference.target_mask_distribution(length, num_masked, set_size)
    assert sum(distribution.values()) == pytest.approx(1.0)
    assert reference.chi_square_score(Counter(map(positions_of, chosen)), distribution) < 5


def test_oracle_by_hand_and_a_wrong_placement_is_detected():
    # T = 4, M = 3, n = 2: a set of 2, a set of 1 and one unmasked token, in 3! orders.
    # 2-1-u and 1-2-u mask 012, u-2-1 and u-1-2 mask 123, 2-u-1 masks 013, 1-u-2 masks 023.
    distribution = reference.target_mask_distribution(4, 3, 2)
    expected = {(0, 1, 2): 1 / 3, (1, 2, 3): 1 / 3, (0, 1, 3): 1 / 6, (0, 2, 3): 1 / 6}
    assert distribution == pytest.approx({frozenset(mask): p for mask, p in expected.items()})
    fair = Counter({mask: round(6000 * p) for mask, p in distribution.items()})
    assert reference.chi_square_score(fair, distribution) < 0
    # The short set always after the long one: 2-1-u, 2-u-1, u-2-1.
    biased = Counter({frozenset(mask): 2000 for mask in ((0, 1, 2), (0, 1, 3), (1, 2, 3))})
    assert reference.chi_square_score(biased, distribution) > 5


def test_head_and_end_of_sentence_are_masked_equally_often():
    num_draws, length = 20000, 9
    lengths = torch.full((num_draws,), length)
    num_masked = draw_num_masked(lengths, uniforms_of(num_draws))
    for set_size in (1, 2, 3):
        chosen = choose_target_positions(lengths, num_masked, uniforms_of(num_draws, length, seed=1), set_size)
        shares = chosen.double().mean(dim=0)
        assert shares[0].item() == pytest.approx(shares[-1].item(), abs=0.02)
        partly = num_masked < length
        assert chosen[partly, -1].double().mean() > 0.3


def test_padding_is_never_chosen_and_does_not_matter():
    lengths = torch.tensor([3, 5, 1])
    num_masked = torch.tensor([2, 3, 1])
    narrow, wide = uniforms_of(3, 5), torch.zeros(3, 12, dtype=torch.float64)
    wide[:, :5] = narrow
    for set_size in (1, 2):
        expected = choose_target_positions(lengths, num_masked, narrow, set_size)
        chosen = choose_target_positions(lengths, num_masked, wide, set_size)
        assert torch.equal(chosen[:, :5], expected)
        assert not chosen[:, 5:].any()
    expected = choose_source_positions(lengths, narrow, 0.4)
    chosen = choose_source_positions(lengths, wide, 0.4)
    assert torch.equal(chosen[:, :5], expected)
    assert not chosen[:, 5:].any()


# ------------------------------------------------------------------------------------------------------ corruption

ALLOWED = torch.tensor([5, 6, 7, 9])


def corrupt(token_ids, chosen, seed=0, **probabilities):
    return corrupt_tokens(token_ids, chosen, uniforms_of(*token_ids.shape, 2, seed=seed), 4, ALLOWED, **probabilities)


def test_80_10_10():
    token_ids = torch.full((100, 400), 20)
    chosen = uniforms_of(100, 400, seed=1) < 0.5
    corrupted = corrupt(token_ids, chosen)
    assert (corrupted[~chosen] == 20).all()
    assert (token_ids == 20).all()  # not in place
    counts = Counter(corrupted[chosen].tolist())
    expected = {4: 0.8, 20: 0.1} | dict.fromkeys(ALLOWED.tolist(), 0.025)
    assert reference.chi_square_score(counts, expected) < 5


def test_the_random_token_is_independent_of_the_choice():
    corrupted = corrupt(torch.full((200, 200), 20), torch.ones(200, 200, dtype=torch.bool), 3, mask_token_prob=0.5)
    counts = Counter(corrupted.flatten().tolist())
    assert reference.chi_square_score(counts, {4: 0.5, 20: 0.4} | dict.fromkeys(ALLOWED.tolist(), 0.025)) < 5


@pytest.mark.parametrize(
    ("mask_token_prob", "random_token_prob", "results"),
    [(1.0, 0.0, {4}), (0.0, 1.0, set(ALLOWED.tolist())), (0.0, 0.0, {20})],
)
def test_extreme_probabilities(mask_token_prob, random_token_prob, results):
    chosen = torch.ones(20, 20, dtype=torch.bool)
    corrupted = corrupt(
        torch.full((20, 20), 20), chosen, mask_token_prob=mask_token_prob, random_token_prob=random_token_prob
    )
    assert set(corrupted.flatten().tolist()) == results


def test_the_largest_uniform_number_stays_inside_the_vocabulary():
    for size in (1, 3, 33, 1000):
        uniforms = torch.tensor([[[0.85, 1 - 2**-53]]], dtype=torch.float64)
        allowed = torch.arange(10, 10 + size)
        corrupted = corrupt_tokens(torch.zeros(1, 1).long(), torch.ones(1, 1).bool(), uniforms, 4, allowed)
        assert corrupted.item() == 9 + size
