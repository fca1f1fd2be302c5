"""FCL-NAT: from autoregressive to non-autoregressive by a curriculum (Guo et al., AAAI 2020, "Fine-Tuning by
Curriculum Learning for Non-Autoregressive Neural Machine Translation").

Training begins as that of an autoregressive model, which reads the target shifted behind its start and attends to the
left. Then more and more decoder inputs become the copied source (substitution of the input), and more and more
sentences attend to both sides (substitution of the mask), until it is that of a basic NAT. A sentence that attends to
both sides reads the copied source alone, or it would see what it is to predict. The paper has pacing functions of
several shapes; this one is linear. Its first stage, autoregressive training until it has converged, is that of the
model whose weights this one starts with (`--init_from_teacher`): the curriculum begins at once. With random weights
give it a `curriculum_begin`.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers.utils import can_return_tuple

from ..modeling_jmnat import JMNatSeq2SeqModelOutput, token_mask
from .base import NatConfig, NatForConditionalGeneration, NatOutput, mask_of, option


@strict
class FclNatConfig(NatConfig):
    model_type = "fcl_nat"
    exclude_self_attention: bool = False  # an autoregressive decoder attends to the position itself
    curriculum_begin: float | int = option(
        0.0, "Share of the updates before which training is autoregressive.", most=1
    )
    curriculum_end: float | int = option(0.3, "Share of the updates after which it is that of a basic NAT.", most=1)


def substitution_rate(progress: float, begin: float, end: float) -> float:
    """Share of substituted inputs and masks at the share `progress` of the updates: 0 at `begin`, 1 at `end`."""
    if progress >= end:
        return 1.0
    return 0.0 if progress <= begin else (progress - begin) / (end - begin)


def substitute(labels, copied, start: int, rate: float, uniforms) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoder inputs (B, T), and (B, T, T) bool, True where a position attends to another.

    Args:
        labels: (B, T), -100 at padding.
        copied: (B, T) source ids, the inputs of a basic NAT.
        start: id before the target.
        rate: of substitution, 0 for an autoregressive model, 1 for a basic NAT.
        uniforms: (B, T or more, 2 or more) random numbers in [0, 1): which inputs, and first which sentences' masks.
    """
    shifted = F.pad(labels[:, :-1], (1, 0), value=start)
    shifted = torch.where(labels != -100, shifted, copied)
    both_sides = uniforms[:, :1, 1] < rate  # (B, 1)
    substituted = both_sides | (uniforms[:, : labels.shape[1], 0] < rate)
    to_the_left = torch.ones(labels.shape[1], labels.shape[1], dtype=torch.bool, device=labels.device).tril()
    attend = (labels != -100)[:, None, :] & (both_sides[:, :, None] | to_the_left)
    return torch.where(substituted, copied, shifted), attend


class FclNatForConditionalGeneration(NatForConditionalGeneration):
    config: FclNatConfig
    settings = {"exclude_self_attention": False, "system_loss_weight": 0.0}  # its loss is the basic NAT's

    def hints(self, batch, guide, progress):
        return {"rate": substitution_rate(progress, self.config.curriculum_begin, self.config.curriculum_end)}

    @can_return_tuple
    def forward(  # type: ignore[override]
        self, input_ids=None, attention_mask=None, labels=None, loss_denominators=None, rate=1.0, **hints
    ) -> NatOutput:
        if rate == 1.0:
            return super().forward(input_ids, attention_mask, labels, loss_denominators, **hints)
        target_mask, encoded = mask_of(labels), self.model.encoder(input_ids, attention_mask)
        copied = self.copy_source(input_ids, attention_mask, target_mask)
        read, attend = substitute(labels, copied, self.config.eos_token_id, rate, hints["uniforms"])
        source_mask = token_mask(attention_mask, input_ids, None, self.config.pad_token_id)
        state = self.model.decoder.prepare_state(target_mask, source_mask)
        state.attend_mask = attend[:, None] | ~target_mask[:, None, :, None]  # padding may look at anything
        states = self.model.decoder(read, encoder_hidden_states=encoded.last_hidden_state, state=state)
        outputs = JMNatSeq2SeqModelOutput(
            last_hidden_state=states.last_hidden_state,
            length_logits=encoded.length_logits,
            encoder_last_hidden_state=encoded.last_hidden_state,
        )
        return self.with_losses(outputs, labels, loss_denominators, hints.get("encoder_targets"))
