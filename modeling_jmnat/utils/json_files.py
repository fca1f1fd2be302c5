"""JSON files that earlier commands have written, read so that a damaged one gets a sentence with its name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_json(
    path: str | Path, keys: Sequence[str] = (), what_to_do: str = "restore it, or delete it"
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        keys: what it must hold.
        what_to_do: end of the error message, for the person.

    Raises:
        ValueError: the file is cut short or damaged, holds something else than an object, or lacks a key.
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
