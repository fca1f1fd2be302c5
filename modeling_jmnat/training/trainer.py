"""`TranslationTrainer`, which student and teacher share, and `JMNatTrainer` for the student."""

import time
from contextlib import contextmanager

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler
from transformers import PreTrainedModel

from ..data.dataset_columns import column_lengths, without_text
from .arguments import JMNatTrainingArguments, TranslationTrainingArguments
from .callbacks import EpochCallback, leave_process_group
from .checkpointing import CheckpointingTrainer
from .data_collator import DataCollatorForJMNat
from .even_batches import FILLER, EvenBatches, FillerCollator
from .own_predictions import CORRECTION_POSITIONS, awaits_predictions, with_final_masks, with_own_predictions
from .schedules import at_this_step
from .streamed_batches import StreamedTokenBatches
from .token_batches import TokenBatchSampler
from .validation import check_evaluation, chosen_eval_dataset, corpus_losses, translation_scores


def choose_cpu_attention(model: PreTrainedModel, device: str, bf16: bool) -> None:
    """Use eager attention for bf16 training on a CPU: the backward pass of SDPA would take half of a step."""
    if bf16 and device == "cpu":
        model.set_attn_implementation("eager")


class TranslationTrainer(CheckpointingTrainer):
    """Trains a translation model; subclasses define its loss.

    - The loss of a step is divided by the predicted tokens and by the sentences of the whole step, over all
      accumulation steps and processes.
    - Each part of the loss is logged unweighted; those of an evaluation are exact means over the corpus.
    - With `max_tokens`, batches hold sentences of similar lengths up to that many tokens.
    - Evaluation translates the columns `source` and `target` and reports sacreBLEU, if `args` asks for it.
    - `compute_metrics`, `predict_with_generate` and `load_best_model_at_end` work as in `Seq2SeqTrainer`.

    Subclasses define `loss_parts`, `loss_weights`, `loss_outputs` and `count_predicted`.

    Args:
        data_collator: its `evaluation()` returns the collator for evaluations.
        train_dataset, eval_dataset: see `JMNatTrainer`.

    Raises:
        ValueError: arguments do not fit together, or several GPUs are visible without a launcher.
    """

    arguments_class = TranslationTrainingArguments
    # For recent releases of Transformers; `model_accepts_loss_kwargs` below is the same for earlier ones.
    loss_is_scaled_for_ga = True
    loss_parts: tuple[str, ...] = ()  # fields of `loss_outputs` to log besides the loss
    parts_per_sentence: tuple[str, ...] = ()  # parts that are divided by sentences instead of predicted tokens

    def __init__(
        self,
        model=None,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        **kwargs,
    ):
        self._check_arguments(args, data_collator, eval_dataset, processing_class, **kwargs)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs are visible to one process: start with `accelerate launch` or torchrun, or choose "
                "one with CUDA_VISIBLE_DEVICES"
            )
        self.model_accepts_loss_kwargs = True
        choose_cpu_attention(self.model, args.device.type, args.bf16)
        self.eval_data_collator = data_collator.evaluation()
        self.train_batches = None if self.train_dataset is None else self._make_train_batches(self.train_dataset)
        if not isinstance(self.train_batches, StreamedTokenBatches):  # they count their rounds themselves
            self.add_callback(EpochCallback(self.data_collator, self.train_batches))
        self._reset_parts()

    @classmethod
    def _check_arguments(
        cls,
        args,
        data_collator,
        eval_dataset,
        processing_class,
        model_init=None,
        compute_loss_func=None,
        **others,
    ) -> None:
        """Reject arguments that `Trainer` accepts and this trainer cannot use."""
        if not isinstance(args, cls.arguments_class):
            raise ValueError(f"args is a {type(args).__name__} but must be a {cls.arguments_class.__name__}")
        if data_collator is None:
            raise ValueError("processing_class is None: give the tokenizer, or a data_collator that was made with it")
        if not hasattr(data_collator, "evaluation"):
            raise ValueError(
                f"data_collator is a {type(data_collator).__name__} but must have a method evaluation() like that of "
                "DataCollatorForJMNat"
            )
        if compute_loss_func is not None:
            raise ValueError(f"compute_loss_func is not used by {cls.__name__}, which has its own loss: leave it out")
        if processing_class is None and args.evaluation_settings():
            raise ValueError("processing_class is None: evaluations that translate need the tokenizer")
        if model_init is not None and args.ema_decay is not None:
            raise ValueError(
                f"ema_decay={args.ema_decay} needs a model that exists already: pass model instead of model_init"
            )
        check_evaluation(args, eval_dataset)

    # Loss ------------------------------------------------------------------------------------------------------------

    def count_predicted(self, batch: dict) -> torch.Tensor:
        """Number of target tokens to predict in a batch, by which token losses are divided."""
        raise NotImplementedError

    def loss_outputs(self, model, batch: dict, denominators: torch.Tensor | None):
        """An object with `loss` and the fields of `loss_parts`, sums over the batch divided by `denominators`.

        Args:
            denominators: (2,), numbers of predicted target tokens and of sentences; None: those of this batch.
        """
        raise NotImplementedError

    def loss_weights(self) -> dict[str, float]:
        """The weight of each part in the loss."""
        raise NotImplementedError

    def computed_parts(self, means: dict[str, float]) -> dict[str, float]:
        """The parts whose weight is not 0."""
        weights = self.loss_weights()
        return {name: value for name, value in means.items() if weights[name]}

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """[predicted target tokens, sentences] (2,) of all batches of a step on all processes."""
        if not batch_samples:
            return None
        counts = torch.zeros(2, device=device)
        for batch in batch_samples:
            if FILLER not in batch:
                counts[0] += self.count_predicted(batch).to(device)
                counts[1] += len(batch["labels"])
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return counts.clamp(min=1.0)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, denominators = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self._prepare_inputs(batch) for batch in batches]  # those of a streamed data set are on the CPU
        self._parts_steps += 1
        self._target_tokens += sum(batch["labels"].ne(-100).sum() for batch in batches if FILLER not in batch)
        return batches, denominators

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weight = 0.0 if inputs.pop(FILLER, False) else 1.0
        outputs = self.loss_outputs(model, inputs, num_items_in_batch)
        loss = outputs.loss
        if model.training:
            parts = [getattr(outputs, name) for name in self.loss_parts]
            zero = loss.detach().new_zeros(())
            sums = torch.stack([zero if part is None else part.detach().float() for part in parts])
            self._part_sums += weight * sums
            # Gradients are averaged over processes, but these losses are parts of a sum.
            loss = loss * (weight * self.accelerator.num_processes)
        return (loss, outputs) if return_outputs else loss

    def _reset_parts(self) -> None:
        self._part_sums = torch.zeros(len(self.loss_parts), device=self.args.device)
        self._target_tokens = torch.zeros((), dtype=torch.long, device=self.args.device)
        self._parts_steps = 0
        self._parts_since = time.perf_counter()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss and the speed (target tokens per second, without padding) to training logs."""
        if "loss" in logs and self._parts_steps:
            sums = torch.cat([self._part_sums, self._target_tokens[None].float()])
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums, reduction="sum")
            *parts, tokens = sums.tolist()
            means = {name: value / self._parts_steps for name, value in zip(self.loss_parts, parts, strict=True)}
            logs.update(self.computed_parts(means))
            logs["target_tokens_per_second"] = round(tokens / (time.perf_counter() - self._parts_since), 1)
            self._reset_parts()
        super().log(logs, start_time)

    # Batches ---------------------------------------------------------------------------------------------------------

    def _make_train_batches(self, dataset) -> Sampler | StreamedTokenBatches | None:
        """The batches of the training set in their order; None leaves them to `Trainer`."""
        args = self.args
        if isinstance(dataset, IterableDataset):
            return self.streamed_batches(dataset)
        batches = None
        if args.max_tokens is not None:
            batches = self.token_batches(dataset, args.max_tokens, shuffle=True)
        if args.world_size == 1 and args.batch_parts == 1:
            return batches
        if batches is None:  # the same batches as in a single process
            from accelerate.data_loader import SeedableRandomSampler

            sampler = self._get_train_sampler(dataset)
            if isinstance(sampler, RandomSampler):
                sampler = SeedableRandomSampler(dataset, data_seed=args.data_seed)
            batches = BatchSampler(sampler, self._train_batch_size, args.dataloader_drop_last)
        return EvenBatches(batches, args.world_size, args.batch_parts)

    def token_batches(self, dataset, max_tokens: int, shuffle: bool) -> TokenBatchSampler:
        return TokenBatchSampler(
            column_lengths(dataset, "input_ids"),
            column_lengths(dataset, "labels"),
            max_tokens,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            shuffle=shuffle,
            max_sentences=self.args.max_sentences,
        )

    def streamed_batches(self, examples: IterableDataset) -> StreamedTokenBatches:
        args = self.args
        if args.max_tokens is None:
            raise ValueError("train_dataset is a stream: give max_tokens, the size of its batches")
        if args.elastic:
            raise ValueError("elastic=True is not possible: the order of a stream depends on the number of processes")
        return StreamedTokenBatches(
            examples,
            args.max_tokens,
            args.seed if args.data_seed is None else args.data_seed,
            args.max_sentences,
            args.stream_buffer,
            args.process_index,
            args.world_size,
        )

    def get_train_dataloader(self) -> DataLoader:
        if self.train_batches is None:
            return super().get_train_dataloader()
        is_stream = isinstance(self.train_batches, StreamedTokenBatches)
        if is_stream:
            batches = {"dataset": self.train_batches, "batch_size": None, "collate_fn": self.data_collator}
        else:
            dataset = without_text(self.train_dataset)
            collator = FillerCollator(self.data_collator, dataset[0])
            batches = {"dataset": dataset, "batch_sampler": self.train_batches, "collate_fn": collator}
        workers = self.args.dataloader_num_workers
        loader = DataLoader(
            **batches,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            worker_init_fn=leave_process_group,
            generator=torch.Generator(),  # so that starting workers does not affect the random numbers of dropout
        )
        return loader if is_stream else self.accelerator.prepare(loader)  # a stream divides itself among processes

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """For `predict`, with the masks of evaluation, so that losses are the same in every call."""
        with self._evaluation_masks():
            return super().get_test_dataloader(test_dataset)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """For `compute_metrics`, with the masks of evaluation."""
        with self._evaluation_masks():
            return super().get_eval_dataloader(eval_dataset)

    @contextmanager
    def _evaluation_masks(self):
        training_collator, self.data_collator = self.data_collator, self.eval_data_collator
        try:
            yield
        finally:
            self.data_collator = training_collator

    def floating_point_ops(self, inputs) -> int:
        """Not counted: visiting all parameters in every step takes 2 % of a small model's time."""
        return 0

    def train(self, resume_from_checkpoint=None, **kwargs):
        self._reset_parts()
        return super().train(resume_from_checkpoint, **kwargs)

    # Evaluation ------------------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval", **gen_kwargs
    ) -> dict[str, float]:
        """Exact losses over the data set and BLEU of its translations, for each setting in `args`.

        The name of a data set stands for that one of the trainer's dictionary of them.

        `eval_bleu_k4` (for a teacher `eval_bleu_beam5`) is the BLEU of one setting, `eval_bleu` that of the last.
        Figures of `compute_metrics` are added, but do not replace these; with `predict_with_generate`, it gets
        translations made with the arguments of `generate` in `gen_kwargs`.
        """
        dataset = chosen_eval_dataset(eval_dataset, self.eval_dataset, bool(self.args.evaluation_settings()))
        if isinstance(dataset, dict):
            metrics = {}
            for name, one in dataset.items():
                metrics |= self.evaluate(one, ignore_keys, f"{metric_key_prefix}_{name}", **gen_kwargs)
            return metrics
        start = time.perf_counter()
        was_training = self.model.training
        self.model.eval()
        self._is_evaluating = True
        with self._final_model(), torch.no_grad():
            metrics = self._computed_metrics(dataset, ignore_keys, metric_key_prefix, gen_kwargs)
            metrics.update(corpus_losses(self, dataset))
            metrics.update(self._translation_scores(dataset))
        self._is_evaluating = False
        self.model.train(was_training)
        metrics["runtime"] = round(time.perf_counter() - start, 3)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.is_in_train and self.state.global_step in self.best_steps():
            self.control.should_save = True
        self._parts_since += time.perf_counter() - start  # not training time
        return metrics

    def _computed_metrics(self, dataset, ignore_keys, prefix: str, gen_kwargs: dict) -> dict[str, float]:
        """The figures of `compute_metrics`, for predictions made as in `Seq2SeqTrainer.evaluate`."""
        if self.compute_metrics is None:
            return {}
        args = self.args
        usual = {"max_length": args.generation_max_length, "num_beams": args.generation_num_beams}
        self._gen_kwargs = {name: value for name, value in usual.items() if value is not None} | gen_kwargs
        loader = self.get_eval_dataloader(dataset)
        output = self.evaluation_loop(loader, "Evaluation", ignore_keys=ignore_keys, metric_key_prefix=prefix)
        return {name.removeprefix(f"{prefix}_"): value for name, value in output.metrics.items()}

    def evaluation_loop(self, *args, **kwargs):
        # `Seq2SeqTrainer` would also count the sentences that are repeated to fill the last batches of processes.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)

    def _translation_scores(self, dataset) -> dict[str, float]:
        return translation_scores(self, dataset)

    def final_bleu(self) -> float:
        self.model.eval()
        with torch.no_grad():
            return self._translation_scores(self.eval_dataset)["bleu"]


class JMNatTrainer(TranslationTrainer):
    """Trains `JMNatForConditionalGeneration` with the loss of Eq. 8.

    - The loss of a step is divided by the masked target tokens and by the sentences of the whole step, over all
      accumulation steps and processes (section 4.1 to 4.4 of the paper; Eq. 8).
    - Each part of the loss is logged unweighted; those of an evaluation are exact means over the corpus.
    - With `max_tokens`, batches hold sentences of similar lengths up to that many tokens.
    - With `eval_num_iterations`, evaluation translates the columns `source` and `target` and reports sacreBLEU.
    - A run that was killed resumes from its newest whole checkpoint: `train(resume_from_checkpoint=True)`.
    - With `ema_decay`, `evaluate`, `predict`, `save_model` and checkpoints use the average. With it or `keep_best`,
      call `choose_final_weights()` after `train` to load the weights of the final model.

    Args:
        args: `JMNatTrainingArguments`.
        data_collator: `DataCollatorForJMNat`. Default: made from `processing_class`. Its `evaluation()` draws the
            masks of evaluations.
        train_dataset, eval_dataset: columns `id`, `input_ids`, `labels`, and text in `source`, `target` for BLEU.
            A dictionary of data sets is evaluated one by one, as `eval_NAME_loss`. A `datasets.IterableDataset` to
            train on is read in token batches without end (`StreamedTokenBatches`) and needs `max_steps`.

    Raises:
        ValueError: arguments do not fit together, or several GPUs are visible without a launcher.
    """

    arguments_class = JMNatTrainingArguments
    loss_parts = ("nll_loss", "encoder_loss", "ngram_loss", "length_loss", "crf_loss")
    parts_per_sentence = ("length_loss",)

    def __init__(
        self,
        model=None,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        **kwargs,
    ):
        args = args if args is not None else JMNatTrainingArguments("trainer_output")
        default_collator = data_collator is None
        if default_collator and processing_class is not None:
            data_collator = DataCollatorForJMNat(processing_class, seed=args.seed)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        for collator in (self.data_collator, self.eval_data_collator):
            collator.vocab_size = self.model.config.vocab_size
            if default_collator:
                collator.ngram_size = self.model.config.ngram_size
        self._check_collator()

    def _check_collator(self) -> None:
        """ValueError for settings of the masks that do not fit the model or the trainer."""
        collator, config = self.data_collator, self.model.config
        if self.args.encoder_loss_weight_start is not None and not config.encoder_loss_weight:
            raise ValueError("encoder_loss_weight_start needs an encoder_loss_weight above 0, at which it ends")
        for name in ("glancing_ratio", "correction_ratio", "second_mask_ratio"):
            if self.is_fsdp_enabled and getattr(collator, name, 0.0):
                raise ValueError(
                    f"{name} is not possible with FSDP: set it to 0, because its extra passes need full weights"
                )
        if getattr(collator, "glancing_ratio", 0.0) and config.decoder_input == "source_copy":
            raise ValueError("glancing_ratio needs decoder_input=mask: a copied source has no masks to reveal")
        if getattr(collator, "target_mask", None) == "consecutive" and collator.ngram_size != config.ngram_size:
            raise ValueError(
                f"ngram_size is {collator.ngram_size} in the collator and {config.ngram_size} in the model: set both "
                "to one value, for consecutive masks and the n-gram loss"
            )

    def count_predicted(self, batch: dict) -> torch.Tensor:
        if self.model.config.decoder_input == "source_copy":  # every token is predicted, whatever the collator masks
            return batch["labels"].ne(-100).sum()
        return batch["masked_positions"].sum()

    def loss_outputs(self, model, batch: dict, denominators: torch.Tensor | None):
        if CORRECTION_POSITIONS in batch:
            batch = with_own_predictions(self.accelerator.unwrap_model(self.model), batch)
        outputs, start = model(**batch, loss_denominators=denominators), self.args.encoder_loss_weight_start
        if start is not None and self.model.training and outputs.encoder_loss is not None:
            weight = self.model.config.encoder_loss_weight
            outputs.loss = outputs.loss + (at_this_step(self.state, start, weight) - weight) * outputs.encoder_loss
        return outputs

    def loss_weights(self) -> dict[str, float]:
        config = self.model.config
        return {
            "nll_loss": 1.0,
            "encoder_loss": config.encoder_loss_weight,
            "ngram_loss": config.ngram_loss_weight,
            "length_loss": config.length_loss_weight,
            "crf_loss": config.crf_loss_weight if config.crf_rank else 0.0,
        }

    def computed_parts(self, means: dict[str, float]) -> dict[str, float]:
        """The parts whose weight is not 0, without the source's loss if no source token was masked."""
        computed = super().computed_parts(means)
        return {name: value for name, value in computed.items() if value or name != "encoder_loss"}

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, denominators = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and awaits_predictions(batches[0]):  # only after them are the tokens to predict known
            model, collator = self.accelerator.unwrap_model(self.model), self.data_collator
            glancing_ratio = at_this_step(self.state, collator.glancing_ratio, collator.glancing_ratio_end)
            with self.accelerator.autocast():
                batches = [with_final_masks(model, batch, glancing_ratio) for batch in batches]
            denominators = self._get_num_items_in_batch(batches, device)
        return batches, denominators
