"""Glancing training (GLAT; Qian et al. 2021, section 3), beyond the paper.

A sentence whose whole target is `<mask>` first shows what the model can do on its own: one pass without gradients.
The more of it is wrong, the more tokens of the reference are then shown; the model learns to predict the others. So a
first decoding pass is learnt from easy cases to hard ones.
"""

import torch

from ..modeling_jmnat import JMNatForConditionalGeneration
from .first_pass import first_pass_predictions

ORDER = "glancing_order"


def after_glancing(model: JMNatForConditionalGeneration, batch: dict, ratio: float) -> dict:
    """The batch without `glancing_order` (B, T), in which wrongly predicted sentences show part of their reference.

    Of a sentence with d wrong tokens in the first pass, round(ratio * d) are shown (halves go to the even neighbour):
    those that come first in its `glancing_order`, right or wrong. They leave `masked_positions`. An order of -1 marks
    padding and sentences that are not fully masked; nothing changes there.
    """
    batch = dict(batch)
    order = batch.pop(ORDER)
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
