"""What the paper's other systems share: the basic NAT (section 3), to which each adds an idea.

The basic NAT copies the source uniformly to the target length and predicts all target tokens in one pass. A system
changes its decoder input, its loss or its decoding. Shapes: B sentences, C candidates, S source tokens, T target
positions, D width, V vocabulary.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoModelForSeq2SeqLM
from transformers.utils import can_return_tuple

from ..configuration_jmnat import JMNatConfig, JMNatOptions
from ..losses_jmnat import JMNatGenerateOutput, choose_candidates
from ..modeling_jmnat import JMNatForConditionalGeneration, JMNatSeq2SeqLMOutput, token_mask
from ..passes_jmnat import MaskPredict


def option(default: Any, text: str, least: float = 0, most: float = math.inf) -> Any:
    """A field of a configuration that is an option of training, too; its value lies from `least` to `most`."""
    return field(default=default, metadata={"help": text, "least": least, "most": most})


@strict
class NatConfig(JMNatConfig):
    """A `JMNatConfig` with the fields of one system, which its module explains by `option`."""

    model_type = "nat"
    keys_to_ignore_at_inference = [*JMNatConfig.keys_to_ignore_at_inference, "system_loss"]

    decoder_input: str = "source_copy"
    ngram_loss_weight: float | int = 0.0
    system_loss_weight: float | int = option(1.0, "Weight of the loss term that this system adds.")

    def __post_init__(self, **kwargs):
        for item in fields(type(self)):
            if "least" not in item.metadata:
                continue
            value, least, most = getattr(self, item.name), item.metadata["least"], item.metadata["most"]
            if not least <= value <= most:
                allowed = f"at least {least}" if most == math.inf else f"in [{least}, {most}]"
                raise ValueError(f"{item.name}={value} must be {allowed}")
        super().__post_init__(**kwargs)


@dataclass
class NatOutput(JMNatSeq2SeqLMOutput):
    """As of JM-NAT, with `system_loss`, the unweighted term that a system adds, divided by target tokens."""

    system_loss: torch.Tensor | None = None


class NatForConditionalGeneration(JMNatForConditionalGeneration):
    """The basic NAT as a base class. `forward` is for training; `generate` is JM-NAT's with one pass."""

    config: NatConfig
    settings: dict[str, Any] = {}  # training options that define the system, beside those of the basic NAT
    needs_guide = ""  # what the model given by `--guide` is for; empty: the system takes none
    guide_is_teacher = True  # the model whose weights it starts with may be the guide
    needs_logits = False  # for its loss, at all target positions
    recorded: dict[str, Any] = {}  # arguments that make the network tell more of its states
    decoding_class = MaskPredict

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        AutoModelForSeq2SeqLM.register(cls.config_class, cls, exist_ok=True)

    def check_guide(self, guide) -> None:
        """Raise ValueError for a guide that the system cannot learn from."""

    def hints(self, batch: dict, guide, progress: float) -> dict:
        """Further arguments of `forward`, computed without gradients.

        Args:
            batch: of the data collator.
            guide: the autoregressive model that the system learns from, or None.
            progress: share of the updates that are done; 1 in evaluation.
        """
        return {}

    def learn_from_step(self, batches: list[dict], guide, total) -> None:
        """What a system learns otherwise than by gradients, before a step.

        Args:
            batches: all those of the step in this process, to which hints may be added.
            guide: as for `hints`.
            total: adds up a tensor over the processes.
        """

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, labels=None, loss_denominators=None, **hints) -> NatOutput:  # type: ignore[override]
        """One pass and the losses.

        Args:
            input_ids, attention_mask: (B, S).
            labels: (B, T) the whole target, -100 at padding.
            loss_denominators: as for JM-NAT.
            hints: what the collator adds, and those of the method `hints`. Other methods find the source there, too.

        Raises:
            ValueError: no labels.
        """
        target_mask = mask_of(labels)
        attention_mask = token_mask(attention_mask, input_ids, None, self.config.pad_token_id)
        hints |= {"input_ids": input_ids, "attention_mask": attention_mask}
        encoded = self.model.encoder(input_ids, attention_mask)
        read = self.decoder_ids(labels, hints)
        outputs = self.model(input_ids, attention_mask, read, target_mask, encoded, **self.recorded)
        result = self.with_losses(outputs, labels, loss_denominators, hints.get("encoder_targets"))
        self.add_system_loss(result, self.system_loss(result, outputs, labels, hints), labels, loss_denominators)
        return result

    def decoder_ids(self, labels: torch.Tensor, hints: dict) -> torch.Tensor:
        """(B, T) what the decoder reads in training."""
        return self.copy_source(hints["input_ids"], hints["attention_mask"], labels != -100)

    def with_losses(self, outputs, labels, loss_denominators, encoder_targets=None) -> NatOutput:
        """The losses of the basic NAT: of all target tokens and of the length."""
        result = NatOutput(length_logits=outputs.length_logits)
        if self.needs_logits or not self.training:
            result.logits = self.project(outputs.last_hidden_state)  # (B, T, V)
        self.add_losses(result, outputs, labels, labels != -100, encoder_targets, loss_denominators)
        return result

    def system_loss(self, result: NatOutput, outputs, labels: torch.Tensor, hints: dict) -> torch.Tensor | None:
        """Sum over the batch of what the system adds to the loss."""
        return None

    def add_system_loss(self, result: NatOutput, loss: torch.Tensor | None, labels, loss_denominators) -> None:
        if loss is not None:
            tokens = labels.ne(-100).sum() if loss_denominators is None else loss_denominators[0]
            result.system_loss = loss / tokens
            result.loss = result.loss + self.config.system_loss_weight * result.system_loss

    # Decoding --------------------------------------------------------------------------------------------------------

    def _options_of_canvas(self, options: JMNatOptions, target_lengths) -> JMNatOptions:
        raise ValueError(f"decoder_input_ids is not supported by a {self.config.model_type} model: it has no masks")

    def _decode(
        self, options, lengths, states, source_mask, input_ids=None, reranker=None,
        num_positions=None, rightful=None, canvas=None, after_pass=None
    ) -> tuple[JMNatGenerateOutput, torch.Tensor]:  # fmt: skip
        if rightful is None:
            rightful = self._rightful_repeats(options, source_mask, input_ids)
        suppressed = self._suppressed_tokens(options, lengths.device)
        decoding = self.decoding_class(
            self, options, lengths, states, source_mask, suppressed, num_positions, rightful
        )
        decoding.run(self.copy_source(input_ids, source_mask, decoding.target_mask), after_pass)
        return choose_candidates(decoding, source_mask, input_ids, reranker)


def mask_of(labels: torch.Tensor | None) -> torch.Tensor:
    """(B, T) bool, True at target tokens."""
    if labels is None:
        raise ValueError("labels is missing: forward computes losses, translate with generate")
    return labels != -100


def teacher_batch(guide, batch: dict) -> dict:
    """Arguments with which an autoregressive model reads the target of a batch: shifted, behind its start token."""
    labels, config = batch["labels"], guide.config
    start = config.decoder_start_token_id
    target = labels.masked_fill(labels == -100, config.pad_token_id)
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "decoder_input_ids": F.pad(target[:, :-1], (1, 0), value=start),
        "use_cache": False,
    }
