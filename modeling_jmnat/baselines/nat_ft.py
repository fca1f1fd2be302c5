"""NAT-FT: fertilities and noisy parallel decoding (Gu et al., ICLR 2018, "Non-Autoregressive Neural Machine
Translation").

Each source token predicts its fertility, the number of target tokens that it stands for, and the decoder reads each
source token as many times. Fertilities to learn from come from the cross-attention of an autoregressive teacher, where
the paper has an external aligner. Noisy parallel decoding samples fertilities (`num_length_candidates`, the first
candidate has the most probable ones) and lets the teacher choose (`reranker`).

In the last updates the teacher may also judge the model's own translations: the paper's fine-tuning, which needs a
model that translates well already. It is off unless `fine_tuning_begin` is below 1.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn

from ..losses_jmnat import choose_candidates
from ..passes_jmnat import MaskPredict
from ..training.data_collator import example_id
from ..training.masking import draw_uniforms
from .base import NatConfig, NatForConditionalGeneration, option, teacher_batch

SAMPLING_SEED = 2018  # of fertilities: a sentence always gets the same
# The paper weighs the terms of fine-tuning by 0.25 and all others by 0.75.
FINE_TUNING_WEIGHT = 0.25 / 0.75


@strict
class NatFTConfig(NatConfig):
    model_type = "nat_ft"
    max_fertility: int = option(50, "Highest fertility of a source token.", 1)
    fine_tuning_begin: float | int = option(1.0, "Share of the updates after which fine-tuning begins.", most=1)


def fertilities_of(attention: torch.Tensor, source_mask: torch.Tensor, target_mask: torch.Tensor) -> torch.Tensor:
    """How many target tokens are aligned to each source token (B, S): each one to the token that it attends to most.

    The last source token, `</s>`, gets the last target token and no other: attention to nothing rests there.

    Args:
        attention: (B, T, S), of target tokens to source tokens.
        source_mask, target_mask: (B, S) and (B, T) bool.
    """
    last = source_mask & (source_mask.cumsum(dim=1) == source_mask.sum(dim=1, keepdim=True))  # (B, S)
    first = source_mask & (source_mask.cumsum(dim=1) == 1)
    attention = attention.masked_fill(~(source_mask & (first | ~last))[:, None], -1.0)
    is_last = target_mask & ~F.pad(target_mask[:, 1:], (0, 1))  # (B, T)
    aligned = torch.where(is_last, last.int().argmax(dim=1)[:, None], attention.argmax(dim=-1))
    return torch.zeros_like(source_mask, dtype=torch.long).scatter_add(1, aligned, target_mask.long())


def copy_by_fertility(input_ids: torch.Tensor, fertilities: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Source ids (R, S), each as many times as fertilities (R, S) say, cut or filled up with the last to T ids."""
    positions = torch.arange(num_positions, device=input_ids.device).expand(len(input_ids), -1).contiguous()
    copied = torch.searchsorted(fertilities.cumsum(dim=1), positions, right=True)
    last = input_ids.shape[1] - 1
    return input_ids.gather(1, copied.clamp(max=last))


def sample_fertilities(log_probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Fertilities (B, S, N) whose cumulated probability passes uniforms (B, S, N); log_probs (B, S, L)."""
    cumulated = log_probs.exp().cumsum(dim=-1)
    sampled = (cumulated[:, :, None] <= uniforms[..., None]).sum(dim=-1)
    return sampled.clamp(max=log_probs.shape[-1] - 1)


class NatFTForConditionalGeneration(NatForConditionalGeneration):
    config: NatFTConfig
    settings = {"eval_num_length_candidates": 1}
    needs_guide = "an autoregressive teacher whose attention aligns"

    def __init__(self, config: NatFTConfig):
        super().__init__(config)
        self.fertility_head = nn.Linear(config.d_model, config.max_fertility + 1)
        self.generation_config.num_length_candidates = 1  # the most probable fertilities; others need a reranker
        self.post_init()

    def hints(self, batch, guide, progress):
        outputs = guide.base_model(**teacher_batch(guide, batch), output_attentions=True)  # words are not needed
        attention = torch.stack(outputs.cross_attentions).float().mean(dim=(0, 2))  # (B, T, S) over layers and heads
        fertilities = fertilities_of(attention, batch["attention_mask"].bool(), batch["labels"] != -100)
        fine_tunes = self.training and progress >= self.config.fine_tuning_begin
        return {"fertilities": fertilities, "guide": guide if fine_tunes else None}

    def decoder_ids(self, labels, hints):
        return copy_by_fertility(hints["input_ids"], hints["fertilities"], labels.shape[1])

    def system_loss(self, result, outputs, labels, hints):
        """Cross-entropy of the fertilities, and the terms of fine-tuning."""
        is_token, states = hints["attention_mask"], outputs.encoder_last_hidden_state
        logits = self.fertility_head(states).float()  # (B, S, L)
        fertilities = hints["fertilities"][is_token].clamp(max=logits.shape[-1] - 1)
        loss = F.cross_entropy(logits[is_token], fertilities, reduction="sum")
        if hints.get("guide") is None:
            return loss
        return loss + FINE_TUNING_WEIGHT * self.fine_tuning_loss(logits.log_softmax(dim=-1), states, hints)

    def fine_tuning_loss(self, log_probs: torch.Tensor, states: torch.Tensor, hints: dict) -> torch.Tensor:
        """Sum over sentences of the teacher's surprise at the translation by sampled fertilities.

        The translation learns from its gradient. Fertilities become less probable where a word surprises the teacher
        more, on average, than by the most probable fertilities (REINFORCE). The paper compares sums over words; in
        short trainings that taught little but short translations.

        Args:
            log_probs: (B, S, L) of the fertilities.
            states: (B, S, D) of the encoder.
        """
        is_token = hints["attention_mask"]
        sampled = sample_fertilities(log_probs.detach(), hints["uniforms"][:, : log_probs.shape[1], :1])  # (B, S, 1)
        chosen = log_probs.gather(2, sampled)[..., 0].masked_fill(~is_token, 0.0).sum(dim=1)  # (B,)
        surprise, mean = self.teachers_surprise(sampled[..., 0].masked_fill(~is_token, 0), states, hints)
        with torch.no_grad():
            _, usual = self.teachers_surprise(log_probs.argmax(dim=-1).masked_fill(~is_token, 0), states, hints)
        return (surprise + (mean.detach() - usual) * chosen).sum()

    def teachers_surprise(self, fertilities, states: torch.Tensor, hints: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """-log P of the teacher, which reads the most probable words, expected over those of each position.

        Returns:
            Sum and mean over the positions (B,).
        """
        lengths = fertilities.sum(dim=1).clamp(min=2, max=self.config.max_target_length)
        target_mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]  # (B, T)
        read = copy_by_fertility(hints["input_ids"], fertilities, target_mask.shape[1])
        decoded = self.model.decoder(read, target_mask, states, hints["attention_mask"])
        logits = self.project(decoded.last_hidden_state).float()  # (B, T, V)
        words = logits.argmax(dim=-1).masked_fill(~target_mask, -100)
        with torch.no_grad():
            theirs = hints["guide"](**teacher_batch(hints["guide"], hints | {"labels": words})).logits
            theirs = theirs[..., : logits.shape[-1]].float().log_softmax(dim=-1)
        expected = (logits[..., : theirs.shape[-1]].softmax(dim=-1) * theirs).sum(dim=-1)
        surprise = -(expected * target_mask).sum(dim=1)
        return surprise, surprise / lengths

    # Decoding --------------------------------------------------------------------------------------------------------

    def candidate_fertilities(self, states, source_mask, input_ids: torch.Tensor, num_candidates: int) -> torch.Tensor:
        """(B, C, S): the most probable fertilities, then sampled ones, which depend on the sentence alone."""
        log_probs = self.fertility_head(states).float().log_softmax(dim=-1)
        chosen = log_probs.argmax(dim=-1, keepdim=True)  # (B, S, 1)
        if num_candidates > 1:
            sources = zip(input_ids.cpu(), source_mask.cpu(), strict=True)
            ids = [example_id({"input_ids": source[mask], "labels": []}) for source, mask in sources]
            sizes = [source_mask.shape[1] * (num_candidates - 1)] * len(ids)
            drawn = draw_uniforms(SAMPLING_SEED, 0, ids, sizes).view(*source_mask.shape, -1).float().to(states.device)
            ranks = (source_mask.cumsum(dim=1) - 1).clamp(min=0)  # of the tokens, whichever side is padded
            drawn = drawn.gather(1, ranks[..., None].expand_as(drawn))
            chosen = torch.cat([chosen, sample_fertilities(log_probs, drawn)], dim=-1)
        return chosen.masked_fill(~source_mask[..., None], 0).transpose(1, 2)

    def _generate_by_passes(
        self, options, input_ids, target_lengths, reranker, canvas=None, after_pass=None, **source
    ):
        if target_lengths is not None:
            raise ValueError("target_lengths is not supported by a nat_ft model: fertilities make the length")
        if input_ids is None:
            raise ValueError("input_ids is missing: the source is copied to the decoder")
        states, source_mask, _ = self.encode_for_generation(input_ids, **source)
        num_candidates = options.num_length_candidates
        fertilities = self.candidate_fertilities(states, source_mask, input_ids, num_candidates)
        lengths = fertilities.sum(dim=-1).clamp(min=2, max=self._longest_target(options))  # (B, C)
        rightful = self._rightful_repeats(options, source_mask, input_ids)
        suppressed = self._suppressed_tokens(options, lengths.device)
        decoding = MaskPredict(self, options, lengths, states, source_mask, suppressed, rightful=rightful)
        rows = input_ids.repeat_interleave(num_candidates, dim=0)
        read = copy_by_fertility(rows, fertilities.flatten(0, 1), len(decoding.positions))
        decoding.run(read, after_pass)
        output, ends = choose_candidates(decoding, source_mask, input_ids, reranker)
        for name in ("sequences", "token_scores"):
            output[name] = output[name][:, : int(ends.max())]
        return output
