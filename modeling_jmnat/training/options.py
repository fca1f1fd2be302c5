"""The options of training, with their types, defaults and help, as plain dataclasses.

Importing this module loads neither PyTorch nor Transformers, so that a command can list its options at once.
`arguments.py` combines `StudentOptions` and `TeacherOptions` with `transformers.TrainingArguments`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..utils.bleu import check_bleu_tokenizer
from ..utils.command_line import check_counts

HALVES = ("encoder", "decoder")


def check_half(name: str, value: str | None) -> None:
    """Raise ValueError unless the argument `name` is one of the halves, or None."""
    if value is not None and value not in HALVES:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(HALVES)}")


def _option(default: Any, text: str) -> Any:
    """A dataclass field with its help; a list is a default for every object anew."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


# Training ------------------------------------------------------------------------------------------------------------


@dataclass
class TranslationOptions:
    """What all our trainers add to `transformers.TrainingArguments`, and the fields with another default there."""

    max_tokens: int | None = _option(
        None,
        "Tokens of a batch on its longer side, padding included; a step has this times gradient_accumulation_steps "
        "times processes. Without it, a batch has per_device_train_batch_size sentences.",
    )
    max_sentences: int | None = _option(None, "At most this many sentences in such a batch.")
    batch_parts: int = _option(
        1,
        "Cut each batch into this many, for several processes or one after the other: processes and "
        "gradient_accumulation_steps then count parts. With as many times more of them a step stays what it was.",
    )
    elastic: bool = _option(
        False,
        "Resume with another number of processes than the run began with: batches are cut and accumulated so that "
        "each step has the sentences it would have had. With --batch_parts also to need less memory from now on.",
    )
    stream_buffer: int = _option(10_000, "Sentences of a streamed data set that are shuffled and batched together.")
    eval_sentences: int | None = _option(None, "Translate only this many validation sentences, the first ones.")
    eval_batch_tokens: int | None = _option(
        None,
        "Padded source tokens in a batch of these translations, candidates included; fewer need less memory, also for "
        "the validation losses. Default: 4096; GPU 32768.",
    )
    bleu_tokenize: str | None = _option(
        None, "sacreBLEU's tokenizer. Default: zh, ja-mecab, ko-mecab or char by the references' script; else 13a."
    )
    keep_best: int = _option(
        0,
        "Keep the weights of this many checkpoints with the best BLEU; the final model is their average, or the best "
        "one if that scores higher. 0: the final model is the last one.",
    )
    ema_decay: float | None = _option(
        None, "Evaluate and save a moving average of the weights with this decay, such as 0.999."
    )
    time_budget: float | None = _option(
        None, "Stop with a checkpoint after this many minutes; repeat the command to resume."
    )
    learning_rate: float = _option(5e-4, "Highest learning rate.")
    warmup_steps: float = _option(
        4000, "Steps until the learning rate is at its highest; below 1: this share of all steps."
    )
    lr_scheduler_type: str = _option(
        "inverse_sqrt", "How it falls after that: inverse_sqrt, linear (to 0), cosine, ..."
    )
    adam_beta2: float = _option(0.98, "Second beta of Adam.")
    weight_decay: float = _option(0.01, "Decoupled weight decay.")
    save_total_limit: int | None = _option(
        2, "Checkpoints to resume from that are kept besides the best ones; 0: all."
    )
    logging_nan_inf_filter: bool = _option(False, "Hide losses that are not finite.")
    ddp_find_unused_parameters: bool | None = _option(
        False, "Search for parameters without a gradient in each step; here all have one."
    )
    remove_unused_columns: bool = _option(False, "Must stay false: masks are drawn by example id.")

    def check_options(self) -> None:
        """Raise ValueError for a value that is out of range."""
        names = ("max_tokens", "max_sentences", "batch_parts", "stream_buffer", "eval_sentences", "eval_batch_tokens")
        check_counts(self, names)
        check_bleu_tokenizer(self.bleu_tokenize)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie between 0 and 1")
        if self.time_budget is not None and not self.time_budget > 0:
            raise ValueError(f"time_budget={self.time_budget} must be above 0 minutes")
        if self.keep_best < 0:
            raise ValueError(f"keep_best={self.keep_best} must be at least 0")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would remove the ids by which masks are drawn")

    def evaluation_settings(self) -> dict[str, dict]:
        """Options of `generate` for each translation of the validation set; the last one chooses checkpoints."""
        return {}


@dataclass
class StudentOptions(TranslationOptions):
    """Training options of a JM-NAT."""

    eval_num_iterations: list[int] = _option(
        [],
        "Decoder passes with which the validation set is translated and scored by BLEU, such as 4 10; the last one "
        "chooses checkpoints. Left out: losses only.",
    )
    eval_num_length_candidates: int = _option(4, "Length candidates of these translations.")
    encoder_loss_weight_start: float | None = _option(
        None,
        "Weight of the loss of masked source tokens (a1) in the first step; it goes linearly to encoder_loss_weight. "
        "Left out: encoder_loss_weight from the start.",
    )

    def check_options(self) -> None:
        super().check_options()
        if any(passes < 1 for passes in self.eval_num_iterations):
            raise ValueError(f"eval_num_iterations={self.eval_num_iterations} must all be at least 1")
        if self.encoder_loss_weight_start is not None and not self.encoder_loss_weight_start >= 0:
            raise ValueError(f"encoder_loss_weight_start={self.encoder_loss_weight_start} must be at least 0")
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
class TeacherOptions(TranslationOptions):
    """Training options of an autoregressive teacher."""

    label_smoothing_factor: float = _option(
        0.1, "Share of probability that the training loss spreads over the vocabulary."
    )
    eval_num_beams: list[int] = _option(
        [1],
        "Beam sizes with which the validation set is translated and scored by BLEU during training; 1 is greedy "
        "search. The last one chooses checkpoints.",
    )

    def check_options(self) -> None:
        super().check_options()
        if not self.eval_num_beams or any(beams < 1 for beams in self.eval_num_beams):
            raise ValueError(f"eval_num_beams={self.eval_num_beams} must hold numbers of at least 1")
        if not 0 <= self.label_smoothing_factor < 1:
            raise ValueError(f"label_smoothing_factor={self.label_smoothing_factor} must lie in [0, 1)")

    def evaluation_settings(self) -> dict[str, dict]:
        return {f"beam{beams}": {"num_beams": beams} for beams in self.eval_num_beams}


@dataclass
class InheritedOptions:
    """The options of `transformers.TrainingArguments` that a newcomer needs; the others work, too."""

    output_dir: str | None = _option(None, "Folder of this run: checkpoints, log and, in the end, the model.")
    max_steps: int = _option(-1, "Optimizer steps; -1 leaves the end to num_train_epochs.")
    num_train_epochs: float = _option(3.0, "Passes over the data, where max_steps is -1.")
    gradient_accumulation_steps: int = _option(1, "Batches of each process in an optimizer step.")
    max_grad_norm: float = _option(1.0, "Clip gradients to this norm; 0: do not.")
    bf16: bool = _option(False, "Compute in bfloat16: faster on recent GPUs and on CPUs that support it.")
    torch_compile: bool = _option(False, "Compile the model with torch.compile.")
    use_cpu: bool = _option(False, "Train on the CPU even if there is a GPU.")
    seed: int = _option(42, "Seed of the initial weights, of masks, of dropout and of the order of data.")
    dataloader_num_workers: int = _option(0, "Processes that prepare batches; 0: the training does it.")
    logging_steps: float = _option(500, "Steps from log to log; below 1: this share of all steps.")
    report_to: str = _option("none", "Also log to tensorboard, wandb, ...; all, or none of them.")
    eval_strategy: Literal["no", "steps", "epoch"] = _option("no", "Evaluate never, every eval_steps, or every epoch.")
    eval_steps: float | None = _option(None, "Steps from evaluation to evaluation; left out: logging_steps.")
    save_steps: float = _option(500, "Steps from checkpoint to checkpoint; below 1: this share of all.")


# Model and masks -----------------------------------------------------------------------------------------------------


@dataclass
class ModelOptions:
    """Architecture and loss: fields of `JMNatConfig`. The data give its vocabulary size and token ids."""

    d_model: int = _option(512, "Width of every layer.")
    encoder_layers: int = _option(6, "Encoder layers.")
    encoder_attention_heads: int = _option(8, "Attention heads in the encoder.")
    encoder_ffn_dim: int = _option(2048, "Width of the encoder's feed-forward blocks.")
    decoder_layers: int = _option(6, "Decoder layers.")
    decoder_attention_heads: int = _option(8, "Attention heads in the decoder.")
    decoder_ffn_dim: int = _option(2048, "Width of the decoder's feed-forward blocks.")
    dropout: float = _option(0.1, "Dropout after each block.")
    attention_dropout: float = _option(0.0, "Dropout of attention probabilities.")
    activation_dropout: float = _option(0.0, "Dropout inside the feed-forward blocks.")
    activation_function: str = _option("relu", "relu (the paper), gelu, ...")
    normalize_before: bool = _option(
        False, "Layer norm before each block (easier to train) instead of after it (the paper)."
    )
    position_embedding_type: str = _option("sinusoidal", "sinusoidal or learned.")
    scale_embedding: bool = _option(True, "Multiply token embeddings by the square root of d_model.")
    positional_attention: bool = _option(
        True, "Attention over positions in each decoder layer; false: as in Mask-Predict."
    )
    exclude_self_attention: bool = _option(
        True, "Decoder positions do not attend to themselves; false: as in Mask-Predict."
    )
    decoder_input: str = _option("mask", "mask, or source_copy for the basic non-autoregressive model (one pass).")
    max_position_embeddings: int = _option(512, "Longest source in tokens.")
    max_target_length: int = _option(512, "Longest target in tokens.")
    init_std: float | None = _option(
        None, "Standard deviation of the initial weights; left out: as in fairseq's Transformer."
    )
    ngram_size: int = _option(2, "n of the n-gram loss, of consecutive masks and of adjacent re-masking.")
    ngram_alignment: str = _option("any", "any, or gold (an n-gram counts only at its own place).")
    encoder_loss_weight: float = _option(0.01, "Weight of the loss of masked source tokens.")
    ngram_loss_weight: float = _option(0.01, "Weight of the n-gram loss.")
    length_loss_weight: float = _option(0.1, "Weight of the length loss.")
    label_smoothing: float = _option(0.1, "Label smoothing of the target tokens' loss.")
    length_smoothing: float = _option(
        0.0,
        "Standard deviation, in tokens, of a Gaussian over neighbouring lengths that the length loss learns from; 0: "
        "only the target's own.",
    )


# Those that may change when a trained model is trained further; the others are its sizes.
FREE_MODEL_FIELDS = {
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "ngram_size",
    "ngram_alignment",
    "encoder_loss_weight",
    "ngram_loss_weight",
    "length_loss_weight",
    "label_smoothing",
    "length_smoothing",
    "init_std",
}


@dataclass
class MaskingOptions:
    """How training masks are drawn: arguments of `DataCollatorForJMNat`."""

    source_mask_ratio: float = _option(0.1, "Share of source tokens that are masked and predicted; 0: none.")
    target_mask: str = _option(
        "consecutive", "consecutive (the paper), random (as in Mask-Predict), or all (for one-pass models)."
    )
    mask_token_prob: float = _option(0.8, "Share of the chosen tokens that become <mask>.")
    random_token_prob: float = _option(
        0.1, "Share of the chosen tokens that become a random token; the rest stay as they are."
    )
    full_mask_ratio: float = _option(0.0, "Share of sentences whose whole target is masked.")
    correction_ratio: float = _option(
        0.0, "Share of visible target tokens that the model's own predictions replace, for it to correct."
    )
    glancing_ratio: float = _option(
        0.0, "In fully masked targets, show this many reference tokens for each token predicted wrongly."
    )
    glancing_ratio_end: float | None = _option(
        None, "Glancing ratio of the last step, to which it goes linearly (GLAT, Qian et al. 2021: from 0.5 to 0.3)."
    )
    source_mask_ratio_full: float | None = _option(
        None,
        "Share of source tokens that are masked where the whole target is; it goes there linearly, from "
        "source_mask_ratio on, with the masked share of the target (adaptive masking, AMOM, Xiao et al. 2023). Left "
        "out: source_mask_ratio everywhere.",
    )
    second_mask_ratio: float = _option(
        0.0,
        "Share of targets in which the model's own predictions are masked a second time, as much as it got wrong "
        "(adaptive masking over masking, AMOM, Xiao et al. 2023).",
    )
    length_noise: float = _option(
        0.0,
        "Share of targets that get a second </s>: the decoder learns what to do on a canvas that is too long. The "
        "length loss counts the first one alone.",
    )
    pad_to_multiple_of: int | None = _option(None, "Pad batches to a multiple of this length (8 suits tensor cores).")
