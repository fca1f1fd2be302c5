"""Translate a file or standard input line by line, or the text in subtitles, message catalogues, Markdown and HTML.

The last line of standard error has the figures, in JSON.
"""

import collections
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from ..evaluation.options import LANGUAGES_HELP, SOURCE_PREFIX_HELP
from ..utils.atomic_files import atomic_text_file
from ..utils.command_line import check_counts, command, parse_arguments
from ..utils.locks import file_lock
from ..utils.text_files import decode_lines, iterate_lines
from .shipped import shipped_model

if TYPE_CHECKING:
    from ..inference.lines import LineReader
    from ..inference.translation import Translation

DEFAULT_BATCH_TOKENS = {"onnx_int8": 1}  # by backend, if not the default of `translate_lines`
WATCH_SECONDS = 0.1  # for which each draft is shown


@dataclass
class DecodingArguments:
    """Which model, and how it decodes."""

    model: str = field(
        default="",
        metadata={
            "help": "A trained model: a folder, or a name on the Hub. Default: the German-English model that comes "
            "with the project."
        },
    )
    split_sentences: bool = field(
        default=True,
        metadata={"help": "Translate each line sentence by sentence, if the model was trained on single sentences."},
    )
    long_lines: Literal["split", "truncate", "skip", "error"] = field(
        default="split",
        metadata={
            "help": "What to do with a sentence longer than the model can read: split it at clauses and spaces, "
            "truncate it, skip its line (the translation is empty), or error before any work is done."
        },
    )
    num_iterations: int | None = field(
        default=None, metadata={"help": "Decoder passes; fewer are faster. Default: as saved with the model."}
    )
    num_length_candidates: int | None = field(
        default=None, metadata={"help": "Target lengths tried per sentence. Default: as saved with the model."}
    )
    num_beams: int | None = field(default=None, metadata={"help": "Beam size of an autoregressive model."})
    generation_options: str | None = field(
        default=None, metadata={"help": """Further decoding options as JSON, such as '{"early_stop": true}'."""}
    )
    languages: list[str] | None = field(default=None, metadata={"help": LANGUAGES_HELP})
    source_prefix: str | None = field(default=None, metadata={"help": SOURCE_PREFIX_HELP})
    glossary: str | None = field(
        default=None,
        metadata={
            "help": "File with a source term, a tab and a target term in each line. If a line contains a source term "
            "as whole words, ignoring case, its translation contains the target term as spelled in the file."
        },
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Padded source tokens in a batch times candidates. Default: 4096 on a CPU, 32768 on a GPU, and 1 "
            "with onnx_int8, which is faster sentence by sentence and depends on the other sentences of a batch."
        },
    )
    backend: str = field(
        default="torch",
        metadata={
            "help": "torch; cuda_graphs, faster on a GPU; onnx or onnx_int8, faster on a CPU, for a model exported by "
            "`jmnat export-onnx`."
        },
    )
    reranker: str | None = field(
        default=None,
        metadata={"help": "Autoregressive model that chooses among the length candidates of a JM-NAT."},
    )
    device: str = field(default="auto", metadata={"help": "auto (the GPU if there is one), cpu or cuda."})
    dtype: str = field(default="auto", metadata={"help": "auto (as saved), float32, bfloat16 or float16."})


@dataclass
class TranslationArguments(DecodingArguments):
    """What to translate, with which model and decoding options."""

    input: str = field(
        default="-",
        metadata={"help": "Text to translate, one per line; .gz files are decompressed. -: standard input."},
    )
    output: str = field(
        default="-",
        metadata={"help": "File for the translations, which appears when it is complete. -: standard output."},
    )
    format: Literal["auto", "text", "srt", "vtt", "po", "markdown", "html"] = field(
        default="auto",
        metadata={
            "help": "Format of the input; auto chooses by its suffix (.srt, .vtt, .po, .md, .html; text for all "
            "others). Text is translated line by line; in other formats, everything but the text is left unchanged."
        },
    )
    n_best: int | None = field(
        default=None,
        metadata={
            "help": "Write the N best translations of each line, at most num_length_candidates: line number, score "
            "(sum of log-probabilities / (length + length_offset)**length_normalization + weighted consensus; of a "
            "beam search / length**length_penalty) and text, separated by tabs."
        },
    )
    show_passes: bool = field(
        default=False,
        metadata={"help": "Show the canvas of every pass for each line, and not only the translation."},
    )
    watch: bool = field(
        default=False,
        metadata={
            "help": "Show a draft after each pass on standard error, in place of the previous one. Lines are "
            "translated one by one."
        },
    )


def decoding_options(arguments: DecodingArguments, model, tokenizer) -> dict:
    """Options for `model.generate` from the command line."""
    from ..inference.loading import is_jmnat
    from ..inference.translation import parse_generation_options
    from ..teacher.reranking import load_reranker

    options = parse_generation_options(arguments.generation_options)
    reranker = arguments.reranker
    if reranker is not None and not is_jmnat(model):
        raise ValueError("--reranker does not apply to an autoregressive model: leave it out")
    given = {
        "reranker": None if reranker is None else load_reranker(reranker, tokenizer, model.device),
        "num_iterations": arguments.num_iterations,
        "num_length_candidates": arguments.num_length_candidates,
        "num_beams": arguments.num_beams,
    }
    return options | {name: value for name, value in given.items() if value is not None}


def splits(arguments: DecodingArguments, model) -> bool:
    """Whether lines are split into sentences; a prefix would have to stand before each of them."""
    wanted = arguments.split_sentences and getattr(model.config, "split_sentences", True)
    return wanted and not arguments.source_prefix


def generation_options(arguments: TranslationArguments, model, tokenizer) -> dict:
    """`decoding_options`, and options that determine what is shown."""
    from ..inference.loading import is_jmnat

    jmnat = is_jmnat(model)
    if arguments.show_passes and not jmnat:
        raise ValueError("--show_passes does not apply to an autoregressive model, which has no passes: leave it out")
    if arguments.show_passes and arguments.n_best is not None:
        raise ValueError("--show_passes shows only the best translation: leave --n_best out")
    if arguments.watch and not jmnat:
        raise ValueError("--watch does not apply to an autoregressive model, which has no drafts: leave it out")
    if arguments.watch and arguments.n_best is not None:
        raise ValueError("--watch shows only the best translation: leave --n_best out")
    shown = {
        "num_return_sequences": arguments.n_best,
        "output_history": arguments.show_passes or None,
        "streamer": draft_streamer(tokenizer) if arguments.watch else None,
    }
    return decoding_options(arguments, model, tokenizer) | {
        name: value for name, value in shown.items() if value is not None
    }


def draft_streamer(tokenizer):
    """Transformers' streamer of drafts, on standard error; final translations are written to the output as usual."""
    from transformers import TextDiffusionStreamer

    class Drafts(TextDiffusionStreamer):
        def put_draft(self, value):
            with redirect_stdout(sys.stderr):
                super().put_draft(value)

        def put(self, value):
            with redirect_stdout(sys.stderr):
                self._clear_draft()

        def end(self):
            pass

    return Drafts(tokenizer, sleep_time=WATCH_SECONDS if sys.stderr.isatty() else None, skip_special_tokens=True)


def write_translation(file: TextIO, number: int, translation: "Translation", arguments: TranslationArguments) -> None:
    if arguments.show_passes:
        rows = [("source", translation.source)]
        rows += [(f"pass {turn}", canvas) for turn, canvas in enumerate(translation.canvases or [], start=1)]
        rows += [("result", translation.text)]
        file.writelines(f"{name:8}{text}\n" for name, text in rows)
        file.write("\n")
    elif arguments.n_best is not None:
        for text, score in translation.candidates:
            file.write(f"{number}\t{'' if score is None else format(score, '.4f')}\t{text}\n")
    else:
        file.write(f"{translation.text}\n")


def checked_lines(arguments: TranslationArguments, reader: "LineReader") -> Iterable[str]:
    """The lines to translate, with their prefix. A file is read once before, so that its errors are found before work.

    Standard input and pipes are read while they are translated; with `long_lines=error`, they are read completely
    first.
    """
    from ..inference.loading import prefixed

    path = arguments.input
    is_input = path == "-"

    def read() -> Iterable[str]:
        lines = decode_lines(sys.stdin.buffer, "standard input") if is_input else iterate_lines(path)
        return prefixed(arguments.source_prefix, lines)

    lines = read()
    if is_input or (Path(path).exists() and not Path(path).is_file()):
        if arguments.long_lines == "error":
            lines = list(lines)
            reader.check(lines)
        return lines
    if arguments.long_lines == "error":
        reader.check(lines)
    else:
        collections.deque(lines, maxlen=0)
    return read()


def document_format(arguments: TranslationArguments) -> str:
    """The format of the input; ValueError for a document with options for single lines."""
    from ..documents.formats import format_of

    form = format_of(arguments.input) if arguments.format == "auto" else arguments.format
    for name in ("n_best", "show_passes", "watch"):
        if form != "text" and getattr(arguments, name):
            raise ValueError(f"--{name} does not apply to a {form} document: leave it out, or give --format text")
    return form


def translate_document(arguments: TranslationArguments, file: TextIO, translate: Callable) -> dict:
    """Write a document with its text translated, and return the figures."""
    from ..documents.formats import read_document
    from ..documents.placeholders import translate_guarded

    form = document_format(arguments)
    is_input = arguments.input == "-"
    data = sys.stdin.buffer.read() if is_input else Path(arguments.input).read_bytes()
    document = read_document(data, form, "standard input" if is_input else arguments.input)
    texts = list(dict.fromkeys(document.texts))
    found: list[Translation] = []

    def translated(lines: list[str]) -> list[str]:
        found.extend(translate(lines))
        return [each.text for each in found]

    start = time.perf_counter()
    translations, kept = translate_guarded(texts, translated)
    known = dict(zip(texts, translations, strict=True))
    file.write(document.write(known[text] for text in document.texts))
    seconds = round(time.perf_counter() - start, 3)
    long_lines = sum(each.too_long for each in found)
    return {"format": form, "texts": len(texts), "untranslated": kept, "long_lines": long_lines, "seconds": seconds}


def warn_of_long_lines(count: int, model, arguments: TranslationArguments) -> None:
    from ..inference.lines import describe_long_lines

    if count:
        print(describe_long_lines(count, model, arguments.long_lines), file=sys.stderr)


def run_translation(arguments: TranslationArguments, file: TextIO, window_lines: int) -> dict:
    """Translate into `file` and return the figures."""
    from ..inference.glossary import Glossary
    from ..inference.lines import LineReader
    from ..inference.loading import is_jmnat, load_translator, prefixed, tell_languages
    from ..inference.translation import check_options, translate_lines

    if arguments.glossary is not None and arguments.n_best is not None:
        raise ValueError("--glossary gives only one translation per line: leave --n_best out")
    glossary = None if arguments.glossary is None else Glossary.read(arguments.glossary)
    model, tokenizer = load_translator(arguments.model, arguments.device, arguments.dtype, arguments.backend)
    tell_languages(arguments.model, model, tokenizer, arguments.languages, arguments.source_prefix)
    split = splits(arguments, model)
    options = generation_options(arguments, model, tokenizer)
    check_options(model, options)
    batch_tokens = arguments.batch_tokens or DEFAULT_BATCH_TOKENS.get(arguments.backend)
    translate = functools.partial(
        translate_lines,
        model,
        tokenizer,
        max_batch_tokens=1 if arguments.watch else batch_tokens,  # a streamer takes one line
        window_lines=window_lines,
        progress=sys.stderr.isatty() and window_lines > 1,
        glossary=glossary,
        split_sentences=split,
        long_lines=arguments.long_lines,
        **options,
    )
    if document_format(arguments) != "text":
        prefix = arguments.source_prefix
        of_document = translate_document(arguments, file, lambda texts: translate(prefixed(prefix, texts)))
        warn_of_long_lines(of_document["long_lines"], model, arguments)
        return of_document | {"device": str(model.device)}
    reader = LineReader(model, tokenizer, split, arguments.long_lines, glossary)
    translations = translate(checked_lines(arguments, reader))
    sentences = tokens = passes = long_lines = 0
    start = time.perf_counter()
    for translation in translations:
        sentences += 1
        tokens += len(translation.token_ids)
        passes += translation.num_passes or 0
        long_lines += translation.too_long
        write_translation(file, sentences, translation, arguments)
        if window_lines == 1:
            file.flush()
    seconds = time.perf_counter() - start
    if not sentences:
        raise ValueError(f"{arguments.input}: the input is empty: at least one line is needed")
    warn_of_long_lines(long_lines, model, arguments)
    return {
        "sentences": sentences,
        "long_lines": long_lines,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "sentences_per_second": round(sentences / seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "mean_passes": round(passes / sentences, 3) if is_jmnat(model) else None,
        "device": str(model.device),
    }


@command(memory="--batch_tokens or --num_length_candidates")
def main(argv=None):
    (arguments,) = parse_arguments(argv, TranslationArguments, __doc__)
    check_counts(arguments, ("n_best", "batch_tokens"))
    document_format(arguments)
    if arguments.input == "-" and sys.stdin is None:  # closed by `<&-`
        raise ValueError("standard input is closed: give --input FILE")
    arguments.model = arguments.model or shipped_model()
    from transformers.utils import logging

    from ..inference.translation import WINDOW_LINES

    logging.disable_progress_bar()
    # At a terminal, answer each line at once.
    window_lines = 1 if arguments.watch or (arguments.input == "-" and sys.stdin.isatty()) else WINDOW_LINES
    with ExitStack() as stack:
        if arguments.output == "-":
            file = sys.stdout
            file.reconfigure(encoding="utf-8", newline="\n")
        else:
            stack.enter_context(file_lock(arguments.output, "output"))
            file = stack.enter_context(atomic_text_file(arguments.output))
        figures = run_translation(arguments, file, window_lines)
        file.flush()
    print(json.dumps(figures), file=sys.stderr)
