"""Fixtures for several rooms."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """One thread of PyTorch: equal sums in every run, and none that a fork would lose."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
