"""Line-aligned text files, plain or gzip-compressed, read and written strictly: nothing is repaired silently.

`\\n`, `\\r\\n` and a lone `\\r` end a line, as in Python's text mode and in sacreBLEU. Other characters that
Unicode calls line breaks (vertical tab, form feed, U+0085, U+2028, ...) are white space inside a line.
"""

import codecs
import gzip
import itertools
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from .atomic_files import atomic_text_file

GZIP_MAGIC = b"\x1f\x8b"
# First bytes of compressed files that are not read here, and the program that unpacks them.
PACKED = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def decode_lines(file: Iterable[bytes], name: str | Path) -> Iterator[str]:
    """Yield the UTF-8 lines of an open binary file without their line ends; `name` is for error messages.

    A byte order mark at the start of the file is removed.

    Raises:
        ValueError: the text is not valid UTF-8 or not a valid gzip stream; the message names the line.
    """
    number, start = 0, b""
    try:
        for chunk in file:  # up to the next line feed
            if number == 0:
                start = chunk[:8]
                chunk = chunk.removeprefix(codecs.BOM_UTF8)
            for line in chunk.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
                number += 1
                yield line.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        advice = _advice(error.object, start)
        raise ValueError(f"{name}: line {number} is not valid UTF-8 ({where}): {advice}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: not a complete gzip file after line {number} ({error})") from None


def _advice(data: bytes, start: bytes) -> str:
    """What to do with a line that is not UTF-8, of a file with these first bytes."""
    for magic, program in PACKED.items():
        if start.startswith(magic):
            return f"it is compressed by {program}; unpack it first, for example by `{program} -d`"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "it looks like UTF-16; convert it, for example by `iconv -f utf-16 -t utf-8`"
    if data.startswith(GZIP_MAGIC):
        return "it is compressed; give it a name that ends in .gz"
    return "convert it, for example by `iconv -f latin1 -t utf-8`"


def iterate_lines(path: str | Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file (`.gz` is decompressed), as `decode_lines` does.

    Raises:
        ValueError: the file is not valid UTF-8 or not a valid gzip file; the message names the line.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rb") as file:
        yield from decode_lines(file, path)


def read_lines(path: str | Path) -> list[str]:
    """All lines of a file; ValueError for an empty file."""
    lines = list(iterate_lines(path))
    _refuse_empty(path, len(lines))
    return lines


def _refuse_empty(path: str | Path, lines: int) -> None:
    if not lines:
        raise ValueError(f"{path}: the file is empty: at least one line is needed")


def iterate_parallel(source: str | Path, target: str | Path) -> Iterator[tuple[str, str]]:
    """Yield the pairs of lines of two line-aligned files; ValueError for empty files and different line counts."""
    source_count = target_count = 0
    for source_line, target_line in itertools.zip_longest(iterate_lines(source), iterate_lines(target)):
        source_count += source_line is not None
        target_count += target_line is not None
        if source_line is not None and target_line is not None:
            yield source_line, target_line
    for path, count in ((source, source_count), (target, target_count)):
        _refuse_empty(path, count)
    if source_count != target_count:
        raise ValueError(
            f"{source} has {source_count} lines and {target} has {target_count}: "
            "line-aligned files need the same number (a carriage return also ends a line)"
        )


def read_parallel(source: str | Path, target: str | Path) -> tuple[list[str], list[str]]:
    """Two line-aligned files as lists of equal length; ValueError for empty files and different line counts."""
    source_lines, target_lines = zip(*iterate_parallel(source, target), strict=True)
    return list(source_lines), list(target_lines)


def write_lines(path: str | Path, texts: Iterable[str]) -> None:
    """Write each text as one line of a UTF-8 file (`.gz` is compressed), which appears at `path` once it is complete.

    Raises:
        ValueError: a text has a line feed or a carriage return, so that `read_lines` would return more lines than
            there were texts.
        OSError: as `atomic_file`.
    """
    with atomic_text_file(path) as file:
        for number, text in enumerate(texts, 1):
            if "\n" in text or "\r" in text:
                raise ValueError(
                    f"{path}: text {number} has a line break ({text!r}) but must be a single line; if it comes from "
                    "prepared data, prepare that again with `jmnat prepare`"
                )
            file.write(f"{text}\n")
