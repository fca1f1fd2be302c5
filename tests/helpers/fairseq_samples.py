"""Checkpoints as the two fairseq releases write them, and what their networks compute from them.

`fairseq_forward` reads the tensors by their fairseq names and follows the releases' own order of steps (time first,
one matrix for query, key and value), so that it shares nothing with the conversion under test.
"""

import math
from argparse import Namespace
from collections import OrderedDict

import torch
import torch.nn.functional as F

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_accurate": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "tanh": torch.tanh,
}
THEIR_ACTIVATION = {"gelu_new": "gelu_accurate"}


def fairseq_settings(config, mask_predict):
    """The `args` of a checkpoint of a model with this configuration."""
    settings = {
        "encoder_learned_pos": False,
        "decoder_learned_pos": False,
        "share_all_embeddings": True,
        "share_decoder_input_output_embed": True,
        "max_source_positions": config.max_position_embeddings,
        "max_target_positions": config.max_target_length + 1,
        "dropout": 0.25,
        "attention_dropout": 0.0,
        "label_smoothing": 0.1,
        "source_lang": "de",
        "encoder_embed_path": None,
        "adam_betas": "(0.9, 0.98)",
        "lr": [0.0007],
    }
    for side in ("encoder", "decoder"):
        settings[f"{side}_embed_dim"] = config.d_model
        settings[f"{side}_ffn_embed_dim"] = getattr(config, f"{side}_ffn_dim")
        settings[f"{side}_attention_heads"] = getattr(config, f"{side}_attention_heads")
        settings[f"{side}_layers"] = getattr(config, f"{side}_layers")
        settings[f"{side}_normalize_before"] = config.normalize_before
    if mask_predict:
        settings.update(arch="bert_transformer_seq2seq", relu_dropout=0.05)
        settings.update(no_enc_token_positional_embeddings=False, no_dec_token_positional_embeddings=False)
    else:
        learned = config.position_embedding_type == "learned"
        activation = THEIR_ACTIVATION.get(config.activation_function, config.activation_function)
        settings.update(arch="transformer_nat_ymask_pred_len_wmt_en_de", activation_fn=activation)
        settings.update(encoder_learned_pos=learned, decoder_learned_pos=learned, activation_dropout=0.05)
        settings.update(positional_attention=config.positional_attention, no_token_positional_embeddings=False)
    return Namespace(**settings)


def fairseq_state(model, mask_predict):
    """The tensors of a model under the names of a checkpoint."""
    ours, theirs = model.state_dict(), OrderedDict()
    weight, bias = ("gamma", "beta") if mask_predict else ("weight", "bias")
    norms = {"self_attn_layer_norm": "self_attn_layer_norm", "final_layer_norm": "final_layer_norm"}
    encoder_norms = {"self_attn_layer_norm": "layer_norms.0", "final_layer_norm": "layer_norms.1"}
    decoder_norms = {**norms, "encoder_attn_layer_norm": "encoder_attn_layer_norm"}
    attentions = ["self_attn", "encoder_attn"]
    if model.config.positional_attention:
        attentions.append("position_attn")
        decoder_norms["position_attn_layer_norm"] = "position_layer_norm"

    def layer(side, number, names, attentions):
        here, there = f"model.{side}.layers.{number}.", f"{side}.layers.{number}."
        for attention in attentions:
            for part in ("weight", "bias"):
                packed = [ours[f"{here}{attention}.{name}_proj.{part}"] for name in "qkv"]
                theirs[f"{there}{attention}.in_proj_{part}"] = torch.cat(packed)
                theirs[f"{there}{attention}.out_proj.{part}"] = ours[f"{here}{attention}.out_proj.{part}"]
        for linear in ("fc1", "fc2"):
            for part in ("weight", "bias"):
                theirs[f"{there}{linear}.{part}"] = ours[f"{here}{linear}.{part}"]
        for name, renamed in names.items():
            theirs[f"{there}{renamed}.{weight}"] = ours[f"{here}{name}.weight"]
            theirs[f"{there}{renamed}.{bias}"] = ours[f"{here}{name}.bias"]

    for side in ("encoder", "decoder"):
        theirs[f"{side}.version"] = torch.tensor([3.0])
        theirs[f"{side}.embed_tokens.weight"] = ours["model.shared.weight"]
        if model.config.position_embedding_type == "learned":
            theirs[f"{side}.embed_positions.weight"] = ours[f"model.{side}.embed_positions.weight"]
        else:
            theirs[f"{side}.embed_positions._float_tensor"] = torch.zeros(1)
        if model.config.normalize_before:
            theirs[f"{side}.layer_norm.{weight}"] = ours[f"model.{side}.layer_norm.weight"]
            theirs[f"{side}.layer_norm.{bias}"] = ours[f"model.{side}.layer_norm.bias"]
    theirs["encoder.embed_lengths.weight"] = ours["model.encoder.embed_lengths.weight"]
    for number in range(model.config.encoder_layers):
        layer("encoder", number, encoder_norms if mask_predict else norms, ["self_attn"])
    for number in range(model.config.decoder_layers):
        layer("decoder", number, decoder_norms, attentions)
    return OrderedDict((name, tensor.clone()) for name, tensor in theirs.items())


def save_checkpoint(path, settings, state, **extra):
    torch.save({"args": settings, "model": state, "optimizer_history": [], "extra_state": {}, **extra}, path)
    return path


def write_dictionary(path, words):
    path.write_text("".join(f"{word} {1000 - number}\n" for number, word in enumerate(words)), encoding="utf-8")
    return path


def fairseq_forward(settings, state, src, prev):
    """float64: encoder states (B, S, D), length log-probabilities (B, L), decoder logits (B, T, V)."""
    mask_predict = "bert" in settings.arch
    state = {name: tensor.double() for name, tensor in state.items()}
    activation = ACTIVATIONS["gelu" if mask_predict else settings.activation_fn]
    embedding = state["encoder.embed_tokens.weight"]
    width = embedding.shape[1]

    def norm(x, name):
        if mask_predict:
            centred = x - x.mean(-1, keepdim=True)
            scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-12)
            return state[f"{name}.gamma"] * scaled + state[f"{name}.beta"]
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def attention(query, key, value, name, num_heads, padding, mask=None):
        weight, bias = state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]
        out = (state[f"{name}.out_proj.weight"], state[f"{name}.out_proj.bias"])
        fixed = (None, None, False, 0.0)  # no extra key, value or zero row, no dropout
        return F.multi_head_attention_forward(
            query, key, value, width, num_heads, weight, bias, *fixed, *out, False, padding, True, mask
        )[0]

    def block(x, norm_name, function, before):
        return x + function(norm(x, norm_name)) if before else norm(x + function(x), norm_name)

    def feed_forward(name):
        def function(x):
            x = activation(F.linear(x, state[f"{name}.fc1.weight"], state[f"{name}.fc1.bias"]))
            return F.linear(x, state[f"{name}.fc2.weight"], state[f"{name}.fc2.bias"])

        return function

    def positions(tokens, side):
        valid = tokens.ne(1).long()
        index = valid.cumsum(1) * valid + 1
        if f"{side}.embed_positions.weight" in state:
            return state[f"{side}.embed_positions.weight"][index]
        rates = torch.exp(torch.arange(width // 2).float() * -(math.log(10000) / (width // 2 - 1)))
        angles = index[:, :, None] * rates  # the release computes its table in float32
        return torch.cat([angles.sin(), angles.cos()], dim=-1).double() * valid[:, :, None]

    scale = 1.0 if mask_predict else math.sqrt(width)
    x = scale * embedding[src] + positions(src, "encoder")
    x = torch.cat([state["encoder.embed_lengths.weight"][0].expand(len(src), 1, -1), x], dim=1).transpose(0, 1)
    padding = F.pad(src.eq(1), (1, 0))
    before, heads = settings.encoder_normalize_before, settings.encoder_attention_heads
    for number in range(settings.encoder_layers):
        name = f"encoder.layers.{number}"
        norms = ["layer_norms.0", "layer_norms.1"] if mask_predict else ["self_attn_layer_norm", "final_layer_norm"]
        self_attention = lambda x, name=name: attention(x, x, x, f"{name}.self_attn", heads, padding)  # noqa: E731
        x = block(x, f"{name}.{norms[0]}", self_attention, before)
        x = block(x, f"{name}.{norms[1]}", feed_forward(name), before)
    if before:
        x = norm(x, "encoder.layer_norm")
    length_logits = x[0] @ state["encoder.embed_lengths.weight"].T
    length_logits[:, 0] = -math.inf
    encoded, padding = x[1:], padding[:, 1:]

    place = positions(prev, "decoder")
    y, place = (scale * embedding[prev] + place).transpose(0, 1), place.transpose(0, 1)
    without_self = None
    if not mask_predict:
        without_self = torch.zeros(len(y), len(y)).double().fill_diagonal_(-math.inf)
    before, heads = settings.decoder_normalize_before, settings.decoder_attention_heads
    own = torch.zeros(prev.shape).double().masked_fill(prev.eq(1), -math.inf)
    for number in range(settings.decoder_layers):
        name = f"decoder.layers.{number}"
        self_attention = lambda x, name=name: attention(  # noqa: E731
            x, x, x, f"{name}.self_attn", heads, own, without_self
        )
        place_attention = lambda x, name=name: attention(  # noqa: E731
            place, place, x, f"{name}.position_attn", heads, own, without_self
        )
        cross_attention = lambda x, name=name: attention(  # noqa: E731
            x, encoded, encoded, f"{name}.encoder_attn", heads, padding
        )
        y = block(y, f"{name}.self_attn_layer_norm", self_attention, before)
        if f"{name}.position_attn.in_proj_weight" in state:
            y = block(y, f"{name}.position_layer_norm", place_attention, before)
        y = block(y, f"{name}.encoder_attn_layer_norm", cross_attention, before)
        y = block(y, f"{name}.final_layer_norm", feed_forward(name), before)
    if before:
        y = norm(y, "decoder.layer_norm")
    return encoded.transpose(0, 1), length_logits.log_softmax(-1), y.transpose(0, 1) @ embedding.T


def random_batch(vocab_size, left_padding, seed=0, longest=9):
    """Source and decoder input with rows of different lengths, no target shorter than 2."""
    generator = torch.Generator().manual_seed(seed)
    src, prev = torch.full((4, longest), 1), torch.full((4, longest), 1)
    for row, (source, target) in enumerate([(longest, 4), (2, longest), (5, 2), (1, 7)]):
        tokens = torch.randint(5, vocab_size, (source,), generator=generator)
        tokens[-1] = 2
        src[row, longest - source :] = tokens
        if not left_padding:
            src[row] = torch.cat([tokens, src.new_ones(longest - source)])
        prev[row, :target] = torch.randint(4, vocab_size, (target,), generator=generator)
    return src, prev
