"""Training of the paper's other systems: `jmnat train --system NAME`, with JM-NAT's data, trainer and options."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial

import torch

from ..data.preparation import load_prepared
from ..inference.loading import load_teacher, load_teacher_tokenizer
from ..training.command import RunArguments, TrainingCommand, parse_command
from ..training.data_collator import DataCollatorForJMNat, example_id
from ..training.even_batches import FILLER
from ..training.initial_weights import check_same_tokenizer
from ..training.masking import draw_uniforms
from ..training.options import MaskingOptions, ModelOptions
from ..training.run import run_training
from ..training.trainer import JMNatTrainer
from ..utils.command_line import read_ahead
from . import BASIC_NAT, SYSTEMS
from .base import NatForConditionalGeneration

NUM_UNIFORMS = 4


@dataclass
class SystemArguments(RunArguments):
    """What to train on, what to start from and what to learn from."""

    guide: str | None = field(
        default=None,
        metadata={
            "help": "The autoregressive model that the system learns from, with the tokenizer of the data: of nat_ft "
            "the aligner and of imitate_nat the demonstrator (default: --init_from_teacher), of nat_reg a model that "
            "translates backwards."
        },
    )


def system_class(name: str) -> type[NatForConditionalGeneration]:
    """The model class of a system; ValueError for an unknown name."""
    if name not in SYSTEMS:
        raise ValueError(f"system={name!r} is not one of {', '.join(SYSTEMS)}; leave it out for JM-NAT")
    module = importlib.import_module(f"{__package__}.{name}")
    return getattr(module, f"{SYSTEMS[name]}ForConditionalGeneration")


def system_options(model_class: type[NatForConditionalGeneration]) -> type[ModelOptions]:
    """`ModelOptions` with the fields that the configuration of a system declares by `option`."""
    options = []
    for item in fields(model_class.config_class):
        if text := item.metadata.get("help"):  # a number that may be whole is read as any other
            kind = item.type if item.type is int else float
            options.append((item.name, kind, field(default=item.default, metadata={"help": text})))
    return make_dataclass("SystemOptions", options, bases=(ModelOptions,))


class DataCollatorForNat(DataCollatorForJMNat):
    """Adds `uniforms` (B, max(S, T), 4), drawn by seed, epoch and example, for systems that disturb a sentence."""

    def __call__(self, features):
        batch = super().__call__(features)
        sizes = [NUM_UNIFORMS * max(batch[name].shape[1] for name in ("input_ids", "labels"))] * len(features)
        ids = [example_id(feature) for feature in features]
        uniforms = draw_uniforms(self.seed + 1, self.epoch, ids, sizes)  # other numbers than those of the masks
        return batch | {"uniforms": uniforms.unflatten(1, (-1, NUM_UNIFORMS)).float()}


class NatTrainer(JMNatTrainer):
    """Trains a system of this room; `guide` is the frozen model that it learns from."""

    loss_parts = (*JMNatTrainer.loss_parts, "system_loss")

    def __init__(self, model, args, data_collator, guide=None, **kwargs):
        super().__init__(model, args, data_collator, **kwargs)
        self.guide = None
        if guide is not None:
            model.check_guide(guide)
            guide.set_attn_implementation("eager")  # others do not tell their attention
            self.guide = guide.to(args.device).eval().requires_grad_(False)

    def count_predicted(self, batch: dict) -> torch.Tensor:
        return batch["labels"].ne(-100).sum()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, denominators = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            counting = [batch for batch in batches if FILLER not in batch]
            plain, total = self.accelerator.unwrap_model(self.model), partial(self.accelerator.reduce, reduction="sum")
            with torch.no_grad(), self.accelerator.autocast():
                plain.learn_from_step(counting, self.guide, total)
        return batches, denominators

    def loss_outputs(self, model, batch: dict, denominators: torch.Tensor | None):
        plain = self.accelerator.unwrap_model(self.model)
        progress = self.state.global_step / max(1, self.state.max_steps) if model.training else 1.0
        with torch.no_grad(), self.accelerator.autocast():
            hints = plain.hints(batch, self.guide, progress)
        return model(**batch, **hints, loss_denominators=denominators)

    def loss_weights(self) -> dict[str, float]:
        return super().loss_weights() | {"system_loss": self.model.config.system_loss_weight}


def parse_system(name: str, argv: Sequence[str] | None, description: str) -> TrainingCommand:
    """`parse_command` with the options of a system, and what makes it above the preset.

    Raises:
        ValueError: an unknown system, or options that do not fit together.
    """
    model_class = system_class(name)
    if read_ahead(argv, "init_from").init_from is not None:
        raise ValueError(f"init_from is not possible with system={name}: start from random weights or a teacher's")
    fixed = {item.name: item.default for item in fields(MaskingOptions) if item.name != "pad_to_multiple_of"}
    fixed |= BASIC_NAT if name == "nat_dcrf" else {**BASIC_NAT, "crf_rank": 0}
    settings = fixed | model_class.settings
    command = parse_command(argv, description, SystemArguments, system_options(model_class), settings)
    run, chosen = command.run, command.model | command.masking
    for option_name in fixed:
        if chosen[option_name] != settings[option_name]:
            raise ValueError(
                f"{option_name}={chosen[option_name]} is of JM-NAT alone, and must be {settings[option_name]} with "
                f"system={name}: leave it out"
            )
    if run.guide is not None and not model_class.needs_guide:
        raise ValueError(f"guide={run.guide} has no use with system={name}: leave it out")
    if run.guide is None and model_class.guide_is_teacher:
        run.guide = run.init_from_teacher if model_class.needs_guide else None
    if run.guide is None and model_class.needs_guide:
        raise ValueError(f"guide is missing: system={name} needs {model_class.needs_guide}, give --guide DIR")
    return command


def run_system(command: TrainingCommand) -> dict:
    """Train the system that `parse_system` has read, as `run_training` trains JM-NAT."""
    guide, where = None, command.run.guide
    if where is not None:
        check_same_tokenizer(load_teacher_tokenizer(where), load_prepared(command.run.data)[1], where)
        guide = load_teacher(where, dtype=torch.float32)[0]
    return run_training(
        command, system_class(command.run.system), DataCollatorForNat, partial(NatTrainer, guide=guide)
    )
