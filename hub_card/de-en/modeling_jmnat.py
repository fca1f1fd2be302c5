"""The JM-NAT network: attention -> layers -> encoder -> decoder -> `JMNatModel` -> `JMNatForConditionalGeneration`.

B batch, S source tokens, T target tokens, D width, H heads, V vocabulary, L = max_target_length + 1 length classes.
Boolean attention masks are True where a position may be attended to.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_jmnat import JMNatConfig, JMNatGenerationConfig
from .crf_jmnat import DynamicCRF
from .generation_jmnat import JMNatGenerationMixin
from .losses_jmnat import label_smoothed_nll, length_nll, ngram_loss, reference_log_probs, smoothed_nll
from .passes_jmnat import JMNatDecodingState

logger = logging.get_logger(__name__)
NOT_MASKED = (
    "Training without masks in decoder_input_ids, or masked_positions, teaches the first decoding pass at most: use "
    "DataCollatorForJMNat of the package modeling_jmnat as the data collator"
)


@dataclass
class JMNatEncoderOutput(BaseModelOutput):
    """`last_hidden_state` (B, S, D), which is also the last of `hidden_states`, excludes `[LEN]`.

    The other `hidden_states` and the `attentions` include `[LEN]` at index 0.
    """

    length_logits: torch.Tensor | None = None  # (B, L)


def as_encoder_output(encoder_outputs: ModelOutput | tuple) -> Any:
    """The encoder's output with named fields, from what an earlier call returned: a `ModelOutput` or a tuple."""
    if isinstance(encoder_outputs, ModelOutput):
        return encoder_outputs
    states, *others = encoder_outputs  # tuples of hidden states and attentions, if requested, and the length logits
    return JMNatEncoderOutput(states, length_logits=next((x for x in others if torch.is_tensor(x)), None))


@dataclass
class JMNatSeq2SeqModelOutput(ModelOutput):
    last_hidden_state: torch.Tensor | None = None  # (B, T, D)
    length_logits: torch.Tensor | None = None  # (B, L)
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None  # (B, S, D)
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class JMNatSeq2SeqLMOutput(ModelOutput):
    """Loss of Eq. 8 with its unweighted parts, and logits.

    `loss = nll_loss + a1 encoder_loss + a2 ngram_loss + a3 length_loss`, with a CRF + crf_loss_weight crf_loss; a part
    that was not computed is None.
    `logits` is None in training mode with labels, where only the masked positions are projected onto the vocabulary.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None  # (B, T, V)
    length_logits: torch.Tensor | None = None  # (B, L)
    encoder_logits: torch.Tensor | None = None  # (B, S, V)
    nll_loss: torch.Tensor | None = None
    encoder_loss: torch.Tensor | None = None
    ngram_loss: torch.Tensor | None = None
    length_loss: torch.Tensor | None = None
    crf_loss: torch.Tensor | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None


def sinusoidal_positions(
    num_positions: int, dim: int, device: torch.device, first: int = 0, of_marian: bool = False
) -> torch.Tensor:
    """Sinusoids (num_positions, dim) of the positions from `first`: sines in the first half of columns, then cosines.

    Frequencies are 10000**(-i / (dim/2 - 1)) as in fairseq, or 10000**(-2i / dim) as in Marian and Vaswani et al.
    """
    half = dim // 2
    # Marian computes its tables in double precision, which some devices lack.
    dtype = torch.float64 if of_marian and device.type != "mps" else torch.float32
    step = math.log(10000.0) / (half if of_marian else max(half - 1, 1))
    frequencies = torch.exp(torch.arange(half, device=device).to(dtype) * -step)
    angles = torch.arange(first, first + num_positions, device=device).to(dtype)[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain attention; `attention_mask` is additive. Returns (B, T, H, D/H) and probabilities (B, H, T, S)."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.dropout(weights.softmax(dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def prepare_attention_mask(config: JMNatConfig, attend_mask: torch.Tensor | None, dtype: torch.dtype):
    """Boolean mask (B, 1, 1 or T, S) -> additive mask, once for all layers; SDPA would convert it in each of them."""
    if attend_mask is None or config._attn_implementation not in ("eager", "sdpa"):
        return attend_mask
    return torch.zeros_like(attend_mask, dtype=dtype).masked_fill_(~attend_mask, torch.finfo(dtype).min)


def never_empty(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, S) bool; rows of padding alone become True everywhere."""
    return attention_mask | ~attention_mask.any(dim=1, keepdim=True)


def decoder_attend_mask(attention_mask: torch.Tensor, exclude_self: bool) -> torch.Tensor:
    """(B, T) bool -> (B, 1, 1 or T, T) bool for self- and positional attention.

    With `exclude_self` no position attends to itself, except in a target of a single token. A row without tokens
    attends to all its padding, because eager attention and SDPA differ in what they return for an empty softmax.
    """
    attend = never_empty(attention_mask)[:, None, None, :]
    if not exclude_self:
        return attend
    itself = torch.eye(attention_mask.shape[1], dtype=torch.bool, device=attention_mask.device)
    single = attention_mask.sum(dim=1)[:, None, None, None] <= 1
    return attend & (~itself | single)


class JMNatAttention(nn.Module):
    """Multi-head attention; queries, keys and values may come from different tensors."""

    def __init__(self, config: JMNatConfig, num_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = config.d_model // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_dropout
        self.is_causal = False  # without it SDPA is causal whenever there is no mask
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)  # (B, H, T, D/H)

    def project_key_value(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.split_heads(self.k_proj(states)), self.split_heads(self.v_proj(states))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        key_value: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Self-attention, or cross-attention to `key_value_states` (B, S, D) or to their projections `key_value`."""
        if key_value is None:
            key_value = self.project_key_value(hidden_states if key_value_states is None else key_value_states)
        return self.attend(self.split_heads(self.q_proj(hidden_states)), *key_value, attention_mask, **kwargs)

    def attend(self, query, key, value, attention_mask, **kwargs):
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.dropout if self.training else 0.0
        output, weights = attention_interface(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.out_proj(output.flatten(2)), weights


class JMNatPositionalAttention(JMNatAttention):
    """Attention whose queries and keys are positions and whose values are the hidden states (Gu et al. 2018).

    Its probabilities depend only on the target length, so decoding computes them once (`probs`).
    """

    def project_positions(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.split_heads(self.q_proj(positions)), self.split_heads(self.k_proj(positions))

    def position_probs(self, positions: torch.Tensor, attend_mask: torch.Tensor) -> torch.Tensor:
        """Positions (1, T, D) and boolean attend_mask (R, 1, T, T) -> probabilities (R, H, T, T)."""
        query, key = self.project_positions(positions)
        scores = (torch.matmul(query, key.transpose(2, 3)) * self.scaling).float()
        return scores.masked_fill(~attend_mask, torch.finfo(scores.dtype).min).softmax(dim=-1).to(positions.dtype)

    def forward(  # type: ignore[override]
        self, hidden_states, attention_mask=None, positions=None, probs=None, **kwargs
    ):
        """hidden_states (B, T, D), with either positions (1, T, D) and attention_mask, or `probs` (B, H, T, T)."""
        value = self.split_heads(self.v_proj(hidden_states))
        if probs is not None:
            return self.out_proj(torch.matmul(probs, value).transpose(1, 2).flatten(2)), probs
        query, key = (states.expand(value.shape[0], -1, -1, -1) for states in self.project_positions(positions))
        return self.attend(query, key, value, attention_mask, **kwargs)


class JMNatLayer(GradientCheckpointingLayer):
    """What encoder and decoder layers share: self-attention, feed-forward and the residual around each block."""

    def __init__(self, config: JMNatConfig, num_heads: int, ffn_dim: int):
        super().__init__()
        self.normalize_before = config.normalize_before
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout
        self.activation_fn = ACT2FN[config.activation_function]
        self.self_attn = JMNatAttention(config, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.d_model, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    def residual(self, hidden_states: torch.Tensor, layer_norm: nn.LayerNorm, block) -> torch.Tensor:
        """x + block(norm(x)) with `normalize_before`, norm(x + block(x)) without."""
        output = block(layer_norm(hidden_states) if self.normalize_before else hidden_states)
        hidden_states = hidden_states + F.dropout(output, p=self.dropout, training=self.training)
        return hidden_states if self.normalize_before else layer_norm(hidden_states)

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.activation_fn(self.fc1(hidden_states))
        return self.fc2(F.dropout(hidden_states, p=self.activation_dropout, training=self.training))


class JMNatEncoderLayer(JMNatLayer):
    def __init__(self, config: JMNatConfig):
        super().__init__(config, config.encoder_attention_heads, config.encoder_ffn_dim)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs):
        hidden_states = self.residual(
            hidden_states, self.self_attn_layer_norm, lambda x: self.self_attn(x, attention_mask, **kwargs)[0]
        )
        return self.residual(hidden_states, self.final_layer_norm, self.feed_forward)


class JMNatDecoderLayer(JMNatLayer):
    def __init__(self, config: JMNatConfig):
        num_heads = config.decoder_attention_heads
        super().__init__(config, num_heads, config.decoder_ffn_dim)
        self.position_attn: JMNatPositionalAttention | None = None
        if config.positional_attention:
            self.position_attn = JMNatPositionalAttention(config, num_heads)
            self.position_attn_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.encoder_attn = JMNatAttention(config, num_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor | None,
        encoder_hidden_states: Any = None,
        positions: Any = None,
        attention_mask: Any = None,
        encoder_attention_mask: torch.Tensor | None = None,
        position_probs: torch.Tensor | None = None,
        encoder_key_value: tuple[torch.Tensor, torch.Tensor] | None = None,
        wanted_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> Any:
        """One layer over hidden_states (R, T, D). Encoder tensors have B rows, each shared by R/B consecutive rows.

        With `wanted_positions` (R, M), cross-attention and feed-forward, which mix no positions, compute only these
        states, (R, M, D).

        Without hidden_states, it returns what all decoding passes share: keys and values of cross-attention (B, H, S,
        D/H) and, from a boolean attention_mask, the probabilities of positional attention (R, H, T, T) or None.
        """
        if hidden_states is None:
            attention = self.position_attn
            probs = None if attention is None else attention.position_probs(positions, attention_mask)
            return self.encoder_attn.project_key_value(encoder_hidden_states), probs

        sources: Any = encoder_hidden_states if encoder_key_value is None else encoder_key_value[0]

        def cross_attention(states):
            output, _ = self.encoder_attn(
                states.reshape(sources.shape[0], -1, states.shape[-1]),
                encoder_attention_mask,
                encoder_hidden_states,
                encoder_key_value,
                **kwargs,
            )
            return output.reshape(states.shape)

        hidden_states = self.residual(
            hidden_states, self.self_attn_layer_norm, lambda x: self.self_attn(x, attention_mask, **kwargs)[0]
        )
        if self.position_attn is not None:
            hidden_states = self.residual(
                hidden_states,
                self.position_attn_layer_norm,
                lambda x: self.position_attn(x, attention_mask, positions, position_probs, **kwargs)[0],
            )
        if wanted_positions is not None:
            index = wanted_positions.to(hidden_states.device)[:, :, None].expand(-1, -1, hidden_states.shape[-1])
            hidden_states = hidden_states.gather(1, index)
        hidden_states = self.residual(hidden_states, self.encoder_attn_layer_norm, cross_attention)
        return self.residual(hidden_states, self.final_layer_norm, self.feed_forward)


class JMNatPreTrainedModel(PreTrainedModel):
    config: JMNatConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["JMNatEncoderLayer", "JMNatDecoderLayer", "DynamicCRF"]
    _supports_sdpa = True
    _supports_flash_attn = False  # it would drop the mask that excludes the position itself
    _can_compile_fullgraph = True

    @property
    def device(self) -> torch.device:
        """The device for inputs. Offloaded weights have none, so their execution device is returned instead."""
        hook = getattr(self.get_input_embeddings(), "_hf_hook", None)
        place = getattr(hook, "execution_device", None)
        return super().device if place is None else torch.device(place)

    @torch.no_grad()
    def _init_weights(self, module):
        std = self.config.init_std
        if isinstance(module, nn.Linear):
            if std is None:
                init.xavier_uniform_(module.weight)
            else:
                init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.d_model**-0.5 if std is None else std)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True):
        embeddings = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        model = self.base_model
        if isinstance(model, JMNatModel) and not self.config.tie_word_embeddings:
            others = (model.decoder.embed_tokens, model.shared)
            size = embeddings.weight.shape[0]
            model.decoder.embed_tokens, model.shared = (
                self._get_resized_embeddings(table, size, mean_resizing=mean_resizing) for table in others
            )
        if (crf := getattr(self, "crf", None)) is not None:
            tables, size = (crf.left, crf.right), embeddings.weight.shape[0]
            crf.left, crf.right = (
                self._get_resized_embeddings(table, size, mean_resizing=mean_resizing) for table in tables
            )
        return embeddings


class JMNatStack(JMNatPreTrainedModel):
    """What encoder and decoder share: token embeddings, positions, the final layer norm of pre-layer-norm models."""

    longest = "max_position_embeddings"  # the config field that limits the number of tokens

    def __init__(self, config: JMNatConfig):
        super().__init__(config)
        self.embed_scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.dropout = config.dropout
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embed_positions: nn.Embedding | None = None
        if config.position_embedding_type == "learned":
            num_positions = getattr(config, self.longest) + self.position_offset
            padding = config.pad_token_id if config.position_offset is None else None  # else that row is a position
            self.embed_positions = nn.Embedding(num_positions, config.d_model, padding)
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps) if config.normalize_before else None
        self.gradient_checkpointing = False

    @property
    def position_offset(self) -> int:
        """The index of the first token's position."""
        offset = self.config.position_offset
        return self.config.pad_token_id + 1 if offset is None else offset

    def position_embeddings(self, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Ranks of tokens (.., S), from 0 and below S, -> embeddings (.., S, D)."""
        length, most = positions.shape[-1], getattr(self.config, self.longest)
        if length > most and (count := int(positions.max()) + 1) > most:  # the rest may be padding
            raise ValueError(f"{type(self).__name__} got {count} tokens, more than {self.longest}={most}: split them")
        first = self.position_offset
        if self.embed_positions is not None:
            return self.embed_positions(positions + first).to(positions.device)
        # Computed in each call: a constant made in __init__ would not survive loading on the meta device.
        table = sinusoidal_positions(length, self.config.d_model, positions.device, first, of_marian=first == 0)
        return F.embedding(positions, table).to(dtype)

    def embed(self, input_ids: Any, inputs_embeds: Any) -> torch.Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(f"{type(self).__name__} needs exactly one of token ids and embeddings")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids).to(input_ids.device)  # a device map may place them elsewhere
        return inputs_embeds * self.embed_scale


def token_mask(attention_mask, input_ids, inputs_embeds, pad_token_id: int) -> torch.Tensor:
    """(B, S) bool, True at tokens: the mask given, else every token but padding, else everything.

    Raises:
        ValueError: the mask has another shape than the tokens; missing columns would be taken for padding.
    """
    if attention_mask is not None:
        shapes = tuple(attention_mask.shape), tuple(inputs_embeds.shape[:2] if input_ids is None else input_ids.shape)
        if shapes[0] != shapes[1]:
            raise ValueError(f"attention_mask has shape {shapes[0]} but must have that of the tokens, {shapes[1]}")
        return attention_mask.bool()
    if input_ids is not None:
        return input_ids != pad_token_id
    return inputs_embeds.new_ones(inputs_embeds.shape[:2], dtype=torch.bool)


class JMNatEncoder(JMNatStack):
    """Reads `[LEN]` and the source; the final state of `[LEN]` predicts the target length (section 4.4)."""

    _can_record_outputs = {"hidden_states": JMNatEncoderLayer, "attentions": JMNatAttention}

    def __init__(self, config: JMNatConfig):
        super().__init__(config)
        self.embed_lengths = nn.Embedding(config.max_target_length + 1, config.d_model)  # row 0 is [LEN]
        self.layers = nn.ModuleList([JMNatEncoderLayer(config) for _ in range(config.encoder_layers)])
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> JMNatEncoderOutput:
        """Source (B, S), padded on either side, -> states (B, S, D) and length logits (B, L), never class 0."""
        hidden_states = self.embed(input_ids, inputs_embeds)  # (B, S, D)
        attend_mask = token_mask(attention_mask, input_ids, inputs_embeds, self.config.pad_token_id)
        ranks = (attend_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        hidden_states = hidden_states + self.position_embeddings(ranks, hidden_states.dtype)
        # Called rather than read: offloading, device maps and adapters act when a module is called.
        classes = torch.arange(self.config.max_target_length + 1, device=hidden_states.device)
        lengths = self.embed_lengths(classes).to(classes.device)  # (L, D)
        length_token = lengths[0].expand(hidden_states.shape[0], 1, -1)
        hidden_states = torch.cat([length_token, hidden_states], dim=1)  # (B, 1 + S, D)
        hidden_states = F.dropout(hidden_states, p=self.dropout, training=self.training)
        attend_mask = F.pad(attend_mask, (1, 0), value=True)[:, None, None, :]
        attention_mask = prepare_attention_mask(self.config, attend_mask, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        if self.layer_norm is not None:
            hidden_states = self.layer_norm(hidden_states)
        hidden_states = hidden_states.to(classes.device)  # the last layer may be on another device
        length_logits = F.linear(hidden_states[:, 0], lengths)
        # Not -inf, which would give NaN where outputs are subtracted.
        length_logits = F.pad(length_logits[:, 1:], (1, 0), value=torch.finfo(length_logits.dtype).min)
        return JMNatEncoderOutput(last_hidden_state=hidden_states[:, 1:], length_logits=length_logits)


class JMNatDecoder(JMNatStack):
    """Predicts all target positions at once; targets are padded on the right."""

    longest = "max_target_length"
    _can_record_outputs = {
        "hidden_states": JMNatDecoderLayer,
        "attentions": OutputRecorder(JMNatAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(JMNatAttention, index=1, layer_name="encoder_attn"),
    }

    def __init__(self, config: JMNatConfig):
        super().__init__(config)
        self.layers = nn.ModuleList([JMNatDecoderLayer(config) for _ in range(config.decoder_layers)])
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        state: JMNatDecodingState | None = None,
        wanted_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithCrossAttentions:
        """Canvas (R, T) -> states (R, T, D), or (R, M, D) at `wanted_positions` (R, M).

        `state` provides what does not change between decoding passes: the masks, the keys and values of
        cross-attention and the probabilities of positional attention.
        """
        hidden_states = self.embed(input_ids, inputs_embeds)
        positions = None if state is None else state.positions
        if positions is None:
            positions = self.target_positions(hidden_states)
        hidden_states = F.dropout(hidden_states + positions, p=self.dropout, training=self.training)
        if state is None:
            state = self.prepare_state(
                token_mask(attention_mask, input_ids, inputs_embeds, self.config.pad_token_id),
                None if encoder_attention_mask is None else encoder_attention_mask.bool(),
            )
        attention_mask = prepare_attention_mask(self.config, state.attend_mask, hidden_states.dtype)
        encoder_mask = prepare_attention_mask(self.config, state.encoder_attend_mask, hidden_states.dtype)
        for index, layer in enumerate(self.layers):
            # Gradient checkpointing tracks gradients only through positional arguments.
            hidden_states = layer(
                hidden_states,
                encoder_hidden_states,
                positions,
                attention_mask=attention_mask,
                encoder_attention_mask=encoder_mask,
                position_probs=None if state.position_probs is None else state.position_probs[index],
                encoder_key_value=None if state.key_values is None else state.key_values[index],
                wanted_positions=wanted_positions if index + 1 == len(self.layers) else None,
                **kwargs,
            )
        if self.layer_norm is not None:
            hidden_states = self.layer_norm(hidden_states)
        hidden_states = hidden_states.to(positions.device)  # the last layer may be on another device
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)

    def target_positions(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Embeddings (1, T, D) of the positions of hidden_states (R, T, ..), of the same dtype."""
        ranks = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        return self.position_embeddings(ranks, hidden_states.dtype)[None]

    def prepare_state(
        self,
        target_mask: torch.Tensor,
        source_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None = None,
    ) -> JMNatDecodingState:
        """What all passes share; without `encoder_hidden_states`, only the masks, for a single pass.

        Args:
            target_mask: (R, T) bool, True at target positions.
            source_mask: (B, S) bool, True at source tokens; R is a multiple of B.
            encoder_hidden_states: (B, S, D).
        """
        state = JMNatDecodingState(
            attend_mask=decoder_attend_mask(target_mask, self.config.exclude_self_attention),
            encoder_attend_mask=None if source_mask is None else never_empty(source_mask)[:, None, None, :],
        )
        if encoder_hidden_states is not None:
            state.positions = self.target_positions(encoder_hidden_states.new_empty(*target_mask.shape, 0))
            constants = [
                layer(None, encoder_hidden_states, state.positions, state.attend_mask) for layer in self.layers
            ]
            state.key_values = [key_value for key_value, _ in constants]
            if self.config.positional_attention:
                state.position_probs = [probs for _, probs in constants]
        return state


class JMNatModel(JMNatPreTrainedModel):
    """Encoder and decoder without the projection onto the vocabulary."""

    _tied_weights_keys = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }

    def __init__(self, config: JMNatConfig):
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.encoder = JMNatEncoder(config)
        self.decoder = JMNatDecoder(config)
        self.post_init()

    def get_input_embeddings(self):
        """The source embeddings; with `tie_word_embeddings=False` the target has its own, and `shared` is unused."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value):
        self.encoder.embed_tokens = value
        if self.config.tie_word_embeddings:
            self.shared = self.decoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: JMNatEncoderOutput | tuple | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> JMNatSeq2SeqModelOutput:
        """Source (B, S) and masked target (B, T) -> decoder states (B, T, D) and length logits (B, L).

        Masks that are left out are derived from `<pad>`. `encoder_outputs` of an earlier call replace the encoder.

        Raises:
            ValueError: neither `decoder_input_ids` nor `decoder_inputs_embeds` is given.
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError("decoder_input_ids is missing: pass it, or pass labels to JMNatForConditionalGeneration")
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds, **kwargs)
        encoded = as_encoder_output(encoder_outputs)
        states = encoded.last_hidden_state
        source_mask = token_mask(attention_mask, input_ids, states, self.config.pad_token_id)
        decoder_outputs = self.decoder(
            decoder_input_ids, decoder_attention_mask, states, source_mask, decoder_inputs_embeds, **kwargs
        )
        return JMNatSeq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            length_logits=encoded.get("length_logits"),
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=states,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


class JMNatForConditionalGeneration(JMNatPreTrainedModel, JMNatGenerationMixin):
    """JM-NAT with length prediction, its losses and `generate`."""

    _tied_weights_keys = {"lm_head.weight": "model.shared.weight"}
    generation_config_class = JMNatGenerationConfig
    # The loss is a mean over masked tokens, not over labels, so Trainer must not divide it by the number of labels.
    accepts_loss_kwargs = False

    def __init__(self, config: JMNatConfig):
        super().__init__(config)
        self.model = JMNatModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=config.output_bias)
        self.crf: DynamicCRF | None = None
        if config.crf_rank:
            self.crf = DynamicCRF(config.vocab_size, config.d_model, config.crf_rank)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        encoder_targets: torch.Tensor | None = None,
        encoder_outputs: JMNatEncoderOutput | tuple | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        loss_denominators: torch.Tensor | None = None,
        **kwargs,
    ) -> JMNatSeq2SeqLMOutput:
        """One pass, and the loss of Eq. 8 when `labels` are given.

        Args:
            input_ids: (B, S) source after masking, ending in `</s>`.
            attention_mask: (B, S), 1 at tokens. Default: every token except `<pad>`.
            decoder_input_ids: (B, T) target after masking. Default: a canvas of `<mask>` as long as `labels`.
            decoder_attention_mask: (B, T), padded on the right. Default: derived from `labels`, else from `<pad>`.
            labels: (B, T) the whole target, -100 at padding. A second `</s>` at its end is not part of its length.
            masked_positions: (B, T) bool, True at tokens to predict. Default: where `decoder_input_ids` is `<mask>`.
            encoder_targets: (B, S) source tokens to predict, -100 elsewhere.
            loss_denominators: (2,) numbers of masked target tokens and of sentences to divide by, those of the global
                batch in distributed or accumulated training. Default: those of this batch.

        Raises:
            ValueError: neither decoder input nor labels; a target longer than `max_target_length`.
        """
        self.check_batch(labels, masked_positions, kwargs)
        if labels is not None:
            if decoder_attention_mask is None:
                decoder_attention_mask = labels != -100
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.fully_masked(labels)
        if self.config.decoder_input == "source_copy" and decoder_input_ids is not None:
            masked_positions = token_mask(decoder_attention_mask, decoder_input_ids, None, self.config.pad_token_id)
            decoder_input_ids = self.copy_source(input_ids, attention_mask, masked_positions)
            decoder_attention_mask = masked_positions
        outputs = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            inputs_embeds,
            decoder_inputs_embeds,
            **kwargs,
        )
        result = JMNatSeq2SeqLMOutput(**{name: outputs[name] for name in outputs if name != "last_hidden_state"})
        if labels is None or not self.training:  # in training only the masked positions are projected
            result.logits = self.project(outputs.last_hidden_state)  # (B, T, V)
            if encoder_targets is not None:
                result.encoder_logits = self.project(outputs.encoder_last_hidden_state)  # (B, S, V)
        if labels is not None:
            predicted = self.predicted_positions(labels, decoder_input_ids, masked_positions)
            self.add_losses(result, outputs, labels, predicted, encoder_targets, loss_denominators, decoder_input_ids)
        return JMNatSeq2SeqLMOutput(**result)  # in the order of the fields, for callers that unpack it

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """States (.., D) -> logits (.., V) on the same device."""
        return self.lm_head(states).to(states.device)

    def check_batch(self, labels, masked_positions, others) -> None:
        # Otherwise the model would silently learn wrong targets.
        for name in ("correction_positions", "glancing_order", "second_mask_order"):
            if name in others:
                raise ValueError(f"{name} needs JMNatTrainer: use it, or leave its option out of the data collator")
        if self.training and labels is None and masked_positions is not None:
            raise ValueError(
                "labels is missing: Trainer removes it when label_smoothing_factor is set; leave that at 0, and set "
                "label_smoothing of the model instead"
            )

    def predicted_positions(self, labels, decoder_input_ids, masked_positions) -> torch.Tensor:
        """(B, T) bool, True at target tokens to predict: as given, else where the input is `<mask>`."""
        if masked_positions is None:
            if decoder_input_ids is None:
                raise ValueError("masked_positions is missing: it cannot be derived from decoder_inputs_embeds")
            masked_positions = decoder_input_ids == self.config.mask_token_id
        return masked_positions.bool() & (labels != -100)

    def fully_masked(self, labels: torch.Tensor) -> torch.Tensor:
        """A canvas (B, T) with `<mask>` at every token of labels (B, T), which are -100 at padding."""
        if self.training and self.config.decoder_input == "mask":
            logger.warning_once(NOT_MASKED)
        canvas = torch.full_like(labels, self.config.mask_token_id)
        return canvas.masked_fill(labels == -100, self.config.pad_token_id)

    def add_losses(
        self, result, outputs, labels, masked_positions, encoder_targets, loss_denominators, canvas=None
    ) -> None:
        """Add the loss and its parts to `result` (Eq. 8 and section 4.4); only masked positions are projected."""
        config = self.config
        if loss_denominators is None:
            num_masked, num_sentences = masked_positions.sum().clamp(min=1), labels.shape[0]
        else:
            num_masked, num_sentences = loss_denominators
        index = masked_positions.flatten().nonzero().squeeze(1)  # (N,); the only synchronisation with the device
        if self.training and not torch.compiler.is_compiling() and not len(index):
            logger.warning_once(NOT_MASKED)
        states = outputs.last_hidden_state if result.logits is None else result.logits
        logits = states.flatten(0, 1).index_select(0, index)
        if result.logits is None:
            logits = self.project(logits)  # (N, V)
        if config.ngram_loss_weight:
            token_log_probs, means = reference_log_probs(logits, labels, masked_positions)
            target_log_probs = token_log_probs.diagonal(dim1=1, dim2=2)  # (B, T), 0 where nothing is masked
            nll = smoothed_nll(target_log_probs, means, config.label_smoothing)
            ngram = ngram_loss(token_log_probs, labels, masked_positions, config.ngram_size, config.ngram_alignment)
            result.ngram_loss = ngram.sum() / num_masked
        else:
            nll = label_smoothed_nll(logits, labels.flatten()[index], config.label_smoothing)
        result.nll_loss = nll / num_masked
        result.loss = result.nll_loss
        if result.ngram_loss is not None:
            result.loss = result.loss + config.ngram_loss_weight * result.ngram_loss
        if self.crf is not None and config.crf_loss_weight:
            crf_loss = self.crf.loss(outputs.last_hidden_state, logits, labels, masked_positions, canvas)
            result.crf_loss = crf_loss / num_masked
            result.loss = result.loss + config.crf_loss_weight * result.crf_loss
        if encoder_targets is not None and config.encoder_loss_weight:
            chosen = encoder_targets.flatten().ne(-100).nonzero().squeeze(1)
            states = outputs.encoder_last_hidden_state.flatten(0, 1).index_select(0, chosen)
            encoder_nll = label_smoothed_nll(self.project(states), encoder_targets.flatten()[chosen])
            result.encoder_loss = encoder_nll / num_masked
            result.loss = result.loss + config.encoder_loss_weight * result.encoder_loss
        if result.length_logits is not None and config.length_loss_weight:
            # A text ends at its first `</s>`; a canvas that was drawn too long has more of them.
            is_end = labels == config.eos_token_id
            target_lengths = (labels != -100).sum(dim=1) - (is_end[:, 1:] & is_end[:, :-1]).sum(dim=1)
            length_loss = length_nll(result.length_logits, target_lengths, config.length_smoothing)
            result.length_loss = length_loss / num_sentences
            result.loss = result.loss + config.length_loss_weight * result.length_loss

    def copy_source(self, input_ids, attention_mask, target_mask: torch.Tensor) -> torch.Tensor:
        """Decoder input (R, T) of the basic NAT: each source (B, S) copied to R/B rows of target_mask (R, T).

        Target position t of T copies source token floor(t S / T) (section 3).

        Raises:
            ValueError: `input_ids` is None.
        """
        if input_ids is None:
            raise ValueError("input_ids is missing: decoder_input='source_copy' copies it to the decoder")
        source_mask = token_mask(attention_mask, input_ids, None, self.config.pad_token_id)
        num_rows = target_mask.shape[0] // input_ids.shape[0]
        input_ids, source_mask = (x.repeat_interleave(num_rows, dim=0) for x in (input_ids, source_mask))
        source_lengths = source_mask.sum(dim=1, keepdim=True)
        target_lengths = target_mask.sum(dim=1, keepdim=True).clamp(min=1)
        first = source_mask.int().argmax(dim=1, keepdim=True)  # left padding comes before it
        positions = torch.arange(target_mask.shape[1], device=input_ids.device)[None]
        last = (source_lengths - 1).clamp(min=0)  # from a source of padding alone, copy its first <pad>
        return input_ids.gather(1, first + (positions * source_lengths // target_lengths).clamp(max=last))

    def encode_for_generation(
        self, input_ids=None, attention_mask=None, inputs_embeds=None, encoder_outputs=None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode once: states (B, S, D), source mask (B, S) bool, length log-probabilities (B, L)."""
        if encoder_outputs is None:
            encoder_outputs = self.model.encoder(input_ids, attention_mask, inputs_embeds)
        encoder_outputs = as_encoder_output(encoder_outputs)
        if encoder_outputs.get("length_logits") is None:
            raise ValueError("encoder_outputs has no length_logits: pass the output of this model's own encoder")
        states = encoder_outputs.last_hidden_state
        source_mask = token_mask(attention_mask, input_ids, states, self.config.pad_token_id)
        return states, source_mask, encoder_outputs.length_logits.float().log_softmax(dim=-1)

    def prepare_decoding(self, encoder_hidden_states, source_mask, target_mask) -> JMNatDecodingState:
        """What all passes share, see `JMNatDecoder.prepare_state`."""
        return self.model.decoder.prepare_state(target_mask, source_mask, encoder_hidden_states)

    def allowed_logits(self, states: torch.Tensor, suppressed: torch.Tensor | None) -> torch.Tensor:
        """States (R, M, D) -> logits (R, M, V), -inf where `suppressed` (V,) is True."""
        logits = self.project(states)
        return logits if suppressed is None else logits.masked_fill(suppressed, -math.inf)

    def predict_tokens(
        self, canvas: torch.Tensor, positions: torch.Tensor, state: JMNatDecodingState, suppressed: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One decoder pass over canvas (R, T): the most probable tokens at `positions` (R, M), and log-probabilities.

        `suppressed` (V,) is True at tokens that are removed before the softmax.
        """
        hidden_states = self.model.decoder(canvas, state=state, wanted_positions=positions).last_hidden_state
        logits = self.allowed_logits(hidden_states, suppressed)
        best, tokens = logits.max(dim=-1)
        return tokens, best.float() - logits.float().logsumexp(dim=-1)

    def predict_path(
        self, canvas, positions, state: JMNatDecodingState, suppressed, predicted: torch.Tensor, beam: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `predict_tokens`, by the most probable path of the CRF.

        Args:
            predicted: (R, T) bool, True at the positions to predict; the other tokens of the canvas are given.
            beam: number of tokens of each position that paths may take.
        """
        hidden_states = self.model.decoder(canvas, state=state).last_hidden_state  # (R, T, D)
        index = positions[:, :, None].expand(-1, -1, hidden_states.shape[-1])
        logits = self.allowed_logits(hidden_states.gather(1, index), suppressed)
        is_token = state.attend_mask.any(dim=2)[:, 0]  # (R, T)
        return self.crf.best_path(hidden_states, logits, canvas, positions, predicted, is_token, beam)
