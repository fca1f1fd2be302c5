"""The options of training, with their types, defaults and help, as plain dataclasses.

Importing this module loads neither PyTorch nor Transformers, so that a command can list its options at once.
`arguments.py` combines `StudentOptions` and `TeacherOptions` with `transformers.TrainingArguments`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..utils.bleu import check_bleu_tokenizer
from ..utils.command_line import check_counts

HALVES = ("encoder", "decoder")
WHOLE = "network"  # both halves


def check_half(name: str, value: str | None, allowed: tuple[str, ...] = HALVES) -> None:
    """Raise ValueError unless the argument `name` is one of the halves, or None."""
    if value is not None and value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def _option(default: Any, text: str) -> Any:
    """A dataclass field with its help; a list is copied for each object."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


# Training ------------------------------------------------------------------------------------------------------------


@dataclass
class TranslationOptions:
    """Options that all our trainers add to `transformers.TrainingArguments`, and fields with other defaults."""

    max_tokens: int | None = _option(
        None,
        "Most tokens in a batch on its longer side, padding included; a step has this times "
        "gradient_accumulation_steps times processes. Without it, a batch has per_device_train_batch_size sentences.",
    )
    max_sentences: int | None = _option(None, "At most this many sentences in such a batch.")
    batch_parts: int = _option(
        1,
        "Cut each batch into this many parts, which need less memory. Processes and gradient_accumulation_steps then "
        "count parts: a step stays the same if their product grows as much.",
    )
    elastic: bool = _option(
        False,
        "Resume with another number of processes than the run began with: batches are cut and accumulated so that "
        "each step keeps its sentences. With --batch_parts, also resume with less memory.",
    )
    stream_buffer: int = _option(10_000, "Sentences of a streamed data set that are shuffled and batched together.")
    eval_sentences: int | None = _option(None, "Translate only the first so many validation sentences.")
    eval_batch_tokens: int | None = _option(
        None,
        "Padded source tokens in a batch of these translations, candidates included; fewer need less memory, also for "
        "the validation losses. Default: 4096 on a CPU, 32768 on a GPU.",
    )
    bleu_tokenize: str | None = _option(
        None, "sacreBLEU's tokenizer. Default: zh, ja-mecab, ko-mecab or char by the script of the references, or 13a."
    )
    keep_best: int = _option(
        0,
        "Keep the weights of this many checkpoints with the best BLEU; the final model is their average, or the best "
        "one if that scores higher. 0: the final model has the last weights.",
    )
    ema_decay: float | None = _option(
        None, "Evaluate and save a moving average of the weights with this decay, such as 0.999."
    )
    time_budget: float | None = _option(
        None, "Stop with a checkpoint after this many minutes; repeat the command to resume."
    )
    learning_rate: float = _option(5e-4, "Highest learning rate.")
    warmup_steps: float = _option(
        4000, "Steps until the learning rate reaches its maximum; below 1: this share of all steps."
    )
    lr_scheduler_type: str = _option(
        "inverse_sqrt", "How the learning rate falls after that: inverse_sqrt, linear (to 0), cosine or others."
    )
    adam_beta2: float = _option(0.98, "Second beta of Adam.")
    weight_decay: float = _option(0.01, "Decoupled weight decay.")
    save_total_limit: int | None = _option(
        2, "Number of checkpoints to keep for resuming, besides the best ones; 0: all."
    )
    logging_nan_inf_filter: bool = _option(False, "Hide losses that are not finite.")
    ddp_find_unused_parameters: bool | None = _option(
        False, "Search for parameters without a gradient in each step; here all have one."
    )
    remove_unused_columns: bool = _option(False, "Must stay false, because masks are drawn by example id.")

    def check_options(self) -> None:
        """Raise ValueError for a value that is out of range."""
        names = ("max_tokens", "max_sentences", "batch_parts", "stream_buffer", "eval_sentences", "eval_batch_tokens")
        check_counts(self, names)
        check_bleu_tokenizer(self.bleu_tokenize)
        if self.max_sentences is not None and self.max_tokens is None:
            raise ValueError(
                f"max_sentences={self.max_sentences} needs max_tokens: set per_device_train_batch_size instead"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie between 0 and 1")
        if self.time_budget is not None and not self.time_budget > 0:
            raise ValueError(f"time_budget={self.time_budget} must be above 0 minutes")
        if self.keep_best < 0:
            raise ValueError(f"keep_best={self.keep_best} must be at least 0")
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns=True would remove the ids by which masks are drawn: leave it False"
            )

    def evaluation_settings(self) -> dict[str, dict]:
        """Options of `generate` for each translation of the validation set; the last chooses checkpoints."""
        return {}


@dataclass
class StudentOptions(TranslationOptions):
    """Training options of a JM-NAT."""

    eval_num_iterations: list[int] = _option(
        [],
        "Numbers of decoder passes with which to translate the validation set and score it by BLEU, such as 4 10; the "
        "last one chooses checkpoints. Default: losses only.",
    )
    eval_num_length_candidates: int = _option(4, "Length candidates of these translations.")
    encoder_loss_weight_start: float | None = _option(
        None,
        "Weight of the loss of masked source tokens (a1) in the first step, which changes linearly to "
        "encoder_loss_weight. Default: encoder_loss_weight throughout.",
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
        0.1, "Share of the target probability that the training loss spreads over the vocabulary."
    )
    eval_num_beams: list[int] = _option(
        [1],
        "Beam sizes with which to translate the validation set and score it by BLEU during training; 1 is greedy "
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
    """The most important options of `transformers.TrainingArguments`; the others work as well."""

    output_dir: str | None = _option(None, "Folder of this run, for checkpoints, the log and the final model.")
    max_steps: int = _option(-1, "Number of optimizer steps; -1: train for num_train_epochs.")
    num_train_epochs: float = _option(3.0, "Passes over the data, if max_steps is -1.")
    gradient_accumulation_steps: int = _option(1, "Batches of each process in an optimizer step.")
    max_grad_norm: float = _option(1.0, "Clip gradients to this norm; 0: no clipping.")
    bf16: bool = _option(False, "Compute in bfloat16: faster on recent GPUs and on CPUs that support it.")
    torch_compile: bool = _option(False, "Compile the model with torch.compile.")
    use_cpu: bool = _option(False, "Train on the CPU even if there is a GPU.")
    seed: int = _option(42, "Seed of initial weights, masks, dropout and the order of the data.")
    dataloader_num_workers: int = _option(0, "Processes that prepare batches; 0: the training process does it.")
    logging_steps: float = _option(500, "Steps between log entries; below 1: this share of all steps.")
    report_to: str = _option("none", "Where to log as well: tensorboard, wandb, ..., all or none.")
    eval_strategy: Literal["no", "steps", "epoch"] = _option("no", "Evaluate never, every eval_steps, or every epoch.")
    eval_steps: float | None = _option(None, "Steps between evaluations. Default: logging_steps.")
    save_steps: float = _option(500, "Steps between checkpoints; below 1: this share of all steps.")


# Model and masks -----------------------------------------------------------------------------------------------------


@dataclass
class ModelOptions:
    """Architecture and loss: fields of `JMNatConfig`. The data determine its vocabulary size and token ids."""

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
    activation_function: str = _option("relu", "Activation function: relu (the paper), gelu, ...")
    normalize_before: bool = _option(
        False, "Layer norm before each block (easier to train) instead of after it (the paper)."
    )
    position_embedding_type: str = _option("sinusoidal", "Position embeddings: sinusoidal or learned.")
    scale_embedding: bool = _option(True, "Multiply token embeddings by the square root of d_model.")
    positional_attention: bool = _option(
        True, "Attention over positions in each decoder layer; false: as in Mask-Predict."
    )
    exclude_self_attention: bool = _option(
        True, "Decoder positions do not attend to themselves; false: as in Mask-Predict."
    )
    decoder_input: str = _option(
        "mask", "Decoder input: mask, or source_copy for the basic non-autoregressive model (one pass)."
    )
    max_position_embeddings: int = _option(512, "Longest source in tokens.")
    max_target_length: int = _option(512, "Longest target in tokens.")
    init_std: float | None = _option(
        None, "Standard deviation of the initial weights. Default: initialised as in fairseq's Transformer."
    )
    ngram_size: int = _option(2, "n of the n-gram loss, of consecutive masks and of adjacent re-masking.")
    ngram_alignment: str = _option(
        "any", "Where the n-gram loss counts an n-gram: at any masked position, or gold (only its own)."
    )
    encoder_loss_weight: float = _option(0.01, "Weight of the loss of masked source tokens.")
    ngram_loss_weight: float = _option(0.01, "Weight of the n-gram loss.")
    length_loss_weight: float = _option(0.1, "Weight of the length loss.")
    label_smoothing: float = _option(0.1, "Label smoothing of the target tokens' loss.")
    length_smoothing: float = _option(
        0.0,
        "Standard deviation, in tokens, of a Gaussian around the target length that the length predictor is trained "
        "on; 0: only the target length.",
    )
    crf_rank: int = _option(
        0,
        "Rank of a CRF that chooses the tokens of a pass together, such as 32; 0: none. It can be added to a model.",
    )
    crf_loss_weight: float = _option(1.0, "Weight of the CRF's loss.")


# Fields that may change when a trained model is trained further; the others determine what its weights compute.
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
    "crf_rank",  # from 0
    "crf_loss_weight",
    "init_std",
}


@dataclass
class MaskingOptions:
    """How training masks are drawn: arguments of `DataCollatorForJMNat`."""

    source_mask_ratio: float = _option(0.1, "Share of source tokens that are masked and predicted; 0: none.")
    target_mask: str = _option(
        "consecutive", "Target masks: consecutive (the paper), random (as in Mask-Predict), or all (one-pass models)."
    )
    mask_token_prob: float = _option(0.8, "Share of the chosen tokens that become <mask>.")
    random_token_prob: float = _option(
        0.1, "Share of the chosen tokens that become a random token; the rest are left unchanged."
    )
    full_mask_ratio: float = _option(0.0, "Share of sentences whose whole target is masked.")
    correction_ratio: float = _option(
        0.0, "Share of visible target tokens to replace by the model's own predictions, which it learns to correct."
    )
    glancing_ratio: float = _option(
        0.0, "In fully masked targets, reveal this many reference tokens for each wrongly predicted token."
    )
    glancing_ratio_end: float | None = _option(
        None, "Glancing ratio of the last step, to which it changes linearly (GLAT, Qian et al. 2021: 0.5 to 0.3)."
    )
    source_mask_ratio_full: float | None = _option(
        None,
        "Share of source tokens to mask if the whole target is masked; it changes linearly from source_mask_ratio "
        "with the masked share of the target (adaptive masking, AMOM, Xiao et al. 2023). Default: always "
        "source_mask_ratio.",
    )
    second_mask_ratio: float = _option(
        0.0,
        "Share of targets in which the model's own predictions are masked a second time, in proportion to its errors "
        "(adaptive masking over masking, AMOM, Xiao et al. 2023).",
    )
    length_noise: float = _option(
        0.0,
        "Share of targets that get a second </s>, so that the decoder learns to handle a canvas that is too long. The "
        "length loss ignores it.",
    )
    pad_to_multiple_of: int | None = _option(None, "Pad lengths to a multiple of this (8 suits tensor cores).")
