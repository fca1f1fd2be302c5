"""Start a JM-NAT from an autoregressive model: both are Transformers with the same blocks under the same names."""

from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from ..modeling_jmnat import JMNatForConditionalGeneration


@dataclass
class CopiedWeights:
    """Names of the student's tensors that were copied, and the others with the reason."""

    copied: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    num_copied: int = 0
    num_parameters: int = 0

    def describe(self) -> str:
        """One sentence; tensors of the same kind in different layers are named once."""
        kinds: dict[str, str] = {}
        for name, reason in self.left.items():
            kinds.setdefault(".".join("*" if part.isdigit() else part for part in name.split(".")), reason)
        left = "; ".join(f"{kind}: {reason}" for kind, reason in kinds.items())
        share = 100 * self.num_copied / self.num_parameters
        return f"copied {len(self.copied)} tensors, {share:.1f} % of the parameters. Not copied: {left or 'none'}"


@torch.no_grad()
def copy_teacher_weights(student: JMNatForConditionalGeneration, teacher: PreTrainedModel) -> CopiedWeights:
    """Copy embeddings, encoder, decoder self- and cross-attention, feed-forward and layer norms where they fit.

    Positional attention, which the teacher lacks, gets a zero output projection: it adds nothing at the beginning, so
    that the first step sees the teacher's own layers. Layers are matched by number; their numbers may differ.

    Args:
        teacher: `MarianMTModel`, `M2M100ForConditionalGeneration` or another model with Bart's names of layers.

    Raises:
        ValueError: the vocabularies differ in size, or hardly anything fits.
    """
    if teacher.config.vocab_size != student.config.vocab_size:
        raise ValueError(
            f"the teacher's vocabulary has {teacher.config.vocab_size} tokens and the student's "
            f"{student.config.vocab_size}: they must share one tokenizer"
        )
    theirs = dict(teacher.named_parameters())
    report = CopiedWeights()
    for name, parameter in student.named_parameters():
        report.num_parameters += parameter.numel()
        source = theirs.get(name)
        if source is not None and source.shape == parameter.shape:
            parameter.copy_(source)
            report.copied.append(name)
            report.num_copied += parameter.numel()
        elif source is not None:
            report.left[name] = f"is {tuple(source.shape)} there and {tuple(parameter.shape)} here"
        else:
            report.left[name] = "not in the teacher"
    if report.num_copied < 0.5 * report.num_parameters:
        raise ValueError(
            f"only {report.num_copied} of {report.num_parameters} parameters fit this teacher ({report.describe()})"
        )
    for layer in student.get_decoder().layers:
        if layer.position_attn is not None:
            nn.init.zeros_(layer.position_attn.out_proj.weight)
            nn.init.zeros_(layer.position_attn.out_proj.bias)
    for name in report.left:
        if ".position_attn.out_proj." in name:
            report.left[name] = "set to zero"
    return report
