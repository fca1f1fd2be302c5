"""Text of any length as numbered blocks: Parquet files with the columns id and source, each a unit of work.

Line-aligned text cannot be divided without reading it, and its lines have no ids, so it is copied once in blocks.
"""

import itertools
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.corpus import CHUNK, row_text, texts_of
from ..pipeline import check_text
from ..utils.fingerprints import number_of_text
from ..utils.text_files import iterate_lines

SUFFIX = ".parquet"


@dataclass(frozen=True)
class CorpusInput:
    """Where text comes from: files, or a data set of the Hub.

    Args:
        files: text files with one text per line (.gz is decompressed), or Parquet files and folders of them.
        dataset_name, dataset_config, dataset_revision, dataset_split: as for `datasets.load_dataset`.
        text_column: column of Parquet files and data sets, or a key of their column `translation`.
        id_column: column of Parquet files and data sets with unique ids; None numbers the texts from 0.

    Raises:
        ValueError: no input or two kinds of input, or ids for text files.
    """

    files: tuple[str, ...] = ()
    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    dataset_split: str = "train"
    text_column: str = "text"
    id_column: str | None = None

    def __post_init__(self) -> None:
        if bool(self.files) == (self.dataset_name is not None):
            raise ValueError("give either input files or dataset_name")
        kinds = {is_parquet(Path(file)) for file in self.files}
        if len(kinds) > 1:
            raise ValueError("input has both text and Parquet files: give files of one kind")
        if self.id_column is not None and kinds == {False}:
            raise ValueError(f"id_column={self.id_column!r} does not apply to text files: their lines are numbered")

    def rows(self) -> Iterator[tuple[int | str, str]]:
        """The id and the text of each row, in order.

        Raises:
            ValueError: a column is missing, a file cannot be read, or an id occurs twice.
        """
        if self.files and not is_parquet(Path(self.files[0])):
            return enumerate(itertools.chain.from_iterable(map(iterate_lines, self.files)))
        batches = self._batches_of_parquet() if self.files else self._batches_of_data_set()
        texts = (self._texts(batch) for batch in batches)
        if self.id_column is None:
            return enumerate(_line(text) for _, batch in texts for text in batch)
        pairs = ((number, _line(text)) for ids, batch in texts for number, text in zip(ids, batch, strict=True))
        return self._unique(pairs)

    def _texts(self, batch: dict[str, list]) -> tuple[list, Iterable[str | None]]:
        return batch.get(self.id_column or "", []), texts_of(batch, self.text_column)

    def _batches_of_parquet(self) -> Iterator[dict[str, list]]:
        for file in self.parquet_files():
            try:
                opened = pq.ParquetFile(file)
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(f"{file} is not a complete Parquet file ({error})") from None
            with opened:
                columns = self._columns(opened.schema_arrow.names, str(file))
                for batch in opened.iter_batches(CHUNK, columns=columns):
                    yield batch.to_pydict()

    def _batches_of_data_set(self) -> Iterator[dict[str, list]]:
        import datasets

        place = (self.dataset_name, self.dataset_config)
        try:
            data = datasets.load_dataset(*place, revision=self.dataset_revision, split=self.dataset_split)
        except (datasets.exceptions.DatasetsError, ValueError) as error:
            raise ValueError(f"dataset_name={self.dataset_name!r} cannot be read ({error})") from None
        columns = self._columns(data.column_names, str(self.dataset_name))
        yield from data.select_columns(columns).iter(CHUNK)

    def _columns(self, names: list[str], where: str) -> list[str]:
        text = self.text_column
        if text not in names and "translation" in names:
            text = "translation"
        wanted = [text, *filter(None, [self.id_column])]
        for option, name in zip(("text_column", "id_column"), wanted, strict=False):
            if name not in names:
                raise ValueError(f"{option}={name!r} is not in {where}; it has {', '.join(names)}")
        return wanted

    def _unique(self, rows: Iterator[tuple]) -> Iterator[tuple]:
        """The rows; after the last one, ValueError if two have the same id."""
        seen = array("Q")
        for number, text in rows:
            if number is None:
                raise ValueError(f"id_column={self.id_column!r} is empty in row {len(seen) + 1}")
            seen.append(number_of_text(str(number)))
            yield number, text
        if len(np.unique(np.frombuffer(seen, np.uint64))) < len(seen):
            raise ValueError(f"id_column={self.id_column!r} has an id more than once: choose another, or none")

    def parquet_files(self) -> list[Path]:
        found = {Path(file): sorted(Path(file).glob(f"*{SUFFIX}")) for file in self.files if Path(file).is_dir()}
        for folder, files in found.items():
            if not files:
                raise ValueError(f"input={folder} is a folder without {SUFFIX} files: name the files to translate")
        return [file for path in map(Path, self.files) for file in found.get(path, [path])]


def _line(text: str | None) -> str:
    return row_text(None if text is None else check_text(text))


def is_parquet(path: Path) -> bool:
    return path.suffix == SUFFIX or path.is_dir()


def write_blocks(rows: Iterator[tuple[int | str, str]], folder: Path, block_lines: int) -> int:
    """Write rows in blocks of `block_lines`; returns the number of rows.

    Raises:
        ValueError: there are no rows, or a text is not Unicode.
    """
    count = 0
    for block in itertools.count():
        chunk = list(itertools.islice(rows, block_lines))
        if not chunk:
            break
        for row, (_, text) in enumerate(chunk, count + 1):
            check_text(text, f"row {row}")
        ids, texts = (list(column) for column in zip(*chunk, strict=True))
        table = pa.table({"id": pa.array(ids), "source": pa.array(texts, pa.string())})
        pq.write_table(table, folder / f"{block:08d}{SUFFIX}")
        count += len(chunk)
    if not count:
        raise ValueError("the input is empty: at least one line is needed")
    return count
