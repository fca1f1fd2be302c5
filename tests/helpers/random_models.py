"""Small random models with sharp predictions: weights are scaled up until tokens, lengths and attention differ."""

import torch

from modeling_jmnat import JMNatConfig, JMNatForConditionalGeneration

TINY = {
    "vocab_size": 23,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 40,
    "max_target_length": 12,
}
CMLM = {
    "positional_attention": False,
    "exclude_self_attention": False,
    "position_embedding_type": "learned",
    "activation_function": "gelu",
    "scale_embedding": False,
    "init_std": 0.2,
}
ARCHITECTURES = {
    "jmnat": {},
    "pre_norm": {"normalize_before": True},
    "learned": {"position_embedding_type": "learned"},
    "no_positional": {"positional_attention": False},
    "self_visible": {"exclude_self_attention": False},
    "marian": {"position_offset": 0, "output_bias": True},
    "crf": {"crf_rank": 3},
    "cmlm": CMLM,
    "cmlm_pre_norm": {**CMLM, "normalize_before": True},
}


def random_config(**overrides):
    return JMNatConfig(**{**TINY, **overrides})


@torch.no_grad()
def random_model(seed=0, attn_implementation="sdpa", **overrides):
    """In evaluation mode, with sharp attention and with predictions that differ between sentences and positions."""
    torch.manual_seed(seed)
    config = random_config(**overrides)
    model = JMNatForConditionalGeneration._from_config(config, attn_implementation=attn_implementation).eval()
    scales = {"q_proj.weight": 6.0, "fc1.weight": 2.0, "fc2.weight": 2.0, "left.weight": 3.0, "right.weight": 3.0}
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zeros and ones would hide what is left out
            parameter.normal_(std=0.1)
        elif "layer_norm" in name:
            parameter.uniform_(0.7, 1.3)
        parameter.mul_(scales.get(".".join(name.split(".")[-2:]), 1.0))
    model.model.shared.weight[config.eos_token_id].mul_(1.5)  # so that texts end early at times
    centre_predictions(model, seed)
    return model


def centre_predictions(model, seed):
    """Take out what all final states have in common: untrained networks predict the same token everywhere."""
    sources = random_sources(model, 32, seed, longest=12)
    input_ids, attention_mask = pad(sources)
    canvas = input_ids.clone()
    canvas[16:] = canvas[16:].where(canvas[16:] == model.config.pad_token_id, model.config.mask_token_id)
    outputs = model.model(input_ids, attention_mask, canvas, attention_mask)
    states = outputs.last_hidden_state[attention_mask.bool()]  # (N, D)
    decoder = model.model.decoder
    last_norm = decoder.layers[-1].final_layer_norm if decoder.layer_norm is None else decoder.layer_norm
    last_norm.weight.mul_(2.0 / states.std(dim=0))
    last_norm.bias.copy_((last_norm.bias - states.mean(dim=0)) * 2.0 / states.std(dim=0))
    lengths = model.model.encoder.embed_lengths.weight
    length_states = length_token_states(model, input_ids, attention_mask)
    common = length_states.mean(dim=0) / length_states.mean(dim=0).norm()
    lengths[1:] -= (lengths[1:] @ common)[:, None] * common
    lengths[1:] *= 2.0 / (length_states @ lengths[1:].T).std()


def length_token_states(model, input_ids, attention_mask):
    """Final states (B, D) of `[LEN]`."""
    seen = []
    encoder = model.model.encoder
    last = encoder.layers[-1] if encoder.layer_norm is None else encoder.layer_norm
    handle = last.register_forward_hook(lambda module, args, output: seen.append(output[:, 0]))
    encoder(input_ids, attention_mask)
    handle.remove()
    return seen[0]


def random_sources(model, count=4, seed=0, longest=9):
    """`count` lists of token ids of 2 to `longest` tokens, each ending in `</s>`."""
    generator = torch.Generator().manual_seed(seed)
    sources = []
    for _ in range(count):
        length = int(torch.randint(1, longest, (1,), generator=generator))
        tokens = torch.randint(5, model.config.vocab_size, (length,), generator=generator).tolist()
        sources.append([*tokens, model.config.eos_token_id])
    return sources


def pad(sentences, side="right", value=1, extra=0):
    """(ids (B, S), attention_mask (B, S)) of lists of ids, with `extra` columns of padding."""
    width = max(map(len, sentences)) + extra
    ids = torch.full((len(sentences), width), value)
    mask = torch.zeros(len(sentences), width, dtype=torch.long)
    for row, sentence in enumerate(sentences):
        place = slice(0, len(sentence)) if side == "right" else slice(width - len(sentence), width)
        ids[row, place] = torch.tensor(sentence)
        mask[row, place] = 1
    return ids, mask


def random_batch(model, batch_size=4, seed=0, longest=9, side="right"):
    """What the collator hands to the model: masked source and target with their answers, padded."""
    generator = torch.Generator().manual_seed(seed + 1000)
    config = model.config
    sources = random_sources(model, batch_size, seed, longest)
    targets = random_sources(model, batch_size, seed + 1, longest)
    sources[-1], targets[0] = sources[-1][-2:], targets[0][-2:]  # padding in both, whatever was drawn
    input_ids, attention_mask = pad(sources, side)
    labels, _ = pad(targets, value=-100)
    masked = (torch.rand(labels.shape, generator=generator) < 0.6) & (labels != -100)
    masked[:, 0] = True
    decoder_input_ids = labels.masked_fill(labels == -100, config.pad_token_id)
    kept = torch.rand(labels.shape, generator=generator) < 0.2  # of the masked, some stay as they were
    decoder_input_ids = decoder_input_ids.masked_fill(masked & ~kept, config.mask_token_id)
    chosen = (torch.rand(input_ids.shape, generator=generator) < 0.3) & (attention_mask == 1)
    return {
        "input_ids": input_ids.masked_fill(chosen, config.mask_token_id),
        "attention_mask": attention_mask,
        "decoder_input_ids": decoder_input_ids,
        "decoder_attention_mask": (labels != -100).long(),
        "labels": labels,
        "masked_positions": masked,
        "encoder_targets": input_ids.masked_fill(~chosen, -100),
    }
