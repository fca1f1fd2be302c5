"""JM-NAT as ONNX files: an encoder, one decoder pass, and a whole translation as one graph.

B sources, C length candidates, R = B C canvas rows, S source tokens, T target tokens, M positions to predict, V
vocabulary, D width, H heads. All of these axes are dynamic except the last three.
"""

import copy
import logging
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, numpy_helper
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from ..configuration_jmnat import resolve_options
from ..inference.onnx_runtime import (
    DIGEST,
    GRAPHS,
    POSITIONS_FILE,
    TRANSLATORS,
    graph_file,
    other_options,
    padded_vocabulary_size,
    translator_inputs,
    translators_in,
)
from ..inference.translator_options import OPTIONS_FILE
from ..modeling_jmnat import JMNatForConditionalGeneration
from ..utils.atomic_files import atomic_file, replace_files
from ..utils.fingerprints import weights_digest
from ..utils.locks import folder_lock
from .browser import BROWSER_FILES, browser_file, browser_graph, write_options
from .crf import write_path
from .graph_writer import GraphWriter
from .network import DecoderWriter, EncoderWriter
from .whole_translation import TranslatorWriter

logger = logging.getLogger(__name__)
EXPORTED_FILES = (
    *TRANSLATORS,
    *(graph_file(part, int8) for part in GRAPHS for int8 in (False, True)),
    POSITIONS_FILE,
    *BROWSER_FILES,
)


def encoder_graph(model: JMNatForConditionalGeneration, int8: bool) -> GraphWriter:
    """input_ids, attention_mask (B, S) -> length_logits (B, L), source_bias and per decoder layer key_i, value_i.

    See `DecoderWriter`.
    """
    graph, shape = GraphWriter("encoder", int8), ("B", "S", model.config.d_model)
    ids, mask = (graph.input(name, ("B", "S"), TensorProto.INT64) for name in ("input_ids", "attention_mask"))
    encoder = EncoderWriter(graph, model, ids, mask)
    length_logits, source_states = encoder.write()
    graph.output("length_logits", length_logits, ("B", "L"))
    graph.output("source_bias", encoder.source_bias(), ("B", 1, 1, "S"))
    for index, (key, value) in enumerate(source_states):
        graph.output(f"key_{index}", key, shape)
        graph.output(f"value_{index}", value, shape)
    return graph


def decoder_graph(model: JMNatForConditionalGeneration, int8: bool) -> GraphWriter:
    """One pass: canvas (R, T), positions (R, M) to predict -> tokens (R, M) and their log_probs (R, M).

    Constant over the passes of a batch are `self_bias` and per layer `position_probs_i`, see `DecoderWriter`, and the
    encoder graph's outputs, repeated for the rows of each source; `token_bias` (V,) is -inf at suppressed tokens.
    With a CRF, further inputs are `valid` (R, M) bool, False at positions whose token is given, and `crf_beam` (1,).
    """
    config = model.config
    graph = GraphWriter("decoder", int8)
    canvas = graph.input("canvas", ("R", "T"), TensorProto.INT64)
    positions = graph.input("positions", ("R", "M"), TensorProto.INT64)
    self_bias = graph.input("self_bias", ("R", 1, "T", "T"))
    layers = range(config.decoder_layers)
    shape = ("R", config.decoder_attention_heads, "T", "T")
    position_probs = [graph.input(f"position_probs_{i}", shape) for i in layers] if config.positional_attention else []
    source_bias = graph.input("source_bias", ("R", 1, 1, "S"))
    source_states = [
        tuple(graph.input(f"{name}_{i}", ("R", "S", config.d_model)) for name in ("key", "value")) for i in layers
    ]
    decoder = DecoderWriter(graph, model, canvas, positions, self_bias, position_probs, source_states, source_bias)
    token_bias = graph.input("token_bias", (padded_vocabulary_size(config.vocab_size),))
    if model.crf is None:
        tokens, log_probs = decoder.write_tokens(decoder.write_states(), token_bias)
    else:
        valid = graph.input("valid", ("R", "M"), TensorProto.BOOL)
        beam = graph.input("crf_beam", (1,), TensorProto.INT64)
        tokens, log_probs = write_path(decoder, token_bias, valid, beam)
    graph.output("tokens", tokens, ("R", "M"), TensorProto.INT64)
    graph.output("log_probs", log_probs, ("R", "M"))
    return graph


def positional_projections(model: JMNatForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Queries and keys of positional attention for every position: (layers, H, max_target_length, D/H) each."""
    decoder = model.model.decoder
    positions = decoder.position_embeddings(torch.arange(model.config.max_target_length), torch.float32)[None]
    projected = [layer.position_attn.project_positions(positions) for layer in decoder.layers]
    query = torch.cat(
        [query * layer.position_attn.scaling for (query, _), layer in zip(projected, decoder.layers, strict=True)]
    )
    return {"query": query.contiguous(), "key": torch.cat([key for _, key in projected]).contiguous()}


def pad_vocabulary(model: JMNatForConditionalGeneration) -> None:
    """Pad the vocabulary's tables to whole blocks, in place; tied tables stay tied."""
    padded: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
    of_crf = () if model.crf is None else (model.crf.left, model.crf.right)
    for module in (model.lm_head, model.model.encoder.embed_tokens, model.model.decoder.embed_tokens, *of_crf):
        weight = module.weight
        if id(weight) not in padded:
            missing = padded_vocabulary_size(weight.shape[0]) - weight.shape[0]
            padded[id(weight)] = weight, torch.nn.Parameter(torch.nn.functional.pad(weight, (0, 0, 0, missing)))
        _, module.weight = padded[id(weight)]
    if model.lm_head.bias is not None:
        missing = len(model.lm_head.weight) - len(model.lm_head.bias)
        model.lm_head.bias = torch.nn.Parameter(torch.nn.functional.pad(model.lm_head.bias, (0, missing)))


@torch.no_grad()
def export_onnx(
    model: JMNatForConditionalGeneration,
    output: str | Path,
    int8: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    for_browsers: bool = False,
) -> dict[str, int]:
    """Write graphs, configuration and generation configuration to the folder `output`, all of them or none.

    An earlier export there is removed, other files stay.

    Args:
        int8: write the int8 graphs besides the float32 ones.
        tokenizer: tokenizer to save beside them.
        for_browsers: also write the graphs of whole translations as `browser_translator.onnx`. Their options are
            inputs of rank 0 that must all be fed; `browser_translator.json` has the defaults, which `translator_feeds`
            reads. The passes are further outputs, see `HISTORY`.

    Returns:
        Size in bytes of each file of weights.

    Raises:
        ValueError: the graphs do not support the architecture or activation, some weights are not in plain layers, or
            another process is writing to `output`.
    """
    if model.config.decoder_input != "mask":
        raise ValueError(f"decoder_input={model.config.decoder_input!r} cannot be exported, only 'mask'")
    check_weights(model)
    model = copy.deepcopy(model).float().cpu().eval()
    warn_of_other_options(model)
    with folder_lock(output, "output"), replace_files(output, EXPORTED_FILES, last=TRANSLATORS) as folder:
        sizes = write_weights(model, folder, int8, for_browsers)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return sizes


def check_weights(model: JMNatForConditionalGeneration) -> None:
    """Raise ValueError for adapters, quantised layers and offloaded weights, which cannot be exported."""
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            raise ValueError(f"{name} has an adapter: merge it into the model first, with PEFT's merge_and_unload()")
        weight = getattr(module, "weight", None)
        if weight is not None and not torch.is_tensor(weight):
            raise ValueError(f"{name} is a {type(module).__name__}: export the unquantised model with int8 instead")
        if weight is not None and weight.device.type == "meta":
            raise ValueError(f"the weights of {name} are offloaded: load the model without a device_map")


def warn_of_other_options(model: JMNatForConditionalGeneration) -> None:
    """Warn about options of the model that the graph of a whole translation ignores when run by itself."""
    names = other_options(resolve_options(model.generation_config))
    if names:
        logger.warning("%s, run by itself, ignores options of this model: %s", TRANSLATORS[0], ", ".join(names))


def write_defaults(model: JMNatForConditionalGeneration, folder: Path) -> None:
    """Store the model's current options in the graphs of a whole translation in `folder`, file by file, atomically."""
    warn_of_other_options(model)
    if (folder / OPTIONS_FILE).is_file():
        write_options(model, folder)
    defaults = translator_inputs(model, resolve_options(model.generation_config))
    for path in translators_in(folder):
        whole = onnx.load(path)
        for tensor in whole.graph.initializer:
            if tensor.name in defaults:
                tensor.CopyFrom(numpy_helper.from_array(defaults[tensor.name], tensor.name))
        with atomic_file(path) as file:
            onnx.save_model(whole, str(file))


def write_weights(
    model: JMNatForConditionalGeneration, output: Path, int8: bool, for_browsers: bool
) -> dict[str, int]:
    """Write graphs and tables of a float32 model, with a digest of the weights in each; returns their sizes."""
    metadata = {DIGEST: weights_digest(model.state_dict())}
    pad_vocabulary(model)
    positions = positional_projections(model) if model.config.positional_attention else {}
    sizes = {}
    for quantised in (False, True) if int8 else (False,):
        writers = [
            TranslatorWriter(model, positions, quantised).write(),
            encoder_graph(model, quantised),
            decoder_graph(model, quantised),
        ]
        graphs = {graph_file(writer.name, quantised): writer.model(metadata) for writer in writers}
        if for_browsers:
            graphs[browser_file(quantised)] = browser_graph(model, positions, quantised, metadata)
        for name, graph in graphs.items():
            onnx.save_model(graph, str(output / name))
            sizes[name] = (output / name).stat().st_size
    if for_browsers:
        write_options(model, output)
    if positions:
        save_file(positions, output / POSITIONS_FILE, metadata)
        sizes[POSITIONS_FILE] = (output / POSITIONS_FILE).stat().st_size
    return sizes
