"""Load a model and serve it until the process is told to stop."""

import signal
import socket
from collections.abc import Sequence

import torch
import uvicorn

from ..inference.loading import is_jmnat_itself, load_translator
from ..inference.onnx_runtime import find_graphs
from ..inference.translation import check_options, default_batch_tokens
from ..pipeline import JMNatTranslationPipeline
from ..utils.command_line import say
from ..utils.signals import handling
from .app import Limits, TranslationServer
from .batching import BatchTranslator
from .libretranslate import plain_code

CPU_BATCH_TOKENS = 512  # larger batches are slower there


def choose_backend(model: str) -> str:
    """`onnx_int8` on a machine without a GPU for a folder that has the graph, otherwise `torch`."""
    if torch.cuda.is_available():
        return "torch"
    try:
        find_graphs(model, int8=True)
    except ValueError:
        return "torch"
    return "onnx_int8"


def choose_batch_tokens(device: torch.device, backend: str) -> int:
    """1, each sentence by itself, for the 8-bit graphs: their translations depend on what else is in a batch."""
    if backend == "onnx_int8":
        return 1
    return CPU_BATCH_TOKENS if device.type == "cpu" else default_batch_tokens(device)


def load_server(
    model: str,
    limits: Limits,
    backend: str = "auto",
    device: str = "auto",
    languages: Sequence[str] | None = None,
    batch_tokens: int | None = None,
    generation: dict | None = None,
) -> TranslationServer:
    """A server for a saved JM-NAT model.

    Args:
        backend: `auto` or one of `load_translator`.
        languages: source and target language; by default those of the model's configuration.
        batch_tokens: limit of sentences * candidates * longest source; by default that of `choose_batch_tokens`.
        generation: options of `generate` for every translation.

    Raises:
        ValueError: the model cannot be loaded or is not a JM-NAT, does not accept an option, or its languages are
            unknown.
    """
    backend = choose_backend(model) if backend == "auto" else backend
    translator, tokenizer = load_translator(model, device, backend=backend)
    if not is_jmnat_itself(translator.config):
        raise ValueError(f"model={model} is a {translator.config.model_type} model: only JM-NAT can be served")
    options = generation or {}
    check_options(translator, options)
    config = translator.config
    languages = languages or [getattr(config, f"{side}_language", None) for side in ("source", "target")]
    if len(languages) != 2 or None in languages:
        given = " ".join(map(str, languages))
        raise ValueError(f"languages={given!r} must be two codes, of source and target: give --languages de en")
    languages = [plain_code(str(language)) for language in languages]  # as those of requests are read
    say(f"{model} by {backend}, {languages[0]} to {languages[1]}")
    pipeline = JMNatTranslationPipeline(translator, tokenizer, **options)
    batch_tokens = batch_tokens or choose_batch_tokens(translator.device, backend)
    return TranslationServer(BatchTranslator(pipeline, batch_tokens), languages, limits)


def serve(server: TranslationServer, host: str, port: int) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those already accepted.

    Raises:
        ValueError: it is not possible to listen on that host and port.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on host={host} port={port}, choose others: {error}") from None
    # asyncio sets it only for sockets that it creates itself; without it, an answer takes 40 ms longer.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    say(f"listening on http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}")
    config = uvicorn.Config(server.app(), log_level="warning", access_log=False, server_header=False)
    # uvicorn stops cleanly at these signals and raises them again afterwards, when they must have no effect.
    with handling(lambda number, frame: None, signal.SIGTERM, signal.SIGINT):
        uvicorn.Server(config).run(sockets=[listener])
    say("stopped")
