"""Settings that change during training, as functions of the step alone, so that a resumed run continues them."""

from transformers import TrainerState


def at_this_step(state: TrainerState, start: float, end: float | None) -> float:
    """A value that changes linearly from `start` in the first step to `end` in the last; always `start` for None."""
    if end is None:
        return start
    return start + (end - start) * min(1.0, state.global_step / max(1, state.max_steps - 1))
