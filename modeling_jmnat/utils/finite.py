"""Checks for NaN and infinite numbers, before weights are saved and before a model is used."""

import torch
from torch import nn


def is_finite(value: torch.Tensor | float) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(torch.as_tensor(value).isfinite().all())


def not_finite(model: nn.Module) -> str | None:
    """The name of a parameter with a NaN or infinite value, or None."""
    for name, value in model.named_parameters():
        if hasattr(value, "to_local"):  # sharded: check this process's part
            value = value.to_local()
        if not value.is_meta and not is_finite(value):
            return name
    return None


def check_finite(model: nn.Module, directory: object) -> None:
    """Refuse a model with NaN or infinite weights, whose translations would be empty without any error.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    if (name := not_finite(model)) is not None:
        raise ValueError(
            f"the weights of {directory} are not finite ({name}): its training diverged, so use an earlier checkpoint"
        )
