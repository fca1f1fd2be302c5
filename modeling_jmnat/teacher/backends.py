"""Two engines that translate text with a teacher: Transformers itself, and CTranslate2 where it is installed.

Both have `decode(sources, input_ids, advance) -> list of texts`: `sources` is raw text, `input_ids` the same sentences
in the data's vocabulary, used as they are when the teacher shares it. A sentence too long for the teacher gives None.
"""

import copy
import importlib.util
import itertools
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..utils.id_batches import length_sorted_batches
from .model import decode, distillation_batch_tokens, max_source_length, max_target_length, search_options

BACKENDS = ("auto", "ctranslate2", "transformers")
WORKER_TOKENS = 2048  # smaller batches would be slower
NUMBER_TYPES = ("float32", "float16", "bfloat16")


def number_type(model: PreTrainedModel) -> str:
    """The model's number type by its name, such as "float32"."""
    return str(model.dtype).removeprefix("torch.")


def ctranslate2_number_types(device: torch.device | str) -> list[str]:
    """Number types that an installed CTranslate2 computes in on this device."""
    import ctranslate2

    device = torch.device(device)
    supported = ctranslate2.get_supported_compute_types(device.type, device.index or 0)
    return [name for name in NUMBER_TYPES if name in supported]


def choose_backend(name: str, model: PreTrainedModel, device: torch.device | str) -> str:
    """Resolve "auto": CTranslate2 on a CPU where it is installed and can run the model, Transformers otherwise.

    CTranslate2 computes in the number type of `model`, as Transformers does.

    Raises:
        ValueError: an unknown name, or CTranslate2 asked for where it cannot run.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r} is not one of {', '.join(BACKENDS)}")
    installed = importlib.util.find_spec("ctranslate2") is not None
    known = model.config.model_type in ("m2m_100", "marian")
    multilingual = model.generation_config.forced_bos_token_id is not None  # the target language as a first token
    if name == "ctranslate2":
        if not installed:
            raise ValueError("backend='ctranslate2' is not installed: pip install ctranslate2, or take 'transformers'")
        if not known or multilingual:
            kind = f"{'multilingual ' if multilingual else ''}{model.config.model_type}"
            raise ValueError(f"backend='ctranslate2' cannot take a {kind} model here: take 'transformers'")
        allowed = ctranslate2_number_types(device)
        if number_type(model) not in allowed:
            raise ValueError(
                f"backend='ctranslate2' cannot compute in dtype={number_type(model)!r} on this "
                f"{torch.device(device).type}: choose {' or '.join(allowed)}, or take 'transformers'"
            )
        return name
    suitable = installed and known and not multilingual and torch.device(device).type == "cpu"
    if name == "auto" and suitable and number_type(model) in ctranslate2_number_types(device):
        return "ctranslate2"
    return "transformers"


class TransformersDecoder:
    """Beam search by `model.generate` in length-sorted batches.

    Args:
        prefix: stands before each source that a tokenizer of the teacher's own reads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        shares_vocabulary: bool,
        num_beams: int = 5,
        batch_tokens: int | None = None,
        prefix: str = "",
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.shares_vocabulary = shares_vocabulary
        self.prefix = prefix
        self.num_beams = num_beams
        self.batch_tokens = batch_tokens or distillation_batch_tokens(model.device)

    def decode(
        self,
        sources: Sequence[str],
        input_ids: Sequence[Sequence[int]],
        advance: Callable[[int], object] | None = None,
    ) -> list[str | None]:
        if not self.shares_vocabulary:
            input_ids = self.tokenizer([self.prefix + source for source in sources])["input_ids"]
        limit = max_source_length(self.model)
        fitting = [index for index, ids in enumerate(input_ids) if len(ids) <= limit]
        outputs = self._decode_ids([input_ids[index] for index in fitting], advance)
        texts: list[str | None] = [None] * len(input_ids)
        for index, ids in zip(fitting, outputs, strict=True):
            texts[index] = self.tokenizer.decode(ids, skip_special_tokens=True)
        return texts

    def _decode_ids(self, sequences: list[list[int]], advance) -> list[list[int]]:
        return decode(self.model, sequences, self.num_beams, self.batch_tokens, advance)


class CTranslate2Decoder(TransformersDecoder):
    """The same beam search by CTranslate2, faster on a CPU, in the model's number type.

    Each thread of a CPU works on batches of its own: two threads that share each batch are slower than one.

    A copy of the model is converted in a temporary folder, from the CPU and float32: the converter reads no other
    memory and not every number type.
    """

    def __init__(self, model, tokenizer, shares_vocabulary, num_beams=5, batch_tokens=None, prefix=""):
        super().__init__(model, tokenizer, shares_vocabulary, num_beams, batch_tokens, prefix)
        import ctranslate2

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            on_cpu = copy.deepcopy(model).to("cpu", torch.float32)
            ctranslate2_converter(on_cpu, tokenizer).convert(str(path))
            device = model.device
            num_threads = torch.get_num_threads()
            self.num_workers = num_threads if device.type == "cpu" else 1
            self.translator = ctranslate2.Translator(
                str(path),
                device=device.type,
                device_index=device.index or 0,
                compute_type=number_type(model),
                inter_threads=self.num_workers,
                intra_threads=1,
            )
            torch.set_num_threads(num_threads)  # which CTranslate2 has set to those of a worker

    def _decode_ids(self, sequences: list[list[int]], advance) -> list[list[int]]:
        outputs: list[list[int]] = [[]] * len(sequences)
        lengths = [len(ids) for ids in sequences]
        begun: deque[tuple[list[int], list]] = deque()  # batches that the workers have or will have next

        def finish_first() -> None:
            indices, results = begun.popleft()
            for index, result in zip(indices, results, strict=True):
                outputs[index] = self.tokenizer.convert_tokens_to_ids(result.result().hypotheses[0])
            if advance is not None:
                advance(len(indices))

        share = max(self.batch_tokens // self.num_workers, WORKER_TOKENS)  # a batch of each worker is in memory
        batch_tokens = min(self.batch_tokens, share)
        for batch in length_sorted_batches(lengths, batch_tokens, self.num_beams):
            for length, group in itertools.groupby(batch, key=lengths.__getitem__):  # they share the length limit
                indices = list(group)
                begun.append((indices, self._begin([sequences[index] for index in indices], length)))
                if len(begun) > 2 * self.num_workers:
                    finish_first()
        while begun:
            finish_first()
        return outputs

    def _begin(self, sequences: list[list[int]], length: int) -> list:
        """Hand sources of equal length to the workers; the results are waited for by their `result()`."""
        return self.translator.translate_batch(
            [self.tokenizer.convert_ids_to_tokens(list(ids)) for ids in sequences],
            beam_size=self.num_beams,
            **search_options(self.model.generation_config),
            max_input_length=0,
            min_decoding_length=0,
            max_decoding_length=max_target_length(self.model, length),
            asynchronous=True,
        )


def ctranslate2_converter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
    """A CTranslate2 converter of a model in memory.

    CTranslate2's own rule for Marian drops the vocabulary's last row and starts from a zero embedding, as opus-mt does
    with `<pad>`. A Marian model that starts from another token, as `build_teacher`'s from `</s>`, is read like BART.
    """
    from ctranslate2.converters.converter import Converter
    from ctranslate2.converters.transformers import BartLoader, M2M100Loader, MarianMTLoader

    class PostNormLoader(BartLoader):
        def get_model_spec(self, model):
            model.config.normalize_before = False
            model.config.normalize_embedding = False
            return super().get_model_spec(model)

    if model.config.model_type == "m2m_100":
        loader = M2M100Loader()
    elif model.config.decoder_start_token_id == model.config.pad_token_id:
        loader = MarianMTLoader()
    else:
        loader = PostNormLoader()

    class InMemoryConverter(Converter):
        def _load(self):
            attributes = dict(vars(model.config))
            try:
                with torch.no_grad():
                    return loader(model, tokenizer)
            finally:  # loaders leave fields of their own in the configuration
                for name in set(vars(model.config)) - set(attributes):
                    delattr(model.config, name)

    return InMemoryConverter()
