"""Settings that change during training, as functions of the step alone: a resumed run goes on where it was."""

from transformers import TrainerState


def at_this_step(state: TrainerState, start: float, end: float | None) -> float:
    """What goes linearly from `start` in the first step to `end` in the last one; with None it stays at `start`."""
    if end is None:
        return start
    return start + (end - start) * min(1.0, state.global_step / max(1, state.max_steps - 1))
