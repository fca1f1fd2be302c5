"""Converts checkpoints of two fairseq releases to folders that `from_pretrained` loads.

JM-NAT (architecture `transformer_nat_ymask_pred_len`) and Mask-Predict (`bert_transformer_seq2seq`) are the same
network up to switches of `JMNatConfig`, so converting is renaming: read -> average -> configure -> rename -> save.
"""

import pickle
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..configuration_jmnat import JMNatConfig, JMNatGenerationConfig
from ..modeling_jmnat import JMNatForConditionalGeneration
from ..tokenization_jmnat import set_repeatable_tokens
from ..utils.atomic_files import whole_folder
from ..utils.finite import check_finite
from ..utils.locks import folder_lock
from .fairseq_tokenizer import build_tokenizer, read_bpe_codes, read_joint_dictionary

EMBEDDING = "encoder.embed_tokens.weight"
DECODER_EMBEDDING = "decoder.embed_tokens.weight"
LENGTHS = "encoder.embed_lengths.weight"
POSITIONS = "encoder.embed_positions.weight"
DECODER_POSITIONS = "decoder.embed_positions.weight"
OUTPUT = "decoder.embed_out"
NO_PARAMETERS = re.compile(r"(encoder|decoder)\.(version|embed_positions\.(_float_tensor|weights))")
POSITION_OFFSET = 2  # fairseq numbers positions from padding index + 1
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_accurate": "gelu_new", "gelu_fast": "gelu_new", "tanh": "tanh"}
# Training statistics that fairseq stores beside the model. They are read as plain namespaces and dropped.
METERS = ("AverageMeter", "TimeMeter", "StopwatchMeter")


class _Meter(Namespace):
    pass


@dataclass(frozen=True)
class Release:
    """The differences between the releases.

    Args:
        name: name in messages.
        architecture: prefix of its fairseq architectures.
        norm_weight: last part of the name of a layer norm's weight, by which its tensors are recognised.
        renamed: patterns of our parameter names, with their replacements in the checkpoint.
        config: fields of `JMNatConfig` that its code fixes.
        generation: decoding options of its documented command.
    """

    name: str
    architecture: str
    norm_weight: str
    renamed: tuple[tuple[str, str], ...]
    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)


JMNAT = Release(
    name="JM-NAT",
    architecture="transformer_nat_ymask_pred_len",
    norm_weight="self_attn_layer_norm.weight",
    renamed=((r"position_attn_layer_norm", "position_layer_norm"),),
    config={"scale_embedding": True, "exclude_self_attention": True, "layer_norm_eps": 1e-5},
    # --mask_pred_iter 10 --beam 4 --lenpen 1.1; its penalty is ((5 + T) / 6)**lenpen, the constant changes no choice.
    generation={"num_length_candidates": 4, "length_normalization": 1.1, "length_offset": 5.0},
)
MASK_PREDICT = Release(
    name="Mask-Predict",
    architecture="bert_transformer_seq2seq",
    norm_weight="self_attn_layer_norm.gamma",
    renamed=(
        (r"^(encoder\.layers\.\d+)\.self_attn_layer_norm", r"\1.layer_norms.0"),
        (r"^(encoder\.layers\.\d+)\.final_layer_norm", r"\1.layer_norms.1"),
        (r"(norm(?:s\.\d)?)\.weight$", r"\1.gamma"),
        (r"(norm(?:s\.\d)?)\.bias$", r"\1.beta"),
    ),
    config={
        "scale_embedding": False,
        "exclude_self_attention": False,
        "positional_attention": False,
        "position_embedding_type": "learned",
        "activation_function": "gelu",
        "layer_norm_eps": 1e-12,
        "init_std": 0.02,
        "encoder_loss_weight": 0.0,
        "ngram_loss_weight": 0.0,
    },
    generation={"num_length_candidates": 5, "length_normalization": 1.0, "length_offset": 0.0},
)
RELEASES = (JMNAT, MASK_PREDICT)


def read_checkpoint(path: str | Path) -> tuple[Namespace, dict[str, torch.Tensor]]:
    """The settings and tensors of a fairseq checkpoint, read without running code from the file.

    Raises:
        ValueError: the file has objects other than tensors, plain values, an `argparse.Namespace` and fairseq's
            meters, or is not a checkpoint at all.
        OSError: the file cannot be read.
    """
    meters = [(_Meter, f"fairseq.meters.{name}") for name in METERS]
    try:
        with torch.serialization.safe_globals([Namespace, *meters]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file can make the reader raise anything
        if isinstance(error, OSError) and error.filename is not None:
            raise
        forbidden = re.search(r"(?:GLOBAL|[Uu]nsupported class|function|class) '?([\w.]*\w)", str(error))
        if isinstance(error, pickle.UnpicklingError) and forbidden:
            raise ValueError(
                f"{path} is refused: it holds {forbidden[1]}, but only tensors, plain values and an "
                "argparse.Namespace are read"
            ) from None
        raise ValueError(f"{path} is not a complete checkpoint of PyTorch ({type(error).__name__})") from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} is not a fairseq checkpoint: it is a {type(checkpoint).__name__}, not a dictionary")
    settings, state = checkpoint.get("args"), checkpoint.get("model")
    if not isinstance(settings, Namespace):
        raise ValueError(f"{path} is not a checkpoint of these releases: its 'args' is not an argparse.Namespace")
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path} is not a fairseq checkpoint: its 'model' is not a dictionary of tensors")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{path} is not a fairseq checkpoint: {key!r} in 'model' is not a tensor")
    return settings, dict(state)


def detect_release(settings: Namespace, state: dict[str, torch.Tensor]) -> Release:
    """The release, from the names of the tensors; the architecture that the checkpoint names must agree."""
    architecture = getattr(settings, "arch", None)
    for release in RELEASES:
        tensors_fit = LENGTHS in state and any(key.endswith(release.norm_weight) for key in state)
        if tensors_fit and str(architecture or release.architecture).startswith(release.architecture):
            return release
    known = " nor ".join(f"of {release.name} ({release.architecture})" for release in RELEASES)
    lacking = f" and lacks the tensor {LENGTHS}" if LENGTHS not in state else ""
    raise ValueError(f"the checkpoint has the architecture {architecture!r}{lacking}, so it is neither {known}")


def build_config(settings: Namespace, state: dict[str, torch.Tensor], release: Release) -> JMNatConfig:
    """Our configuration: switches and sizes from the settings, table sizes from the tables themselves.

    Raises:
        ValueError: a setting is missing, or the network does not support it.
    """

    def setting(name: str, *default):
        if not hasattr(settings, name) and not default:
            raise ValueError(f"the checkpoint's settings lack {name}: give one that fairseq wrote for these releases")
        return getattr(settings, name, *default)

    def of_both(name: str, *default):
        values = [setting(f"{side}_{name}", *default) for side in ("encoder", "decoder")]
        if values[0] != values[1]:
            raise ValueError(
                f"encoder_{name}={values[0]} and decoder_{name}={values[1]} differ: only equal ones can be converted"
            )
        return values[0]

    for name in ("", "_enc", "_dec"):
        if setting(f"no{name}_token_positional_embeddings", False):
            raise ValueError(
                f"no{name}_token_positional_embeddings=True: models without positions cannot be converted"
            )
    activation = setting("activation_fn", "relu")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation_fn={activation!r} is not one of {', '.join(ACTIVATIONS)}")
    learned = release.config.get("position_embedding_type") == "learned" or of_both("learned_pos", False)
    longest = table(state, POSITIONS).shape[0] - POSITION_OFFSET if learned else setting("max_source_positions", 1024)
    fields = {
        "vocab_size": table(state, EMBEDDING).shape[0],
        "d_model": of_both("embed_dim"),
        "encoder_layers": setting("encoder_layers"),
        "encoder_attention_heads": setting("encoder_attention_heads"),
        "encoder_ffn_dim": setting("encoder_ffn_embed_dim"),
        "decoder_layers": setting("decoder_layers"),
        "decoder_attention_heads": setting("decoder_attention_heads"),
        "decoder_ffn_dim": setting("decoder_ffn_embed_dim"),
        "dropout": setting("dropout", 0.1),
        "attention_dropout": setting("attention_dropout", 0.0),
        "activation_dropout": setting("activation_dropout", 0.0) or setting("relu_dropout", 0.0),
        "activation_function": ACTIVATIONS[activation],
        "normalize_before": of_both("normalize_before", False),
        "position_embedding_type": "learned" if learned else "sinusoidal",
        "positional_attention": setting("positional_attention", True),
        "max_position_embeddings": longest,
        "max_target_length": table(state, LENGTHS).shape[0] - 1,
        "label_smoothing": setting("label_smoothing", 0.0),
    }
    return JMNatConfig(**{**fields, **release.config})


def table(state: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """The matrix `key` of a checkpoint."""
    if key not in state:
        raise ValueError(f"the checkpoint lacks the tensor {key}")
    if state[key].dim() != 2:
        raise ValueError(f"tensor {key} has shape {tuple(state[key].shape)} but must be a matrix")
    return state[key]


def checkpoint_name(parameter: str, release: Release) -> tuple[str, int | None]:
    """Where a checkpoint has a parameter: the key, and which third of that tensor if it holds three parameters."""
    if parameter == "model.shared.weight":
        return EMBEDDING, None
    key, third = parameter.removeprefix("model."), None
    for number, projection in enumerate(("q_proj", "k_proj", "v_proj")):
        if f".{projection}." in key:
            key, third = key.replace(f"{projection}.", "in_proj_"), number
    for pattern, replacement in release.renamed:
        key = re.sub(pattern, replacement, key)
    return key, third


def check_shared_embeddings(state: dict[str, torch.Tensor]) -> None:
    """Raise ValueError unless the checkpoint shares one matrix for source, target and output."""
    source, target = table(state, EMBEDDING), table(state, DECODER_EMBEDDING)
    for key, matrix in ((DECODER_EMBEDDING, target), (OUTPUT, state.get(OUTPUT, target))):
        if not torch.equal(source, matrix):
            raise ValueError(f"{key} differs from {EMBEDDING}: only --share-all-embeddings can be converted")


def copy_weights(model: JMNatForConditionalGeneration, state: dict[str, torch.Tensor], release: Release) -> None:
    """Copy the tensors of a checkpoint into the model; all must be used and have the right shape.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; the message names it.
    """
    places = {name: checkpoint_name(name, release) for name, _ in model.named_parameters()}
    for key, _ in places.values():
        if key not in state:
            raise ValueError(f"the checkpoint lacks the tensor {key}")
    known = {key for key, _ in places.values()} | {DECODER_EMBEDDING, OUTPUT}
    surplus = [key for key in state if key not in known and not NO_PARAMETERS.fullmatch(key)]
    if surplus:
        raise ValueError(f"the checkpoint holds the tensor {surplus[0]}, which does not fit its settings")
    check_shared_embeddings(state)
    for name, parameter in model.named_parameters():
        key, third = places[name]
        tensor = state[key]
        if key == DECODER_POSITIONS:
            # A decoder shorter than the length table gets rows of zeros, which `max_length` never reaches.
            tensor = F.pad(table(state, key), (0, 0, 0, parameter.shape[0] - table(state, key).shape[0]))
        expected = list(parameter.shape)
        if third is not None:
            expected[0] *= 3
        if list(tensor.shape) != expected:
            raise ValueError(f"tensor {key} has shape {list(tensor.shape)}, but its settings require {expected}")
        with torch.no_grad():
            parameter.copy_(tensor if third is None else tensor.chunk(3)[third])


def generation_config(config: JMNatConfig, state: dict[str, torch.Tensor], release: Release) -> JMNatGenerationConfig:
    """How the release decodes: 10 passes, independent re-masking, no suppressed tokens, and its number of candidates
    with their score."""
    options = JMNatGenerationConfig.from_model_config(config)
    longest = config.max_target_length
    if DECODER_POSITIONS in state:
        longest = min(longest, state[DECODER_POSITIONS].shape[0] - POSITION_OFFSET)
    values = {"num_iterations": 10, "remask_adjacent": False, "suppress_tokens": [], "max_length": longest}
    for name, value in {**values, **release.generation}.items():
        setattr(options, name, value)
    options.num_length_candidates = min(options.num_length_candidates, longest)
    return options


def load_fairseq_model(checkpoints: Sequence[str | Path]) -> tuple[JMNatForConditionalGeneration, Release]:
    """The model of a fairseq checkpoint, or of the mean of several, in float32 and evaluation mode.

    Raises:
        ValueError: see `read_checkpoint`, `detect_release`, `build_config`, `copy_weights`; or the checkpoints
            differ in more than the values of their weights.
    """
    checkpoints = [Path(path) for path in checkpoints]
    if not checkpoints:
        raise ValueError("checkpoints is empty: at least one file is needed")
    for path in checkpoints:
        if checkpoints.count(path) > 1:
            raise ValueError(f"{path} is given twice: each checkpoint counts once")
    settings, state = read_checkpoint(checkpoints[0])
    release = detect_release(settings, state)
    config = build_config(settings, state, release)
    for path in checkpoints[1:]:
        add_checkpoint(state, config, release, path, checkpoints[0])
    for key, tensor in state.items():
        state[key] = (tensor / len(checkpoints)).float() if len(checkpoints) > 1 else tensor.float()
    model = JMNatForConditionalGeneration(config)
    copy_weights(model, state, release)
    model.generation_config = generation_config(config, state, release)
    return model.eval(), release


def add_checkpoint(state: dict, config: JMNatConfig, release: Release, path: Path, first: Path) -> None:
    """Add the tensors of the checkpoint at `path` to `state` in float64, if they are of the same model."""
    settings, other = read_checkpoint(path)
    for here, there, holder, lacking in ((state, other, first, path), (other, state, path, first)):
        missing = next((key for key in here if key not in there), None)
        if missing is not None:
            raise ValueError(f"{lacking} lacks the tensor {missing} that {holder} has")
    for key, tensor in other.items():
        if tensor.shape != state[key].shape:
            raise ValueError(
                f"tensor {key} has shape {list(tensor.shape)} in {path} and {list(state[key].shape)} in {first}"
            )
    if detect_release(settings, other) is not release or build_config(settings, other, release) != config:
        raise ValueError(f"{path} and {first} have different settings: only checkpoints of one model can be averaged")
    for key, tensor in other.items():
        state[key] = state[key].double() + tensor.double()


def check_new_or_empty(output_dir: Path) -> None:
    """Raise ValueError unless `output_dir` is new or empty."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"output_dir={output_dir} exists and is not an empty folder: choose a new one")


def convert_fairseq_checkpoint(
    checkpoints: Sequence[str | Path],
    source_dict: str | Path,
    target_dict: str | Path,
    output_dir: str | Path,
    bpe_codes: str | Path | None = None,
    moses_source_lang: str | None = None,
    moses_target_lang: str | None = None,
    lowercase: bool = False,
) -> dict[str, Any]:
    """Write a folder with model, generation configuration and tokenizer; returns a summary of the conversion.

    Args:
        checkpoints: files of one model; several are averaged.
        source_dict, target_dict: the fairseq dictionaries, which must be equal.
        output_dir: a folder that does not exist or is empty; it is written all at once.
        bpe_codes, moses_source_lang, moses_target_lang, lowercase: see `build_tokenizer`.

    Raises:
        ValueError: the files do not fit each other or cannot be converted; nothing is written.
        OSError: a file cannot be read or written.
    """
    output_dir = Path(output_dir)
    check_new_or_empty(output_dir)
    symbols = read_joint_dictionary(source_dict, target_dict)
    merges = None if bpe_codes is None else read_bpe_codes(bpe_codes)
    model, release = load_fairseq_model(checkpoints)
    check_finite(model, ", ".join(map(str, checkpoints)))
    config = model.config
    if len(symbols) != config.vocab_size:
        raise ValueError(
            f"{source_dict} has {len(symbols)} symbols (5 special ones and its lines), but {EMBEDDING} has "
            f"{config.vocab_size} rows: give the dictionaries with which the model was trained"
        )
    longest = min(config.max_position_embeddings, model.generation_config.max_length)
    tokenizer = build_tokenizer(symbols, merges, moses_source_lang, moses_target_lang, lowercase, longest)
    set_repeatable_tokens(model, tokenizer)
    with folder_lock(output_dir, "output_dir", beside=True):
        check_new_or_empty(output_dir)  # another process may have ended since
        with whole_folder(output_dir, replace=False) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return {
        "release": release.name,
        "checkpoints": len(checkpoints),
        "parameters": model.num_parameters(),
        "vocab_size": config.vocab_size,
        "output": str(output_dir),
    }
