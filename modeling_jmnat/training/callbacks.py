"""Callbacks of our trainers: tell masks the epoch, update the moving average, stop a run cleanly."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from transformers import TrainerCallback

from ..utils.signals import ENDING, handling

STOP_SIGNALS = (*ENDING, signal.SIGINT)


class StopCallback(TrainerCallback):
    """Ends training after the current step, with a checkpoint, on SIGTERM, SIGINT or SIGHUP, or when the time is up.

    Args:
        time_budget: minutes of each training, from `restart`; None: unlimited.
        agree: with several processes, a function from this process's wish to stop to whether any of them wants to.
    """

    def __init__(self, time_budget: float | None, agree: Callable[[bool], bool] | None = None):
        self.time_budget = time_budget
        self.agree = agree
        self.restart()

    def restart(self) -> None:
        """Forget how an earlier training of the same trainer ended; the next one has the whole time."""
        self.deadline = None if self.time_budget is None else time.monotonic() + 60.0 * self.time_budget
        self.signal_received = False
        self.stopped = False

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            return control
        wants_to_stop = self.signal_received or (self.deadline is not None and time.monotonic() >= self.deadline)
        if self.agree is not None:  # all processes must stop at the same step; asking them takes time
            wants_to_stop = state.global_step % 10 == 0 and self.agree(wants_to_stop)
        if wants_to_stop:
            self.stopped = True
            control.should_training_stop = True
            control.should_save = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped and not float(state.epoch).is_integer():  # the epoch ends in the resumed run
            control.should_log = control.should_evaluate = control.should_save = False
        return control

    def _on_signal(self, number, frame):
        if self.signal_received:
            raise KeyboardInterrupt
        self.signal_received = True
        os.write(2, b"\nstopping after this step, with a checkpoint\n")  # print is not safe inside a handler

    def listening(self) -> AbstractContextManager:
        """A context in which `STOP_SIGNALS` stop the training."""
        return handling(self._on_signal, *STOP_SIGNALS)


class EpochCallback(TrainerCallback):
    """Calls `set_epoch` of its listeners (masks, batches) at the start of each epoch.

    Trainer's own call does not reach a batch sampler that is wrapped, as in a resumed run with several processes.

    Args:
        listeners: collators, samplers or other objects; those without `set_epoch` are ignored.
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
    """Keep Ctrl-C and other signals to the process group from the data loader's workers.

    Workers still obey SIGTERM, which the main process sends them when it exits.
    """
    os.setpgrp()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
