"""NAT-IR: iterative refinement (Lee, Mansimov and Cho, EMNLP 2018, "Deterministic Non-Autoregressive Neural Sequence
Modeling by Iterative Refinement").

The first pass reads the copied source, each further pass the whole translation of the pass before. In training each
refining pass reads the model's own translation or, in a share of the sentences, a corrupted reference (denoising), and
all passes are to predict the reference. The paper has a second decoder for the refining passes, which also reads the
hidden states of the pass before; here one decoder does both, so that the system is as large as the others, and the
refining passes together weigh as much as the first one, whose decoder they share.
"""

import torch
from huggingface_hub.dataclasses import strict
from transformers.utils import can_return_tuple

from ..passes_jmnat import MaskPredict
from .base import NatConfig, NatForConditionalGeneration, NatOutput, mask_of, option

GOLDEN_RATIO = 0.618  # steps of this size around a circle come to lie far from each other


@strict
class NatIRConfig(NatConfig):
    model_type = "nat_ir"
    decoder_input: str = "mask"  # so that several passes are possible; what it reads in the first is the source
    refining_passes: int = option(3, "Refining passes behind the first one in training.", 1)
    denoising_share: float | int = option(
        0.5, "Share of the sentences whose refining pass reads a corruption, drawn for each pass.", most=1
    )
    corruption: float | int = option(0.5, "Share of the reference's tokens that are corrupted for it.", most=1)


def corrupt(tokens: torch.Tensor, lengths: torch.Tensor, uniforms: torch.Tensor, share: float, vocab_size: int):
    """Noise on tokens (B, T), from left to right (the paper's corruption process, after Hill et al. 2016).

    A corrupted token, with equal chances, replaces the one behind it, becomes a random one, or changes places with the
    one behind it; the last token has none behind it.

    Args:
        lengths: (B,) numbers of tokens.
        uniforms: (B, T or more, 3 or more) random numbers in [0, 1]: whether, how, and which random token.
    """
    columns = list(tokens.unbind(dim=1))
    random_ids = (uniforms[..., 2] * vocab_size).long().clamp(max=vocab_size - 1)  # rounding may lead to 1
    kinds = (uniforms[..., 1] * 3).long()
    for t in range(len(columns)):
        chosen = (uniforms[:, t, 0] < share) & (t < lengths)
        here = columns[t]
        columns[t] = torch.where(chosen & (kinds[:, t] == 1), random_ids[:, t], here)
        if t + 1 < len(columns):
            inside, behind = chosen & (t + 1 < lengths), columns[t + 1]
            columns[t] = torch.where(inside & (kinds[:, t] == 2), behind, columns[t])
            columns[t + 1] = torch.where(inside & (kinds[:, t] != 1), here, behind)
    return torch.stack(columns, dim=1)


class Refinement(MaskPredict):
    """Each pass reads all tokens of the one before and predicts all of them."""

    def one_pass(self, iteration: int, first_tokens: torch.Tensor | None = None) -> None:
        rows, before = self.rows, self.rows.canvas
        read = before.tokens if first_tokens is None or iteration else first_tokens
        rows.canvas = self.predict(read, rows.remasking.every_position())
        if self.options.output_history:
            self.record(read)
        if iteration + 1 < self.options.num_iterations:
            self.stop_rows(iteration, before)


class NatIRForConditionalGeneration(NatForConditionalGeneration):
    config: NatIRConfig
    settings = {"decoder_input": "mask"}
    needs_logits = True
    decoding_class = Refinement

    @can_return_tuple
    def forward(  # type: ignore[override]
        self, input_ids=None, attention_mask=None, labels=None, loss_denominators=None, uniforms=None, **hints
    ) -> NatOutput:
        """`nll_loss` is that of the first pass, `system_loss` the mean of the refining passes'."""
        target_mask, encoded = mask_of(labels), self.model.encoder(input_ids, attention_mask)
        read, results = self.copy_source(input_ids, attention_mask, target_mask), []
        for number in range(1 + self.config.refining_passes):
            if number:
                read = results[-1].logits.argmax(dim=-1).masked_fill(~target_mask, self.config.pad_token_id)
                read = self.with_corruption(read, labels, uniforms, number)
            outputs = self.model(input_ids, attention_mask, read, target_mask, encoded)
            results.append(self.with_losses(outputs, labels, loss_denominators, hints.get("encoder_targets")))
        first, *refining = results
        first.system_loss = torch.stack([result.nll_loss for result in refining]).mean()
        first.loss = first.loss + self.config.system_loss_weight * first.system_loss
        return first

    def with_corruption(self, predictions, labels, uniforms, number: int) -> torch.Tensor:
        """What refining pass `number` reads: `predictions` (B, T) or, in some sentences, a corrupted reference."""
        config, is_token = self.config, labels != -100
        if uniforms is None or not self.training:
            return predictions
        uniforms = (uniforms + (number - 1) * GOLDEN_RATIO) % 1  # others in each pass
        reference = labels.masked_fill(~is_token, config.pad_token_id)
        noisy = corrupt(reference, is_token.sum(dim=1), uniforms, config.corruption, config.vocab_size)
        return torch.where(uniforms[:, :1, 3] < config.denoising_share, noisy, predictions)
