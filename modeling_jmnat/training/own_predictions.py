"""Training from the model's own first-pass predictions: glancing and correction, both beyond the paper.

Decoding shows the model its own mistakes as if they were context; ordinary training shows it the reference alone. Both
methods first let the model predict a fully masked target, in one pass without gradients:

- Glancing (GLAT; Qian et al. 2021, section 3): a sentence whose whole target is `<mask>` gets some reference tokens
  back, more of them the more the model got wrong, and the loss covers the rest. The first decoding pass is thus
  learned from easy cases to hard ones.
- Correction (in the manner of CMLMC; Huang et al. 2022): a share of the visible target tokens is replaced by the
  model's predictions, which it learns to correct. Decode such a model with `update_all=True`, which lets every pass
  change every token.
"""

import torch

from ..modeling_jmnat import JMNatForConditionalGeneration

# What `DataCollatorForJMNat` adds to a batch for each of them.
GLANCING_ORDER = "glancing_order"
CORRECTION_POSITIONS = "correction_positions"


@torch.no_grad()
def first_pass_predictions(model: JMNatForConditionalGeneration, batch: dict, positions: torch.Tensor) -> torch.Tensor:
    """Predict the target tokens at `positions` from a fully masked target, as the first decoding pass does.

    Dropout is off; `<pad>`, `<mask>` and `<s>` are never predicted.

    Args:
        batch: `input_ids`, `attention_mask` (B, S), `decoder_input_ids` (only its shape counts) and
            `decoder_attention_mask` (B, T).
        positions: (B, T), True at the N tokens to predict.

    Returns:
        (N,) token ids, row by row.
    """
    if hasattr(model, "get_base_model"):  # a PEFT model; its adapter layers stay in place
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


def after_glancing(model: JMNatForConditionalGeneration, batch: dict, ratio: float) -> dict:
    """Show part of the reference in the sentences that take part in glancing.

    Of a sentence with d wrong tokens in the first pass, round(ratio * d) tokens are shown (halves round to even):
    those first in its order, whether the model got them right or not. They leave `masked_positions`.

    Args:
        batch: a batch of `DataCollatorForJMNat` with `glancing_order` (B, T), which is -1 at padding and in sentences
            that are not fully masked; nothing changes there.
        ratio: tokens to show for each wrong one.

    Returns:
        A new batch without `glancing_order`.
    """
    batch = dict(batch)
    order = batch.pop(GLANCING_ORDER)
    takes_part = order >= 0
    rows = takes_part.any(dim=1).nonzero().squeeze(1)
    if not len(rows):
        return batch
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    predictions = first_pass_predictions(model, {name: batch[name][rows] for name in names}, takes_part[rows])
    wrong = torch.zeros_like(takes_part)
    wrong[takes_part] = predictions != batch["labels"][takes_part]
    num_shown = (ratio * wrong.sum(dim=1, keepdim=True).double()).round()  # (B, 1)
    shown = takes_part & (order < num_shown)
    batch["decoder_input_ids"] = torch.where(shown, batch["labels"], batch["decoder_input_ids"])
    batch["masked_positions"] = batch["masked_positions"] & ~shown
    return batch


def with_own_predictions(model: JMNatForConditionalGeneration, batch: dict) -> dict:
    """Replace the target tokens at `correction_positions` (B, T) by the model's predictions.

    Returns:
        A new batch without `correction_positions`.
    """
    batch = dict(batch)
    positions = batch.pop(CORRECTION_POSITIONS)
    predictions = first_pass_predictions(model, batch, positions)
    batch["decoder_input_ids"] = batch["decoder_input_ids"].masked_scatter(positions, predictions)
    return batch
