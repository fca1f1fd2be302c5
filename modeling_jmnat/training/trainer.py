"""`JMNatTrainer`: Transformers' Trainer with the loss of Eq. 8 over exact global denominators, and BLEU on the way."""

import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerState
from transformers.trainer_utils import PredictionOutput, TrainOutput

from ..data.dataset_columns import column_lengths, text_column, without_text
from ..inference.translation import translate_lines
from . import checkpoints
from .arguments import JMNatTrainingArguments, check_trainer_arguments
from .callbacks import EMACallback, EpochCallback, StopCallback, leave_process_group
from .checkpoint_averaging import average_checkpoints
from .data_collator import DataCollatorForJMNat
from .own_predictions import CORRECTION_POSITIONS, GLANCING_ORDER, after_glancing, with_own_predictions
from .token_batches import TokenBatchSampler
from .weight_ema import WeightEMA

BLEU = "eval_bleu"
EVALUATION_TOKENS = 4096  # padded tokens of an evaluation batch; all of them get vocabulary logits


def choose_cpu_attention(model: PreTrainedModel, device: str, bf16: bool) -> None:
    """Train in bf16 on a CPU with plain matrix products: fused attention's backward pass takes half of a step."""
    if bf16 and device == "cpu":
        model.set_attn_implementation("eager")


class JMNatTrainer(Trainer):
    """Trains `JMNatForConditionalGeneration`.

    - The loss of a step is divided by the masked target tokens and by the sentences of the whole step: accumulation
      steps and processes included (section 4.1 to 4.4 of the paper; Eq. 8).
    - Each part of the loss is logged unweighted; those of an evaluation are exact means over the corpus.
    - With `max_tokens`, batches hold sentences of like lengths up to that many tokens.
    - With `eval_num_iterations`, evaluation translates the columns `source` and `target` and reports sacreBLEU.
    - A run that was killed goes on from its newest whole checkpoint: `train(resume_from_checkpoint=True)`.
    - With `ema_decay`, `evaluate`, `predict`, `save_model` and checkpoints take the average; after `train`, with
      `keep_best` too, `choose_final_weights()` loads what becomes the final model.

    Args:
        args: `JMNatTrainingArguments`.
        data_collator: `DataCollatorForJMNat`; made from `processing_class` if left out. Its `evaluation()` draws the
            masks of the evaluation.
        train_dataset, eval_dataset: columns `id`, `input_ids`, `labels`, and text in `source`, `target` for BLEU.
            Of a dictionary of data sets each is evaluated by its name: `eval_NAME_loss`.

    Raises:
        ValueError: arguments that do not fit together, or several GPUs without a launcher.
    """

    # Recent releases of Transformers read this one; `model_accepts_loss_kwargs` below says the same to earlier ones.
    loss_is_scaled_for_ga = True
    # What is logged beside the loss; the last one is divided by sentences, the others by predicted tokens.
    loss_parts = ("nll_loss", "encoder_loss", "ngram_loss", "length_loss")

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
        check_trainer_arguments(args, data_collator, eval_dataset, processing_class, **kwargs)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs are visible to one process: start with `accelerate launch` or torchrun, or choose "
                "one by CUDA_VISIBLE_DEVICES"
            )
        if args.keep_best > 1 and hasattr(self.model, "peft_config"):
            raise ValueError(f"keep_best={args.keep_best} must be 0 or 1 here: adapters are not averaged")
        if getattr(data_collator, "glancing_ratio", 0.0) and self.model.config.decoder_input == "source_copy":
            raise ValueError("glancing_ratio needs decoder_input=mask: a copied source shows nothing of the target")
        if default_collator:
            data_collator.ngram_size = self.model.config.ngram_size
        elif getattr(data_collator, "target_mask", None) == "consecutive":
            ngram_sizes = data_collator.ngram_size, self.model.config.ngram_size
            if ngram_sizes[0] != ngram_sizes[1]:
                raise ValueError(
                    f"ngram_size is {ngram_sizes[0]} in the collator and {ngram_sizes[1]} in the model: consecutive "
                    "masks and the n-gram loss share one"
                )
        self.model_accepts_loss_kwargs = True
        choose_cpu_attention(self.model, args.device.type, args.bf16)
        self.eval_data_collator = data_collator.evaluation()
        self.ema: WeightEMA | None = None
        self.train_batches: TokenBatchSampler | None = None
        if args.max_tokens is not None and self.train_dataset is not None:
            self.train_batches = self._token_batches(self.train_dataset, args.max_tokens, shuffle=True)
        self.stopper = StopCallback(args.time_budget, self._any_process if args.world_size > 1 else None)
        # The stopper comes last: it overrules what the others asked for.
        self.add_callback(EpochCallback(self.data_collator, self.train_batches))
        if args.ema_decay is not None:
            self.ema = WeightEMA(self.model, args.ema_decay)
            self.add_callback(EMACallback(self))
        self.add_callback(self.stopper)
        self._reset_parts()
        self._saving_folder: Path | None = None

    # Loss ------------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """[predicted target tokens, sentences] (2,) of all batches of a step on all processes."""
        if not batch_samples:
            return None
        masked = sum(self.count_predicted(batch) for batch in batch_samples)
        sentences = sum(len(batch["labels"]) for batch in batch_samples)
        counts = torch.stack([masked.to(device).float(), torch.full((), float(sentences), device=device)])
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return counts.clamp(min=1.0)

    def count_predicted(self, batch: dict) -> torch.Tensor:
        """Number of target tokens that a batch asks for: what token losses are divided by."""
        if self.model.config.decoder_input == "source_copy":  # all are predicted, whatever the collator masks
            return batch["labels"].ne(-100).sum()
        return batch["masked_positions"].sum()

    def loss_outputs(self, model, batch: dict, denominators: torch.Tensor | None):
        """The model's output with `loss` and the fields of `loss_parts`, divided by `denominators` (2,)."""
        if CORRECTION_POSITIONS in batch:
            batch = with_own_predictions(self.accelerator.unwrap_model(self.model), batch)
        return model(**batch, loss_denominators=denominators)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, denominators = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and GLANCING_ORDER in batches[0]:  # what is left to predict is known only now
            model = self.accelerator.unwrap_model(self.model)
            with self.accelerator.autocast():
                batches = [after_glancing(model, batch, self.data_collator.glancing_ratio) for batch in batches]
            denominators = self._get_num_items_in_batch(batches, device)
        self._parts_steps += 1
        for batch in batches:
            self._target_tokens += batch["labels"].ne(-100).sum().to(device)
        return batches, denominators

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = self.loss_outputs(model, inputs, num_items_in_batch)
        loss = outputs.loss
        if model.training:
            parts = [getattr(outputs, name) for name in self.loss_parts]
            zero = loss.detach().new_zeros(())
            self._part_sums += torch.stack([zero if part is None else part.detach().float() for part in parts])
            # Gradients are averaged over processes, but these losses are shares of a sum.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _reset_parts(self) -> None:
        self._part_sums = torch.zeros(len(self.loss_parts), device=self.args.device)
        self._target_tokens = torch.zeros((), dtype=torch.long, device=self.args.device)
        self._parts_steps = 0
        self._parts_since = time.perf_counter()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss and the speed (target tokens a second, without padding) to training logs."""
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

    def _token_batches(self, dataset, max_tokens: int, shuffle: bool) -> TokenBatchSampler:
        return TokenBatchSampler(
            column_lengths(dataset, "input_ids"),
            column_lengths(dataset, "labels"),
            max_tokens,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            shuffle=shuffle,
            max_sentences=self.args.max_sentences,
            num_replicas=self.args.world_size if shuffle else 1,
        )

    def get_train_dataloader(self) -> DataLoader:
        if self.train_batches is None:
            return super().get_train_dataloader()
        workers = self.args.dataloader_num_workers
        loader = DataLoader(
            without_text(self.train_dataset),
            batch_sampler=self.train_batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            worker_init_fn=leave_process_group,
            generator=torch.Generator(),  # its own: how workers start must not move the dropout's random numbers
        )
        return self.accelerator.prepare(loader)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """For `predict`, with the masks of evaluation: the same losses whenever it is called."""
        training_collator, self.data_collator = self.data_collator, self.eval_data_collator
        try:
            return super().get_test_dataloader(test_dataset)
        finally:
            self.data_collator = training_collator

    def floating_point_ops(self, inputs) -> int:
        """Not counted: the walk over all parameters in every step costs a small model 2 % of its time."""
        return 0

    # Training --------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As `Trainer.train`; True goes on from the newest whole checkpoint, or begins if there is none.

        After it, `self.stopper.stopped` tells whether it ended before the last step.
        """
        if resume_from_checkpoint is False:
            resume_from_checkpoint = None
        if resume_from_checkpoint is True:
            newest = checkpoints.newest_whole(self.args.output_dir)
            resume_from_checkpoint = None if newest is None else str(newest)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.remove_leftovers(self.args.output_dir)
                checkpoints.remove_after(self.args.output_dir, newest)
        self._reset_parts()
        if self.ema is not None and resume_from_checkpoint is None:
            self.ema = WeightEMA(self.model, self.args.ema_decay)  # the model may have moved to another device
        if resume_from_checkpoint is not None and self._is_last(resume_from_checkpoint):
            return TrainOutput(self.state.global_step, 0.0, {})
        with self.stopper.listening():
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _is_last(self, checkpoint: str) -> bool:
        """True, with weights and state loaded, if the run had made all its steps and lacked the final model only."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / checkpoints.TRAINER_STATE))
        all_steps = self.args.max_steps if self.args.max_steps > 0 else state.max_steps
        grown = self.args.max_steps <= 0 and self.args.num_train_epochs > state.num_train_epochs
        if state.global_step < all_steps or grown:
            return False
        self._load_from_checkpoint(checkpoint)
        self.state = state
        return True

    def _any_process(self, flag: bool) -> bool:
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.args.device)).item())

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial=None) -> str:
        return super()._get_output_dir(trial) if self._saving_folder is None else str(self._saving_folder)

    def _save_checkpoint(self, model, trial=None) -> None:
        """Write the checkpoint aside, then give it its name; a full disk leaves the earlier ones as they were."""
        run_dir = Path(self.args.output_dir)
        self._saving_folder = checkpoints.staging_folder(run_dir)
        staged = self._saving_folder / f"checkpoint-{self.state.global_step}"
        try:
            with self._averaged_weights():
                super()._save_checkpoint(model, trial)
                if self.ema is not None and self.args.should_save:
                    save_file(self._training_weights(), staged / checkpoints.TRAINING_WEIGHTS)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.publish(staged, run_dir / staged.name)
                checkpoints.thin_out(run_dir, self.args.save_total_limit, self.best_steps())
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(staged, ignore_errors=True)
            raise OSError(f"{staged.name} cannot be saved in {run_dir} ({error}); earlier ones are whole") from error
        finally:
            self._saving_folder = None
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir=None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`, of the average with `ema_decay`."""
        with self._averaged_weights():
            super().save_model(output_dir, _internal_call)

    def _averaged_weights(self):
        return nullcontext() if self.ema is None else self.ema.applied()

    def _training_weights(self) -> dict[str, torch.Tensor]:
        """The weights that the averages have displaced from the model."""
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        return dict(zip(names, self.ema.averages, strict=True))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        training_weights = Path(resume_from_checkpoint) / checkpoints.TRAINING_WEIGHTS
        if self.ema is None:
            return
        self.ema = WeightEMA(self.model, self.args.ema_decay)
        if training_weights.is_file():
            self.model.load_state_dict(load_file(training_weights), strict=False)

    def best_steps(self) -> list[int]:
        """Steps of the `keep_best` checkpoints with the highest BLEU so far, best first; also the step being made."""
        steps = {checkpoints.checkpoint_step(path) for path in checkpoints.list_checkpoints(self.args.output_dir)}
        if self.is_in_train and self.state.global_step > 0:  # before the first step nothing is saved
            steps.add(self.state.global_step)
        return checkpoints.best_steps(self.state.log_history, BLEU, self.args.keep_best, steps)

    # Evaluation ------------------------------------------------------------------------------------------------------

    def predict(self, *args, **kwargs) -> PredictionOutput:
        """As `Trainer.predict`, with the average of the weights with `ema_decay`."""
        with self._averaged_weights():
            return super().predict(*args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Exact losses over the data set and, with `eval_num_iterations`, BLEU of its translation.

        `eval_bleu` is that of the last number of passes; `eval_bleu_k4` and so on that of each.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("eval_dataset is None: there is nothing to evaluate on")
        if isinstance(dataset, dict):
            metrics = {}
            for name, one in dataset.items():
                metrics |= self.evaluate(one, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        start = time.perf_counter()
        was_training = self.model.training
        self.model.eval()
        with self._averaged_weights(), torch.no_grad():
            metrics = self._corpus_losses(dataset)
            metrics.update(self._translation_scores(dataset))
        self.model.train(was_training)
        metrics["runtime"] = round(time.perf_counter() - start, 3)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.is_in_train and self.state.global_step in self.best_steps():
            self.control.should_save = True
        self._parts_since += time.perf_counter() - start  # not training time
        return metrics

    def _corpus_losses(self, dataset) -> dict[str, float]:
        """Loss and parts from sums over the whole data set; each process takes its share of the batches."""
        longest = max(column_lengths(dataset, name).max() for name in ("input_ids", "labels"))
        most = min(EVALUATION_TOKENS, self.args.eval_batch_tokens or EVALUATION_TOKENS)
        batches = list(self._token_batches(dataset, max(most, longest), shuffle=False))
        dataset = without_text(dataset)
        sums = torch.zeros(len(self.loss_parts) + 2, dtype=torch.float64)
        ones = torch.ones(2, device=self.args.device)
        for indices in batches[self.args.process_index :: self.args.world_size]:
            batch = self._prepare_inputs(self.eval_data_collator([dataset[index] for index in indices]))
            with self.accelerator.autocast():
                outputs = self.loss_outputs(self.model, batch, ones)
            parts = [getattr(outputs, name) for name in self.loss_parts]
            sums += torch.tensor(
                [0.0 if part is None else float(part) for part in parts]
                + [float(self.count_predicted(batch)), float(len(indices))],
                dtype=torch.float64,
            )
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums.to(self.args.device), reduction="sum").cpu()
        *parts, predicted, sentences = sums.tolist()
        means = {
            name: value / (sentences if name == "length_loss" else predicted)
            for name, value in zip(self.loss_parts, parts, strict=True)
        }
        metrics, weights = self.computed_parts(means), self.loss_weights()
        return {"loss": sum(weights[name] * value for name, value in metrics.items()), **metrics}

    def computed_parts(self, means: dict[str, float]) -> dict[str, float]:
        """Without the parts that are switched off, and without that of the source where none of it was masked."""
        weights = self.loss_weights()
        return {name: value for name, value in means.items() if weights[name] and (value or name != "encoder_loss")}

    def loss_weights(self) -> dict[str, float]:
        config = self.model.config
        return {
            "nll_loss": 1.0,
            "encoder_loss": config.encoder_loss_weight,
            "ngram_loss": config.ngram_loss_weight,
            "length_loss": config.length_loss_weight,
        }

    def _translation_scores(self, dataset) -> dict[str, float]:
        """sacreBLEU of the translated `source` column against `target`, for each of the evaluation's settings."""
        settings = self.args.evaluation_settings()
        if not settings:
            return {}
        import sacrebleu
        from accelerate.utils import gather_object

        sources, references = (text_column(dataset, name, self.args.eval_sentences) for name in ("source", "target"))
        rank, world = self.args.process_index, self.args.world_size
        scores = {}
        for name, options in settings.items():
            translations = translate_lines(
                self.model,
                self.processing_class,
                sources[rank::world],
                max_batch_tokens=self.args.eval_batch_tokens,
                **options,
            )
            mine = [(rank + position * world, result.text) for position, result in enumerate(translations)]
            pairs = mine if world == 1 else gather_object(mine)
            hypotheses = [text for _, text in sorted(pairs)]
            scores[f"bleu_{name}"] = round(sacrebleu.corpus_bleu(hypotheses, [references]).score, 4)
        return {**scores, "bleu": scores[f"bleu_{list(settings)[-1]}"]}

    # The final model -------------------------------------------------------------------------------------------------

    def choose_final_weights(self) -> dict:
        """Load the weights that become the final model, and say which.

        With `keep_best`, the average of the best checkpoints is evaluated and taken if its BLEU is not below that of
        the best one. Otherwise the last weights are taken (their moving average with `ema_decay`).
        """
        steps = self.best_steps()
        if not steps:
            if self.ema is not None:
                self.ema.swap()
                self.ema = None
            return {"final_model": f"step {self.state.global_step}"}
        run_dir = Path(self.args.output_dir)
        folders = [run_dir / f"checkpoint-{step}" for step in steps]
        scores = {entry["step"]: entry[BLEU] for entry in self.state.log_history if BLEU in entry}
        report = {"best_step": steps[0], "best_bleu": scores[steps[0]]}
        self.ema = None  # training is over: the saved weights are averages already
        chosen, name = folders[0], f"step {steps[0]}"
        if len(folders) > 1:
            average = checkpoints.staging_folder(run_dir) / "average"
            if self.args.should_save:
                average_checkpoints(folders, average)
            self.accelerator.wait_for_everyone()
            self._load_weights(average)
            report["average_of_steps"] = sorted(steps)
            report["average_bleu"] = self._final_bleu()
            if report["average_bleu"] >= report["best_bleu"]:
                chosen, name = average, f"average of steps {', '.join(map(str, sorted(steps)))}"
        self._load_weights(chosen)
        return {**report, "final_model": name}

    def _load_weights(self, folder: Path) -> None:
        if (folder / checkpoints.ADAPTER_WEIGHTS).is_file():
            super()._load_from_checkpoint(str(folder))
        else:
            self.model.load_state_dict(load_file(folder / checkpoints.WEIGHTS), strict=False)

    def _final_bleu(self) -> float:
        self.model.eval()
        with torch.no_grad():
            return self._translation_scores(self.eval_dataset)["bleu"]
