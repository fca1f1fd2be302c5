"""`TeacherTrainer`: training of the autoregressive teacher by cross-entropy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from ..losses_jmnat import chosen_log_probs, smoothed_nll
from ..training.arguments import TeacherTrainingArguments
from ..training.data_collator import check_known_ids
from ..training.trainer import TranslationTrainer
from ..utils.id_batches import pad_batch


class DataCollatorForTeacher:
    """Pads examples and shifts the target: `decoder_input_ids` begin with `</s>`, `labels` end with it.

    Returns `input_ids`, `attention_mask` (B, S), `decoder_input_ids` and `labels` (B, T; -100 at padding); ValueError
    for an id that is not in the tokenizer's vocabulary.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.pad_token_id = tokenizer.pad_token_id
        self.start_token_id = tokenizer.eos_token_id
        self.vocab_size = len(tokenizer)

    def evaluation(self) -> "DataCollatorForTeacher":
        return self  # it draws nothing at random

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sources, targets = ([feature[name] for feature in features] for name in ("input_ids", "labels"))
        for name, rows in (("input_ids", sources), ("labels", targets)):
            check_known_ids(features, name, rows, self.vocab_size)
        input_ids, attention_mask = pad_batch(sources, self.pad_token_id)
        labels, _ = pad_batch(targets, -100)
        decoder_input_ids, _ = pad_batch([[self.start_token_id, *ids[:-1]] for ids in targets], self.pad_token_id)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "decoder_input_ids": decoder_input_ids,
            "labels": labels,
        }


@dataclass
class TeacherOutput(ModelOutput):
    """`loss` is label-smoothed, `nll_loss` is not; both are sums over target tokens divided by the step's tokens."""

    loss: torch.Tensor | None = None
    nll_loss: torch.Tensor | None = None


def teacher_losses(model, batch: dict, smoothing: float, denominators: torch.Tensor | None = None) -> TeacherOutput:
    """Cross-entropy of a batch of `DataCollatorForTeacher`, over its own target tokens or `denominators[0]`."""
    labels = batch["labels"].flatten()  # (B T,)
    index = labels.ne(-100).nonzero().squeeze(1)  # (N,)
    outputs = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False)
    logits = outputs.logits.flatten(0, 1).index_select(0, index)  # (N, V)
    log_probs, means = chosen_log_probs(logits, labels[index].unsqueeze(1))
    tokens = len(index) if denominators is None else denominators[0]
    return TeacherOutput(
        loss=smoothed_nll(log_probs, means, smoothing) / tokens,
        nll_loss=smoothed_nll(log_probs.detach(), means.detach(), 0.0) / tokens,
    )


class TeacherTrainer(TranslationTrainer):
    """Trains an autoregressive model by label-smoothed cross-entropy.

    The loss of a step is divided by its target tokens over all accumulation steps and processes. Evaluation reports
    the loss without smoothing, and sacreBLEU for each of `eval_num_beams`.
    """

    arguments_class = TeacherTrainingArguments
    loss_parts = ("nll_loss",)

    def __init__(self, model, args: TeacherTrainingArguments, processing_class=None, **kwargs):
        collator = DataCollatorForTeacher(processing_class)
        super().__init__(model, args, collator, processing_class=processing_class, **kwargs)

    def count_predicted(self, batch: dict) -> torch.Tensor:
        return batch["labels"].ne(-100).sum()

    def loss_outputs(self, model, batch: dict, denominators: torch.Tensor | None) -> TeacherOutput:
        return teacher_losses(model, batch, self.args.label_smoothing_factor, denominators)

    def loss_weights(self) -> dict[str, float]:
        return {"nll_loss": 1.0}
