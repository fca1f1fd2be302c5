"""Training on the model's own predictions: glancing, correction and second masks, none of which is in the paper.

In decoding, the model's own errors are part of its context; in ordinary training, the context is the reference. These
methods first let the model predict, in one pass without gradients, a fully masked target (the first two) or the target
as it was masked (the third):

- Glancing (GLAT; Qian et al. 2021, section 3): in a sentence whose whole target is `<mask>`, some reference tokens are
  revealed, the more the model got wrong, and the loss covers the rest. The model thus learns the first decoding pass
  from easy cases to hard ones.
- Correction (similar to CMLMC; Huang et al. 2022): a share of the visible target tokens is replaced by the model's
  predictions, which it learns to correct. Decode such a model with `update_all=True`, which lets every pass change
  every token.
- Second masks (adaptive masking over masking, AMOM; Xiao et al. 2023): the masked tokens are replaced by the model's
  predictions, and then a share of the whole target equal to the share of errors is masked again. The canvas thus looks
  as in decoding: few masks among good predictions, many among bad ones. AMOM learns from both masks of a sentence;
  here a sentence has one of them, by `second_mask_ratio`, so that an update costs one training pass.
"""

from collections.abc import Callable

import torch

from ..modeling_jmnat import JMNatForConditionalGeneration

# Key that `DataCollatorForJMNat` adds to a batch for each method.
GLANCING_ORDER = "glancing_order"
CORRECTION_POSITIONS = "correction_positions"
SECOND_MASK_ORDER = "second_mask_order"
# Inputs of a pass, in the model's order.
PASS_INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")


def first_pass_predictions(model: JMNatForConditionalGeneration, batch: dict, positions: torch.Tensor) -> torch.Tensor:
    """Predict the target tokens at `positions` from a fully masked target, as the first decoding pass does.

    Arguments and result are those of `predictions_of`; only the shape of `decoder_input_ids` matters.
    """
    config = model.config
    canvas = torch.full_like(batch["decoder_input_ids"], config.mask_token_id)
    canvas = canvas.masked_fill(batch["decoder_attention_mask"] == 0, config.pad_token_id)
    return predictions_of(model, {**batch, "decoder_input_ids": canvas}, positions)


@torch.no_grad()
def predictions_of(model: JMNatForConditionalGeneration, batch: dict, positions: torch.Tensor) -> torch.Tensor:
    """Predict the target tokens at `positions`. Dropout is off; `<pad>`, `<mask>` and `<s>` are never predicted.

    Args:
        batch: `input_ids`, `attention_mask` (B, S), `decoder_input_ids` and `decoder_attention_mask` (B, T).
        positions: (B, T), True at the N tokens to predict.

    Returns:
        (N,) token ids, row by row.
    """
    if hasattr(model, "get_base_model"):  # a PEFT model; its adapter layers stay in place
        model = model.get_base_model()
    config = model.config
    was_training = model.training
    model.eval()
    outputs = model.model(*(batch[name] for name in PASS_INPUTS))
    model.train(was_training)
    logits = model.lm_head(outputs.last_hidden_state[positions])  # (N, V)
    never = (config.pad_token_id, config.mask_token_id, config.bos_token_id)
    logits[:, [token for token in never if token is not None]] = -torch.inf
    return logits.argmax(dim=-1)


def labels_with_predictions(
    model: JMNatForConditionalGeneration, batch: dict, positions: torch.Tensor, predict: Callable
) -> torch.Tensor:
    """Labels (B, T) with predictions at `positions` (B, T); sentences without such positions are not predicted."""
    rows = positions.any(dim=1).nonzero().squeeze(1)
    if not len(rows):
        return batch["labels"]
    predictions = predict(model, {name: batch[name][rows] for name in PASS_INPUTS}, positions[rows])
    return batch["labels"].masked_scatter(positions, predictions)


def after_glancing(model: JMNatForConditionalGeneration, batch: dict, ratio: float) -> dict:
    """Reveal part of the reference in the sentences that take part in glancing.

    In a sentence with d wrong tokens in the first pass, the first round(ratio * d) tokens of its order are revealed
    (halves round to even), whether the model got them right or not. They are removed from `masked_positions`.

    Args:
        batch: a batch of `DataCollatorForJMNat` with `glancing_order` (B, T), which is -1 at padding and in sentences
            that are not fully masked, which do not change.
        ratio: tokens to reveal for each wrong one.

    Returns:
        A new batch without `glancing_order`.
    """
    batch = dict(batch)
    order = batch.pop(GLANCING_ORDER)
    takes_part = order >= 0
    wrong = labels_with_predictions(model, batch, takes_part, first_pass_predictions) != batch["labels"]
    num_shown = (ratio * wrong.sum(dim=1, keepdim=True).double()).round()  # (B, 1)
    shown = takes_part & (order < num_shown)
    batch["decoder_input_ids"] = torch.where(shown, batch["labels"], batch["decoder_input_ids"])
    batch["masked_positions"] = batch["masked_positions"] & ~shown
    return batch


def after_second_mask(model: JMNatForConditionalGeneration, batch: dict) -> dict:
    """Mask the model's own predictions a second time in the sentences that take part.

    In a sentence of T tokens with d errors among M predictions, the first max(1, round(T d / M)) tokens of its order
    become `<mask>`, whether they were masked before or not. The others hold the prediction if there is one, else the
    reference. `masked_positions` then contains only the second masks.

    Args:
        batch: a batch of `DataCollatorForJMNat` with `second_mask_order` (B, T), which is -1 at padding and in
            sentences that do not take part, which do not change.

    Returns:
        A new batch without `second_mask_order`.
    """
    batch = dict(batch)
    order = batch.pop(SECOND_MASK_ORDER)
    takes_part = order >= 0
    predicted = batch["masked_positions"] & takes_part
    canvas = labels_with_predictions(model, batch, predicted, predictions_of)
    wrong = (canvas != batch["labels"]).sum(dim=1).double() / predicted.sum(dim=1).clamp(min=1)
    num_masked = (wrong * takes_part.sum(dim=1)).round().clamp(min=1).unsqueeze(1)  # (B, 1)
    masked = takes_part & (order < num_masked)
    canvas = canvas.masked_fill(masked, model.config.mask_token_id)
    batch["decoder_input_ids"] = torch.where(takes_part, canvas, batch["decoder_input_ids"])
    batch["masked_positions"] = torch.where(takes_part, masked, batch["masked_positions"])
    return batch


def awaits_predictions(batch: dict) -> bool:
    """Whether the masks of a batch depend on what the model gets wrong."""
    return not batch.keys().isdisjoint((GLANCING_ORDER, SECOND_MASK_ORDER))


def with_final_masks(model: JMNatForConditionalGeneration, batch: dict, glancing_ratio: float) -> dict:
    """A batch that awaits predictions, after glancing and second masks."""
    if GLANCING_ORDER in batch:
        batch = after_glancing(model, batch, glancing_ratio)
    if SECOND_MASK_ORDER in batch:
        batch = after_second_mask(model, batch)
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
