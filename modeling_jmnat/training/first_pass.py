"""What a model in training predicts in the first pass of decoding, for training that starts from its own mistakes."""

import torch

from ..modeling_jmnat import JMNatForConditionalGeneration


@torch.no_grad()
def first_pass_predictions(model: JMNatForConditionalGeneration, batch: dict, positions: torch.Tensor) -> torch.Tensor:
    """(N,) ids at the N True entries of `positions` (B, T), row by row.

    The whole target is `<mask>` and there is no dropout; `<pad>`, `<mask>` and `<s>` are not predicted.
    """
    if hasattr(model, "get_base_model"):  # of peft; its layers stay in place
        model = model.get_base_model()
    config = model.config
    canvas = torch.full_like(batch["decoder_input_ids"], config.mask_token_id)
    canvas = canvas.masked_fill(batch["decoder_attention_mask"] == 0, config.pad_token_id)
    was_training = model.training
    model.eval()
    outputs = model.model(batch["input_ids"], batch["attention_mask"], canvas, batch["decoder_attention_mask"])
    model.train(was_training)
    logits = model.lm_head(outputs.last_hidden_state[positions])  # (N, V)
    never = (config.pad_token_id, config.mask_token_id, config.bos_token_id)
    logits[:, [token for token in never if token is not None]] = -torch.inf
    return logits.argmax(dim=-1)
