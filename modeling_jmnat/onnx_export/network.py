"""The network of JM-NAT as nodes of an ONNX graph: the encoder, keys and values of cross-attention, a decoder pass.

B sources, R canvas rows, S source tokens, T target tokens, M positions to predict, V vocabulary, D width, H heads. The
axes B, R, S, T and M are dynamic.
"""

from collections.abc import Sequence

import torch
from onnx import TensorProto

from ..inference.onnx_runtime import LOWEST, VOCABULARY_BLOCK
from ..modeling_jmnat import JMNatAttention, JMNatForConditionalGeneration, JMNatLayer, JMNatPositionalAttention
from .graph_writer import GraphWriter


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

    def embed(self, ids: str, stack) -> str:
        """Token ids (rows, S) -> scaled embeddings (rows, S, D)."""
        return self.graph.embedding(ids, stack.embed_tokens.weight, float(stack.embed_scale))

    def position_table(self, stack, num_positions: int) -> str:
        """Embeddings of all positions, (num_positions, D)."""
        return self.graph.constant(stack.position_embeddings(torch.arange(num_positions), torch.float32))

    def flat(self, states: str) -> str:
        """(rows, length, D) as hidden states are."""
        return states if self.graph.int8 else self.graph.reshape(states, -1, self.d_model)

    def hidden(self, states: str) -> str:
        """States in any other shape, position after position -> as hidden states are."""
        return self.graph.reshape(states, *((self.rows,) if self.graph.int8 else ()), -1, self.d_model)

    def by_rows(self, states: str) -> str:
        """Hidden states as (rows, length, D)."""
        return states if self.graph.int8 else self.graph.reshape(states, self.rows, self.length, self.d_model)

    def residual(self, states: str, norm: torch.nn.LayerNorm, block, pick=None) -> str:
        """As `JMNatLayer.residual`; `pick` selects the states that the block returns."""
        graph, before = self.graph, self.config.normalize_before
        output = block(graph.layer_norm(states, norm) if before else states)
        # Not SkipLayerNormalization, whose kernel for CPUs takes three times as long as these two.
        states = graph.add("Add", states if pick is None else pick(states), output)
        return states if before else graph.layer_norm(states, norm)

    def last_norm(self, states: str, stack) -> str:
        return states if stack.layer_norm is None else self.graph.layer_norm(states, stack.layer_norm)

    def project(self, states: str, linear: torch.nn.Linear) -> str:
        return self.graph.linear(states, linear.weight, linear.bias)

    def attention(self, query: str, key: str, value: str, bias: str, head_dim: int) -> str:
        """Queries (n, L, D), keys and values (n, K, D), bias (n, 1, L, K) that is added to the scores -> (n, L, D)."""
        num_heads = self.d_model // head_dim
        return self.graph.add(
            "Attention", query, key, value, bias, q_num_heads=num_heads, kv_num_heads=num_heads, scale=1.0
        )

    def self_attention(self, states: str, attention: JMNatAttention, bias: str) -> str:
        """Before the output projection; bias (rows, 1, length, length)."""
        graph = self.graph
        weight, bias_of_linears = merge_linears(
            [attention.q_proj, attention.k_proj, attention.v_proj], [attention.scaling, 1.0, 1.0]
        )
        parts = graph.add(
            "Split", graph.linear(states, weight, bias_of_linears), axis=-1, num_outputs=3, num_results=3
        )
        return self.flat(self.attention(*map(self.by_rows, parts), bias, attention.head_dim))

    def feed_forward(self, states: str, layer: JMNatLayer) -> str:
        inner = self.project(states, layer.fc1)
        return self.project(self.graph.activation(inner, self.config.activation_function), layer.fc2)


def additive(graph: GraphWriter, attend: str) -> str:
    """Boolean, True where a position may be attended to, -> float that is added to scores."""
    zero, lowest = graph.constant(torch.tensor(0.0)), graph.constant(torch.tensor(LOWEST))
    return graph.add("Where", attend, zero, lowest)


class EncoderWriter(StackWriter):
    """The encoder over `ids` and `mask` (B, S)."""

    def __init__(self, graph: GraphWriter, model: JMNatForConditionalGeneration, ids: str, mask: str):
        self.ids, self.mask = ids, mask
        self.num_tokens = graph.size(ids, 1)
        length = graph.add("Add", self.num_tokens, graph.integers(1))  # with [LEN]
        super().__init__(graph, model, graph.size(ids, 0), length)
        self.model = model

    def write(self) -> tuple[str, list[tuple[str, str]]]:
        """Logits of the length classes (B, L), and per decoder layer keys and values (B, S, D) of cross-attention."""
        graph, encoder = self.graph, self.model.model.encoder
        states, bias = self.first_states(encoder), self.self_attention_bias()
        for layer in encoder.layers:
            states = self.write_layer(states, layer, bias)
        states = self.last_norm(states, encoder)
        states = self.by_rows(states)
        tokens = graph.add(
            "Slice", states, graph.integers(1), graph.integers(torch.iinfo(torch.int64).max), graph.integers(1)
        )
        return self.write_lengths(states, encoder.embed_lengths.weight), self.write_cross_attention(self.flat(tokens))

    def write_layer(self, states: str, layer, bias: str) -> str:
        def self_attention(states):
            return self.project(self.self_attention(states, layer.self_attn, bias), layer.self_attn.out_proj)

        states = self.residual(states, layer.self_attn_layer_norm, self_attention)
        return self.residual(states, layer.final_layer_norm, lambda states: self.feed_forward(states, layer))

    def first_states(self, encoder) -> str:
        """[LEN] and the embedded source, (B (1 + S), D)."""
        graph = self.graph
        one = graph.integers(1)
        ranks = graph.add("Sub", graph.add("CumSum", self.mask, one), one)
        ranks = graph.add("Max", ranks, graph.integers(0))
        positions = graph.add("Gather", self.position_table(encoder, self.config.max_position_embeddings), ranks)
        tokens = graph.add("Add", self.embed(self.ids, encoder), positions)  # (B, S, D)
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

    def write_lengths(self, states: str, table: torch.Tensor) -> str:
        """Logits from the state of `[LEN]`; class 0 is impossible. In float32 at all times."""
        graph = self.graph
        first = graph.add("Gather", states, graph.constant(torch.tensor(0)), axis=1)  # (B, D)
        bias = torch.zeros(table.shape[0])
        bias[0] = LOWEST
        weight = table.clone()
        weight[0] = 0.0
        return graph.add("Gemm", first, graph.constant(weight), graph.constant(bias), transB=1)

    def write_cross_attention(self, states: str) -> list[tuple[str, str]]:
        graph, layers = self.graph, self.model.model.decoder.layers
        linears = [getattr(layer.encoder_attn, name) for layer in layers for name in ("k_proj", "v_proj")]
        weight, bias = merge_linears(linears)
        parts = graph.add(
            "Split", graph.linear(states, weight, bias), axis=-1, num_outputs=len(linears), num_results=len(linears)
        )
        if not graph.int8:
            parts = [graph.reshape(part, self.rows, self.num_tokens, self.d_model) for part in parts]
        return list(zip(parts[0::2], parts[1::2], strict=True))

    def source_bias(self) -> str:
        """(B, 1, 1, S): excludes padding. A row of padding alone sees all of it: an empty softmax is undefined."""
        graph = self.graph
        seen = graph.add("Cast", self.mask, to=TensorProto.BOOL)
        empty = graph.add("Equal", graph.add("ReduceMax", self.mask, graph.integers(1), keepdims=1), graph.integers(0))
        return graph.reshape(additive(graph, graph.add("Or", seen, empty)), self.rows, 1, 1, self.num_tokens)


class DecoderWriter(StackWriter):
    """One pass over `canvas` (R, T), which predicts tokens at `positions` (R, M).

    The model's vocabulary is whole blocks (`onnx_export.pad_vocabulary`).

    Args:
        self_bias: (R, 1, T, T), added to the scores of self-attention.
        position_probs: per layer the probabilities of positional attention (R, H, T, T).
        source_states: per layer keys and values of cross-attention, (R, S, D) each.
        source_bias: (R, 1, 1, S), added to its scores.
    """

    def __init__(
        self,
        graph: GraphWriter,
        model: JMNatForConditionalGeneration,
        canvas: str,
        positions: str,
        self_bias: str,
        position_probs: Sequence[str],
        source_states: Sequence[tuple[str, str]],
        source_bias: str,
    ):
        super().__init__(graph, model, graph.size(self_bias, 0), graph.size(self_bias, 2))
        self.model = model
        self.canvas, self.positions, self.self_bias = canvas, positions, self_bias
        self.position_probs, self.source_states, self.source_bias = position_probs, source_states, source_bias

    def write_states(self, everywhere: bool = False) -> str:
        """Hidden states after the last layer, `everywhere` or of the positions to predict.

        Only these are then computed after the last layer's self-attention.
        """
        graph, decoder = self.graph, self.model.model.decoder
        table = self.position_table(decoder, self.config.max_target_length)
        positions = graph.add("Slice", table, graph.integers(0), self.length)
        tokens = self.embed(self.canvas, decoder)
        states = self.flat(graph.add("Add", tokens, positions))
        for index, layer in enumerate(decoder.layers):
            is_picked = layer is decoder.layers[-1] and not everywhere
            states = self.write_layer(states, layer, index, self.pick if is_picked else None)
        return self.last_norm(states, decoder)

    def pick(self, states: str) -> str:
        """Select the hidden states of the positions to predict."""
        graph = self.graph
        index = graph.add("Unsqueeze", self.positions, graph.integers(2))
        return self.flat(graph.add("GatherND", self.by_rows(states), index, batch_dims=1))

    def write_layer(self, states: str, layer, index: int, pick=None) -> str:
        """With `pick`, only the states it selects are computed after the last mixing of positions."""

        def self_attention(states, pick):
            context = self.self_attention(states, layer.self_attn, self.self_bias)
            return self.project(context if pick is None else pick(context), layer.self_attn.out_proj)

        def positional_attention(states):
            context = self.positional_context(states, layer.position_attn, index)
            return self.project(context if pick is None else pick(context), layer.position_attn.out_proj)

        length = self.length if pick is None else self.graph.size(self.positions, 1)
        first_pick = pick if layer.position_attn is None else None
        states = self.residual(
            states, layer.self_attn_layer_norm, lambda states: self_attention(states, first_pick), first_pick
        )
        if layer.position_attn is not None:
            states = self.residual(states, layer.position_attn_layer_norm, positional_attention, pick)
        states = self.residual(
            states,
            layer.encoder_attn_layer_norm,
            lambda states: self.cross_attention(states, layer.encoder_attn, index, length),
        )
        return self.residual(states, layer.final_layer_norm, lambda states: self.feed_forward(states, layer))

    def positional_context(self, states: str, attention: JMNatPositionalAttention, index: int) -> str:
        graph = self.graph
        num_heads = self.d_model // attention.head_dim
        value = graph.linear(states, attention.v_proj.weight, attention.v_proj.bias)
        value = graph.reshape(value, self.rows, self.length, num_heads, attention.head_dim)  # (R, T, H, D/H)
        context = graph.add("MatMul", self.position_probs[index], graph.add("Transpose", value, perm=[0, 2, 1, 3]))
        context = graph.add("Transpose", context, perm=[0, 2, 1, 3])  # (R, T, H, D/H)
        return self.hidden(context)

    def cross_attention(self, states: str, attention: JMNatAttention, index: int, length: str) -> str:
        """With `length` states per row."""
        graph = self.graph
        query = graph.linear(states, *merge_linears([attention.q_proj], [attention.scaling]))
        if not graph.int8:
            query = graph.reshape(query, self.rows, -1, self.d_model)
        shape = graph.shape(self.rows, 1, length, graph.size(self.source_bias, 3))
        bias = graph.add("Expand", self.source_bias, shape)
        context = self.attention(query, *self.source_states[index], bias, attention.head_dim)
        return self.project(self.flat(context), attention.out_proj)

    def write_logits(self, states: str, token_bias: str) -> str:
        """Of the picked states, (R M, V) or (R, M, V), with `token_bias` (V,) added."""
        graph = self.graph
        weight, bias = self.model.lm_head.weight, self.model.lm_head.bias
        if bias is not None:
            token_bias = graph.add("Add", token_bias, graph.constant(bias))
        return graph.linear(states, weight, token_bias)

    def by_blocks(self, values: str, size: int = VOCABULARY_BLOCK) -> str:
        """Values for each token of the vocabulary as (R, M, blocks, size)."""
        return self.graph.reshape(values, self.rows, -1, self.model.lm_head.weight.shape[0] // size, size)

    def write_tokens(self, states: str, token_bias: str) -> tuple[str, str]:
        """Best token of each of the picked states and its log-probability (R, M)."""
        graph, logits = self.graph, self.write_logits(states, token_bias)
        if not graph.int8:  # so that the softmax takes their memory
            graph.shaped(logits, ("RM", self.model.lm_head.weight.shape[0]), TensorProto.FLOAT)
        blocks = self.by_blocks(graph.add("Softmax", logits, axis=-1))  # LogSoftmax takes twice as long
        best_of_block = graph.add("ReduceMax", blocks, graph.integers(3), keepdims=0)  # (R, M, blocks)
        block = graph.add("ArgMax", best_of_block, axis=2, keepdims=0)  # (R, M)
        inside = graph.add("GatherND", blocks, graph.add("Unsqueeze", block, graph.integers(2)), batch_dims=2)
        first_of_block = graph.add("Mul", block, graph.integers(VOCABULARY_BLOCK))
        token = graph.add("Add", first_of_block, graph.add("ArgMax", inside, axis=2, keepdims=0))
        best = graph.add("ReduceMax", inside, graph.integers(2), keepdims=0)
        return token, graph.add("Log", best)
