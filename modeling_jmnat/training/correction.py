"""Correction training in the manner of CMLMC (Huang et al. 2022), beyond the paper.

Decoding shows the model its own mistakes as if they were context, training shows it the reference alone. Here a share
of the visible target tokens is what the model itself predicts from a fully masked target, and it learns to put them
right. Decode such a model with `update_all=True`, which lets every pass change every token.
"""

from ..modeling_jmnat import JMNatForConditionalGeneration
from .first_pass import first_pass_predictions


def with_own_predictions(model: JMNatForConditionalGeneration, batch: dict) -> dict:
    """The batch without `correction_positions` (B, T), where `decoder_input_ids` now hold the model's predictions.

    It costs one pass more, without gradients.
    """
    batch = dict(batch)
    positions = batch.pop("correction_positions")
    predictions = first_pass_predictions(model, batch, positions)
    batch["decoder_input_ids"] = batch["decoder_input_ids"].masked_scatter(positions, predictions)
    return batch
