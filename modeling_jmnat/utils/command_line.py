"""What all commands share: parsing of options, and a single clear sentence and non-zero exit code on bad input."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import os
import pickle
import re
import select
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from safetensors import SafetensorError

from .help_text import help_text, option_names, usage_of
from .signals import ENDING, handling

# Errors that a user can fix. Any other error is a bug of ours and keeps its traceback.
USER_ERRORS = (ValueError, OSError, SafetensorError, FloatingPointError)
RUST_SYSTEM_ERROR = re.compile(r"\(os error \d+\)$")  # the end of plain exceptions of the library tokenizers
# Messages of Transformers to a user, in errors of classes that otherwise mean a bug.
OF_TRANSFORMERS = re.compile(r"^\w+ requires [\w`. -]+ to be installed|^The `metric_for_best_model` training argument")
# Messages of the libraries when memory runs out and when another process has ended.
NO_MEMORY = re.compile(
    "out of memory|(can't|cannot|unable to|failed to) allocate|not enough memory|bad.?alloc|ALLOC_FAILED",
    re.IGNORECASE,
)
OUT_OF_MEMORY = "out of memory"
FILE_ADVICE = {FileNotFoundError: "check the path", IsADirectoryError: "name a file in it"}
ASKED_FOR = re.compile(r"(?:tried|unable) to allocate ([\d.]+ ?\w+)", re.IGNORECASE)
LOST_PROCESS_ERRORS = ("DistError", "DistBackendError", "DistNetworkError", "DistStoreError")
LOST_PROCESS = re.compile("closed by peer|reset by peer|third_party/gloo|NCCL|ProcessGroup")
GPU_MEMORY_SHARE = "JMNAT_GPU_MEMORY_SHARE"  # environment variable: largest share of a GPU to use, such as 0.1
REQUIRED = re.compile(r"requires `(\w+)")  # in messages of Transformers: "... requires `accelerate>=1.1.0`: ..."
EXTRAS = {  # of setup.cfg, with the modules that they install
    "train": (
        *("accelerate", "datasets", "evaluate", "matplotlib", "pandas", "pyarrow", "sacrebleu", "sentencepiece"),
        *("tensorboard", "yaml"),
    ),
    "bench": ("ctranslate2", "onnx", "onnxruntime", "onnxscript"),
    "space": ("gradio", "selenium"),
    "serve": ("prometheus_client", "python_multipart", "starlette", "uvicorn"),
    "cluster": ("ray",),
    "documents": ("markdown_it", "polib", "srt", "webvtt"),
}


def command(main=None, *, resumes: bool = False, memory: str = ""):
    """Wrap `main(argv=None)` of a command: an error that a user can fix is printed as one sentence, with exit code 1.

    SIGTERM and SIGHUP end the command as Ctrl-C does, so that nothing half-written is left. If the reader of its
    standard output goes away (`| head`), it ends silently.

    Args:
        resumes: whether repeating the command resumes it.
        memory: options to lower when memory runs out.
    """
    if main is None:
        return functools.partial(command, resumes=resumes, memory=memory)

    @functools.wraps(main)
    def wrapped(argv=None):
        received = [signal.SIGINT]

        def stop(number, frame):
            received.append(number)
            raise KeyboardInterrupt

        try:
            open_missing_streams()
            # Read when torch is loaded. Idle threads that do not spin make two trainings on two cores up to nine times
            # faster.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            limit_gpu_memory()
            with handling(stop, *ENDING), flushed_output():
                return main(argv)
        except ImportError as error:
            fail(missing_library(error))
        except KeyboardInterrupt:
            say("stopped" + "; run the same command again to resume" * resumes)
            sys.exit(128 + received[-1])
        except Exception as error:
            if isinstance(error, BrokenPipeError) and output_has_no_reader():
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard what is not flushed yet
                sys.exit(128 + signal.SIGPIPE)
            sentence = describe_error(error, resumes, memory)
            if sentence is None:
                raise
            fail(sentence)

    return wrapped


def describe_error(error: Exception, resumes: bool = False, memory: str = "") -> str | None:
    """One sentence for an error that a user can fix; None for a bug of ours."""
    sentence = " ".join(str(error).split())
    if isinstance(error, MemoryError) and sentence.startswith(OUT_OF_MEMORY):  # our own, which says what to lower
        return sentence
    if is_out_of_memory(error):
        advice = f"lower {memory}" if memory else "use a machine with more memory"
        return f"{OUT_OF_MEMORY}{asked_memory(error)}: {advice}"
    if is_lost_process(error):
        again = ", then run the same command again to resume" if resumes else ""
        return f"another process of this run has ended: see its own message ({sentence[:200]}){again}"
    if isinstance(error, SafetensorError):  # it does not name the file
        return f"a file of weights (.safetensors) cannot be read or written ({sentence})"
    if isinstance(error, pickle.UnpicklingError):
        return (
            f"a PyTorch file is not loaded because it holds more than tensors and plain values, or is damaged "
            f"({sentence})"
        )
    if isinstance(error, RuntimeError | KeyError) and OF_TRANSFORMERS.search(said := str(error.args[0])):
        return " ".join(said.split())
    if RUST_SYSTEM_ERROR.search(sentence):
        return f"a file cannot be read or written: {sentence}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return describe_file_error(error)
    return sentence or type(error).__name__ if isinstance(error, USER_ERRORS) else None


def describe_file_error(error: OSError) -> str:
    """The file, what is wrong with it and what to do, without the number that Python puts in front."""
    path = error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)
    advice = FILE_ADVICE.get(type(error))
    return f"{path}: {error.strerror}" + (f"; {advice}" if advice else "")


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and bool(NO_MEMORY.search(str(error))))


def asked_memory(error: BaseException) -> str:
    """How much memory could not be allocated, for a message; "" if the error does not say it."""
    asked = ASKED_FOR.search(" ".join(str(error).split()))
    return f" ({asked[1]} more were requested)" if asked else ""


def is_lost_process(error: BaseException) -> bool:
    """Whether an error says that another process of a distributed run has ended."""
    names = {cls.__name__ for cls in type(error).__mro__}  # names, because their library may not be loaded
    said = isinstance(error, RuntimeError) and LOST_PROCESS.search(str(error))
    return bool(said) or not names.isdisjoint(LOST_PROCESS_ERRORS)


def open_missing_streams() -> None:
    """Discard output to a stream that was closed before the command began (`>&-`), and keep files off its number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


@contextlib.contextmanager
def flushed_output() -> Iterator[None]:
    """Flush standard output at the end of the block, where an error can still be handled, and not at exit."""
    try:
        yield
    finally:
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            sys.stdout.flush()


def output_has_no_reader() -> bool:
    """Whether standard output is a pipe whose reader has gone."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file
        return False
    watched = select.poll()
    watched.register(descriptor, 0)  # no events but errors, which are always reported
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in watched.poll(0))


def fail(sentence: str) -> NoReturn:
    """Print an error and end the process with exit code 1."""
    say(f"error: {sentence}")
    sys.exit(1)


def say(sentence: str) -> None:
    """Print a sentence to standard error on its own line, below progress bars that are still open."""
    bars = sys.modules.get("tqdm.std")
    for bar in sorted(getattr(bars and bars.tqdm, "_instances", ()), key=lambda bar: -bar.pos):
        bar.close()
    print(sentence, file=sys.stderr)


def missing_library(error: ImportError) -> str:
    """One sentence on a library to install; re-raises the error if the import fails by a bug of ours."""
    names = [cause.name.partition(".")[0] for cause in causes(error) if cause.name]
    needed = names or REQUIRED.findall(str(error))
    for extra, modules in EXTRAS.items():
        for name in modules:
            if name in needed:
                return f"this command needs {name}: pip install 'modeling-jmnat[{extra}]'"
    if names:
        raise error
    return " ".join(str(error).split())  # one of ours, which says what to install


def causes(error: BaseException | None) -> Iterator[ImportError]:
    """The import errors in a chain of exceptions, the last one first."""
    while error is not None:
        if isinstance(error, ImportError):
            yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


# Options -------------------------------------------------------------------------------------------------------------


def parse_arguments(
    argv: Sequence[str] | None,
    groups: type | Sequence[Any],
    description: str | None,
    defaults: Mapping[str, Any] | None = None,
    **parser_options,
) -> tuple:
    """Parse a command line into an object of each dataclass in `groups`; `--help` prints their fields and exits.

    Args:
        argv: words after the name of the command; None: those of this process.
        defaults: values by field name that override the fields' own defaults.
        parser_options: options of `argparse.ArgumentParser`.
    """
    groups = [groups] if isinstance(groups, type) else groups
    if wants_help(argv):
        print_help(groups, description, defaults, parser_options.get("usage"))
    from transformers import HfArgumentParser

    parser = HfArgumentParser(groups, **{"prog": program(), "usage": usage_of(groups), **parser_options})
    parser.set_defaults(**(defaults or {}))
    *found, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        raise ValueError(describe_unknown(unknown, all_option_names(groups)))
    return tuple(found)


def all_option_names(groups: Sequence[Any]) -> list[str]:
    return [name for group in groups for field in dataclasses.fields(group) for name in option_names(field)]


def describe_unknown(words: Sequence[str], options: Sequence[str]) -> str:
    """One sentence about the words of a command line that belong to no option."""
    all_options = f"{program()} --help lists all options"
    word = next((word for word in words if word.startswith("-")), None)
    if word is None:
        return f"{words[0]!r} belongs to no option, whose names begin with --: {all_options}"
    word = word.partition("=")[0]
    return f"{word} is not an option of {program()}: {suggestion(word, options) or all_options}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """A question about the one of the known words that a misspelt one is closest to; empty if none is close."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else ""


def wants_help(argv: Sequence[str] | None) -> bool:
    return not {"-h", "--help"}.isdisjoint(sys.argv[1:] if argv is None else argv)


def print_help(
    groups: Sequence[type],
    description: str | None,
    defaults: Mapping[str, Any] | None = None,
    usage: str | None = None,
) -> NoReturn:
    """Print the options and exit. Unlike parsing, this loads no slow libraries."""
    print(help_text(program(), description or "", groups, defaults, usage), end="")
    sys.exit(0)


def program() -> str:
    """The name of this command for its usage: `jmnat translate`, or the name of the script."""
    return os.path.basename(sys.argv[0])


def read_ahead(argv: Sequence[str] | None, *names: str) -> argparse.Namespace:
    """The values, as text, of options that determine the defaults of others; None if they are left out."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", dest=name)
    return parser.parse_known_args(argv)[0]


def check_counts(arguments, names: Sequence[str], least: int = 1) -> None:
    """ValueError for an argument, a number or a list of numbers, that is given and below `least`."""
    for name in names:
        given = getattr(arguments, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")


def limit_gpu_memory() -> None:
    """Use at most the share of the GPU's memory that the environment sets, so that others can use the rest."""
    share = os.environ.get(GPU_MEMORY_SHARE)
    if not share:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(float(share))
