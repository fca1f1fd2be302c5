"""Sequence-level distillation: the training set translated by a teacher, as plain parallel text.

The training split is cut into shards of consecutive sentences. The file of a shard appears by an atomic rename once it
is decoded, so a run that is killed at any moment resumes with the missing shards, and the merged text is that of an
uninterrupted run. The length filter is applied when merging, so that another ratio needs no new decoding.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..data.preparation import load_prepared
from ..inference.beam_search import length_penalty
from ..inference.ctranslate2_models import choose_backend, number_type
from ..inference.engines import CTranslate2Engine, TransformersEngine
from ..inference.loading import check_languages, choose_device, load_teacher, set_languages
from ..utils.atomic_files import atomic_text_file, replace_files, write_json
from ..utils.fingerprints import legacy_sources_digest, model_digest, same_fingerprint, sources_fingerprint
from ..utils.json_files import read_json
from ..utils.locks import folder_lock
from ..utils.text_files import write_lines
from .model import same_tokenizer
from .options import SENTENCES_PER_SHARD, DistillationArguments
from .text_decoder import TextDecoder

PLAN_NAME = "distillation_plan.json"
SUMMARY_NAME = "distillation.json"
ROW = (str, str | None, int, int)  # source, hypothesis, and the numbers of their tokens
DIGEST = "sha256"  # key of a shard's last line
# Fields of a generation configuration that do not change the text, or that the plan has for itself.
OTHER_FIELDS = ("transformers_version", "_from_model_config", "num_beams", "length_penalty")
LONGEST_WAIT = timedelta(days=7)  # for the slowest process, instead of 10 or 30 minutes


@dataclass(frozen=True)
class DistillationPlan:
    """All settings that determine the decoded text; shards of another plan are never mixed in.

    Attributes:
        teacher: digest of the teacher's weights and configuration.
        data: fingerprint of the source lines and the tokenizer.
        backend: "transformers" or "ctranslate2".
        num_beams: beam size.
        shards: number of shards.
        sentences: number of training sentences.
        dtype: number type of the teacher's computations.
        length_penalty: of the teacher's beam search; 1.0 for greedy search, which has none.
        teacher_languages, teacher_prefix: as in `DistillationArguments`.
        generation: further options of the teacher's decoding, see `generation_options`.
    """

    teacher: str
    data: str
    backend: str
    num_beams: int
    shards: int
    sentences: int
    dtype: str
    length_penalty: float
    teacher_languages: list[str] | None
    teacher_prefix: str | None
    generation: dict = field(default_factory=dict)

    def shard_range(self, shard: int) -> range:
        """The consecutive sentence numbers of a shard; sizes differ by at most one."""
        return range(self.sentences * shard // self.shards, self.sentences * (shard + 1) // self.shards)


def default_shards(sentences: int) -> int:
    return max(1, -(-sentences // SENTENCES_PER_SHARD))


def generation_options(config: GenerationConfig) -> dict:
    """The options of a generation configuration that are not the defaults, except `OTHER_FIELDS`."""
    options = json.loads(config.to_json_string(use_diff=True))
    return {name: value for name, value in sorted(options.items()) if name not in OTHER_FIELDS}


def settle_plan(output_dir: Path, plan: DistillationPlan, legacy_data: Callable[[], str]) -> None:
    """Write the plan of a new folder, or check that an earlier run in this folder had the same one.

    Args:
        legacy_data: returns `plan.data` in the format of earlier versions.

    Raises:
        ValueError: the folder belongs to another plan, or holds other files.
    """
    path = output_dir / PLAN_NAME
    if path.is_file():
        earlier = read_json(path, what_to_do="restore it or choose another output_dir")
        if same_fingerprint(earlier.get("data"), plan.data, legacy_data):
            earlier["data"] = plan.data
        is_complete = "generation" in earlier  # plans of earlier versions lack it
        earlier.setdefault("generation", plan.generation)
        for name, now in asdict(plan).items():
            if earlier.get(name) != now:
                raise ValueError(
                    f"output_dir {output_dir} holds a distillation with {name}={earlier.get(name)}, and now {name} is "
                    f"{now}: choose another folder or delete this one"
                )
        if not is_complete:
            write_json(path, asdict(plan))
        return
    if output_dir.is_dir() and any(not name.name.startswith(".") for name in output_dir.iterdir()):
        raise ValueError(
            f"output_dir {output_dir} exists and does not hold an earlier distillation: choose a new or empty folder"
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(plan))


class ShardStore:
    """The shard files of one plan: JSON lines `[source, hypothesis, source tokens, hypothesis tokens]` in data order.

    A hypothesis is null if the source was too long for the teacher. The last line, `{"sha256": ...}`, has the digest
    of the others; shards of earlier versions lack it.
    """

    def __init__(self, output_dir: Path, plan: DistillationPlan):
        self.folder = output_dir / "shards"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.plan = plan

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}-of-{self.plan.shards:05d}.jsonl"

    def missing(self) -> list[int]:
        return [shard for shard in range(self.plan.shards) if not self.path(shard).is_file()]

    def write(self, shard: int, rows: Sequence[tuple]) -> None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        digest = hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()
        with atomic_text_file(self.path(shard)) as file:
            file.writelines([*lines, json.dumps({DIGEST: digest}) + "\n"])

    def rows(self, sources: Sequence[str]) -> Iterator[list]:
        """Rows of all shards in data order.

        Args:
            sources: the source sentences of the data.

        Raises:
            ValueError: a shard is damaged, was changed after it was written, or is not of these sources.
        """
        for shard in range(self.plan.shards):
            sentences = self.plan.shard_range(shard)
            rows = self._read(shard)
            if len(rows) != len(sentences):
                raise self._damaged(shard, f"has {len(rows)} lines instead of {len(sentences)}")
            expected = sources[sentences.start : sentences.stop]
            for number, (row, source) in enumerate(zip(rows, expected, strict=True), 1):
                if row[0] != source:
                    raise self._damaged(shard, f"has another source than the data in line {number}")
            yield from rows

    def _read(self, shard: int) -> list[list]:
        """The rows of a shard; ValueError if they are damaged or changed."""
        rows, recorded, digest = [], None, hashlib.sha256()
        with open(self.path(shard), "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if isinstance(row, dict) and row.keys() == {DIGEST} and recorded is None:
                    recorded = row[DIGEST]
                    continue
                is_row = isinstance(row, list) and len(row) == len(ROW) and all(map(isinstance, row, ROW))
                if not is_row or recorded is not None:
                    raise self._damaged(shard, f"is damaged or cut short in line {number}")
                rows.append(row)
                digest.update(line)
        if recorded not in (None, digest.hexdigest()):
            raise self._damaged(shard, "was changed after it was written")
        return rows

    def _damaged(self, shard: int, what: str) -> ValueError:
        return ValueError(f"{self.path(shard)} {what}: delete it and run the same command again")


def decode_shards(store: ShardStore, dataset, decoder, tokenizer, state: PartialState) -> dict:
    """Decode this process's share of the missing shards, and return the throughput of all processes.

    Args:
        dataset: the training split with columns `source` and `input_ids`.
        decoder: a `TextDecoder`.
        tokenizer: the data's tokenizer, which counts the tokens of hypotheses for the length filter.
    """
    missing = store.missing()
    state.wait_for_everyone()  # so that all processes see the same list before the first new shard appears
    mine = missing[state.process_index :: state.num_processes]
    start = time.perf_counter()
    own_sentences = sum(len(store.plan.shard_range(shard)) for shard in mine)
    with tqdm(total=own_sentences, desc="distilling", unit="sent", disable=not state.is_main_process) as bar:
        for shard in mine:
            part = dataset[store.plan.shard_range(shard).start : store.plan.shard_range(shard).stop]
            texts = decoder.decode(part["source"], part["input_ids"], advance=bar.update)
            store.write(shard, list(_shard_rows(part, texts, tokenizer)))
    state.wait_for_everyone()
    seconds = time.perf_counter() - start
    decoded = sum(len(store.plan.shard_range(shard)) for shard in missing)
    return {
        "decoded_now": decoded,
        "seconds": round(seconds, 2),
        "sentences_per_second": round(decoded / seconds, 1) if decoded else None,
    }


def _shard_rows(part: dict, texts: Sequence[str | None], tokenizer) -> Iterator[tuple]:
    one_line = [None if text is None else text.replace("\n", " ").replace("\r", " ").strip() for text in texts]
    counts = [len(ids) for ids in tokenizer([text or "" for text in one_line], verbose=False)["input_ids"]]
    for source, ids, text, count in zip(part["source"], part["input_ids"], one_line, counts, strict=True):
        yield source, text, len(ids), count


def keep_pair(text: str | None, source_tokens: int, target_tokens: int, max_length_ratio: float | None) -> str:
    """The reason for leaving a pair out ("too_long", "empty" or "length_ratio"), or else "kept"."""
    if text is None:
        return "too_long"
    if not text:
        return "empty"
    longer, shorter = max(source_tokens, target_tokens), min(source_tokens, target_tokens)
    if max_length_ratio is not None and longer > max_length_ratio * shorter:
        return "length_ratio"
    return "kept"


def merge(
    store: ShardStore,
    output_dir: Path,
    sources: Sequence[str],
    source_lang: str,
    target_lang: str,
    max_length_ratio: float | None = None,
    raw_pairs: Iterator[tuple[str, str]] | None = None,
) -> dict:
    """Write `distilled.SRC` and `distilled.TGT` from the complete shards and return the filter's counts.

    Args:
        sources: as in `ShardStore.rows`.
        max_length_ratio: leave out pairs whose longer side has more than this many times the tokens of the shorter
            one; None keeps them. Tokens are those of the data's vocabulary, `</s>` included.
        raw_pairs: pairs to append to the distilled ones.
    """
    counts = {"kept": 0, "length_ratio": 0, "empty": 0, "too_long": 0, "raw": 0}
    pairs: list[tuple[str, str]] = []
    for source, text, source_tokens, target_tokens in store.rows(sources):
        verdict = keep_pair(text, source_tokens, target_tokens, max_length_ratio)
        counts[verdict] += 1
        if verdict == "kept":
            pairs.append((source, text))
    for pair in raw_pairs or ():
        counts["raw"] += 1
        pairs.append(pair)
    for language, side in ((source_lang, 0), (target_lang, 1)):
        write_lines(output_dir / f"distilled.{language}", (pair[side] for pair in pairs))
    return counts


def distill(arguments: DistillationArguments) -> dict:
    """Decode the missing shards and merge; returns the filter's counts and the throughput.

    Under `accelerate launch` the processes share the shards, and the first one merges.

    Raises:
        ValueError: an argument is out of range, the teacher does not fit the data, or the folder holds another
            distillation or is in use.
    """
    languages = languages_of(arguments)
    state = PartialState(cpu=choose_device(arguments.device).type == "cpu", timeout=LONGEST_WAIT)
    device = state.device if arguments.device == "auto" else choose_device(arguments.device)
    splits, tokenizer = load_prepared(arguments.data)
    if "train" not in splits:
        raise ValueError(f"{arguments.data} has no training split, the only one to distil: prepare the data again")
    dataset, sources = splits["train"], splits["train"]["source"]
    model, teacher_tokenizer, shares_vocabulary = teacher_of(arguments, tokenizer, device)
    backend = choose_backend(arguments.backend, model, device)
    plan = DistillationPlan(
        teacher=model_digest(arguments.teacher),
        data=sources_fingerprint(tokenizer, sources),
        backend=backend,
        num_beams=arguments.num_beams,
        shards=min(arguments.shards or default_shards(len(dataset)), len(dataset)),
        sentences=len(dataset),
        dtype=number_type(model),
        length_penalty=length_penalty(model.generation_config) if arguments.num_beams > 1 else 1.0,
        teacher_languages=arguments.teacher_languages,
        teacher_prefix=arguments.teacher_prefix,
        generation=generation_options(model.generation_config),
    )
    output_dir = Path(arguments.output_dir)
    # Only one of several processes holds the lock.
    with folder_lock(output_dir, "output_dir") if state.is_main_process else nullcontext():
        if state.is_main_process:
            settle_plan(output_dir, plan, lambda: legacy_sources_digest(tokenizer, sources))
        state.wait_for_everyone()
        store = ShardStore(output_dir, plan)
        with_ctranslate2 = backend == "ctranslate2"
        engine = (
            CTranslate2Engine.from_model(model, teacher_tokenizer) if with_ctranslate2 else TransformersEngine(model)
        )
        search = (arguments.num_beams, arguments.batch_tokens, arguments.teacher_prefix or "")
        decoder = TextDecoder(engine, teacher_tokenizer, shares_vocabulary, *search)
        figures = decode_shards(store, dataset, decoder, tokenizer, state)
        if state.is_main_process:
            raw_pairs = zip(sources, dataset["target"], strict=True) if arguments.append_raw else None
            with replace_files(output_dir, last=(SUMMARY_NAME,)) as folder:
                counts = merge(store, folder, sources, *languages, arguments.max_length_ratio or None, raw_pairs)
                files = [str(output_dir / f"distilled.{language}") for language in languages]
                figures = {"sentences": len(dataset), **counts, **figures, "backend": backend, "files": files}
                write_json(folder / SUMMARY_NAME, figures)
        state.wait_for_everyone()
    return figures


def teacher_of(
    arguments: DistillationArguments, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, bool]:
    """The teacher, its tokenizer, and whether that is the data's tokenizer.

    Raises:
        ValueError: the teacher was trained on other data, or the arguments do not apply to it.
    """
    usual = "float16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, usual if arguments.dtype == "auto" else arguments.dtype)
    model, teacher_tokenizer = load_teacher(arguments.teacher, device, dtype)
    shares_vocabulary = same_tokenizer(teacher_tokenizer, tokenizer)
    if shares_vocabulary and arguments.teacher_prefix:
        raise ValueError(
            f"teacher_prefix={arguments.teacher_prefix!r} is for teachers with another tokenizer than the data's: "
            "leave it out"
        )
    if arguments.teacher_languages is not None:
        set_languages(model, teacher_tokenizer, arguments.teacher_languages, "teacher_languages")
    check_languages(arguments.teacher, teacher_tokenizer, model.generation_config, "teacher_languages")
    return model, teacher_tokenizer, shares_vocabulary


def languages_of(arguments: DistillationArguments) -> tuple[str, str]:
    """Endings of the two files: as given, otherwise the languages of the preparation, otherwise src and tgt.

    Raises:
        ValueError: both are the same, or one is no ending of a file name.
    """
    path = Path(arguments.data) / "preparation.json"
    written = read_json(path, what_to_do="prepare the data again") if path.is_file() else {}
    source = arguments.source_lang or written.get("source_lang") or written.get("moses_source_lang") or "src"
    target = arguments.target_lang or written.get("target_lang") or written.get("moses_target_lang") or "tgt"
    if source == target:
        raise ValueError(f"source_lang and target_lang are both {source!r}: the two files need different names")
    for name, ending in (("source_lang", source), ("target_lang", target)):
        if Path(ending).name != ending:
            raise ValueError(f"{name}={ending!r} cannot be the ending of a file name here: give --{name} another one")
    return source, target
