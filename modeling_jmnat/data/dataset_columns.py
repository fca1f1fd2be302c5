"""Reading columns of a `datasets.Dataset`, or of a plain list of rows, without copying the others."""

import numpy as np

ROWS_AT_ONCE = 10_000


def column_lengths(dataset, name: str) -> np.ndarray:
    """Number of ids in each row of a column of lists; a `datasets.Dataset` is read in parts."""
    if hasattr(dataset, "with_format"):
        from pyarrow.compute import list_value_length

        batches = dataset.select_columns([name]).with_format("arrow").iter(ROWS_AT_ONCE)
        lengths = [list_value_length(batch[name]).to_numpy() for batch in batches]
        return np.concatenate([np.empty(0, np.int32), *lengths])
    return np.asarray([len(dataset[index][name]) for index in range(len(dataset))])


def text_column(dataset, name: str, limit: int | None) -> list[str]:
    """The first `limit` texts of a column (None: all)."""
    first = dataset[0]
    if name not in first:
        raise ValueError(f"the evaluation data has no column {name!r}, which BLEU needs, only {', '.join(first)}")
    if hasattr(dataset, "select_columns"):
        return list(dataset[name][:limit])
    return [dataset[index][name] for index in range(len(dataset))][:limit]


def without_text(dataset):
    """The data set without the columns that the collator does not need; reading text takes time."""
    if not hasattr(dataset, "select_columns"):
        return dataset
    return dataset.select_columns([name for name in ("id", "input_ids", "labels") if name in dataset.column_names])
