"""Translation engines behind one interface, so that a benchmark times nothing but the translation itself.

An engine has `prepare(sources) -> batch` and `read(output) -> lists of ids`, which are not timed, and
`translate(batch, options) -> output`, which is. Sources and translations are token ids: text is the same work for all.
"""

import functools
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedTokenizerBase

from ..configuration_jmnat import JMNatConfig, resolve_options
from ..inference.loading import load_teacher_tokenizer
from ..inference.onnx_runtime import ORTJMNatForConditionalGeneration, other_options
from ..modeling_jmnat import JMNatForConditionalGeneration
from ..teacher.backends import ctranslate2_converter
from ..teacher.model import MAX_LENGTH_FACTOR, MAX_LENGTH_MARGIN, build_teacher, search_options
from ..tokenization_jmnat import JMNatTokenizer
from ..utils.id_batches import pad_batch

ENGINES = ("transformers", "ctranslate2", "torch", "onnx")
PACKAGES_OF_ENGINES = {"ctranslate2": ("ctranslate2",), "onnx": ("onnx", "onnxruntime")}
TRANSFORMERS_BEAM = "Transformers, beam 5"
CTRANSLATE2_BEAM = "CTranslate2 int8, beam 5"
CTRANSLATE2_GREEDY = "CTranslate2 int8, greedy"
REFERENCES = (TRANSFORMERS_BEAM, CTRANSLATE2_BEAM, CTRANSLATE2_GREEDY)
SIZES = {
    "small": {"d_model": 256, "ffn": 1024, "layers": 5, "heads": 4, "vocab_size": 10_000},
    "base": {"d_model": 512, "ffn": 2048, "layers": 6, "heads": 8, "vocab_size": 32_000},
}


@dataclass(frozen=True)
class System:
    """One engine with one model and one setting.

    Args:
        name: points with one name are joined in the picture; `label` tells them apart.
        folder: what the engine loads.
        options: of its search, see the engines.
    """

    name: str
    engine: str
    folder: str
    label: str = ""
    int8: bool = False
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def title(self) -> str:
        return f"{self.name}, {self.label}" if self.label else self.name

    @property
    def model_key(self) -> tuple:
        return self.engine, self.folder, self.int8

    @property
    def parts(self) -> tuple[str, ...]:
        """Of an exported model: what decoding with these options loads beside the graph of a whole translation."""
        if self.engine != "onnx":
            return ()
        return ("encoder", "decoder", "positions") if other_options(resolve_options(self.options)) else ()

    @property
    def loaded(self) -> str:
        """What systems share that load the same, for people: the name without candidates, and the parts."""
        return ", ".join((self.name.split(", C =")[0], *self.parts))

    @property
    def missing_package(self) -> str | None:
        """The package that this system lacks here, None when it has all."""
        packages = PACKAGES_OF_ENGINES.get(self.engine, ())
        return next((name for name in packages if importlib.util.find_spec(name) is None), None)


def _target_limit(longest_source: int) -> int:
    return math.ceil(MAX_LENGTH_FACTOR * longest_source) + MAX_LENGTH_MARGIN


class TransformersEngine:
    """An autoregressive model by `generate`. Options: `num_beams`, `length` for exactly so many tokens."""

    def __init__(self, folder: str, int8: bool, num_threads: int):
        self.model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.generation_config.max_length = None  # `max_new_tokens` takes its place

    def prepare(self, sources: Sequence[Sequence[int]]):
        return pad_batch(sources, self.model.config.pad_token_id)

    @torch.inference_mode()
    def translate(self, batch, options: dict):
        input_ids, attention_mask = batch
        num_beams, length = options["num_beams"], options.get("length")
        limits = {"max_new_tokens": length, "min_new_tokens": length}
        if length is None:
            limits = {"max_new_tokens": _target_limit(input_ids.shape[1])}
        search = {"num_beams": num_beams, "do_sample": False, "early_stopping": num_beams > 1}
        return self.model.generate(input_ids=input_ids, attention_mask=attention_mask, **search, **limits)

    def read(self, output) -> list[list[int]]:
        return [row[1:] for row in output.tolist()]


@functools.cache
def load_search(folder: str) -> tuple[PreTrainedTokenizerBase, dict[str, float | int]]:
    """What CTranslate2 has from Transformers: the tokenizer that makes tokens of ids, and options of the search."""
    return load_teacher_tokenizer(folder), search_options(GenerationConfig.from_pretrained(folder))


class CTranslate2Engine:
    """The same model converted for CTranslate2. Options as `TransformersEngine`'s.

    `num_threads` are workers of one thread each: a single sentence takes one of them, all share a batch.
    """

    num_workers = 1

    def __init__(self, folder: str, int8: bool, num_threads: int):
        import ctranslate2

        self.tokenizer, self.search = load_search(folder)
        self.num_workers = num_threads
        compute_type = "int8" if int8 else "float32"
        self.translator = ctranslate2.Translator(
            str(Path(folder) / "ctranslate2"), compute_type=compute_type, inter_threads=num_threads, intra_threads=1
        )

    def prepare(self, sources: Sequence[Sequence[int]]):
        return [self.tokenizer.convert_ids_to_tokens(list(ids)) for ids in sources]

    def translate(self, batch, options: dict):
        length = options.get("length")
        limit = _target_limit(max(map(len, batch))) if length is None else length
        return self.translator.translate_batch(
            batch,
            max_batch_size=0 if self.num_workers == 1 else math.ceil(len(batch) / self.num_workers),
            beam_size=options["num_beams"],
            **self.search,
            max_input_length=0,
            min_decoding_length=1 if length is None else length,
            max_decoding_length=limit,
        )

    def read(self, output) -> list[list[int]]:
        return [self.tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in output]


class JMNatEngine:
    """Ours in PyTorch. Options: those of `generate`, and `length` for a canvas of so many tokens."""

    def __init__(self, folder: str, int8: bool, num_threads: int):
        self.model = JMNatForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def prepare(self, sources: Sequence[Sequence[int]]):
        return pad_batch(sources, self.model.config.pad_token_id)

    def translate(self, batch, options: dict):
        input_ids, attention_mask = batch
        options = dict(options)
        length = options.pop("length", None)
        if length is not None:
            options["target_lengths"] = torch.full((len(input_ids),), length)
        return self.model.generate(
            input_ids=input_ids, attention_mask=attention_mask, return_dict_in_generate=True, **options
        )

    def read(self, output) -> list[list[int]]:
        return output.sequences.tolist()


class ONNXEngine(JMNatEngine):
    def __init__(self, folder: str, int8: bool, num_threads: int):
        self.model = ORTJMNatForConditionalGeneration.from_pretrained(folder, int8=int8, num_threads=num_threads)


def load_engine(system: System, num_threads: int):
    """The engine of a system, with all that its options need."""
    classes = dict(zip(ENGINES, (TransformersEngine, CTranslate2Engine, JMNatEngine, ONNXEngine), strict=True))
    engine = classes[system.engine](system.folder, system.int8, num_threads)
    for part in system.parts:
        getattr(engine.model, part)
    return engine


def installed(systems: Sequence[System]) -> tuple[list[System], list[str]]:
    """Those of the systems whose packages are installed, and the names of packages that the others lack."""
    missing = sorted({system.missing_package for system in systems} - {None})
    return [system for system in systems if system.missing_package is None], missing


def teacher_systems(folder: str, length: int | None = None, suffix: str = "") -> list[System]:
    """An autoregressive model in Transformers and CTranslate2, float32 and int8, greedy and with five beams."""
    systems = []
    for num_beams, search in ((1, "greedy"), (5, "beam 5")):
        options = {"num_beams": num_beams} | ({} if length is None else {"length": length})
        systems.append(System(f"Transformers{suffix}", "transformers", folder, search, options=options))
        for int8 in (False, True):
            name = f"CTranslate2{suffix} {'int8' if int8 else 'float32'}"
            systems.append(System(name, "ctranslate2", folder, search, int8, options))
    return systems


def student_systems(
    folder: str,
    settings: dict[str, dict],
    num_candidates: Sequence[int],
    length: int | None = None,
) -> list[System]:
    """Ours in PyTorch and ONNX Runtime; `settings` are named options of `generate`, such as k = 4.

    A single candidate cannot be pruned.
    """
    systems = []
    for engine, int8, backend in (("torch", False, "PyTorch"), ("onnx", False, "ONNX"), ("onnx", True, "ONNX int8")):
        for candidates in num_candidates:
            for label, options in settings.items():
                if candidates == 1 and label.endswith("pruned"):
                    continue
                options = {**options, "num_length_candidates": candidates} | (
                    {} if length is None else {"length": length}
                )
                name = f"JM-NAT {backend}, C = {candidates}"
                systems.append(System(name, engine, folder, label, int8, options))
    return systems


def prepare_teacher(folder: str | Path) -> None:
    """Write `folder`/ctranslate2 from the autoregressive model in `folder`, where CTranslate2 is installed."""
    if importlib.util.find_spec("ctranslate2") is None:
        return
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    converter = ctranslate2_converter(model, load_teacher_tokenizer(folder))
    converter.convert(str(Path(folder) / "ctranslate2"), force=True)


def prepare_student(folder: str | Path) -> None:
    """Write `folder`/onnx, float32 and int8, from the JM-NAT model in `folder`, where onnx is installed."""
    if importlib.util.find_spec("onnx") is None:
        return
    from ..onnx_export.export import export_onnx

    model = JMNatForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    export_onnx(model, Path(folder) / "onnx", int8=True)


def random_tokenizer(vocab_size: int) -> JMNatTokenizer:
    """A tokenizer of numbered words: engines want one, timing does not."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = special + [f"w{index}" for index in range(len(special), vocab_size)]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    return JMNatTokenizer(tokenizer_object=backend, **dict(zip(names, special, strict=True)))


def sized_config(
    argument: str, size: str, sizes: dict[str, dict[str, int]], num_layers: tuple[int, int] | None = None
) -> JMNatConfig:
    """A configuration as `sizes` has it under the name `size`, which was given as `argument`.

    Args:
        num_layers: of encoder and decoder; None: those of the size.

    Raises:
        ValueError: there is no such size.
    """
    if size not in sizes:
        raise ValueError(f"{argument}={size!r} is not one of {', '.join(sizes)}")
    numbers = sizes[size]
    encoder_layers, decoder_layers = num_layers or (numbers["layers"], numbers["layers"])
    return JMNatConfig(
        vocab_size=numbers["vocab_size"],
        d_model=numbers["d_model"],
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=numbers["heads"],
        decoder_attention_heads=numbers["heads"],
        encoder_ffn_dim=numbers["ffn"],
        decoder_ffn_dim=numbers["ffn"],
    )


def random_models(size: str, folder: str | Path, num_layers: tuple[int, int] | None = None) -> JMNatConfig:
    """Save a student, its teacher and a tokenizer with random weights: `folder`/student and `folder`/teacher.

    Args:
        size: a name in `SIZES`.
        num_layers: of encoder and decoder; None: those of the size.
    """
    config = sized_config("random_weights", size, SIZES, num_layers)
    tokenizer = random_tokenizer(config.vocab_size)
    torch.manual_seed(0)
    models = {"student": JMNatForConditionalGeneration(config), "teacher": build_teacher(config, tokenizer)}
    for name, model in models.items():
        model.save_pretrained(Path(folder) / name)
        tokenizer.save_pretrained(Path(folder) / name)
    return config
