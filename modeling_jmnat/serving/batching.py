"""Dynamic batching: one thread takes waiting requests from a queue and translates them together in token batches."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..inference.translation import candidates_per_sentence
from ..pipeline import JMNatTranslationPipeline
from ..utils.id_batches import length_sorted_batches, pad_batch


class QueueFull(Exception):
    """The queue already holds the largest number of waiting requests."""


@dataclass
class Job:
    """The texts of one request.

    Args:
        num_translations: the most translations that each text gets.
        pieces: pieces of each text, as `JMNatTranslationPipeline.preprocess` gives them, once they are read.
        future: the translations of each text, best first, without repeats.
    """

    texts: list[str]
    num_translations: int = 1
    pieces: list[list[dict]] = field(default_factory=list)
    future: "Future[list[list[str]]]" = field(default_factory=Future)

    @property
    def num_tokens(self) -> int:
        return sum(piece["input_ids"].shape[1] for of_text in self.pieces for piece in of_text)


class BatchTranslator:
    """A pipeline for the texts of several jobs at once: its sentences share batches of similar length.

    Args:
        max_batch_tokens: limit of sentences * candidates * longest source; 1 translates each sentence by itself.
    """

    def __init__(self, pipeline: JMNatTranslationPipeline, max_batch_tokens: int):
        self.pipeline = pipeline
        self.max_batch_tokens = max_batch_tokens
        # Options that the pipeline was made with.
        self.reading, self.generation = pipeline._preprocess_params, pipeline._forward_params
        self.num_candidates = candidates_per_sentence(pipeline.model, self.generation)

    @property
    def sentence_tokens(self) -> int:
        """The most source tokens that a batch has room for."""
        return max(1, self.max_batch_tokens // self.num_candidates)

    def read(self, job: Job) -> None:
        """Split the texts of a job into sentences and tokens; raise ValueError for input that is not text."""
        job.pieces = [list(self.pipeline.preprocess(text, **self.reading)) for text in job.texts]

    def translate(self, jobs: list[Job]) -> list[list[list[str]]]:
        """The translations of each text of each job, best first, without repeats; the jobs must have been read."""
        wanted = min(max(job.num_translations for job in jobs), self.num_candidates)
        pieces = [piece for job in jobs for of_text in job.pieces for piece in of_text]
        done: list[dict] = [{}] * len(pieces)
        lengths = [piece["input_ids"].shape[1] for piece in pieces]
        for indices in length_sorted_batches(lengths, self.max_batch_tokens, self.num_candidates):
            results = self._generate([pieces[index] for index in indices], wanted)
            for index, result in zip(indices, results, strict=True):
                done[index] = {"result": result}
        in_order = iter(done)
        return [
            [
                _distinct(self.pipeline.postprocess([next(in_order) for _ in of_text]))[: job.num_translations]
                for of_text in job.pieces
            ]
            for job in jobs
        ]

    def _generate(self, pieces: list[dict], num_return_sequences: int) -> list[dict]:
        ids = [piece["input_ids"][0].tolist() for piece in pieces]
        input_ids, attention_mask = pad_batch(ids, self.pipeline.tokenizer.pad_token_id)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        of_each = {name: [piece[name] for piece in pieces] for name in ("space", "is_last")}
        options = {**self.generation, "num_return_sequences": num_return_sequences}
        return self.pipeline.forward({**batch, **of_each}, **options)["result"]


def _distinct(records: list[dict]) -> list[str]:
    return list(dict.fromkeys(record["translation_text"] for record in records))


class Batcher:
    """A queue of jobs and the thread that translates them.

    A batch begins with the job that has waited longest. While it has room for more tokens, it takes jobs that wait or
    arrive within `wait_seconds`. A job that cannot be translated gets its own error; the others are unaffected.

    Args:
        max_waiting: number of jobs that may wait.
        observe: called with the jobs of each batch before it is translated.
    """

    def __init__(
        self,
        translator: BatchTranslator,
        max_waiting: int,
        wait_seconds: float,
        observe: Callable[[list[Job]], object] = lambda jobs: None,
    ):
        self.translator, self.wait_seconds, self.observe = translator, wait_seconds, observe
        self.waiting: queue.Queue[Job | None] = queue.Queue(max_waiting)  # None: no job comes after it
        self.closing = False
        self.thread = threading.Thread(target=self._work, name="translation", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> "Future[list[list[str]]]":
        """Queue a job for translation; raises QueueFull if the queue is full."""
        try:
            self.waiting.put_nowait(job)
        except queue.Full:
            raise QueueFull from None
        return job.future

    def close(self) -> None:
        """Translate the waiting jobs, and end the thread."""
        self.waiting.put(None)
        self.thread.join()

    def _work(self) -> None:
        while not self.closing:
            jobs = self._next_batch()
            if jobs:
                self.observe(jobs)
                self._translate(jobs)

    def _next_batch(self) -> list[Job]:
        jobs: list[Job] = []
        room = self.translator.sentence_tokens
        deadline = None
        while room > 0:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                job = self.waiting.get(timeout=left)
            except queue.Empty:
                break
            if job is None:
                self.closing = True
                break
            if job.future.set_running_or_notify_cancel() and self._read(job):
                jobs.append(job)
                room -= job.num_tokens
                deadline = deadline or time.monotonic() + self.wait_seconds
        return jobs

    def _read(self, job: Job) -> bool:
        try:
            self.translator.read(job)
        except Exception as error:
            job.future.set_exception(error)
            return False
        return True

    def _translate(self, jobs: list[Job]) -> None:
        try:
            results = self.translator.translate(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                self._translate([job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)
