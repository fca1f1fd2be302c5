"""Training arguments: those of Transformers with our options, for a student and for a teacher."""

import math
import os
import tempfile
from dataclasses import dataclass, fields

import torch
from transformers import SchedulerType, Seq2SeqTrainingArguments, get_scheduler

from ..utils.command_line import check_counts
from ..utils.json_files import parse_json
from ..utils.workers import has_room_for_sockets
from .options import StudentOptions, TeacherOptions, TranslationOptions

# Launchers that start several processes set one of these variables.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
SOCKET_CHARACTERS = 32  # added by Python to the path of the temporary folder, for sockets between processes


def check_launcher() -> None:
    """Refuse to be the only process where several were asked for.

    `accelerate launch --cpu --num_processes 2` without MPI silently starts one process. The only trace is the address
    at which it would wait for the others.

    Raises:
        ValueError: this process was started in that way.
    """
    names = os.environ.keys()
    if {"ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= names and names.isdisjoint(WORLD_SIZES):
        raise ValueError(
            "accelerate launch has started one process where several were asked for: on a CPU it needs MPI for them. "
            "Use `torchrun --nproc_per_node 2` instead, or `accelerate launch --config_file cpu.yaml` with the file "
            "that `python -m modeling_jmnat.training.presets cpu` names (for a single process: unset MASTER_ADDR)"
        )


def check_schedule(arguments: Seq2SeqTrainingArguments) -> None:
    """ValueError for `lr_scheduler_kwargs` that the schedule does not have; training would find them much later."""
    given, kind = arguments.lr_scheduler_kwargs, SchedulerType(arguments.lr_scheduler_type).value
    optimizer = torch.optim.SGD([torch.zeros(1)], arguments.learning_rate)
    try:
        get_scheduler(kind, optimizer, num_warmup_steps=1, num_training_steps=2, scheduler_specific_kwargs=given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"lr_scheduler_kwargs={given} do not fit lr_scheduler_type={kind}: {error}") from None


@dataclass
class TranslationTrainingArguments(TranslationOptions, Seq2SeqTrainingArguments):
    """Transformers' training arguments, those of `Seq2SeqTrainer` included, with `TranslationOptions`."""

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{item.name}={value} must be a finite number")
            if isinstance(value, str) and value.startswith("{"):
                parse_json(item.name, value)  # for the error that names the argument
        chosen = self.accelerator_config is not None
        check_launcher()
        if not (self.bf16 or self.fp16):  # `accelerate launch` may set the precision, which the run must record
            launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
            self.bf16, self.fp16 = launched == "bf16", launched == "fp16"
        # Without a GPU this must be set, or processes started by torchrun would not find each other.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.fp16 and self.use_cpu:
            raise ValueError("fp16=True is not possible on a CPU, where Accelerate would use float32: choose bf16")
        if self.dataloader_num_workers and not has_room_for_sockets(tempfile.gettempdir(), SOCKET_CHARACTERS):
            raise ValueError(
                f"dataloader_num_workers={self.dataloader_num_workers}: training would wait for its workers forever, "
                f"because the path {tempfile.gettempdir()} is too long for their sockets. Set TMPDIR to a shorter "
                "one, such as /tmp, or set dataloader_num_workers=0"
            )
        super().__post_init__()
        if not chosen:  # copy batches to the GPU while it still computes the last step
            self.accelerator_config.non_blocking = self.dataloader_pin_memory
        check_counts(self, ("gradient_accumulation_steps",))
        if self.max_steps < 1 and self.max_steps != -1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1, or -1 to use num_train_epochs")
        if self.max_steps == -1 and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs={self.num_train_epochs} must be above 0 without max_steps")
        for kind in ("save", "eval"):
            steps = getattr(self, f"{kind}_steps")
            if getattr(self, f"{kind}_strategy") == "steps" and not steps > 0:
                raise ValueError(f"{kind}_steps={steps} must be above 0; --{kind}_strategy no switches it off")
        if self.max_tokens is not None and self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy} has no use with max_tokens, whose batches "
                "hold sentences of similar length: leave one of them out"
            )
        check_schedule(self)
        if self.load_best_model_at_end and self.keep_best:
            raise ValueError(
                f"load_best_model_at_end=True and keep_best={self.keep_best} both choose the final weights: set one"
            )
        if self.save_only_model:
            raise ValueError("save_only_model=True is not possible: a run resumes from the optimizer's state as well")
        self.check_options()


@dataclass
class JMNatTrainingArguments(StudentOptions, TranslationTrainingArguments):
    """Transformers' training arguments with `StudentOptions`: the arguments of `JMNatTrainer`."""

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} must be 0: set label_smoothing of the model "
                "instead"
            )


@dataclass
class TeacherTrainingArguments(TeacherOptions, TranslationTrainingArguments):
    """Transformers' training arguments with `TeacherOptions`."""
