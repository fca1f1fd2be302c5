"""What every command of `run_scripts/` shares: one clear sentence and a non-zero exit on bad input."""

import functools
import os
import sys

from safetensors import SafetensorError

# Errors that a user causes and can mend. Anything else is a defect of ours and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, SafetensorError)
GPU_MEMORY_SHARE = "JMNAT_GPU_MEMORY_SHARE"  # environment variable, such as 0.1: the most of a GPU to take


def command(main):
    """Wrap `main(argv=None)` of a script: one of `USER_ERRORS` is printed as one sentence, exit code 1."""

    @functools.wraps(main)
    def wrapped(argv=None):
        try:
            limit_gpu_memory()
            return main(argv)
        except USER_ERRORS as error:
            sentence = " ".join(str(error).split())
            if isinstance(error, SafetensorError):  # it names no file
                sentence = f"a file of weights (.safetensors) cannot be read or written ({sentence})"
            print(f"error: {sentence}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("stopped; run the same command again to go on", file=sys.stderr)
            sys.exit(130)

    return wrapped


def limit_gpu_memory() -> None:
    """Keep to a share of the GPU's memory, cache included, where the environment asks for it: others use it, too."""
    share = os.environ.get(GPU_MEMORY_SHARE)
    if not share:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(float(share))
