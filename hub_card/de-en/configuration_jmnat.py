"""Configuration of JM-NAT: `JMNatConfig` for the network and its loss, `JMNatGenerationConfig` for decoding."""

import copy
import logging
import math
import os
import shutil
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import GenerationConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

logger = logging.getLogger(__name__)

REMASK_SCHEDULES = ("linear", "cosine")
REPEAT_RULES = ("remask_repeats", "delete_repeats", "collapse_repeats")
COUNTS = ("num_iterations", "num_length_candidates", "num_return_sequences", "prune_to", "crf_beam")
LARGEST_SHIFT = 100  # of `length_shift`, either way
LARGEST_EXPONENT = 100  # of `length_normalization` (beyond it a float overflows), `length_offset`, `consensus_weight`
PIPELINE_FILE = "pipeline.py"
SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "mask_token_id")
SIZES = (
    *("vocab_size", "d_model", "max_position_embeddings", "ngram_size"),
    *(f"{half}_{size}" for half in ("encoder", "decoder") for size in ("layers", "attention_heads", "ffn_dim")),
)
LOSS_WEIGHTS = tuple(f"{loss}_loss_weight" for loss in ("encoder", "ngram", "length", "crf"))
LEAST = {**dict.fromkeys(SIZES, 1), "max_target_length": 2}
LEAST |= dict.fromkeys((*LOSS_WEIGHTS, "length_smoothing", "position_offset", "crf_rank"), 0)


@strict
class JMNatConfig(PreTrainedConfig):
    """Sizes, architecture switches and loss weights of a jointly masked sequence-to-sequence model.

    The defaults are the paper's WMT model. `positional_attention=False, exclude_self_attention=False,
    position_embedding_type="learned", activation_function="gelu", scale_embedding=False` is CMLM (Mask-Predict).

    Args:
        vocab_size: V, one vocabulary for both languages.
        d_model: D, width of every layer, a multiple of both numbers of heads.
        normalize_before: layer norm before each block (pre-layer-norm) instead of after it.
        position_embedding_type: `"sinusoidal"` or `"learned"`.
        position_offset: index of the first token's position. None follows fairseq (`pad_token_id + 1`). 0 also spaces
            the sinusoids as Marian does, whose weights fit no other positions.
        scale_embedding: multiply token embeddings by sqrt(D).
        positional_attention: a second attention block per decoder layer whose queries and keys are positions.
        exclude_self_attention: no position attends to itself in decoder self-attention and positional attention.
        decoder_input: `"mask"`, a canvas of `<mask>`, or `"source_copy"`, the basic NAT of the paper's section 3:
            source tokens copied uniformly to the target length, all targets predicted in one pass.
        max_position_embeddings: longest source in tokens.
        max_target_length: longest target in tokens, `</s>` included; the length table has one row more.
        output_bias: give the output projection a bias, as Marian's `final_logits_bias`.
        init_std: None draws linear layers Xavier-uniform and embeddings with std D**-0.5 (fairseq's Transformer); a
            number is the standard deviation of all of them (BERT, Mask-Predict: 0.02).
        ngram_size: n of the n-gram loss (Eq. 6) and of adjacent re-masking.
        ngram_alignment: `"any"` lets an n-gram match at every masked position, `"gold"` only at its own.
        encoder_loss_weight, ngram_loss_weight, length_loss_weight: a1, a2 (Eq. 8) and a3 (section 4.4).
        label_smoothing: of the target's cross-entropy.
        length_smoothing: standard deviation, in tokens, of a Gaussian around the target length that the length
            predictor is trained on; 0 trains on the target length alone (the paper).
        crf_rank: r of the CRF by which the tokens of a pass are chosen together (`crf_jmnat.py`); 0: there is none.
        crf_loss_weight: of its loss, which is added to Eq. 8.
        split_sentences: translate texts sentence by sentence, because the training data were single sentences. The
            pipeline and the command `translate` do so. Set it to False for models trained on longer texts.
    """

    model_type = "jmnat"
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }
    # What an evaluation loop need not gather: everything but `logits`.
    keys_to_ignore_at_inference = [
        *("nll_loss", "encoder_loss", "ngram_loss", "length_loss", "crf_loss", "length_logits", "encoder_logits"),
        *("decoder_hidden_states", "decoder_attentions", "cross_attentions"),
        *("encoder_last_hidden_state", "encoder_hidden_states", "encoder_attentions"),
    ]

    vocab_size: int = 32000
    d_model: int = 512
    encoder_layers: int = 6
    encoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 2048
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    activation_function: str = "relu"
    normalize_before: bool = False
    position_embedding_type: str = "sinusoidal"
    position_offset: int | None = None
    output_bias: bool = False
    scale_embedding: bool = True
    positional_attention: bool = True
    exclude_self_attention: bool = True
    decoder_input: str = "mask"
    max_position_embeddings: int = 512
    max_target_length: int = 512
    layer_norm_eps: float = 1e-5
    init_std: float | None = None
    ngram_size: int = 2
    ngram_alignment: str = "any"
    encoder_loss_weight: float | int = 0.01
    ngram_loss_weight: float | int = 0.01
    length_loss_weight: float | int = 0.1
    label_smoothing: float | int = 0.1
    length_smoothing: float | int = 0.0
    crf_rank: int = 0
    crf_loss_weight: float | int = 1.0
    split_sentences: bool = True
    bos_token_id: int | None = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    unk_token_id: int | None = 3
    mask_token_id: int = 4
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        for name, allowed in (
            ("position_embedding_type", ("sinusoidal", "learned")),
            ("decoder_input", ("mask", "source_copy")),
            ("ngram_alignment", ("any", "gold")),
            ("activation_function", tuple(ACT2FN)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name, least in LEAST.items():
            if getattr(self, name) is not None and not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("dropout", "attention_dropout", "activation_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.init_std is not None and not self.init_std > 0:
            raise ValueError(f"init_std={self.init_std} must be None or above 0")
        for name in SPECIAL_IDS:
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"{name}={token} must be a token id in [0, {self.vocab_size})")
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise ValueError(f"d_model={self.d_model} is not a multiple of {name}={getattr(self, name)}")
        if self.position_embedding_type == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} must be even with sinusoidal positions")
        super().__post_init__(**kwargs)

    @classmethod
    def for_tokenizer(cls, tokenizer, **fields) -> "JMNatConfig":
        """A configuration with the vocabulary size and special ids of `tokenizer`, and any other `fields`.

        Raises:
            ValueError: the tokenizer lacks a token that the model needs, or a field is out of its range.
        """
        given = {name: getattr(tokenizer, name) for name in SPECIAL_IDS}
        missing = [name for name in ("pad_token_id", "eos_token_id", "mask_token_id") if given[name] is None]
        if missing:
            raise ValueError(f"the tokenizer has no {missing[0]}: add that special token to it")
        if fields.get("position_embedding_type") == "learned" and given["pad_token_id"] != cls.pad_token_id:
            given["position_offset"] = 0  # otherwise the table would have unused rows up to the id of <pad>
        return cls(**{"vocab_size": len(tokenizer), **given, **fields})

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):  # type: ignore[override]
        """As inherited, but names custom code only where that code is saved along with it (see `publishing`)."""
        config, saved = copy.copy(self), Path(save_directory)
        if self._auto_class is None and hasattr(self, "auto_map"):
            config.auto_map = elsewhere(self.auto_map)
        if hasattr(self, "custom_pipelines"):
            source = Path(self.name_or_path or "") / PIPELINE_FILE
            if self._auto_class is not None and source.is_file():  # Transformers copies only what the model imports
                saved.mkdir(parents=True, exist_ok=True)
                if not (saved / PIPELINE_FILE).exists():
                    shutil.copyfile(source, saved / PIPELINE_FILE)
            if not (saved / PIPELINE_FILE).is_file():
                pipelines = self.custom_pipelines.items()
                config.custom_pipelines = {task: x for task, x in pipelines if elsewhere({task: x.get("impl")})}
        for name in ("auto_map", "custom_pipelines"):
            if not getattr(config, name, True):
                delattr(config, name)
        super(JMNatConfig, config).save_pretrained(save_directory, **kwargs)


def elsewhere(auto_map: dict[str, Any]) -> dict[str, Any]:
    """The entries of an `auto_map` whose code is in another repository (`you/name--module.Class`)."""
    return {
        name: where
        for name, where in auto_map.items()
        if any("--" in part for part in (where if isinstance(where, list | tuple) else [where]) if part)
    }


@dataclass
class JMNatOptions:
    """Every generation option with its default; `JMNatGenerationConfig` stores them, `generate` resolves them."""

    num_iterations: int = 10
    num_length_candidates: int = 4
    remask_adjacent: bool = True
    remask_schedule: str = "linear"
    early_stop: bool = False
    suppress_tokens: list[int] | None = None
    length_normalization: float = 1.0
    length_offset: float = 0.0
    consensus_weight: float = 0.0
    consensus_min_length: int = 0
    num_return_sequences: int = 1
    prune_candidates: int | None = None
    prune_to: int = 1
    confidence_threshold: float | None = None
    update_all: bool = False
    remask_repeats: bool = False
    delete_repeats: bool = False
    collapse_repeats: bool = False
    repeatable_tokens: list[int] | None = None
    length_shift: int = 0
    crf_beam: int = 8
    output_history: bool = False
    return_dict_in_generate: bool = False
    max_length: int | None = None

    def check(self) -> None:
        """Raises ValueError naming the option, its value and what is allowed."""
        for option in fields(self):
            if option.type is bool and not isinstance(getattr(self, option.name), bool):
                raise ValueError(f"{option.name}={getattr(self, option.name)!r} must be True or False")
        if self.remask_schedule not in REMASK_SCHEDULES:
            raise ValueError(f"remask_schedule={self.remask_schedule!r} is not one of {', '.join(REMASK_SCHEDULES)}")
        for name in ("suppress_tokens", "repeatable_tokens"):
            ids = getattr(self, name)
            kinds = set(map(type, ids)) if isinstance(ids, list | tuple) else {object}  # few, of hundreds of ids
            if ids is not None and not all(issubclass(kind, Integral) and kind is not bool for kind in kinds):
                raise ValueError(f"{name}={ids!r} must be None or a list of token ids")
        self._check_counts()
        self._check_numbers()

    def _check_counts(self) -> None:
        counts = {**dict.fromkeys(COUNTS, 1), "consensus_min_length": 0}
        for name, least in (
            counts.items() if self.prune_candidates is None else [*counts.items(), ("prune_candidates", 1)]
        ):
            if not is_count(value := getattr(self, name), least):
                raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
        if self.num_return_sequences > self.num_length_candidates:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences} is more than "
                f"num_length_candidates={self.num_length_candidates}: raise num_length_candidates"
            )
        if not (self.max_length is None or is_count(longest := self.max_length, 2)):
            raise ValueError(f"max_length={longest!r} must be a whole number of at least 2 (one token and </s>)")

    def _check_numbers(self) -> None:
        if not is_count(self.length_shift, -LARGEST_SHIFT) or self.length_shift > LARGEST_SHIFT:
            raise ValueError(
                f"length_shift={self.length_shift!r} must be a whole number in [-{LARGEST_SHIFT}, {LARGEST_SHIFT}]"
            )
        threshold = self.confidence_threshold
        if threshold is not None and not (is_number(threshold) and 0 < threshold <= 1):
            raise ValueError(f"confidence_threshold={threshold!r} must be None or in (0, 1]")
        for name in ("length_normalization", "length_offset", "consensus_weight"):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value <= LARGEST_EXPONENT):
                raise ValueError(f"{name}={value!r} must be in [0, {LARGEST_EXPONENT}]")


def is_count(value: Any, least: float) -> bool:
    """Whether `value` is an integer of at least `least` (bools excluded)."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number (bools excluded)."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


OPTION_NAMES = tuple(option.name for option in fields(JMNatOptions))
OFF_AT_NONE = ("prune_candidates", "confidence_threshold")
REMOVED_OPTIONS = ("length_threshold", "prune_threshold")  # models saved by earlier versions still have them


class JMNatGenerationConfig(GenerationConfig):
    """Options of `generate`. An option left at None takes the model's own value, then the default.

    Args:
        num_iterations: k, the exact number of decoder passes (10). Cost: time grows with k.
        num_length_candidates: C, number of different target lengths tried per sentence, fewer where `max_length`
            allows fewer (4). `num_beams` is an alias. Cost: time grows with C.
        remask_adjacent: re-mask the least probable tokens together with their neighbours, in sets of n (True).
        remask_schedule: number of tokens re-masked after pass i: T (1 - i/k) with `"linear"`, T cos(pi i / 2k) with
            `"cosine"` ("linear").
        early_stop: stop a candidate once a pass leaves it unchanged (False). Cost: saves passes, loses BLEU.
        suppress_tokens: ids that are never predicted; an empty list suppresses none (`<pad>`, `<mask>` and `<s>`).
        length_normalization: a candidate's log-probability is divided by T to this power; above 1 favours longer
            candidates. `jmnat tune` finds the best (1.0).
        length_offset: added to T before that; 5 gives the length penalty of fairseq and GNMT (0.0).
        consensus_weight: weight of a candidate's consensus, the mean share (0 to 1) of tokens and token pairs that it
            has in common with each other candidate. It is added to the score by which candidates are chosen and
            pruned, and helps more with more candidates (0.0). Cost: hardly any, and no pass.
        consensus_min_length: shorter candidates get no consensus, because long ones have more in common (0).
        num_return_sequences: n-best, at most C. Pruning keeps at least this many candidates, so the best one may
            differ from that of a search for a single one (1).
        prune_candidates: pass after which only the best candidates continue (None). Cost: saves time with C above 1.
        prune_to: how many continue, at least `num_return_sequences`; a reranker chooses among these (1).
        confidence_threshold: tokens at or above this probability are final, and a row of such tokens stops. With
            `update_all` it only decides which rows stop (None). Cost: saves passes, loses BLEU.
        update_all: predict every position in each pass, not only the masked ones (False). Cost: logits of all tokens.
        remask_repeats: re-mask the less probable of two equal neighbours before other tokens (False).
        delete_repeats: merge equal neighbours before the last of two or more passes, which shortens the candidate; the
            pass repairs the seam. It helps from k = 4 on and hurts below (False).
        collapse_repeats: merge equal neighbours that are left after the last pass (False).
        repeatable_tokens: ids that these three rules never touch, because they may rightly occur twice in a row. Other
            tokens may do so where the source has the same pair. `repeatable_tokens(tokenizer)` lists the single
            letters, digits, signs and bytes of a vocabulary (None: special tokens only).
        length_shift: added to the predicted lengths, which are often too short when repeats are deleted or
            collapsed (0). Cost: time grows with the length.
        crf_beam: tokens of each position among which a model's CRF, if it has one, finds the best path; 1: no CRF (8).
        output_history: return each pass's canvas and log-probabilities (False). Cost: memory for all passes.
        return_dict_in_generate: return a `JMNatGenerateOutput` with scores and lengths instead of ids (False).
        max_length: longest target in tokens, `</s>` included (None: `max_target_length` of the model).
    """

    def __init__(self, **kwargs):
        options: dict[str, Any] = {name: kwargs.pop(name, None) for name in OPTION_NAMES}
        for name in REMOVED_OPTIONS:
            if kwargs.pop(name, None):
                logger.warning("%s is no longer an option of decoding and is ignored", name)
        self._set_options(options)
        super().__init__(**kwargs)
        self._set_options(options)

    def _set_options(self, options: dict[str, Any]) -> None:
        for name, value in options.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "num_beams" and value is not None:  # set later, it overrides the saved num_length_candidates
            self.num_length_candidates = value

    @classmethod
    def from_model_config(cls, model_config) -> "JMNatGenerationConfig":
        """A fresh config. The inherited method marks it as derived, and such a config loses its options on reload."""
        ids = {name: getattr(model_config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        options = JMNatOptions(max_length=model_config.max_target_length)
        if model_config.decoder_input == "source_copy":  # the basic NAT has a single pass
            options.num_iterations = 1
        return cls(**ids, **asdict(options))

    @staticmethod
    def _get_default_generation_params() -> dict[str, Any]:
        # Seq2SeqTrainer writes these into a config that lacks them, and its own max_length of 20 would cut longer
        # targets. It also pads what it gathers to max_length, so that this must stay near the length of sentences.
        # num_beams=1 would mean one length candidate.
        return {**GenerationConfig._get_default_generation_params(), "max_length": 1024, "num_beams": None}

    def validate(self, *args, **kwargs) -> None:
        """The library's checks and ours; its check of num_return_sequences against num_beams does not apply here."""
        num_return_sequences, self.num_return_sequences = self.num_return_sequences, None
        try:
            super().validate(*args, **kwargs)
        finally:
            self.num_return_sequences = num_return_sequences
        if self.length_penalty not in (None, 1.0):
            raise ValueError(
                f"length_penalty={self.length_penalty} is an option of beam search: use length_normalization, the "
                "exponent of the length here"
            )
        resolve_options(self).check()


def resolve_options(*sources: Any) -> JMNatOptions:
    """Options by precedence: each is taken from the first source (config, or dict of arguments) that sets it.

    A None in a dict of arguments counts as set for the options that None turns off.
    """
    options = JMNatOptions()
    for name in OPTION_NAMES:
        for source in sources:
            given = isinstance(source, dict)
            value = source.get(name) if given else getattr(source, name, None)
            if value is not None or (given and name in source and name in OFF_AT_NONE):
                setattr(options, name, value)
                break
    return options


def under_own_names(given: dict[str, Any]) -> dict[str, Any]:
    """Options with `num_beams` and `max_new_tokens` renamed to the options that mean the same here."""
    names = dict(given)
    num_beams, longest = names.pop("num_beams", None), names.pop("max_new_tokens", None)
    if names.get("num_length_candidates") is None:  # Seq2SeqTrainer and pipelines set num_beams
        names["num_length_candidates"] = num_beams
    return names if longest is None else {**names, "max_length": longest}  # every target token is a new one


def saved_generation_config(
    config_class: type[GenerationConfig], path: str | os.PathLike, **kwargs
) -> GenerationConfig | None:
    """The generation config that was saved in a folder or a repository of the Hub, None if there is none.

    Args:
        kwargs: arguments of `from_pretrained`, such as `revision` and `token`.

    Raises:
        OSError: it exists and cannot be read.
    """
    try:
        return config_class.from_pretrained(path, **kwargs)
    except OSError as error:
        if lacks_generation_config(path, **kwargs):
            return None
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"{GENERATION_CONFIG_NAME} of {path} cannot be read: {reason}") from error


def lacks_generation_config(
    path: str | os.PathLike,
    revision=None,
    cache_dir=None,
    subfolder: str = "",
    token=None,
    local_files_only: bool = False,
    **others,
) -> bool:
    """Whether a folder or a repository of the Hub is known to have no `generation_config.json`.

    Offline, the cached files count. If the Hub does not answer, a file counts as missing only if the cache says so.
    `others` are arguments of `from_pretrained` that do not matter here.
    """
    name = os.path.join(subfolder or "", GENERATION_CONFIG_NAME)
    if os.path.isdir(path):
        return not os.path.exists(os.path.join(path, name))
    repository, place = str(path), {"revision": revision, "cache_dir": cache_dir}
    try:
        hf_hub_download(repository, name, token=token, local_files_only=local_files_only, **place)
    except LocalEntryNotFoundError:
        offline = local_files_only or is_offline_mode()
        return offline or try_to_load_from_cache(repository, name, **place) is _CACHED_NO_EXIST
    except EntryNotFoundError:
        return True
    return False
