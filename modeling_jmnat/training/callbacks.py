"""What happens between the steps of `JMNatTrainer`: epochs reach the masks, averages are kept, runs stop cleanly."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from transformers import TrainerCallback

from ..utils.signals import handling

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopCallback(TrainerCallback):
    """Ends training after the current step, with a checkpoint, on SIGTERM, on SIGINT or when the time is up.

    Args:
        time_budget: minutes from the making of this object; None is unlimited.
        agree: with several processes, a function that says whether any of them wants to stop.
    """

    def __init__(self, time_budget: float | None, agree: Callable[[bool], bool] | None = None):
        self.deadline = None if time_budget is None else time.monotonic() + 60.0 * time_budget
        self.agree = agree
        self.signal_received = False
        self.stopped = False

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            return control
        wants_to_stop = self.signal_received or (self.deadline is not None and time.monotonic() >= self.deadline)
        if self.agree is not None:  # all processes must leave the loop at the same step; asking costs time
            wants_to_stop = state.global_step % 10 == 0 and self.agree(wants_to_stop)
        if wants_to_stop:
            self.stopped = True
            control.should_training_stop = True
            control.should_save = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped and not float(state.epoch).is_integer():  # the epoch ends when the run goes on
            control.should_log = control.should_evaluate = control.should_save = False
        return control

    def _on_signal(self, number, frame):
        if self.signal_received:
            raise KeyboardInterrupt
        self.signal_received = True
        os.write(2, b"\nstopping after this step, with a checkpoint\n")  # print is not safe inside a handler

    def listening(self) -> AbstractContextManager:
        """A context in which the two signals are heard."""
        return handling(self._on_signal, *STOP_SIGNALS)


class EpochCallback(TrainerCallback):
    """Tells everything with a `set_epoch` (masks, batches) which epoch begins, also after a restart.

    Trainer's own call does not reach a batch sampler behind the wrappers of a resumed run with several processes.
    """

    def __init__(self, *listeners):
        self.listeners = [listener for listener in listeners if hasattr(listener, "set_epoch")]

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        epoch = int(state.epoch or 0)
        for listener in self.listeners:
            listener.set_epoch(epoch)


class EMACallback(TrainerCallback):
    """Updates the moving average after each optimizer step."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.ema.update(state.global_step)


def leave_process_group(worker_id: int) -> None:
    """For data loader workers: Ctrl-C and signals to the group reach the main process alone, which ends its workers.

    They must obey SIGTERM nevertheless: the main process sends it at its exit and waits for them.
    """
    os.setpgrp()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
