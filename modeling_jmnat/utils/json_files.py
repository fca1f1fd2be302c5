"""Reading JSON, with an error that names the damaged file or the argument."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .text_files import read_lines


def parse_json(argument: str, text: str) -> Any:
    """The value that an argument gives as JSON; ValueError, which names the argument, if it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{argument}={text!r} is not JSON ({error})") from None


def read_json(
    path: str | Path, keys: Sequence[str] = (), what_to_do: str = "restore it, or delete it"
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        keys: keys that it must have.
        what_to_do: advice at the end of the error message.

    Raises:
        ValueError: the file is cut short or damaged, is not a JSON object, or lacks a key.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # JSON or UTF-8
        raise ValueError(f"{path} is damaged or cut short ({error}): {what_to_do}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(content).__name__}: {what_to_do}")
    lacking = [key for key in keys if key not in content]
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}: {what_to_do}")
    return content


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """The JSON objects of a file with one in each line.

    Raises:
        ValueError: a line is something else; the message names it.
        OSError: the file cannot be read.
    """
    rows = []
    for number, line in enumerate(read_lines(Path(path)), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error}): restore the file") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} must be a JSON object, not {type(row).__name__}")
        rows.append(row)
    return rows
