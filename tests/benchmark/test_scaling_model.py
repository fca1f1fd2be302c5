"""The event model of `tests.scaling`, by hand."""

import statistics

import pytest

from tests.scaling import simulate


@pytest.mark.parametrize(
    ("processes", "options", "seconds"),
    [
        (1, {}, 4.0),  # 1 for the batch, 3 for the step
        (1, {"prefetch": 2}, 3.0),  # batches are made beside the steps
        (2, {}, 4.5),  # and the sum of the gradients
        (2, {"prefetch": 1}, 3.5),
        (4, {"cores": 2}, 8.5),  # two processes share a core
        (1, {"cores": 2}, 4.0),
    ],
)
def test_constant_times(processes, options, seconds):
    assert simulate(processes, 400, [1.0], [3.0], 0.5, **options) == pytest.approx(seconds, rel=0.01)


def test_a_slow_loader_is_what_counts():
    assert simulate(2, 400, [7.0], [3.0], 0.5, prefetch=3) == pytest.approx(7.0, rel=0.02)


def test_all_wait_for_the_slowest():
    """The mean of the largest of n draws of 1 or 2 seconds is 2 - 0.5**n."""
    for processes in (1, 2, 8):
        found = statistics.mean(simulate(processes, 500, [0.0], [1.0, 2.0], 0.0, seed=seed) for seed in range(4))
        assert found == pytest.approx(2 - 0.5**processes, rel=0.03)
