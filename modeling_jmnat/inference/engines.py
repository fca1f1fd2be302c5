"""Translation engines behind one interface, from token ids to token ids.

An engine has `prepare(sources) -> batch`, `translate(batch, options) -> output`, which returns when the device is
done, and `read(output) -> lists of ids`. The benchmark times only `translate`; `decode` translates any number of
sentences with an engine of beam search.
"""

import copy
import itertools
import math
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..modeling_jmnat import JMNatForConditionalGeneration
from ..utils.id_batches import length_sorted_batches, pad_batch
from .beam_search import (
    LengthLimit,
    beam_search_batch_tokens,
    max_source_length,
    max_target_length,
    search_options,
    target_limit,
)
from .ctranslate2_models import ctranslate2_converter, number_type
from .cuda_graphs import StaticShapeJMNat
from .onnx_runtime import ORTJMNatForConditionalGeneration

WORKER_TOKENS = 2048  # least tokens in a batch of one worker of CTranslate2; smaller batches would be slower


class Engine(ABC):
    """One model, ready to translate.

    Attributes:
        config: the model's configuration.
        device: where it runs.
        max_waiting: number of batches that `decode` may start before it reads the first.
    """

    config: PreTrainedConfig
    device: torch.device
    max_waiting = 0

    @abstractmethod
    def prepare(self, sources: Sequence[Sequence[int]]) -> Any:
        """A batch in the form that `translate` takes."""

    @abstractmethod
    def translate(self, batch: Any, options: dict) -> Any:
        """Translate a batch; returns when the device is done. See the engines for `options`."""

    @abstractmethod
    def read(self, output: Any) -> list[list[int]]:
        """The ids of each translation in a result of `translate`."""

    def scores(self, output: Any) -> list[float] | None:
        """The score of each translation in a result of `translate`; None if it has no scores."""
        return None

    def begin(self, batch: Any, options: dict) -> Callable[[], Any]:
        """Start translating; returns a function that waits for the result of `translate`."""
        output = self.translate(batch, options)
        return lambda: output

    def tokens_per_batch(self, batch_tokens: int) -> int:
        """Most tokens in one batch if all batches in progress may have `batch_tokens`."""
        return batch_tokens


class TransformersEngine(Engine):
    """Beam search of Transformers.

    Options:
        num_beams: 1 is greedy search.
        limits: most tokens before `</s>` in each translation. With them, translations do not depend on their batch.
        length: instead of limits, the exact number of tokens (for timing).
        All others are passed to `model.generate`. With neither limits nor length, the longest source sets the limit.
    """

    def __init__(self, model: PreTrainedModel):
        self.model: Any = model
        self.config, self.device = model.config, model.device
        self.pad_token_id, ends = special_id(model, "pad_token_id"), special_id(model, "eos_token_id")
        self.end_ids = set(ends if isinstance(ends, list) else [ends])

    def prepare(self, sources: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        return pad_batch(sources, self.pad_token_id, self.device)

    def translate(self, batch: tuple[torch.Tensor, torch.Tensor], options: dict) -> torch.Tensor:
        input_ids, attention_mask = batch
        search = self.search(input_ids.shape[1], **options)
        with evaluation_mode(self.model), torch.inference_mode():
            output = self.model.generate(input_ids=input_ids, attention_mask=attention_mask, **search)
        wait_for(self.device)
        return output

    def search(
        self,
        longest_source: int,
        num_beams: int,
        limits: Sequence[int] | None = None,
        length: int | None = None,
        **others,
    ) -> dict[str, Any]:
        """Arguments of `model.generate`, which counts the start token."""
        search: dict[str, Any] = {"num_beams": num_beams, "do_sample": False, "early_stopping": num_beams > 1}
        search["max_new_tokens"] = search["min_new_tokens"] = None  # saved ones would take precedence
        if num_beams == 1:
            search["length_penalty"] = 1.0  # in greedy search, Transformers warns of any other value
        if limits is not None:
            processor = LengthLimit(limits, num_beams, self.end_ids, self.device)
            search |= {"max_length": max(limits) + 2, "logits_processor": LogitsProcessorList([processor])}
        elif length is not None:
            search |= {"max_length": length + 1, "min_length": length + 1}
        else:
            search["max_length"] = target_limit(longest_source) + 1
        return search | others

    def read(self, output: torch.Tensor) -> list[list[int]]:
        """The ids after the start token up to `</s>` or padding."""
        stop = {*self.end_ids, self.pad_token_id}
        return [list(itertools.takewhile(lambda token: token not in stop, row)) for row in output[:, 1:].tolist()]


class CTranslate2Engine(Engine):
    """Beam search of CTranslate2. Options: `num_beams`, `limits` and `length` as in `TransformersEngine`.

    On a CPU, each of `num_threads` workers is a single thread with its own batches, because two threads sharing a
    batch are slower. Without limits a batch is divided among the workers, and a single sentence uses one of them.

    Args:
        folder: a model written by `ctranslate2_converter`.
        tokenizer, config, generation_config: of the converted model.
        compute_type: a number type, or int8.
        num_threads: None: as many as PyTorch uses.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        generation_config: GenerationConfig,
        compute_type: str = "float32",
        device: torch.device | str = "cpu",
        num_threads: int | None = None,
    ):
        import ctranslate2

        self.tokenizer: Any = tokenizer
        self.config, self.generation_config = config, generation_config
        self.device = torch.device(device)
        threads_of_torch = torch.get_num_threads()
        self.num_workers = (num_threads or threads_of_torch) if self.device.type == "cpu" else 1
        self.max_waiting = 2 * self.num_workers
        self.translator = ctranslate2.Translator(
            str(folder),
            device=self.device.type,
            device_index=self.device.index or 0,
            compute_type=compute_type,
            inter_threads=self.num_workers,
            intra_threads=1,
        )
        torch.set_num_threads(threads_of_torch)  # CTranslate2 has set it to the threads of one worker

    @classmethod
    def from_model(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "CTranslate2Engine":
        """Convert a copy of `model` in a temporary folder, to run on the model's device in its number type."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            on_cpu: Any = copy.deepcopy(model)
            ctranslate2_converter(on_cpu.to("cpu", torch.float32), tokenizer).convert(str(path))
            return cls(path, tokenizer, model.config, model.generation_config, number_type(model), model.device)

    def prepare(self, sources: Sequence[Sequence[int]]) -> list:
        """The tokens of each source."""
        return [self.tokenizer.convert_ids_to_tokens(list(ids)) for ids in sources]

    def translate(self, batch: list, options: dict) -> list:
        if options.get("limits") is not None:
            return self.begin(batch, options)()
        return self._translate_together(batch, **options)

    def begin(self, batch: list, options: dict) -> Callable[[], list]:
        """As `Engine.begin`; the options must contain `limits`."""
        started = self._start(batch, **options)
        return lambda: [result.result() for result in started]

    def _start(self, batch: list, num_beams: int, limits: Sequence[int]) -> list:
        """Pass sources to the workers, grouped by limit, because CTranslate2 has one limit for a whole batch."""
        started: list = []
        for limit, group in itertools.groupby(zip(limits, batch, strict=True), key=lambda pair: pair[0]):
            sources = [tokens for _, tokens in group]
            started += self._translate_batch(sources, num_beams, (0, limit), asynchronous=True, return_scores=True)
        return started

    def _translate_together(self, batch: list, num_beams: int, length: int | None = None) -> list:
        lengths = (1, target_limit(max(map(len, batch)))) if length is None else (length, length)
        share = 0 if self.num_workers == 1 else math.ceil(len(batch) / self.num_workers)
        return self._translate_batch(batch, num_beams, lengths, max_batch_size=share)

    def _translate_batch(self, sources: list, num_beams: int, lengths: tuple[int, int], **how) -> list:
        """`lengths` are the least and the greatest number of tokens in a translation."""
        least = (self.generation_config.min_length or 0) - 1  # Transformers counts the start token
        return self.translator.translate_batch(
            sources,
            beam_size=num_beams,
            **search_options(self.generation_config, self.tokenizer),
            max_input_length=0,
            min_decoding_length=min(max(lengths[0], least), lengths[1]),
            max_decoding_length=lengths[1],
            **how,
        )

    def read(self, output: list) -> list[list[int]]:
        return [self.tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in output]

    def scores(self, output: list) -> list[float] | None:
        """Log-probabilities / length**length_penalty; None without limits."""
        return [result.scores[0] for result in output] if output[0].scores else None

    def tokens_per_batch(self, batch_tokens: int) -> int:
        """A share of `batch_tokens`, because each worker has a batch in memory."""
        return min(batch_tokens, max(batch_tokens // self.num_workers, WORKER_TOKENS))


class JMNatEngine(Engine):
    """JM-NAT in PyTorch, with CUDA graphs or in ONNX Runtime.

    Options: those of `generate`, and `length`, the number of tokens of every canvas.
    """

    def __init__(self, model: JMNatForConditionalGeneration | StaticShapeJMNat | ORTJMNatForConditionalGeneration):
        self.model, self.config, self.device = model, model.config, model.device

    def prepare(self, sources: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        return pad_batch(sources, self.config.pad_token_id, self.device)

    def translate(self, batch: tuple[torch.Tensor, torch.Tensor], options: dict) -> Any:
        input_ids, attention_mask = batch
        options = dict(options)
        length = options.pop("length", None)
        if length is not None:
            options["target_lengths"] = torch.full((len(input_ids),), length)
        output = self.model.generate(
            input_ids=input_ids, attention_mask=attention_mask, return_dict_in_generate=True, **options
        )
        wait_for(self.device)
        return output

    def read(self, output: Any) -> list[list[int]]:
        """The ids with `</s>` and padding."""
        return output.sequences.tolist()


def special_id(model: PreTrainedModel, name: str) -> Any:
    """An id, or a list of ids, from the generation configuration, or from the model's if that has none."""
    value = getattr(model.generation_config, name)
    return getattr(model.config, name, None) if value is None else value


def wait_for(device: torch.device | str) -> None:
    """Wait until all work on `device` is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off, and back on afterwards if it was on."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def decode(
    engine: Engine,
    sources: Sequence[Sequence[int]],
    num_beams: int = 5,
    batch_tokens: int | None = None,
    advance: Callable[[int], object] | None = None,
    **options,
) -> list[list[int]]:
    """Translate `sources` (lists of ids that end in `</s>`) and return the ids of the translations, in their order.

    Sentences are sorted by length into batches. Except for rounding, no translation depends on the rest of its batch.

    Args:
        engine: an engine of beam search with the option `limits`.
        num_beams: beam size; 1 is greedy search.
        batch_tokens: limit of sentences * beams * longest source for all batches in progress. Default: 131,072 on a
            GPU and 16,384 on a CPU.
        advance: called after each batch with its number of sentences.
        options: further options of the engine.

    Returns:
        Ids without start token, `</s>` and padding.

    Raises:
        ValueError: `num_beams` or `batch_tokens` is below 1, or a source is empty or too long for the model.
    """
    for name, value in (("num_beams", num_beams), ("batch_tokens", batch_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    check_sources(sources, max_source_length(engine.config))
    results: list[list[int]] = [[]] * len(sources)
    begun: deque[tuple[list[int], Callable[[], Any]]] = deque()

    def finish_first() -> None:
        indices, wait = begun.popleft()
        for index, ids in zip(indices, engine.read(wait()), strict=True):
            results[index] = ids
        if advance is not None:
            advance(len(indices))

    most = engine.tokens_per_batch(batch_tokens or beam_search_batch_tokens(engine.device))
    for indices in length_sorted_batches([len(source) for source in sources], most, num_beams):
        limits = [max_target_length(engine.config, len(sources[index])) for index in indices]
        batch = engine.prepare([sources[index] for index in indices])
        begun.append((indices, engine.begin(batch, {"num_beams": num_beams, "limits": limits, **options})))
        if len(begun) > engine.max_waiting:
            finish_first()
    while begun:
        finish_first()
    return results


def check_sources(sources: Sequence[Sequence[int]], longest: int) -> None:
    """ValueError for a source without tokens or with more than `longest`, naming its number."""
    for number, source in enumerate(sources, start=1):
        if not len(source):
            raise ValueError(f"source {number} has no tokens: even an empty line has its </s>")
        if len(source) > longest:
            raise ValueError(f"source {number} has {len(source)} tokens, more than the model's {longest}: split it")
