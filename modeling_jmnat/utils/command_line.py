"""What every command of `run_scripts/` shares: one clear sentence and a non-zero exit on bad input."""

import functools
import os
import signal
import sys
from collections.abc import Sequence

from safetensors import SafetensorError

from .signals import handling

# Errors that a user causes and can mend. Anything else is a defect of ours and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, SafetensorError)
GPU_MEMORY_SHARE = "JMNAT_GPU_MEMORY_SHARE"  # environment variable, such as 0.1: the most of a GPU to take


def command(main=None, *, resumes: bool = False):
    """Wrap `main(argv=None)` of a script: one of `USER_ERRORS` is printed as one sentence, exit code 1.

    SIGTERM ends it as Ctrl-C does, so that nothing half-written is left. `resumes`: the command goes on where it was.
    """
    if main is None:
        return functools.partial(command, resumes=resumes)

    @functools.wraps(main)
    def wrapped(argv=None):
        received = [signal.SIGINT]

        def stop(number, frame):
            received.append(number)
            raise KeyboardInterrupt

        try:
            limit_gpu_memory()
            with handling(stop, signal.SIGTERM):
                return main(argv)
        except USER_ERRORS as error:
            sentence = " ".join(str(error).split())
            if isinstance(error, SafetensorError):  # it names no file
                sentence = f"a file of weights (.safetensors) cannot be read or written ({sentence})"
            print(f"error: {sentence}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("stopped" + "; run the same command again to go on" * resumes, file=sys.stderr)
            sys.exit(128 + received[-1])

    return wrapped


def check_counts(arguments, names: Sequence[str]) -> None:
    """Those of the arguments that are given, numbers or lists of them, must be at least 1."""
    for name in names:
        given = getattr(arguments, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


def limit_gpu_memory() -> None:
    """Keep to a share of the GPU's memory, cache included, where the environment asks for it: others use it, too."""
    share = os.environ.get(GPU_MEMORY_SHARE)
    if not share:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(float(share))
