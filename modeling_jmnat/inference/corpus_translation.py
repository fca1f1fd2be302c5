"""Blocks of text translated by a pool of actors on Ray Data, on one machine or a cluster.

Each actor loads the model once. A block is read, translated and written as a whole; Ray Data records it as finished
when its file is complete, and a later run translates the others. Lost actors and nodes are replaced, and their
unfinished blocks are translated again.
"""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.checkpoint import CheckpointConfig, IdColumnCheckpointManager
from ray.data.datasource import Datasource, ReadTask

from ..utils.atomic_files import atomic_text_file
from ..utils.workers import has_room_for_sockets

# A function that loads a model and returns a function from texts to their translations and scores.
Loader = Callable[[], Callable[[list[str]], Sequence[tuple[str, float | None]]]]
OBJECT_STORE_BYTES = 256 * 2**20  # on one machine: enough for a few blocks of text
BEYOND_THE_ACTORS = 1  # further CPUs that Ray may count on, so that other tasks do not wait for one
SOCKET_CHARACTERS = 77  # added by Ray to the path of the temporary folder, for its sockets


@dataclass(frozen=True)
class Pool:
    """The number of actors that translate, and their resources.

    Args:
        address: address of a cluster, or "auto"; None starts Ray on this machine until the work is done.
        num_actors: None: as many as the resources allow.
        cpus_per_actor, gpus_per_actor: resources of each actor; gpus_per_actor may be a fraction.
    """

    address: str | None = None
    num_actors: int | None = None
    cpus_per_actor: int = 1
    gpus_per_actor: float = 0.0


class Blocks(Datasource):
    """Parquet files, each read as one block."""

    def __init__(self, files: Sequence[Path]):
        super().__init__()
        self.files = files

    def estimate_inmemory_data_size(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context=None):
        return [self._read_task(str(file)) for file in self.files]

    def _read_task(self, file: str) -> ReadTask:
        metadata = BlockMetadata(num_rows=None, size_bytes=os.path.getsize(file), exec_stats=None, input_files=(file,))
        return ReadTask(lambda: [pq.read_table(file)], metadata)


class Finished(IdColumnCheckpointManager):
    """Removes partial output of an interrupted run. Finished blocks are never read, so no rows need filtering."""

    def load_checkpoint(self, data_file_dir=None, data_file_filesystem=None):
        if data_file_dir is not None:
            self._clean_pending_checkpoints(data_file_dir, data_file_filesystem)
        return None, 0


class BlockTranslator:
    """An actor: loads the model, then translates block after block."""

    def __init__(self, load: Loader):
        self.translate = load()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Columns id and source -> columns id, source, translation and score."""
        translated = self.translate(block["source"].to_pylist())
        texts, scores = zip(*translated, strict=True) if translated else ((), ())
        columns = {"translation": pa.array(texts, pa.string()), "score": pa.array(scores, pa.float64())}
        return pa.table({"id": block["id"], "source": block["source"], **columns})


def translate_blocks(blocks: Path, output: Path, finished: Path, load: Loader, pool: Pool) -> int:
    """Translate the blocks that are not finished; returns their number of lines. Call it within `connected(pool)`.

    Args:
        blocks: folder of `write_blocks`. All nodes of a cluster must see it, and the other folders, under this path.
        output: folder for Parquet files with the columns id, source, translation, score.
        finished: folder in which Ray Data records the finished ids.
        load: called by each actor.

    Raises:
        ValueError, OSError: raised by `load` or by the translation.
    """
    files = unfinished(blocks, finished)
    if not files:
        return 0
    lines = sum(pq.read_metadata(file).num_rows for file in files)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.raise_original_map_exception = True
    context.checkpoint_config = CheckpointConfig(
        "id", str(finished), delete_checkpoint_on_success=False, checkpoint_manager_cls=Finished
    )
    num_actors = min(pool.num_actors or _room(pool), len(files))
    translations = ray.data.read_datasource(Blocks(files), override_num_blocks=len(files)).map_batches(
        BlockTranslator,
        fn_constructor_args=(load,),
        batch_size=None,  # a whole block
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=num_actors, initial_size=num_actors, max_tasks_in_flight_per_actor=2
        ),
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor or None,
    )
    try:
        translations.write_parquet(str(output), ray_remote_args={"num_cpus": 0})  # the actors may have all CPUs
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from None
    finally:
        context.checkpoint_config = None
    return lines


def unfinished(blocks: Path, finished: Path) -> list[Path]:
    """The blocks whose first id is not finished."""
    first_ids = {_ids(file)[0]: file for file in sorted(blocks.glob("*.parquet"))}
    for file in finished.glob("*.parquet"):
        if not file.name.endswith(".pending.parquet"):
            for number in first_ids.keys() & set(_ids(file)):
                del first_ids[number]
    return list(first_ids.values())


def _ids(file: Path) -> list:
    return pq.read_table(file, columns=["id"])["id"].to_pylist()


def _room(pool: Pool) -> int:
    """Number of actors for which the cluster has CPUs and GPUs; ValueError for less than one."""
    resources = ray.cluster_resources()
    rooms = [(resources.get("CPU", 1) - BEYOND_THE_ACTORS) / pool.cpus_per_actor]
    if pool.gpus_per_actor:
        rooms.append(resources.get("GPU", 0) / pool.gpus_per_actor)
        if rooms[-1] < 1:
            raise ValueError(
                f"gpus_per_actor={pool.gpus_per_actor} must be at most the number of GPUs, {resources.get('GPU', 0)}"
            )
    return max(1, int(min(rooms)))


def _cause(error: ray.exceptions.RayTaskError) -> Exception:
    """The error that a worker raised, without Ray's additions, if a user can fix it; otherwise Ray's own error."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, OSError) and cause.errno is not None:
        return OSError(cause.errno, cause.strerror)
    for kind in (ValueError, OSError):
        if isinstance(cause, kind):
            return kind(str(cause).partition("\nFailed to apply UDF")[0])
    return error


def _socket_folder() -> str:
    """A folder for Ray's own files: the temporary folder, or /tmp if its path is too long."""
    folders = (tempfile.gettempdir(), "/tmp")
    for folder in folders:
        if has_room_for_sockets(folder, SOCKET_CHARACTERS) and os.access(folder, os.W_OK):
            return folder
    raise ValueError(f"TMPDIR={folders[0]} is too long for Ray's sockets, and /tmp is not writable: set a shorter one")


@contextmanager
def connected(pool: Pool) -> Iterator[None]:
    """Connect to Ray within this context: to the cluster at an address, or to a new one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised as well, and reported then
    own: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ray-", dir=_socket_folder(), ignore_cleanup_errors=True) as folder:
        if pool.address is None:
            num_actors = pool.num_actors or max(1, (os.cpu_count() or 1) // pool.cpus_per_actor)
            own = {
                "num_cpus": num_actors * pool.cpus_per_actor + BEYOND_THE_ACTORS,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "_temp_dir": folder,
            }
        on_signal = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=pool.address or "local", log_to_driver=False, logging_level=logging.WARNING, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(f"address={pool.address} is not the address of a running Ray cluster ({error})") from None
        signal.signal(signal.SIGTERM, on_signal)
        try:
            yield
        finally:
            ray.shutdown()


def write_texts(translations: Path, source: str, target: str) -> int:
    """Write line-aligned files in the order of ids, without pairs with an empty side; returns the number of pairs."""
    count = 0
    data = ray.data.read_parquet(str(translations), columns=["id", "source", "translation"]).sort("id")
    with atomic_text_file(source) as sources, atomic_text_file(target) as targets:
        batches: Iterable[Any] = data.iter_batches(batch_size=4096, batch_format="pyarrow")
        for batch in batches:
            for text, translation in zip(*(batch[name].to_pylist() for name in batch.column_names[1:]), strict=True):
                if text.strip() and translation.strip():
                    sources.write(f"{text}\n")
                    targets.write(f"{translation}\n")
                    count += 1
    return count
