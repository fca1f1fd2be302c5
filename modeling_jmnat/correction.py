"""Correction training in the manner of CMLMC (Huang et al. 2022), beyond the paper.

Decoding shows the model its own mistakes as if they were context, training shows it the reference alone. Here a share
of the visible target tokens is what the model itself predicts from a fully masked target, and it learns to put them
right. Decode such a model with `update_all=True`, which lets every pass change every token.
"""

import torch

from .modeling_jmnat import JMNatForConditionalGeneration


@torch.no_grad()
def with_own_predictions(model: JMNatForConditionalGeneration, batch: dict) -> dict:
    """The batch without `correction_positions` (B, T), where `decoder_input_ids` now hold the model's predictions.

    One pass more, without gradients and without dropout: the whole target is `<mask>`, as in the first pass of
    decoding, and `<pad>`, `<mask>` and `<s>` are not predicted.
    """
    batch = dict(batch)
    positions = batch.pop("correction_positions")
    config = model.config
    canvas = torch.full_like(batch["decoder_input_ids"], config.mask_token_id)
    canvas = canvas.masked_fill(batch["decoder_attention_mask"] == 0, config.pad_token_id)
    was_training = model.training
    model.eval()
    outputs = model.model(batch["input_ids"], batch["attention_mask"], canvas, batch["decoder_attention_mask"])
    model.train(was_training)
    logits = model.lm_head(outputs.last_hidden_state[positions])  # (N, V)
    logits[:, [config.pad_token_id, config.mask_token_id, config.bos_token_id]] = -torch.inf
    batch["decoder_input_ids"] = batch["decoder_input_ids"].masked_scatter(positions, logits.argmax(dim=-1))
    return batch
