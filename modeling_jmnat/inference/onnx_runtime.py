"""JM-NAT on ONNX Runtime: the graphs of `onnx_export/export.py` with the same `generate` as the PyTorch model."""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from transformers.utils import ModelOutput

from ..configuration_jmnat import REPEAT_RULES, JMNatConfig, JMNatGenerationConfig, JMNatOptions
from ..generation_jmnat import JMNatGenerateOutput, JMNatGenerationMixin, check_target_lengths
from ..modeling_jmnat import decoder_attend_mask, token_mask
from ..utils.hub_folders import fetch_folder
from .exported_files import GRAPHS_FOLDER, check_weights, with_settings

LOWEST = torch.finfo(torch.float32).min
GRAPHS = ("encoder", "decoder")
TRANSLATOR = "translator"  # the whole translation in one graph, see `onnx_export/whole_translation.py`
PASS = "pass"  # prefix of the names of its nodes inside the passes
SLOWER_FUSION = "SkipLayerNormFusion"  # Add and LayerNormalization are slower when fused, and lose their names
POSITIONS_FILE = "positions.safetensors"  # see `PositionalAttention`
DIGEST = "weights_sha256"  # metadata of every exported file, which identifies its model
VOCABULARY_BLOCK = 128  # taking the best token of each block and then the best of those is faster than one search
CACHED_LENGTH = 64  # positional probabilities of targets up to this length are cached


def graph_file(part: str, int8: bool) -> str:
    return f"{part}_int8.onnx" if int8 else f"{part}.onnx"


TRANSLATORS = tuple(graph_file(TRANSLATOR, int8) for int8 in (False, True))  # files by which an export is found


def translators_in(folder: Path) -> list[Path]:
    return [folder / name for name in TRANSLATORS if (folder / name).is_file()]


def padded_vocabulary_size(vocab_size: int) -> int:
    """The vocabulary size rounded up to whole blocks; ids beyond the vocabulary are never predicted."""
    return -(-vocab_size // VOCABULARY_BLOCK) * VOCABULARY_BLOCK


def token_bias(vocab_size: int, suppressed: torch.Tensor | None) -> torch.Tensor:
    """(V,), V rounded up to whole blocks: -inf at padding rows and at `suppressed` (vocab_size,) tokens, else 0."""
    bias = torch.zeros(padded_vocabulary_size(vocab_size))
    bias[vocab_size:] = -torch.inf
    if suppressed is not None:
        bias[:vocab_size].masked_fill_(suppressed, -torch.inf)
    return bias


class TranslatorInput(NamedTuple):
    """An optional input of the graph of a whole translation.

    Args:
        rank: 0 for a scalar, 1 for a vector.
        option: the generation option of this input; None for an argument of `generate`.
        value: computes its value from a model and options, which is None if the model's graph lacks the input.
            Default: the option's value.
    """

    name: str
    dtype: type[np.generic]
    rank: int
    option: str | None
    value: Callable[[Any, JMNatOptions], Any] | None = None

    def array(self, model: JMNatGenerationMixin, options: JMNatOptions) -> np.ndarray | None:
        value = self.value(model, options) if self.value else getattr(options, self.option or self.name)
        return None if value is None else np.asarray(value, dtype=self.dtype).reshape([-1] * self.rank)


def bias_of_suppressed(model, options: JMNatOptions) -> torch.Tensor:
    return token_bias(model.config.vocab_size, model._suppressed_tokens(options, "cpu"))


def adjacent_remasking(model, options: JMNatOptions) -> bool | None:
    """The option; None if sets of neighbours have a single token, where it has no effect."""
    return options.remask_adjacent if model.config.ngram_size > 1 else None


def table_of_repeatable(model, options: JMNatOptions) -> torch.Tensor:
    """(V,) bool, V rounded up to whole blocks, True at tokens that may occur twice in a row."""
    size = padded_vocabulary_size(model.config.vocab_size)
    return F.pad(model._repeatable_tokens(options, torch.device("cpu")), (0, size - model.config.vocab_size))


# From this table, the export makes the graph's inputs and their defaults, and `generate` the values to feed.
TRANSLATOR_INPUTS = (
    *(TranslatorInput(x, np.int64, 0, x) for x in ("num_iterations", "length_shift", "consensus_min_length")),
    *(TranslatorInput(x, np.int64, 1, x) for x in ("num_length_candidates", "num_return_sequences", "prune_to")),
    *(TranslatorInput(x, np.float32, 0, x) for x in ("length_offset", "length_normalization", "consensus_weight")),
    *(TranslatorInput(x, np.bool_, 0, x) for x in REPEAT_RULES),
    TranslatorInput("prune_candidates", np.int64, 0, "prune_candidates", lambda _, each: each.prune_candidates or 0),
    TranslatorInput("remask_adjacent", np.bool_, 0, "remask_adjacent", adjacent_remasking),
    TranslatorInput(
        "crf_beam", np.int64, 1, "crf_beam", lambda model, each: each.crf_beam if model.config.crf_rank else None
    ),
    TranslatorInput("max_length", np.int64, 1, "max_length", lambda model, options: model._longest_target(options)),
    TranslatorInput("repeatable", np.bool_, 1, "repeatable_tokens", table_of_repeatable),
    TranslatorInput("token_bias", np.float32, 1, "suppress_tokens", bias_of_suppressed),
    TranslatorInput("target_lengths", np.int64, 1, None, lambda *_: ()),  # as many as sources, or none
)
# If any other option differs from its default, passes are run one by one.
TRANSLATOR_OPTIONS = (*(each.option for each in TRANSLATOR_INPUTS if each.option), "return_dict_in_generate")
OFF = {name: value for name, value in asdict(JMNatOptions()).items() if name not in TRANSLATOR_OPTIONS}
ADDED_LATER = (*REPEAT_RULES, "length_shift", "consensus_min_length")  # earlier exports lack these and `repeatable`


def translator_inputs(model: JMNatGenerationMixin, options: JMNatOptions) -> dict[str, np.ndarray]:
    """The values of all optional inputs of the model's graph, by name, for these options."""
    arrays = {each.name: each.array(model, options) for each in TRANSLATOR_INPUTS}
    return {name: array for name, array in arrays.items() if array is not None}


def other_options(options: JMNatOptions) -> list[str]:
    """The names of options that are on and that the graph of a whole translation does not support."""
    return [name for name, off in OFF.items() if getattr(options, name) != off]


def find_graphs(directory: str | Path, int8: bool, **hub_options) -> Path:
    """`directory` or its folder `onnx`, whichever has the graphs; ValueError if neither has.

    From a repository on the Hub, the files that these graphs need are fetched (see `fetch_folder`).
    """
    name = graph_file(TRANSLATOR, int8)
    patterns = ("*.json", "*_int8.onnx" if int8 else "*[!8].onnx", f"*{POSITIONS_FILE}")
    top = fetch_folder(directory, patterns, **hub_options)
    for folder in (top, top / GRAPHS_FOLDER):
        if (folder / name).is_file():
            return folder
    how = "jmnat export-onnx --int8" if int8 else "jmnat export-onnx"
    raise ValueError(f"{directory} holds no {name}, nor does its folder {GRAPHS_FOLDER}: export it with `{how}`")


def load_session(path: Path, num_threads: int | None, record: Path | None = None):
    """An ONNX Runtime session on the CPU; ValueError for a damaged file, or if ONNX Runtime is not installed.

    Args:
        record: prefix of the file into which `end_profiling` writes the time of every operator.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("ONNX Runtime is not installed: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the core to others
    options.log_severity_level = 3  # only errors, because it warns of every input that has a default
    if record is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(record)
    try:
        return onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], disabled_optimizers=[SLOWER_FUSION]
        )
    except Exception as error:  # the errors of ONNX Runtime have no narrower common class
        raise cannot_be_loaded(path, error) from None


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    """The tensors of a file and the digest in its metadata; ValueError for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get(DIGEST)  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise cannot_be_loaded(path, error) from None


def cannot_be_loaded(path: Path, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0]
    return ValueError(f"{path} cannot be loaded, export it again with `jmnat export-onnx`: {reason}")


def session_digest(session) -> str | None:
    """The digest in a graph's metadata; None if it has none."""
    return session.get_modelmeta().custom_metadata_map.get(DIGEST)


class ExportedGraphs:
    """The files of one export, loaded when they are needed.

    Raises:
        ValueError: a file is missing, damaged, or of another model than the first one, which would silently give
            nonsense; or ONNX Runtime is not installed.
    """

    def __init__(self, folder: Path, int8: bool, num_threads: int | None):
        self.folder, self.int8, self.num_threads = folder, int8, num_threads
        self.first: tuple[Path, str | None] | None = None  # the file that was loaded first, and its digest

    def session(self, part: str):
        """An ONNX Runtime session of a graph."""
        path = self.folder / graph_file(part, self.int8)
        session = load_session(path, self.num_threads)
        self.check(path, session_digest(session))
        return session

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        path = self.folder / name
        tensors, digest = load_tensors(path)
        self.check(path, digest)
        return tensors

    def check(self, path: Path, digest: str | None) -> None:
        if self.first is None:
            self.first = path, digest
        if digest != self.first[1]:
            raise ValueError(
                f"{path} and {self.first[0].name} do not belong to the same model: "
                "export them again with `jmnat export-onnx`"
            )


@dataclass
class ORTEncoderOutput(ModelOutput):
    """Output of the encoder graph: length logits, and mask, keys and values of cross-attention."""

    length_logits: torch.Tensor | None = None  # (B, L)
    source_bias: torch.Tensor | None = None  # (B, 1, 1, S), added to attention scores
    cross_keys: tuple[torch.Tensor, ...] | None = None  # (B, S, D) for each layer
    cross_values: tuple[torch.Tensor, ...] | None = None  # (B, S, D) for each layer


@dataclass
class ORTDecodingState:
    """Inputs of the decoder graph that all passes share, by name.

    Args:
        of_rows: tensors with one row for each row of the canvas.
        token_bias: (V,) -inf at tokens that are never predicted, V rounded up to whole blocks.
    """

    of_rows: dict[str, torch.Tensor]
    token_bias: torch.Tensor

    def __post_init__(self):
        self.feeds = {name: value.contiguous().numpy() for name, value in self.of_rows.items()}

    def select(self, rows: torch.Tensor) -> "ORTDecodingState":
        """As `JMNatDecodingState.select`; every row has its own copy of the source."""
        return ORTDecodingState({name: value[rows] for name, value in self.of_rows.items()}, self.token_bias)


class PositionalAttention:
    """Probabilities of positional attention, which depend only on the target length, for all layers.

    Args:
        query, key: (layers, H, longest target, D/H), queries scaled.
    """

    def __init__(self, query: torch.Tensor, key: torch.Tensor, exclude_self: bool):
        self.query, self.key, self.exclude_self = query, key, exclude_self
        self.known: dict[int, torch.Tensor] = {}

    def of_length(self, length: int) -> torch.Tensor:
        """Probabilities (layers, H, length, length) for one target length."""
        if length in self.known:
            return self.known[length]
        scores = self.query[:, :, :length] @ self.key[:, :, :length].transpose(2, 3)
        attend = decoder_attend_mask(torch.ones(1, length, dtype=torch.bool), self.exclude_self)[0]
        probs = scores.masked_fill(~attend, LOWEST).softmax(dim=-1)
        if length <= CACHED_LENGTH:
            self.known[length] = probs
        return probs

    def of_lengths(self, lengths: list[int], num_positions: int) -> torch.Tensor:
        """Probabilities (layers, R, H, T, T) for R target lengths; rows and columns beyond a length are 0."""
        tables = {length: self.of_length(length) for length in set(lengths)}
        if tables.keys() == {num_positions}:
            return tables[num_positions][:, None].expand(-1, len(lengths), -1, -1, -1)
        layers, heads = self.query.shape[:2]
        probs = self.query.new_zeros(layers, len(lengths), heads, num_positions, num_positions)
        for row, length in enumerate(lengths):
            probs[:, row, :, :length, :length] = tables[length]
        return probs


class ORTJMNatForConditionalGeneration(JMNatGenerationMixin):
    """`generate` on a CPU with ONNX Runtime, from a folder that `jmnat export-onnx` wrote."""

    main_input_name = "input_ids"
    input_modalities = ("text",)  # pipelines show them
    generation_config_class = JMNatGenerationConfig
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, config: JMNatConfig, generation_config: JMNatGenerationConfig, graphs: ExportedGraphs):
        self.config = config
        self.generation_config = generation_config
        self.graphs = graphs
        self.last_feeds: tuple[JMNatOptions | None, dict[str, np.ndarray] | None] = None, {}

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, int8: bool = False, num_threads: int | None = None, **hub_options
    ) -> "ORTJMNatForConditionalGeneration":
        """Load exported graphs from `directory`, or from its folder `onnx`; it may be a name on the Hub.

        A whole translation is one call of ONNX Runtime if the options allow it. With options that let rows stop or
        leave, and with a reranker, each pass is one call, and further graphs are loaded when they are needed.

        Args:
            int8: load the quantised graphs. They scale activations per batch, so that a translation may depend on the
                other sentences of its batch and on padding.
            num_threads: threads of ONNX Runtime. Default: as many as PyTorch uses.
            hub_options: `revision`, `token`, `cache_dir` and others of `huggingface_hub.snapshot_download`.

        Raises:
            ValueError: the graphs are missing, damaged or of two models, or ONNX Runtime is not installed.
        """
        folder = with_settings(find_graphs(directory, int8, **hub_options))
        config, generation_config = JMNatConfig.from_pretrained(folder), JMNatGenerationConfig.from_pretrained(folder)
        model = cls(config, cast(JMNatGenerationConfig, generation_config), ExportedGraphs(folder, int8, num_threads))
        check_weights(folder / graph_file(TRANSLATOR, int8), session_digest(model.translator), config)
        return model

    @functools.cached_property
    def translator(self):
        return self.graphs.session(TRANSLATOR)

    @functools.cached_property
    def encoder(self):
        return self.graphs.session("encoder")

    @functools.cached_property
    def decoder(self):
        return self.graphs.session("decoder")

    @functools.cached_property
    def positions(self) -> PositionalAttention | None:
        if not self.config.positional_attention:
            return None
        return PositionalAttention(
            **self.graphs.tensors(POSITIONS_FILE), exclude_self=self.config.exclude_self_attention
        )

    def can_generate(self) -> bool:
        return True

    def eval(self) -> "ORTJMNatForConditionalGeneration":
        return self

    def to(self, device) -> "ORTJMNatForConditionalGeneration":
        if torch.device(device).type != "cpu":
            raise ValueError(f"device={str(device)!r} is not supported: exported graphs run on a CPU, choose 'cpu'")
        return self

    def get_encoder(self):
        return self.encode

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> ORTEncoderOutput:
        """Source ids and mask (B, S) -> length logits, and the inputs of cross-attention."""
        outputs = self.encoder.run(None, self.source_feeds(input_ids, attention_mask))
        length_logits, source_bias, *states = map(torch.from_numpy, outputs)
        return ORTEncoderOutput(length_logits, source_bias, tuple(states[0::2]), tuple(states[1::2]))

    def source_feeds(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> dict[str, np.ndarray]:
        vocab_size, ids = self.config.vocab_size, input_ids.long().contiguous().numpy()
        unknown = ids[(ids < 0) | (ids >= vocab_size)]
        if len(unknown):
            raise ValueError(f"input_ids holds {unknown[0]}, but ids must lie in [0, {vocab_size})")
        mask = token_mask(attention_mask, input_ids, None, self.config.pad_token_id).long()
        most = self.config.max_position_embeddings
        if input_ids.shape[1] > most and (count := int(mask.sum(dim=1).max())) > most:
            raise ValueError(f"input_ids has {count} tokens, more than max_position_embeddings={most}: split them")
        return {"input_ids": ids, "attention_mask": mask.contiguous().numpy()}

    def option_feeds(self, options: JMNatOptions) -> dict[str, np.ndarray] | None:
        """`translator_inputs`, cached because the next call mostly has the same options.

        None if the graph, from an earlier export, does not support one of the options that are on.
        """
        last_options, feeds = self.last_feeds  # at once, because another thread may replace them
        if last_options != options:
            inputs = translator_inputs(self, options)
            known = {value.name for value in self.translator.get_overridable_initializers()}
            all_known = not any(inputs[name].any() for name in ADDED_LATER if name not in known)
            feeds = {name: inputs[name] for name in inputs if name in known} if all_known else None
            self.last_feeds = JMNatOptions(**asdict(options)), feeds  # a copy, also of lists
        return feeds

    def generate_at_once(
        self, options: JMNatOptions, input_ids, target_lengths, attention_mask, inputs_embeds, encoder_outputs
    ) -> JMNatGenerateOutput | None:
        if input_ids is None or inputs_embeds is not None or encoder_outputs is not None:
            return None
        of_options = None if other_options(options) else self.option_feeds(options)
        if of_options is None:
            return None
        feeds = {**self.source_feeds(input_ids, attention_mask), **of_options}
        if target_lengths is not None:
            feeds["target_lengths"] = check_target_lengths(target_lengths, len(input_ids)).numpy()
        sequences, scores, token_scores, lengths, candidate_lengths, best = map(
            torch.from_numpy, self.translator.run(None, feeds)
        )
        return JMNatGenerateOutput(
            sequences=sequences.flatten(0, 1),
            sequences_scores=scores.flatten(),
            token_scores=token_scores.flatten(0, 1),
            lengths=lengths.flatten(),
            num_passes=torch.full((len(input_ids),), options.num_iterations),
            candidate_lengths=candidate_lengths,
            best_candidates=best,
        )

    def encode_for_generation(self, input_ids=None, attention_mask=None, inputs_embeds=None, encoder_outputs=None):
        """As in the PyTorch model, with the output of `encode` instead of encoder states."""
        if inputs_embeds is not None or input_ids is None:
            raise ValueError("input_ids is missing: exported graphs do not take inputs_embeds")
        if encoder_outputs is None:
            encoder_outputs = self.encode(input_ids, attention_mask)
        source_mask = token_mask(attention_mask, input_ids, None, self.config.pad_token_id)
        return encoder_outputs, source_mask, encoder_outputs.length_logits.log_softmax(dim=-1)

    def prepare_decoding(self, encoder_outputs: Any, source_mask, target_mask) -> ORTDecodingState:
        """Inputs of the decoder graph from an `ORTEncoderOutput` of B sentences and masks (B, S) and (R, T)."""
        rows, length = target_mask.shape
        attend = decoder_attend_mask(target_mask, self.config.exclude_self_attention).expand(rows, 1, length, length)
        of_rows = {"self_bias": torch.zeros(attend.shape).masked_fill_(~attend, LOWEST)}
        if self.positions is not None:
            probs = self.positions.of_lengths(target_mask.sum(dim=1).tolist(), length)
            of_rows.update({f"position_probs_{index}": layer for index, layer in enumerate(probs)})
        per_source = rows // len(source_mask)
        of_sources = {"source_bias": encoder_outputs.source_bias}
        layers = zip(encoder_outputs.cross_keys, encoder_outputs.cross_values, strict=True)
        for index, (key, value) in enumerate(layers):
            of_sources |= {f"key_{index}": key, f"value_{index}": value}
        of_rows |= {name: value.repeat_interleave(per_source, dim=0) for name, value in of_sources.items()}
        return ORTDecodingState(of_rows, token_bias(self.config.vocab_size, None))

    def predict_tokens(self, canvas, positions, state, suppressed) -> tuple[torch.Tensor, torch.Tensor]:
        """As the PyTorch model's method."""
        return self.predict_path(canvas, positions, state, suppressed, torch.ones_like(canvas, dtype=torch.bool), 1)

    def predict_path(
        self, canvas: torch.Tensor, positions, state: ORTDecodingState, suppressed, predicted: torch.Tensor, beam: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the PyTorch model's method, and for a single candidate as `predict_tokens`."""
        feeds = {"canvas": canvas.contiguous().numpy(), "positions": positions.contiguous().numpy(), **state.feeds}
        if self.config.crf_rank:
            feeds |= {"valid": predicted.gather(1, positions).numpy(), "crf_beam": np.array([beam])}
        if suppressed is not None:
            state.token_bias[: self.config.vocab_size].masked_fill_(suppressed, -torch.inf)
        tokens, log_probs = self.decoder.run(None, {**feeds, "token_bias": state.token_bias.numpy()})
        return torch.from_numpy(tokens), torch.from_numpy(log_probs)
