"""Serve a model over HTTP, with the routes of LibreTranslate, until SIGTERM or Ctrl-C."""

from dataclasses import dataclass, field
from typing import Literal

from ..utils.command_line import check_counts, command, parse_arguments
from .shipped import shipped_model


@dataclass
class ServeArguments:
    """Which model to serve, where, and how much a client may ask for."""

    model: str = field(
        default="",
        metadata={
            "help": "A JM-NAT model: a folder, or a name on the Hub. Default: the German-English model that comes "
            "with the project."
        },
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to listen on; 0.0.0.0 gives other machines access, without any password."},
    )
    port: int = field(default=5000, metadata={"help": "Port to listen on; 0: any free one."})
    languages: list[str] | None = field(
        default=None,
        metadata={"help": "Codes of source and target language, such as de en. Default: as saved with the model."},
    )
    backend: Literal["auto", "torch", "onnx", "onnx_int8"] = field(
        default="auto",
        metadata={"help": "auto is onnx_int8 without a GPU if `jmnat export-onnx` has written it, otherwise torch."},
    )
    device: str = field(default="auto", metadata={"help": "auto (the GPU if there is one), cpu or cuda."})
    num_iterations: int | None = field(
        default=None, metadata={"help": "Decoder passes; fewer are faster. Default: as saved with the model."}
    )
    num_length_candidates: int | None = field(
        default=None, metadata={"help": "Target lengths tried per sentence. Default: as saved with the model."}
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Padded source tokens in a batch times candidates. Default: 32768 on a GPU, 512 on a CPU, and 1 "
            "with onnx_int8, because its translations depend on the other sentences of a batch."
        },
    )
    batch_wait: float = field(
        default=0.005, metadata={"help": "Seconds that a batch with room waits for more requests."}
    )
    max_characters: int = field(default=5000, metadata={"help": "Most characters in a request."})
    max_body_bytes: int = field(default=262_144, metadata={"help": "Most bytes in the body of a request."})
    max_waiting: int = field(default=64, metadata={"help": "Most waiting requests; further ones get the status 503."})


@command(memory="--batch_tokens or --num_length_candidates")
def main(argv=None):
    (arguments,) = parse_arguments(argv, ServeArguments, __doc__)
    check_counts(arguments, ("batch_tokens", "max_characters", "max_body_bytes", "max_waiting"))
    if not 0 <= arguments.batch_wait <= 10:
        raise ValueError(f"batch_wait={arguments.batch_wait} must be from 0 to 10 seconds")
    from transformers.utils import logging

    from ..serving.app import Limits
    from ..serving.run import load_server, serve

    logging.disable_progress_bar()
    limits = Limits(arguments.max_characters, arguments.max_body_bytes, arguments.max_waiting, arguments.batch_wait)
    options = {name: getattr(arguments, name) for name in ("num_iterations", "num_length_candidates")}
    server = load_server(
        arguments.model or shipped_model(),
        limits,
        arguments.backend,
        arguments.device,
        arguments.languages,
        arguments.batch_tokens,
        {name: value for name, value in options.items() if value is not None},
    )
    serve(server, arguments.host, arguments.port)
