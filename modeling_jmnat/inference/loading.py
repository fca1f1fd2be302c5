"""Saved models with their tokenizers, ready to translate: JM-NAT on any backend, and autoregressive models.

Impossible combinations are refused here, before any text is read: another model's tokenizer, a missing device, a
multilingual model without a target language.
"""

import json
import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_sentencepiece_available

from ..configuration_jmnat import JMNatConfig
from ..losses_jmnat import VOCABULARY_PADDING
from ..tokenization_jmnat import JMNatTokenizer, set_repeatable_tokens
from ..utils.fingerprints import TOKENIZER_FILES
from ..utils.finite import check_finite
from ..utils.hub_folders import check_folder
from .cuda_graphs import StaticShapeJMNat
from .exported_files import with_settings
from .onnx_runtime import ORTJMNatForConditionalGeneration, find_graphs

# Never run code from a model folder. Without this, Transformers would ask on standard input, which may be the text.
NO_FOREIGN_CODE = {"trust_remote_code": False}
DTYPES = ("auto", "float32", "bfloat16", "float16")
BACKENDS = ("torch", "cuda_graphs", "onnx", "onnx_int8")
# Errors of Transformers for missing, damaged and forbidden files; RuntimeError is for a truncated PyTorch archive.
UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError),
    StrictDataclassError,  # a field of config.json has another type
)
NO_TOKENIZER_FILE = "Couldn't instantiate the backend tokenizer"  # the beginning of a message of Transformers
LOAD_ITS_OWN = "load the tokenizer that was saved with this model"

Translator = PreTrainedModel | StaticShapeJMNat | ORTJMNatForConditionalGeneration


def is_jmnat(model: Translator) -> bool:
    """Whether a model is a JM-NAT or another non-autoregressive system that is decoded with the same options."""
    return is_jmnat_config(model.config)


def is_jmnat_config(config: PreTrainedConfig) -> bool:
    # By its model type if the class comes from a repository on the Hub.
    return isinstance(config, JMNatConfig) or is_jmnat_itself(config)


def is_jmnat_itself(config: PreTrainedConfig) -> bool:
    """Whether a model is a JM-NAT and not another system; only a JM-NAT can be exported, published and captured."""
    return config.model_type == JMNatConfig.model_type


def choose_device(name: str) -> torch.device:
    """`auto` is a CUDA device if there is one, else the CPU; any other name must be usable on this machine."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(
            f"device={name!r} cannot be used here: choose auto, cpu or cuda (with a CUDA device)"
        ) from None
    return device


def load_translator(
    directory: str | Path, device: str = "auto", dtype: str = "auto", backend: str = "torch"
) -> tuple[Translator, PreTrainedTokenizerBase]:
    """Load a saved sequence-to-sequence model and its tokenizer, ready to translate.

    Args:
        directory: a folder written by `save_pretrained`, JM-NAT or autoregressive, or a name on the Hub.
        device: `auto`, `cpu`, `cuda` or another device name of PyTorch.
        dtype: `auto` (as saved), `float32`, `bfloat16` or `float16`.
        backend: `torch`; `cuda_graphs`, which saves the time of launching kernels from Python for a JM-NAT on a GPU;
            `onnx` or `onnx_int8` for an exported JM-NAT model on a CPU.

    Raises:
        ValueError: the folder does not exist, its model or tokenizer cannot be loaded, the tokenizer is another
            model's, or an argument is not one of those above.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not one of {', '.join(BACKENDS)}")
    check_folder(directory)
    if backend.startswith("onnx"):
        return _load_exported(directory, device, dtype, int8=backend == "onnx_int8")
    _check_model_folder(directory)
    torch_device = choose_device(device)
    try:
        config = AutoConfig.from_pretrained(directory, **NO_FOREIGN_CODE)
        model = _with_all_layers(directory, config=config, dtype=dtype)
        tokenizer = _tokenizer_of(directory)
    except UNREADABLE as error:
        raise ValueError(f"model {directory} cannot be loaded: {_reason(directory, error)}") from None
    check_finite(model, directory)
    check_vocabulary(model, tokenizer)
    if is_jmnat(model):
        set_repeatable_tokens(model, tokenizer)
    model = model.to(torch_device).eval()
    return (StaticShapeJMNat(model) if backend == "cuda_graphs" else model), tokenizer


def _tokenizer_of(directory: str | Path, kind: Any = AutoTokenizer) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a repository; ValueError for missing and damaged files."""
    try:
        return kind.from_pretrained(directory, **NO_FOREIGN_CODE)
    except Exception as error:
        if isinstance(error, TypeError) or str(error).startswith(NO_TOKENIZER_FILE):  # TypeError: it opens None
            raise ValueError(
                "a file of its tokenizer is missing: get the folder again, or copy all files of the tokenizer into it"
            ) from None
        if type(error) is not Exception:  # the library tokenizers has no narrower one
            raise
        raise ValueError(
            f"its tokenizer.json is damaged, or was written by a newer version of the package tokenizers ({error})"
        ) from None


def _with_all_layers(directory: str | Path, **options) -> PreTrainedModel:
    """Load a model; ValueError if its config.json and its weights have different layers, or only one has a CRF.

    Transformers warns only, and translations are nonsense.
    """
    model, report = AutoModelForSeq2SeqLM.from_pretrained(
        directory, output_loading_info=True, **options, **NO_FOREIGN_CODE
    )
    for kind, where in (("missing_keys", "but not in"), ("unexpected_keys", "only in")):
        for name in sorted(name for name in report[kind] if ".layers." in name or name.startswith("crf.")):
            raise ValueError(
                f"config.json and the weights do not belong together: {name} is {where} the weights; get the folder "
                "again, or save the model again"
            )
    if not hasattr(model.config, "vocab_size"):
        raise ValueError(
            f"{directory} is a {type(model).__name__}, whose configuration has no vocab_size: give a model with one "
            "vocabulary, such as Marian, M2M100, mBART or T5"
        )
    return model


def _load_exported(
    directory: str | Path, device: str, dtype: str, int8: bool
) -> tuple[ORTJMNatForConditionalGeneration, PreTrainedTokenizerBase]:
    for name, value, only in (("device", device, "cpu"), ("dtype", dtype, "float32")):
        if value not in ("auto", only):
            raise ValueError(f"{name}={value!r} is not possible with exported graphs: choose auto or {only}")
    folder = with_settings(find_graphs(directory, int8), TOKENIZER_FILES)
    try:
        model = ORTJMNatForConditionalGeneration.from_pretrained(folder, int8=int8)
    except (StrictDataclassError, OSError) as error:
        raise ValueError(f"{folder} cannot be loaded: {_first_line(error)}") from None
    try:
        tokenizer = _tokenizer_of(folder)
    except UNREADABLE as error:
        raise ValueError(f"the tokenizer of {folder} cannot be loaded: {_first_line(error)}") from None
    check_vocabulary(model, tokenizer)
    set_repeatable_tokens(model, tokenizer)
    return model, tokenizer


def _check_model_folder(directory: str | Path) -> None:
    """ValueError for a folder that holds no model, or only the checkpoints of a training that has not ended."""
    folder = Path(directory)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return
    lacks = f"model {directory} cannot be loaded: it holds no config.json"
    for checkpoint in folder.glob("checkpoint-*/config.json"):
        raise ValueError(
            f"{lacks}, because its training has not ended: repeat the command that trains it, or give a checkpoint, "
            f"such as {checkpoint.parent}"
        )
    raise ValueError(f"{lacks}: give the folder of a saved model, or a name on the Hub")


def _reason(directory: str | Path, error: Exception) -> str:
    if Path(directory).is_dir():
        return _first_line(error)
    return f"there is no folder of this name, and it cannot be fetched from the Hub: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "pytorch_model.bin holds more than tensors and plain values, which is refused"
    if isinstance(error, StrictDataclassError):  # its second line has the reason
        return f"config.json: {' '.join(str(error).split())}"
    if "ignore_mismatched_sizes" in str(error):  # Transformers' report of them stands above
        return "config.json and the weights do not belong together, because their shapes differ"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_vocabulary(model: Translator, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that is not the model's, with which translations would silently be nonsense.

    Raises:
        ValueError: the model has fewer embedding rows than the tokenizer has tokens, a JM-NAT has more than padding to
            a multiple of 8 explains (others may have any number), or special tokens have different ids.
    """
    size = model.config.vocab_size
    unused = size - len(tokenizer)
    padded = unused >= 0 and (not is_jmnat(model) or (size % 8 == 0 and unused < VOCABULARY_PADDING))
    if unused != 0 and not padded:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens and the model {size}: {LOAD_ITS_OWN}")
    for name in ("pad_token_id", "eos_token_id", "mask_token_id"):
        expected = getattr(model.config, name, None)
        if expected is not None and getattr(tokenizer, name) != expected:
            raise ValueError(
                f"{name} is {getattr(tokenizer, name)} in the tokenizer and {expected} in the model: {LOAD_ITS_OWN}"
            )


# Autoregressive models -----------------------------------------------------------------------------------------------


def load_teacher(
    directory: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an autoregressive sequence-to-sequence model, in evaluation mode, and its tokenizer.

    Args:
        directory: a saved model with its tokenizer, or a name on the Hub.
        dtype: None: as saved.

    Raises:
        ValueError: the folder does not exist, the vocabulary is smaller than the tokenizer's, or the model is not
            autoregressive.
    """
    tokenizer = load_teacher_tokenizer(directory)
    _check_model_folder(directory)
    try:
        model = _with_all_layers(directory, dtype=dtype or "auto")
    except UNREADABLE as error:
        raise ValueError(f"the weights of {directory} cannot be read: {_reason(directory, error)}") from None
    refuse_student(directory, model.config)
    check_finite(model, directory)
    if model.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"{directory}: the tokenizer has {len(tokenizer)} tokens and the model {model.config.vocab_size}: save "
            "the tokenizer that the model was trained with in this folder"
        )
    for name in ("pad_token_id", "eos_token_id"):  # the generation configuration may lack them
        if getattr(model.generation_config, name) is None:
            setattr(model.generation_config, name, getattr(tokenizer, name))
    return model.to(device).eval(), tokenizer


def load_teacher_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer saved with an autoregressive model: ours, or any other of Transformers.

    Raises:
        ValueError: the folder does not exist or has no tokenizer, or the tokenizer needs a package that is missing.
    """
    check_folder(directory)
    kind: Any = AutoTokenizer
    config_path = Path(directory) / "tokenizer_config.json"
    if config_path.is_file():
        name = json.loads(config_path.read_text(encoding="utf-8")).get("tokenizer_class")
        if name == JMNatTokenizer.__name__:
            kind = JMNatTokenizer
    try:
        return _tokenizer_of(directory, kind)
    except (OSError, RuntimeError, KeyError) as error:  # SentencePiece raises RuntimeError for a damaged file
        raise ValueError(f"the tokenizer of {directory} cannot be loaded: {_reason(directory, error)}") from None
    except (ImportError, ValueError) as error:
        _check_model_folder(directory)
        if not is_sentencepiece_available():
            raise ValueError(
                f"the tokenizer of {directory} cannot be loaded; it may need sentencepiece: pip install sentencepiece"
            ) from error
        if isinstance(error, ImportError):
            raise
        raise ValueError(f"the tokenizer of {directory} cannot be loaded: {_reason(directory, error)}") from None


def refuse_student(directory: str | Path, config: PreTrainedConfig) -> None:
    """ValueError for a JM-NAT model where an autoregressive one is needed."""
    if is_jmnat_config(config):
        raise ValueError(
            f"{directory} is a non-autoregressive model: give an autoregressive one, such as `jmnat train-teacher` "
            "writes"
        )


def is_multilingual(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer needs the languages to be set, like those of NLLB, M2M100 and mBART."""
    return hasattr(tokenizer, "set_src_lang_special_tokens")


def language_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of languages, which M2M100's tokenizers do not always count among special tokens."""
    return {*getattr(tokenizer, "lang_token_to_id", {}).values()}


def check_languages(
    directory: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    generation_config: GenerationConfig,
    argument: str = "languages",
) -> None:
    """ValueError for a multilingual model without a target language, which would choose one itself."""
    if is_multilingual(tokenizer) and generation_config.forced_bos_token_id is None:
        raise ValueError(
            f"{directory} is multilingual: give its source and target language, for example with --{argument}"
        )


def tell_languages(
    directory: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    languages: Sequence[str] | None,
    source_prefix: str | None,
) -> None:
    """Set the languages of a multilingual model; ValueError if they are missing, or for a JM-NAT."""
    if is_jmnat(model):
        if languages or source_prefix:
            raise ValueError("languages and source_prefix do not apply to JM-NAT: leave them out")
        return
    if languages is not None:
        set_languages(model, tokenizer, languages)
    check_languages(directory, tokenizer, model.generation_config)


def prefixed(source_prefix: str | None, texts: Iterable[str]) -> Iterator[str]:
    """The texts with what a model expects before each; blank ones stay."""
    return ((source_prefix or "") + text if text.strip() else text for text in texts)


def set_languages(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    languages: Sequence[str],
    argument: str = "languages",
) -> None:
    """Set the source and target language of a multilingual model.

    Args:
        languages, argument: see `language_tokens`.

    Raises:
        ValueError: there are not two codes, or the tokenizer does not know them.
    """
    _, target = language_tokens(tokenizer, languages, argument)
    tokenizer.src_lang = languages[0].strip("_")
    model.generation_config.forced_bos_token_id = tokenizer.convert_tokens_to_ids(target)


def language_tokens(
    tokenizer: PreTrainedTokenizerBase, languages: Sequence[str], argument: str = "languages"
) -> tuple[str, str]:
    """The tokens of source and target language in a multilingual model's vocabulary.

    Args:
        languages: the tokenizer's codes of source and target: deu_Latn eng_Latn for NLLB, de en for M2M100,
            de_DE en_XX for mBART.
        argument: what the caller calls them, for messages.

    Raises:
        ValueError: there are not two codes, or the tokenizer does not know them.
    """
    if len(languages) != 2:
        raise ValueError(f"{argument}={' '.join(languages)!r} must be two codes, of source and target")
    codes = [code.strip("_") for code in languages]
    named = {token for name, token in tokenizer.special_tokens_map.items() if name.endswith("_token")}
    known = {*tokenizer.all_special_tokens, *getattr(tokenizer, "lang_token_to_id", ())} - named
    source, target = (next((token for token in (f"__{code}__", code) if token in known), None) for code in codes)
    if not is_multilingual(tokenizer) or source is None or target is None:
        raise ValueError(f"{argument}={' '.join(codes)!r} are not languages of the model's {type(tokenizer).__name__}")
    return source, target
