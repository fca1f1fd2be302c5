"""The options of a whole translation as required inputs, with their defaults in a JSON file.

`jmnat export-onnx --for_browsers True` writes `browser_translator.onnx` and `browser_translator.json`, for runtimes
without optional inputs. Feeding them needs only NumPy; `hub_card/browser/translator.js` does the same.

The file has an object for each input with its `type`, and its `value`, or for a vector its `runs`: pairs of a value
and its number of repetitions. Minus infinity, which JSON lacks, is the string "-Infinity".
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

OPTIONS_FILE = "browser_translator.json"
KINDS = {"int64": "iu", "float32": "iuf", "bool": "b"}  # NumPy's kinds of types that an input accepts


def described(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """The content of the file for `translator_inputs`; a vector with one number becomes a scalar."""
    return {name: {"type": str(array.dtype), **_values(array)} for name, array in arrays.items()}


def _values(array: np.ndarray) -> dict[str, Any]:
    values = [value if value != -np.inf else "-Infinity" for value in array.flatten().tolist()]
    if len(values) == 1:
        return {"value": values[0]}
    return {"runs": [[value, len(list(run))] for value, run in itertools.groupby(values)]}


def translator_feeds(
    defaults: str | Path | Mapping[str, Mapping[str, Any]], input_ids, attention_mask=None, **options
) -> dict[str, np.ndarray]:
    """All inputs of `browser_translator.onnx`.

    Args:
        defaults: the path of `browser_translator.json`, or its content.
        input_ids: (B, S), `</s>` included.
        attention_mask: (B, S). Default: 1 everywhere.
        options: inputs of the graph that differ from the defaults, such as `num_iterations=2`.

    Raises:
        ValueError: the graph has no such option, or a value has the wrong type or rank.
    """
    inputs = defaults if isinstance(defaults, Mapping) else json.loads(Path(defaults).read_text(encoding="utf-8"))
    for name in options:
        if name not in inputs:
            raise ValueError(f"option {name!r} is not an input of this graph, only {', '.join(inputs)}")
    ids = np.asarray(input_ids, dtype=np.int64)
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, dtype=np.int64)
    feeds = {name: _array(name, default, options.get(name)) for name, default in inputs.items()}
    return {"input_ids": ids, "attention_mask": mask, **feeds}


def _array(name: str, default: Mapping[str, Any], given: Any) -> np.ndarray:
    """An input as `given`, or else its default."""
    dtype, is_vector = default["type"], "runs" in default
    if given is None:
        runs = default["runs"] if is_vector else [[default["value"], 1]]
        values = [value for value, count in runs for _ in range(count)]
        array = np.array([float(value) if dtype == "float32" else value for value in values], dtype=dtype)
        return array if is_vector else array.reshape(())
    array = np.asarray(given)
    if array.ndim != is_vector or (array.size and array.dtype.kind not in KINDS[dtype]):
        raise ValueError(f"{name}={given!r} must be a {'vector' if is_vector else 'scalar'} of type {dtype}")
    return array.astype(dtype)
