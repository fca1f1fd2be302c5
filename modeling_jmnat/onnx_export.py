"""JM-NAT as ONNX graphs: an encoder that also prepares cross-attention, and one decoder pass.

B sources, R canvas rows (R/B consecutive rows share a source), S source tokens, T target tokens, M positions to
predict, V vocabulary, D width, H heads. The graphs leave B, R, S, T and M open.

Cross-attention never projects the decoder's states: a score is (W_q x + b_q).k = x.(W_q' k) + b_q.k, so the encoder
graph returns W_q' k for each source token and head, and likewise W_o v + b_o / H. A pass then needs two products with
the H S columns of a sentence in place of two with D columns and two per head: less work while S is below about 80.
"""

import contextlib
import copy
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from onnx import TensorProto
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from .modeling_jmnat import JMNatAttention, JMNatForConditionalGeneration, JMNatLayer, JMNatPositionalAttention
from .onnx_graph import GraphWriter, quantise_rows
from .onnx_model import (
    DIGEST,
    LOWEST,
    POSITIONS_FILE,
    STATES_DECODER,
    VOCABULARY_BLOCK,
    graph_file,
    padded_vocabulary_size,
    weight_file,
)

DECODERS = tuple(graph_file("decoder", int8) for int8 in (False, True))  # a folder's export is found by them
EXPORTED_FILES = (
    *DECODERS,
    *(graph_file(part, int8) for part in ("encoder", STATES_DECODER) for int8 in (False, True)),
    *(weight_file(int8) for int8 in (False, True)),
    POSITIONS_FILE,
)
UNFINISHED = ".unfinished_export"  # folder inside the output where an export is written


def merge_linears(linears, factors=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of several linear layers of one input as one, each multiplied by its factor."""
    factors = factors or [1.0] * len(linears)
    weight = torch.cat([linear.weight * factor for linear, factor in zip(linears, factors, strict=True)])
    bias = torch.cat([linear.bias * factor for linear, factor in zip(linears, factors, strict=True)])
    return weight, bias


class StackWriter:
    """Blocks that encoder and decoder share.

    Hidden states are (rows, length, D) between int8 layers, and (rows * length, D) between float32 ones, whose
    operator `Gemm` takes nothing else.
    """

    def __init__(self, graph: GraphWriter, model: JMNatForConditionalGeneration, rows: str, length: str):
        self.graph = graph
        self.config = model.config
        self.d_model = model.config.d_model
        self.rows, self.length = rows, length

    def embed(self, ids: str, stack, table: torch.Tensor) -> str:
        """Token ids (rows, S) -> scaled embeddings (rows, S, D)."""
        scale = self.graph.constant(torch.tensor(float(stack.embed_scale)))
        return self.graph.add("Mul", self.graph.embedding(ids, table), scale)

    def position_table(self, stack, num_positions: int) -> str:
        """Embeddings of all positions, (num_positions, D)."""
        return self.graph.constant(stack.position_embeddings(torch.arange(num_positions), torch.float32))

    def flat(self, states: str) -> str:
        """(rows, length, D) as hidden states are."""
        return states if self.graph.int8 else self.graph.reshape(states, -1, self.d_model)

    def by_rows(self, states: str) -> str:
        """Hidden states as (rows, length, D)."""
        return states if self.graph.int8 else self.graph.reshape(states, self.rows, self.length, self.d_model)

    def residual(self, states: str, norm: torch.nn.LayerNorm, block, pick=None) -> str:
        """As `JMNatLayer.residual`; `pick` takes out those of the states that the block returns."""
        graph, before = self.graph, self.config.normalize_before
        output = block(graph.layer_norm(states, norm) if before else states)
        # Not SkipLayerNormalization, whose kernel for CPUs takes three times as long as these two.
        states = graph.add("Add", states if pick is None else pick(states), output)
        return states if before else graph.layer_norm(states, norm)

    def last_norm(self, states: str, stack) -> str:
        return states if stack.layer_norm is None else self.graph.layer_norm(states, stack.layer_norm)

    def project(self, states: str, linear: torch.nn.Linear) -> str:
        return self.graph.linear(states, linear.weight, linear.bias)

    def attention_context(self, states: str, attention: JMNatAttention, bias: str) -> str:
        """Self-attention before its output projection; bias (rows, 1, length, length) is added to the scores."""
        graph = self.graph
        weight, bias_of_linears = merge_linears(
            [attention.q_proj, attention.k_proj, attention.v_proj], [attention.scaling, 1.0, 1.0]
        )
        parts = graph.add(
            "Split", graph.linear(states, weight, bias_of_linears), axis=-1, num_outputs=3, num_results=3
        )
        query_key_value = [self.by_rows(part) for part in parts]
        num_heads = self.d_model // attention.head_dim
        context = graph.add(
            "Attention", *query_key_value, bias, q_num_heads=num_heads, kv_num_heads=num_heads, scale=1.0
        )
        return self.flat(context)

    def feed_forward(self, states: str, layer: JMNatLayer) -> str:
        inner = self.project(states, layer.fc1)
        return self.project(self.graph.activation(inner, self.config.activation_function), layer.fc2)


def additive(graph: GraphWriter, attend: str) -> str:
    """Boolean, True where a position may be attended to, -> float that is added to scores."""
    zero, lowest = graph.constant(torch.tensor(0.0)), graph.constant(torch.tensor(LOWEST))
    return graph.add("Where", attend, zero, lowest)


class EncoderWriter(StackWriter):
    """input_ids, attention_mask (B, S) -> length_logits (B, L) and per decoder layer what cross-attention needs.

    `key_i` (B, D, H S), `value_i` (B, H S, D) and `score_bias_i` (B, 1, H S), in which padding is excluded.
    """

    def __init__(self, model: JMNatForConditionalGeneration, int8: bool):
        graph = GraphWriter("encoder", int8)
        self.ids = graph.input("input_ids", ("B", "S"), TensorProto.INT64)
        self.mask = graph.input("attention_mask", ("B", "S"), TensorProto.INT64)
        self.num_tokens = graph.size(self.ids, 1)
        length = graph.add("Add", self.num_tokens, graph.integers(1))  # with [LEN]
        super().__init__(graph, model, graph.size(self.ids, 0), length)
        self.model = model

    def write(self) -> GraphWriter:
        graph, encoder = self.graph, self.model.model.encoder
        states, bias = self.first_states(encoder), self.self_attention_bias()
        for layer in encoder.layers:
            states = self.write_layer(states, layer, bias)
        states = self.last_norm(states, encoder)
        states = self.by_rows(states)
        self.write_lengths(states, encoder.embed_lengths.weight)
        tokens = graph.add(
            "Slice", states, graph.integers(1), graph.integers(torch.iinfo(torch.int64).max), graph.integers(1)
        )
        self.write_cross_attention(self.flat(tokens))
        return graph

    def write_layer(self, states: str, layer, bias: str) -> str:
        def self_attention(states):
            return self.project(self.attention_context(states, layer.self_attn, bias), layer.self_attn.out_proj)

        states = self.residual(states, layer.self_attn_layer_norm, self_attention)
        return self.residual(states, layer.final_layer_norm, lambda states: self.feed_forward(states, layer))

    def first_states(self, encoder) -> str:
        """[LEN] and the embedded source, (B (1 + S), D)."""
        graph = self.graph
        one = graph.integers(1)
        ranks = graph.add("Sub", graph.add("CumSum", self.mask, one), one)
        ranks = graph.add("Max", ranks, graph.integers(0))
        positions = graph.add("Gather", self.position_table(encoder, self.config.max_position_embeddings), ranks)
        tokens = graph.add("Add", self.embed(self.ids, encoder, encoder.embed_tokens.weight), positions)  # (B, S, D)
        length_token = graph.constant(encoder.embed_lengths.weight[:1].clone())
        length_token = graph.add("Expand", length_token, graph.shape(self.rows, 1, self.d_model))
        return self.flat(graph.add("Concat", length_token, tokens, axis=1))

    def self_attention_bias(self) -> str:
        """(B, 1, 1 + S, 1 + S), as one row repeated: the operator wants all of them."""
        graph = self.graph
        ones = graph.add("Expand", graph.integers(1), graph.shape(self.rows, 1))
        seen = graph.add("Cast", graph.add("Concat", ones, self.mask, axis=1), to=TensorProto.BOOL)
        bias = graph.reshape(additive(graph, seen), self.rows, 1, 1, self.length)
        return graph.add("Expand", bias, graph.shape(self.rows, 1, self.length, self.length))

    def write_lengths(self, states: str, table: torch.Tensor) -> None:
        """Logits of the length classes from the state of `[LEN]`; class 0 is impossible. In float32 at all times."""
        graph = self.graph
        first = graph.add("Gather", states, graph.constant(torch.tensor(0)), axis=1)  # (B, D)
        bias = torch.zeros(table.shape[0])
        bias[0] = LOWEST
        weight = table.clone()
        weight[0] = 0.0
        logits = graph.add("Gemm", first, graph.constant(weight), graph.constant(bias), transB=1)
        graph.output("length_logits", logits, ("B", "L"))

    def write_cross_attention(self, states: str) -> None:
        graph, layers = self.graph, self.model.model.decoder.layers
        linears = [getattr(layer.encoder_attn, name) for layer in layers for name in ("k_proj", "v_proj")]
        weight, bias = merge_linears(linears)
        parts = graph.add(
            "Split", graph.linear(states, weight, bias), axis=-1, num_outputs=len(linears), num_results=len(linears)
        )
        # A row without tokens, as a row of padding is, sees all of it: an empty softmax would be undefined.
        seen = graph.add("Cast", self.mask, to=TensorProto.BOOL)
        empty = graph.add("Equal", graph.add("ReduceMax", self.mask, graph.integers(1), keepdims=1), graph.integers(0))
        mask = graph.reshape(additive(graph, graph.add("Or", seen, empty)), self.rows, 1, 1, self.num_tokens)
        for index, layer in enumerate(layers):
            attention = layer.encoder_attn
            head_dim, num_heads = attention.head_dim, self.d_model // attention.head_dim
            shape = graph.shape(self.rows, self.num_tokens, num_heads, head_dim)
            keys, values = (
                graph.add("Transpose", graph.add("Reshape", part, shape), perm=[0, 2, 1, 3])  # (B, H, S, D/H)
                for part in parts[2 * index : 2 * index + 2]
            )
            query, out = attention.q_proj, attention.out_proj
            query_weight = (query.weight * attention.scaling).unflatten(0, (num_heads, head_dim))  # (H, D/H, D)
            query_bias = (query.bias * attention.scaling).view(num_heads, head_dim, 1)
            out_weight = out.weight.T.unflatten(0, (num_heads, head_dim))  # (H, D/H, D)
            key = graph.reshape(graph.add("MatMul", keys, graph.constant(query_weight)), self.rows, -1, self.d_model)
            value = graph.add("MatMul", values, graph.constant(out_weight))  # (B, H, S, D)
            # The probabilities of a head sum to 1, so that each of its values can carry a share of the output's bias.
            value = graph.add("Add", value, graph.constant(out.bias / num_heads))
            value = graph.reshape(value, self.rows, -1, self.d_model)
            bias = graph.add("MatMul", keys, graph.constant(query_bias))  # (B, H, S, 1)
            bias = graph.add("Add", graph.add("Transpose", bias, perm=[0, 1, 3, 2]), mask)
            graph.output(f"key_{index}", graph.add("Transpose", key, perm=[0, 2, 1]), ("B", self.d_model, "HS"))
            graph.output(f"value_{index}", value, ("B", "HS", self.d_model))
            graph.output(f"score_bias_{index}", graph.reshape(bias, self.rows, 1, -1), ("B", 1, "HS"))


class DecoderWriter(StackWriter):
    """One pass: canvas (R, T), positions (R, M) to predict -> tokens (R, M) and their log_probs (R, M).

    Constant over the passes of a batch are `self_bias` (R, 1, T, T), added to the scores of self-attention, per layer
    `position_probs_i` (R, H, T, T) and the encoder graph's outputs; `token_bias` (V,) is -inf at suppressed tokens.
    After the last layer's self-attention, only the positions to predict are computed. With `only_states` the results
    are the last layer's states (R, M, D), for a shortlist, and there is no `token_bias`.
    """

    def __init__(self, model: JMNatForConditionalGeneration, int8: bool, only_states: bool = False):
        graph = GraphWriter(STATES_DECODER if only_states else "decoder", int8)
        self.only_states = only_states
        self.canvas = graph.input("canvas", ("R", "T"), TensorProto.INT64)
        self.positions = graph.input("positions", ("R", "M"), TensorProto.INT64)
        self.self_bias = graph.input("self_bias", ("R", 1, "T", "T"))
        if not only_states:
            self.token_bias = graph.input("token_bias", (padded_vocabulary_size(model.config.vocab_size),))
        super().__init__(graph, model, graph.size(self.canvas, 0), graph.size(self.canvas, 1))
        self.model = model
        weight = model.lm_head.weight
        missing = padded_vocabulary_size(weight.shape[0]) - weight.shape[0]
        self.output_weight = torch.nn.functional.pad(weight, (0, 0, 0, missing))

    def write(self) -> GraphWriter:
        graph, decoder = self.graph, self.model.model.decoder
        table = self.position_table(decoder, self.config.max_target_length)
        positions = graph.add("Slice", table, graph.integers(0), self.length)
        # With tied weights the table of the projection serves both, and is stored once.
        tied = self.model.lm_head.weight is decoder.embed_tokens.weight
        tokens = self.embed(self.canvas, decoder, self.output_weight if tied else decoder.embed_tokens.weight)
        states = self.flat(graph.add("Add", tokens, positions))
        for index, layer in enumerate(decoder.layers):
            states = self.write_layer(states, layer, index, self.pick if layer is decoder.layers[-1] else None)
        states = self.last_norm(states, decoder)
        if self.only_states:
            states = graph.reshape(states, self.rows, graph.size(self.positions, 1), self.d_model)
            graph.output("states", states, ("R", "M", self.d_model))
        else:
            self.write_tokens(states)
        return graph

    def pick(self, states: str) -> str:
        """Hidden states of all positions -> those of the positions to predict."""
        graph = self.graph
        index = graph.add("Unsqueeze", self.positions, graph.integers(2))
        return self.flat(graph.add("GatherND", self.by_rows(states), index, batch_dims=1))

    def write_layer(self, states: str, layer, index: int, pick=None) -> str:
        """With `pick`, from the last mixing of positions on only the states that it takes out."""

        def self_attention(states, pick):
            context = self.attention_context(states, layer.self_attn, self.self_bias)
            return self.project(context if pick is None else pick(context), layer.self_attn.out_proj)

        def positional_attention(states):
            context = self.positional_context(states, layer.position_attn, index)
            return self.project(context if pick is None else pick(context), layer.position_attn.out_proj)

        first_pick = pick if layer.position_attn is None else None
        states = self.residual(
            states, layer.self_attn_layer_norm, lambda states: self_attention(states, first_pick), first_pick
        )
        if layer.position_attn is not None:
            states = self.residual(states, layer.position_attn_layer_norm, positional_attention, pick)
        states = self.residual(
            states,
            layer.encoder_attn_layer_norm,
            lambda states: self.cross_attention(states, layer.encoder_attn, index),
        )
        return self.residual(states, layer.final_layer_norm, lambda states: self.feed_forward(states, layer))

    def positional_context(self, states: str, attention: JMNatPositionalAttention, index: int) -> str:
        graph = self.graph
        num_heads = self.d_model // attention.head_dim
        probs = graph.input(f"position_probs_{index}", ("R", num_heads, "T", "T"))
        value = graph.linear(states, attention.v_proj.weight, attention.v_proj.bias)
        value = graph.reshape(value, self.rows, self.length, num_heads, attention.head_dim)  # (R, T, H, D/H)
        context = graph.add("MatMul", probs, graph.add("Transpose", value, perm=[0, 2, 1, 3]))
        context = graph.add("Transpose", context, perm=[0, 2, 1, 3])  # (R, T, H, D/H)
        return graph.reshape(context, *((self.rows,) if graph.int8 else ()), -1, self.d_model)

    def cross_attention(self, states: str, attention: JMNatAttention, index: int) -> str:
        graph = self.graph
        num_heads = self.d_model // attention.head_dim
        key = graph.input(f"key_{index}", ("B", self.d_model, "HS"))
        value = graph.input(f"value_{index}", ("B", "HS", self.d_model))
        bias = graph.input(f"score_bias_{index}", ("B", 1, "HS"))
        sources, columns = graph.size("key_0", 0), graph.size("key_0", 2)  # the same in all layers
        num_tokens = graph.add("Div", columns, graph.integers(num_heads))
        grouped = graph.reshape(states, sources, -1, self.d_model)  # (B, R/B M, D)
        scores = graph.add("Add", graph.add("MatMul", grouped, key), bias)  # (B, R/B M, H S)
        probs = graph.add("Softmax", graph.reshape(scores, -1, num_tokens), axis=-1)
        context = graph.add("MatMul", graph.reshape(probs, sources, -1, columns), value)
        return graph.reshape(context, *((self.rows,) if graph.int8 else ()), -1, self.d_model)

    def write_tokens(self, states: str) -> None:
        """Best token of each state and its log-probability; `token_bias` takes part in the softmax."""
        graph = self.graph
        logits = graph.linear(states, self.output_weight, self.token_bias)
        log_probs = graph.add("LogSoftmax", logits, axis=-1)
        blocks = graph.reshape(log_probs, -1, self.output_weight.shape[0] // VOCABULARY_BLOCK, VOCABULARY_BLOCK)
        best_of_block = graph.add("ReduceMax", blocks, graph.integers(2), keepdims=0)
        block = graph.add("ArgMax", best_of_block, axis=1, keepdims=1)  # (n, 1)
        inside = graph.add("GatherND", blocks, block, batch_dims=1)  # (n, VOCABULARY_BLOCK)
        first_of_block = graph.add("Mul", block, graph.integers(VOCABULARY_BLOCK))
        token = graph.add("Add", first_of_block, graph.add("ArgMax", inside, axis=1, keepdims=1))
        best = graph.add("ReduceMax", inside, graph.integers(1), keepdims=1)
        shape = graph.add("Shape", self.positions)
        graph.output("tokens", graph.add("Reshape", token, shape), ("R", "M"), TensorProto.INT64)
        graph.output("log_probs", graph.add("Reshape", best, shape), ("R", "M"))


def positional_projections(model: JMNatForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Queries and keys of positional attention for every position: (layers, H, max_target_length, D/H) each."""
    decoder = model.model.decoder
    positions = decoder.position_embeddings(torch.arange(model.config.max_target_length), torch.float32)[None]
    projected = [layer.position_attn.project_positions(positions) for layer in decoder.layers]
    query = torch.cat(
        [query * layer.position_attn.scaling for (query, _), layer in zip(projected, decoder.layers, strict=True)]
    )
    return {"query": query.contiguous(), "key": torch.cat([key for _, key in projected]).contiguous()}


def output_projection(weight: torch.Tensor, int8: bool) -> dict[str, torch.Tensor]:
    """What `weight_file` holds."""
    if not int8:
        return {"weight": weight.contiguous().clone()}
    quantised, scales = quantise_rows(weight)
    return {"weight": quantised.contiguous(), "scales": scales}


def weights_digest(model: JMNatForConditionalGeneration) -> str:
    """SHA-256 of all weights and their names."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode("utf-8"))
        digest.update(weight.contiguous().numpy())
    return digest.hexdigest()


@contextlib.contextmanager
def unfinished_export(output: Path) -> Iterator[Path]:
    """Give an empty folder; its files replace those of an earlier export in `output` when the block ends well."""
    folder = output / UNFINISHED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        for name in EXPORTED_FILES:
            (output / name).unlink(missing_ok=True)
        for path in sorted(folder.iterdir(), key=lambda path: path.name in DECODERS):
            path.replace(output / path.name)
    finally:
        shutil.rmtree(folder)


@torch.no_grad()
def export_onnx(
    model: JMNatForConditionalGeneration,
    output: str | Path,
    int8: bool = False,
    shortlist: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, int]:
    """Write graphs, configuration and generation configuration to the folder `output`, all of them or none.

    An earlier export there is removed, other files stay.

    Args:
        int8: write the int8 graphs beside the float32 ones.
        shortlist: also write the decoder without its output projection, and that by itself, for
            `generate(..., shortlist=...)`.
        tokenizer: is saved beside them.

    Returns:
        Size in bytes of each file of weights.

    Raises:
        ValueError: an architecture or activation that the graphs do not know.
    """
    if model.config.decoder_input != "mask":
        raise ValueError(f"decoder_input={model.config.decoder_input!r} cannot be exported, only 'mask'")
    model = copy.deepcopy(model).float().cpu().eval()
    with unfinished_export(Path(output)) as folder:
        sizes = write_weights(model, folder, int8, shortlist)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return sizes


def write_weights(model: JMNatForConditionalGeneration, output: Path, int8: bool, shortlist: bool) -> dict[str, int]:
    """Graphs and tables of a float32 model; the size in bytes of each file, all of which name the model's weights."""
    metadata = {DIGEST: weights_digest(model)}
    sizes = {}
    for quantised in (False, True) if int8 else (False,):
        writers = [EncoderWriter(model, quantised), DecoderWriter(model, quantised)]
        for writer in [*writers, DecoderWriter(model, quantised, only_states=True)] if shortlist else writers:
            graph = writer.write()
            path = output / graph_file(graph.name, quantised)
            onnx.save_model(graph.model(metadata), str(path))
            sizes[path.name] = path.stat().st_size
        if shortlist:
            path = output / weight_file(quantised)
            save_file(output_projection(model.lm_head.weight.detach(), quantised), path, metadata)
            sizes[path.name] = path.stat().st_size
    if model.config.positional_attention:
        save_file(positional_projections(model), output / POSITIONS_FILE, metadata)
        sizes[POSITIONS_FILE] = (output / POSITIONS_FILE).stat().st_size
    return sizes
