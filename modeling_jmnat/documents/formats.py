"""The document formats by file name."""

from pathlib import Path

from .html import read_html
from .markdown import read_markdown
from .pieces import Document
from .po import read_po
from .subtitles import read_srt, read_vtt

READERS = {"srt": read_srt, "vtt": read_vtt, "po": read_po, "markdown": read_markdown, "html": read_html}
SUFFIXES = {
    ".srt": "srt",
    ".vtt": "vtt",
    ".po": "po",
    ".pot": "po",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
}


def format_of(path: str | Path) -> str:
    """The format that the suffix of a file stands for; `text`, line by line, for any other suffix."""
    return SUFFIXES.get(Path(path).suffix.lower(), "text")


def read_document(data: bytes, form: str, name: str | Path) -> Document:
    """A document from the bytes of a file.

    Args:
        form: one of `READERS`.
        name: name of the file in error messages.

    Raises:
        ValueError: the bytes are not UTF-8, or not a file of that format.
    """
    try:
        return READERS[form](data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not valid UTF-8 ({error.reason} at byte {error.start})") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
