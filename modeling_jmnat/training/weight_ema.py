"""Exponential moving average of a model's weights, for evaluating and saving."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightEMA:
    """Keeps average <- d * average + (1 - d) * weights, with d = min(decay, (1 + step) / (10 + step)).

    The decay grows so that the average soon forgets the initial weights and is useful from the first evaluation.
    Tied matrices are one parameter and are averaged once.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.in_place = False

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimizer step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [parameter.detach() for parameter in self.parameters], 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the averages; a second call undoes this."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the model has the averaged weights; it may be nested."""
        if self.in_place:
            yield
            return
        self.swap()
        self.in_place = True
        try:
            yield
        finally:
            self.in_place = False
            self.swap()
