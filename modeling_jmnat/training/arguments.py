"""`JMNatTrainingArguments`, and what the teacher's training shares with it: Transformers' arguments and additions."""

import math
from dataclasses import dataclass, field, fields

import torch
from transformers import TrainingArguments

from ..utils.command_line import check_counts


@dataclass
class TranslationTrainingArguments(TrainingArguments):
    """Transformers' training arguments with other defaults, and what all our trainers add."""

    max_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a batch (padding counted, on the longer side); a step has this times "
            "gradient_accumulation_steps times processes. None: per_device_train_batch_size sentences."
        },
    )
    max_sentences: int | None = field(default=None, metadata={"help": "At most this many sentences in such a batch."})
    eval_sentences: int | None = field(
        default=None, metadata={"help": "Translate only the first so many validation sentences."}
    )
    eval_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Padded source tokens of a batch of these translations, candidates counted; fewer need less "
            "memory, also for the losses of an evaluation. Default: 4096; GPU 32768."
        },
    )
    keep_best: int = field(
        default=0,
        metadata={
            "help": "Keep the weights of this many best checkpoints by BLEU; the final model is their average, or the "
            "best one if that scores higher. 0: the final model is the last one."
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Evaluate and save a moving average of the weights with this decay, such as 0.999."},
    )
    time_budget: float | None = field(
        default=None,
        metadata={"help": "Stop with a checkpoint after this many minutes; the same command goes on from there."},
    )
    learning_rate: float = field(default=5e-4, metadata={"help": "Highest learning rate."})
    warmup_steps: float = field(
        default=4000, metadata={"help": "Steps until it is reached; below 1: share of all steps."}
    )
    lr_scheduler_type: str = field(
        default="inverse_sqrt", metadata={"help": "How it falls after that: inverse_sqrt, linear (to 0), cosine, ..."}
    )
    adam_beta2: float = field(default=0.98, metadata={"help": "Second beta of Adam."})
    weight_decay: float = field(default=0.01, metadata={"help": "Decoupled weight decay."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to go on from that are kept, beside the best ones; 0: all."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not finite."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search for parameters without gradient in each step; all have one here."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false: masks go by example id."})

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{item.name}={value} must be a finite number")
        chosen = self.accelerator_config is not None
        # Where there is nothing else it must be said: processes that torchrun starts would not find each other.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        if not chosen:  # batches go to a GPU while it still computes the last step
            self.accelerator_config.non_blocking = self.dataloader_pin_memory
        check_counts(
            self, ("max_tokens", "max_sentences", "eval_sentences", "eval_batch_tokens", "gradient_accumulation_steps")
        )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie between 0 and 1")
        if self.time_budget is not None and not self.time_budget > 0:
            raise ValueError(f"time_budget={self.time_budget} must be above 0 minutes")
        if self.max_steps < 1 and self.max_steps != -1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1, or -1 to go by num_train_epochs")
        if self.keep_best < 0:
            raise ValueError(f"keep_best={self.keep_best} must be at least 0")
        if self.load_best_model_at_end or self.save_strategy == "best":
            raise ValueError("load_best_model_at_end and save_strategy=best are not used here: set keep_best")
        if self.save_only_model:
            raise ValueError("save_only_model=True is not possible: checkpoints must hold what a run goes on from")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would remove the ids by which masks are drawn")

    def evaluation_settings(self) -> dict[str, dict]:
        """Options of `generate` for each translation of the validation set; the last one chooses checkpoints."""
        return {}


@dataclass
class JMNatTrainingArguments(TranslationTrainingArguments):
    """Transformers' training arguments with the defaults of this model family, and what `JMNatTrainer` adds."""

    eval_num_iterations: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Decoder passes at which the validation set is translated and scored by BLEU, such as 4 10; the "
            "last one chooses checkpoints. Left out: losses only."
        },
    )
    eval_num_length_candidates: int = field(default=4, metadata={"help": "Length candidates of these translations."})

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} must be 0: the model's own loss has the option "
                "label_smoothing"
            )
        if any(passes < 1 for passes in self.eval_num_iterations):
            raise ValueError(f"eval_num_iterations={self.eval_num_iterations} must all be at least 1")
        if self.eval_num_length_candidates < 1:
            raise ValueError(f"eval_num_length_candidates={self.eval_num_length_candidates} must be at least 1")
        if self.keep_best and not self.eval_num_iterations:
            raise ValueError(f"keep_best={self.keep_best} needs eval_num_iterations to choose by, or must be 0")

    def evaluation_settings(self) -> dict[str, dict]:
        return {
            f"k{passes}": {"num_iterations": passes, "num_length_candidates": self.eval_num_length_candidates}
            for passes in self.eval_num_iterations
        }


@dataclass
class TeacherTrainingArguments(TranslationTrainingArguments):
    """Transformers' training arguments with the defaults of a translation teacher."""

    label_smoothing_factor: float = field(
        default=0.1, metadata={"help": "Share of probability spread over the vocabulary in the training loss."}
    )
    eval_num_beams: list[int] = field(
        default_factory=lambda: [1],
        metadata={
            "help": "Beam sizes at which the validation set is translated and scored by BLEU during training, 1 is "
            "greedy; the last one chooses checkpoints."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.eval_num_beams or any(beams < 1 for beams in self.eval_num_beams):
            raise ValueError(f"eval_num_beams={self.eval_num_beams} must hold numbers of at least 1")
        if not 0 <= self.label_smoothing_factor < 1:
            raise ValueError(f"label_smoothing_factor={self.label_smoothing_factor} must lie in [0, 1)")

    def evaluation_settings(self) -> dict[str, dict]:
        return {f"beam{beams}": {"num_beams": beams} for beams in self.eval_num_beams}
