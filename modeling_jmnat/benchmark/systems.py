"""What a benchmark compares: engines with their models and options, and how they are loaded.

Sources and translations are token ids, since turning them into text is the same work for all.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from ..configuration_jmnat import JMNatConfig, resolve_options
from ..inference.ctranslate2_models import ctranslate2_converter
from ..inference.cuda_graphs import StaticShapeJMNat
from ..inference.engines import CTranslate2Engine, Engine, JMNatEngine, TransformersEngine
from ..inference.loading import NO_FOREIGN_CODE, load_teacher_tokenizer
from ..inference.onnx_runtime import ORTJMNatForConditionalGeneration, other_options
from ..modeling_jmnat import JMNatForConditionalGeneration
from ..onnx_export import PACKAGES as EXPORT_PACKAGES
from ..teacher.model import build_teacher
from ..tokenization_jmnat import JMNatTokenizer
from .options import SIZES

PACKAGES_OF_ENGINES = {"ctranslate2": ("ctranslate2",), "onnx": (*EXPORT_PACKAGES, "onnxruntime")}
TRANSFORMERS_BEAM = "Transformers, beam 5"
CTRANSLATE2_BEAM = "CTranslate2 int8, beam 5"
CTRANSLATE2_GREEDY = "CTranslate2 int8, greedy"
REFERENCES = (TRANSFORMERS_BEAM, CTRANSLATE2_BEAM, CTRANSLATE2_GREEDY)


@dataclass(frozen=True)
class System:
    """One engine with one model and one setting.

    Args:
        name: points with the same name are joined in the picture; `label` distinguishes them.
        engine: a name in `ENGINES`.
        folder: folder that the engine loads.
        int8: whether weights are quantised, for CTranslate2 and ONNX Runtime.
        options: options of its search, see the engines.
        dtype: data type of the weights, which int8 overrides.
        graphs: whether JM-NAT uses CUDA graphs.
    """

    name: str
    engine: str
    folder: str
    label: str = ""
    int8: bool = False
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    dtype: str = "float32"
    device: str = "cpu"
    graphs: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}, {self.label}" if self.label else self.name

    @property
    def model_key(self) -> tuple:
        return self.engine, self.folder, self.int8, self.dtype, self.graphs

    @property
    def parts(self) -> tuple[str, ...]:
        """What decoding with these options loads of an exported model besides the graph of a whole translation."""
        if self.engine != "onnx":
            return ()
        return ("encoder", "decoder", "positions") if other_options(resolve_options(self.options)) else ()

    @property
    def loaded(self) -> str:
        """A label for people that systems which load the same share: the name without candidates, and the parts."""
        return ", ".join((self.name.split(", C =")[0], *self.parts))

    @property
    def missing_package(self) -> str | None:
        """The package that this system needs and that is not installed, or None."""
        packages = PACKAGES_OF_ENGINES.get(self.engine, ())
        return next((name for name in packages if importlib.util.find_spec(name) is None), None)


@functools.cache
def load_search(folder: str) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig, GenerationConfig]:
    """What CTranslate2 needs from the model before conversion: its tokenizer and its configurations."""
    return (
        load_teacher_tokenizer(folder),
        AutoConfig.from_pretrained(folder, **NO_FOREIGN_CODE),
        GenerationConfig.from_pretrained(folder),
    )


def load_transformers(system: System, num_threads: int | None) -> TransformersEngine:
    model = AutoModelForSeq2SeqLM.from_pretrained(system.folder, dtype=getattr(torch, system.dtype), **NO_FOREIGN_CODE)
    return TransformersEngine(model.eval().to(system.device))


def load_ctranslate2(system: System, num_threads: int | None) -> CTranslate2Engine:
    compute_type = "int8" if system.int8 else system.dtype
    folder = Path(system.folder) / "ctranslate2"
    return CTranslate2Engine(folder, *load_search(system.folder), compute_type, system.device, num_threads)


def load_torch(system: System, num_threads: int | None) -> JMNatEngine:
    model = JMNatForConditionalGeneration.from_pretrained(
        system.folder, dtype=getattr(torch, system.dtype), **NO_FOREIGN_CODE
    )
    model = model.eval().to(system.device)
    return JMNatEngine(StaticShapeJMNat(model) if system.graphs else model)


def load_onnx(system: System, num_threads: int | None) -> JMNatEngine:
    model = ORTJMNatForConditionalGeneration.from_pretrained(system.folder, system.int8, num_threads)
    for part in system.parts:  # otherwise the first translation would load them
        getattr(model, part)
    return JMNatEngine(model)


ENGINES: dict[str, Callable[[System, int | None], Engine]] = {
    "transformers": load_transformers,
    "ctranslate2": load_ctranslate2,
    "torch": load_torch,
    "onnx": load_onnx,
}


def load_engine(system: System, num_threads: int | None = None) -> Engine:
    """Load the engine of a system, with all that its options need.

    Args:
        num_threads: threads of CTranslate2 and ONNX Runtime; None takes as many as PyTorch uses.
    """
    return ENGINES[system.engine](system, num_threads)


def installed(systems: Sequence[System]) -> tuple[list[System], list[str]]:
    """The systems whose packages are installed, and the names of packages that the others need."""
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
        for candidates in dict.fromkeys(num_candidates):  # one given twice would be measured, and counted, twice
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
    """Write `folder`/ctranslate2 from the autoregressive model in `folder`, if CTranslate2 is installed."""
    if importlib.util.find_spec("ctranslate2") is None:
        return
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, **NO_FOREIGN_CODE)
    converter = ctranslate2_converter(model, load_teacher_tokenizer(folder))
    converter.convert(str(Path(folder) / "ctranslate2"), force=True)


def prepare_student(folder: str | Path) -> None:
    """Write `folder`/onnx, float32 and int8, from the JM-NAT model in `folder`, if the packages are installed."""
    if any(importlib.util.find_spec(name) is None for name in EXPORT_PACKAGES):
        return
    from ..onnx_export.export import export_onnx

    model = JMNatForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    export_onnx(model, Path(folder) / "onnx", int8=True)


def random_tokenizer(vocab_size: int) -> JMNatTokenizer:
    """A tokenizer of numbered words: engines need one, although timing does not."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = special + [f"w{index}" for index in range(len(special), vocab_size)]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    return JMNatTokenizer(tokenizer_object=backend, **dict(zip(names, special, strict=True)))


def sized_config(
    argument: str, size: str, sizes: dict[str, dict[str, int]], num_layers: tuple[int, int] | None = None
) -> JMNatConfig:
    """The configuration in `sizes` with the name `size`, which was given as `argument`.

    Args:
        num_layers: layers of encoder and decoder; None takes those of the size.

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
        num_layers: layers of encoder and decoder; None takes those of the size.
    """
    config = sized_config("random_weights", size, SIZES, num_layers)
    tokenizer = random_tokenizer(config.vocab_size)
    torch.manual_seed(0)
    models = {"student": JMNatForConditionalGeneration(config), "teacher": build_teacher(config, tokenizer)}
    for name, model in models.items():
        model.save_pretrained(Path(folder) / name)
        tokenizer.save_pretrained(Path(folder) / name)
    return config
