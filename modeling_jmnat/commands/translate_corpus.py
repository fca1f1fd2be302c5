"""Translate a corpus of any size, on one machine or a Ray cluster. The input is text, Parquet or a data set of the
Hub, the output Parquet with the columns id, source, translation and score (ids of text lines are numbers from 0).

    jmnat translate-corpus --model runs/student --input news.de.gz --output_dir runs/news
    jmnat translate-corpus --model runs/teacher --num_beams 5 --backend ctranslate2 --input news.de.gz \\
        --output_dir runs/distilled --source_text distilled.de --target_text distilled.en   (text to learn from)
    jmnat translate-corpus --address auto ...   (on the cluster that this machine is part of)

Repeat the command to resume after an interruption. The last line of output has the figures, as JSON.
"""

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from ..utils.command_line import check_counts, command, parse_arguments
from .shipped import shipped_model
from .translate import DEFAULT_BATCH_TOKENS, DecodingArguments, decoding_options, splits

SEARCH_BACKENDS = {"torch": "transformers", "ctranslate2": "ctranslate2"}  # for autoregressive models
SETTINGS, RESULT = "settings.json", "translation.json"
TEXT_OPTIONS = ("source_text", "target_text")
# Options that may change when a run is resumed.
FREE_OPTIONS = ("output_dir", "address", "num_actors", "cpus_per_actor", "gpus_per_actor", "device", *TEXT_OPTIONS)


@dataclass
class CorpusArguments(DecodingArguments):
    """What to translate, with which model, and where."""

    backend: str = field(
        default="torch",
        metadata={
            "help": "torch; for JM-NAT also onnx or onnx_int8 (after `jmnat export-onnx`) and cuda_graphs; for an "
            "autoregressive model also ctranslate2."
        },
    )
    output_dir: str = field(
        default="",
        metadata={"help": "Folder for the result, in its subfolder translations. All nodes must see it."},
    )
    input: list[str] | None = field(
        default=None,
        metadata={"help": "Text files with one text per line, .gz or plain; or Parquet files or folders of them."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A data set on the Hugging Face Hub, or its local folder, instead of files."},
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the data set, such as de-en."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch or commit of the data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the data set."})
    text_column: str = field(
        default="text",
        metadata={"help": "Column of Parquet files or the data set, or a language in its column translation."},
    )
    id_column: str | None = field(
        default=None, metadata={"help": "Column with unique ids. Default: rows are numbered from 0."}
    )
    block_lines: int = field(
        default=4096,
        metadata={"help": "Lines to translate and write together; a kill loses the work on unfinished blocks."},
    )
    source_text: str | None = field(
        default=None,
        metadata={"help": "File for the sources as text, in the order of the ids, for `jmnat prepare`."},
    )
    target_text: str | None = field(
        default=None,
        metadata={"help": "File for the translations as text. Both files leave out lines without a translation."},
    )
    address: str | None = field(
        default=None,
        metadata={"help": "Address of a Ray cluster, or auto. Default: only this machine."},
    )
    num_actors: int | None = field(
        default=None,
        metadata={"help": "Processes that translate. Default: as many as the CPUs and GPUs allow."},
    )
    cpus_per_actor: int = field(default=1, metadata={"help": "CPU cores (threads) of each process."})
    gpus_per_actor: float = field(default=0.0, metadata={"help": "GPUs of each process: 1, or a fraction."})

    def __post_init__(self):
        check_counts(self, ("num_beams", "batch_tokens", "block_lines", "num_actors", "cpus_per_actor"))
        if not self.output_dir:
            raise ValueError("output_dir is missing: give --output_dir DIR, the folder for the result")
        if self.long_lines == "error":
            raise ValueError("long_lines=error does not apply to a corpus: choose split, truncate or skip")
        if (self.source_text is None) != (self.target_text is None):
            raise ValueError("source_text and target_text belong together: give both, or neither")
        check_counts(self, ["gpus_per_actor"], least=0)


def load_translate(arguments: CorpusArguments) -> Callable[[list[str]], list[tuple[str, float | None]]]:
    """Load the model; returns a function from texts to their translations and scores.

    Raises:
        ValueError: as `load_translator`, or options do not apply to the model.
    """
    from ..inference.glossary import Glossary
    from ..inference.loading import is_jmnat, load_translator, prefixed, tell_languages
    from ..inference.search_model import search_model
    from ..inference.translation import check_options, translate_lines

    backend = arguments.backend
    place = (arguments.device, arguments.dtype)
    model, tokenizer = load_translator(arguments.model, *place, "torch" if backend == "ctranslate2" else backend)
    tell_languages(arguments.model, model, tokenizer, arguments.languages, arguments.source_prefix)
    options = decoding_options(arguments, model, tokenizer)
    check_options(model, options)
    split = splits(arguments, model)
    if is_jmnat(model):
        if backend == "ctranslate2":
            raise ValueError("backend=ctranslate2 does not apply to JM-NAT: choose torch, onnx or onnx_int8")
    else:
        model, options = search_model(model, tokenizer, SEARCH_BACKENDS.get(backend, backend), options), {}
    translate = functools.partial(
        translate_lines,
        model,
        tokenizer,
        max_batch_tokens=arguments.batch_tokens or DEFAULT_BATCH_TOKENS.get(backend),
        glossary=None if arguments.glossary is None else Glossary.read(arguments.glossary),
        split_sentences=split,
        long_lines=arguments.long_lines,
        **options,
    )

    def translate_block(texts: list[str]) -> list[tuple[str, float | None]]:
        return [translation.candidates[0] for translation in translate(prefixed(arguments.source_prefix, texts))]

    return translate_block


def settings_of(arguments: CorpusArguments, rows) -> dict:
    """All settings that determine the result; a run is resumed only with the same ones."""
    from ..utils.fingerprints import file_digest, model_digest

    settings = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in FREE_OPTIONS}
    if arguments.glossary is not None:
        settings["glossary"] = Path(arguments.glossary).read_text(encoding="utf-8")
    for name in ("model", "reranker"):
        if settings[name] is not None:
            settings[name] = model_digest(settings[name])
    settings["saved_options"] = [file_digest(file) for file in option_files(arguments.model, arguments.backend)]
    files = rows.parquet_files() if rows.files else ()
    settings["input"] = [[file.name, file.stat().st_size] for file in files]
    return settings | {"input_content": [file_digest(file) for file in files if file.is_file()]}  # not of a pipe


def option_files(model: str, backend: str) -> list[Path]:
    """The files of a model with its decoding options: the generation configuration and the graphs that are used."""
    from ..inference.onnx_runtime import find_graphs

    graphs = backend.startswith("onnx")
    folder = find_graphs(model, backend == "onnx_int8") if graphs else Path(model)
    files = sorted(folder.glob("*.onnx")) if graphs else []
    return [*files, *folder.glob("generation_config.json")]


def is_begun(settings: dict, output_dir: Path) -> bool:
    """Whether a folder has the blocks of an earlier run; ValueError if that had other settings."""
    from ..utils.json_files import read_json

    if (output_dir / SETTINGS).exists():
        earlier = read_json(output_dir / SETTINGS, ("lines",), "delete the folder and begin anew")
        for name, value in settings.items():
            if earlier.get(name, value) != value:  # earlier versions recorded fewer
                raise ValueError(
                    f"output_dir={output_dir} holds a translation with another {name}: choose another folder, or "
                    "delete this one"
                )
        return True
    if any(not entry.name.startswith(".") and entry.name != "input" for entry in output_dir.iterdir()):
        raise ValueError(f"output_dir={output_dir} holds other files: choose a new or empty folder")
    return False


def write_input(settings: dict, output_dir: Path, rows, block_lines: int) -> None:
    """Write the input as numbered blocks and then, when they are complete, the settings."""
    from ..inference.numbered_blocks import write_blocks
    from ..utils.atomic_files import whole_folder, write_json

    with whole_folder(output_dir / "input") as folder:
        lines = write_blocks(rows.rows(), folder, block_lines)
    write_json(output_dir / SETTINGS, settings | {"lines": lines})


def check_complete(translations: Path, lines: int) -> None:
    """RuntimeError unless each id was written exactly once."""
    import numpy as np
    import pyarrow.parquet as pq

    from ..utils.fingerprints import number_of_text

    numbers = [
        [number_of_text(str(value)) for value in pq.read_table(file, columns=["id"])["id"].to_pylist()]
        for file in translations.glob("*.parquet")
    ]
    found = np.concatenate([np.array(of_file, np.uint64) for of_file in numbers])
    if len(found) != lines or len(np.unique(found)) != lines:
        raise RuntimeError(f"{translations} holds {len(found)} rows of {len(np.unique(found))} ids, not {lines}")


def check_result(output_dir: Path, translations: Path, lines: int) -> None:
    """ValueError unless the result is whole: a file of it, or of a run that was interrupted, may have been lost."""
    try:
        check_complete(translations, lines)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"output_dir={output_dir} is damaged ({error}): delete it and translate again") from None


def check_text_files(arguments: CorpusArguments) -> None:
    """ValueError for a file of text that is also the other one or an input; OSError if one cannot be written."""
    from ..utils.atomic_files import check_writable, same_path

    taken = list(arguments.input or [])
    for name in TEXT_OPTIONS:
        path = getattr(arguments, name)
        if path is None:
            continue
        if any(same_path(path, other) for other in taken):
            raise ValueError(f"{name}={path} is given twice: name another file")
        check_writable(path)
        taken.append(path)


def translate_corpus(arguments: CorpusArguments) -> dict:
    """Translate the blocks that are missing; returns the figures."""
    import ray  # noqa: F401  first, so that the error names this package and not one that it installs

    from ..inference import corpus_translation as engine
    from ..inference.numbered_blocks import CorpusInput
    from ..utils.atomic_files import write_json
    from ..utils.json_files import read_json
    from ..utils.locks import folder_lock

    names = ("dataset_name", "dataset_config", "dataset_revision", "dataset_split", "text_column", "id_column")
    rows = CorpusInput(tuple(arguments.input or ()), **{name: getattr(arguments, name) for name in names})
    check_text_files(arguments)
    output_dir = Path(arguments.output_dir).resolve()
    with folder_lock(output_dir, "output_dir"):
        settings = settings_of(arguments, rows)
        begun, complete = is_begun(settings, output_dir), (output_dir / RESULT).exists()
        if not complete:
            load_translate(dataclasses.replace(arguments, **on_this_machine(arguments)))  # for its errors
        if not begun:
            write_input(settings, output_dir, rows, arguments.block_lines)
        lines = read_json(output_dir / SETTINGS)["lines"]
        pool = engine.Pool(arguments.address, arguments.num_actors, arguments.cpus_per_actor, arguments.gpus_per_actor)
        translations, finished = output_dir / "translations", output_dir / "finished"
        figures = {"lines": lines}
        with nullcontext() if complete and arguments.source_text is None else engine.connected(pool):
            if not complete:
                start = time.perf_counter()
                load = functools.partial(load_translate, dataclasses.replace(arguments, **full_paths(arguments)))
                translated = engine.translate_blocks(output_dir / "input", translations, finished, load, pool)
                seconds = time.perf_counter() - start
                figures |= {"seconds": round(seconds, 1), "lines_per_second": round(translated / seconds, 1)}
            check_result(output_dir, translations, lines)
            if not complete:
                write_json(output_dir / RESULT, figures)
            for folder in (output_dir / "input", finished):
                shutil.rmtree(folder, ignore_errors=True)
            if arguments.source_text is not None:
                figures["pairs"] = engine.write_texts(translations, arguments.source_text, arguments.target_text)
    return figures


def full_paths(arguments: CorpusArguments) -> dict:
    """Options that name files, with full paths, for processes in other folders."""
    given = {name: getattr(arguments, name) for name in ("model", "reranker", "glossary")}
    return {name: str(Path(path).resolve()) for name, path in given.items() if path and Path(path).exists()}


def on_this_machine(arguments: CorpusArguments) -> dict:
    """Options for checking the model on this machine, which may lack the devices of the cluster's nodes."""
    import torch

    if arguments.address is None or torch.cuda.is_available():
        return {}
    return {"device": "auto"} | ({"backend": "torch"} if arguments.backend == "cuda_graphs" else {})


@command(resumes=True, memory="--batch_tokens or --num_actors")
def main(argv=None):
    (arguments,) = parse_arguments(argv, CorpusArguments, __doc__)
    arguments.model = arguments.model or shipped_model()
    from transformers.utils import logging

    logging.disable_progress_bar()
    print(json.dumps(translate_corpus(arguments)))
