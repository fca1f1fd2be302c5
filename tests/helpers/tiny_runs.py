"""A tiny prepared data set and a tiny model to train on it, for the tests of training."""

import multiprocessing
import os
import random
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch

from modeling_jmnat import JMNatConfig, JMNatForConditionalGeneration
from modeling_jmnat.data.preparation import PreparationArguments, prepare

WORDS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four", "haus": "house", "baum": "tree", "und": "and"}
MODEL = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "normalize_before": True,
    "max_position_embeddings": 64,
    "max_target_length": 64,
}


def prepare_tiny_data(directory: Path, num_train: int = 48, num_validation: int = 9) -> Path:
    """Word-by-word translations of 2 to 9 words, prepared in `directory`/data."""
    rng = random.Random(5)
    files = {}
    for split, count in (("train", num_train), ("validation", num_validation)):
        sources = [" ".join(rng.choices(list(WORDS), k=rng.randint(2, 9))) for _ in range(count)]
        for side, lines in (("source", sources), ("target", [translate(line) for line in sources])):
            path = directory / f"{split}.{side}"
            path.write_text("\n".join(lines) + "\n")
            files[f"{split}_{side}"] = str(path)
    prepare(PreparationArguments(output_dir=str(directory / "data"), vocab_size=320, **files))
    return directory / "data"


def translate(line: str) -> str:
    return " ".join(WORDS[word] for word in line.split())


def tiny_model(tokenizer, seed: int = 0, **fields) -> JMNatForConditionalGeneration:
    torch.manual_seed(seed)
    return JMNatForConditionalGeneration(JMNatConfig(vocab_size=len(tokenizer), **{**MODEL, **fields}))


class Child:
    """`function(*arguments)` in a forked process, its output in a file; forking saves the imports.

    With `clean_exit` the process ends as Python's own do: its exit handlers wait for its children.
    """

    def __init__(self, log: Path, function, *arguments, environment: dict | None = None, clean_exit: bool = False):
        self.log = log
        self.clean_exit = clean_exit
        self.process = multiprocessing.get_context("fork").Process(
            target=self._main, args=(function, arguments, environment or {})
        )
        self.process.start()

    def _main(self, function, arguments, environment):
        os.environ.update(environment)
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(self.log, "w", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            try:
                function(*arguments)
            except SystemExit as end:
                os._exit(end.code or 0)
            except BaseException:
                traceback.print_exc()
                if not self.clean_exit:
                    os._exit(99)
                raise
        if not self.clean_exit:
            os._exit(0)

    def join(self, timeout: float = 60) -> int:
        """Wait for the end and return the exit code."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(self.log.read_text())
        return self.process.exitcode

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


def run_together(processes: int, logs: Path, function, *arguments) -> None:
    """`function(*arguments)` in forked processes that find each other as those of torchrun do; all must succeed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in range(processes):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true"}
        log = logs / f"log{rank}"
        children.append(Child(log, _with_new_state, function, *arguments, environment=environment))
    codes = [child.join(120) for child in children]
    assert codes == [0] * processes, "\n".join(child.log.read_text() for child in children)


def _with_new_state(function, *arguments) -> None:
    """Reset the state inherited from the parent process."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    function(*arguments)
