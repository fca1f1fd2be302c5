"""`CheckpointingTrainer`: runs that can be killed at any moment, resume exactly, and end with their best weights."""

import json
import logging
import pickle
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import Seq2SeqTrainer, TrainerState
from transformers.trainer_utils import PredictionOutput, TrainOutput

from ..utils.atomic_files import publish_folder
from ..utils.command_line import is_lost_process, is_out_of_memory
from ..utils.finite import is_finite, not_finite
from . import checkpoints
from .callbacks import EMACallback, StopCallback
from .checkpoint_averaging import average_checkpoints
from .elastic import check_step, step_fields
from .failures import memory_sentence, place_of_step
from .sharding import (
    is_sharded,
    load_optimizer_state,
    load_weights,
    shard_model,
    shard_on_cpu,
    whole_model,
    whole_optimizer_state,
    whole_tensor,
)
from .weight_ema import WeightEMA

logger = logging.getLogger(__name__)
BLEU = "eval_bleu"  # the metric that chooses checkpoints
STATES = ("optimizer.pt", "scheduler.pt")


class CheckpointingTrainer(Seq2SeqTrainer):
    """Transformers' Seq2SeqTrainer with whole checkpoints, clean stops and a moving average of the weights.

    - A checkpoint gets its name only when it is complete; `train(resume_from_checkpoint=True)` resumes from the newest
      complete one.
    - SIGTERM, SIGINT, SIGHUP and the end of `time_budget` stop training after the current step, with a checkpoint.
    - With `ema_decay`, everything but the training step itself uses the averaged weights.
    - `keep_best` keeps the checkpoints with the highest BLEU, from which `choose_final_weights` chooses.
    - A NaN or infinite loss, gradient or weight ends training with a FloatingPointError; it is never saved.

    Subclasses define `final_bleu`.
    """

    def __init__(self, model, args, *positional, **kwargs):
        super().__init__(model, args, *positional, **kwargs)
        if args.keep_best > 1 and hasattr(self.model, "peft_config"):
            raise ValueError(f"keep_best={args.keep_best} must be 0 or 1 here: adapters are not averaged")
        if self.is_deepspeed_enabled and args.ema_decay is not None:
            raise ValueError(f"ema_decay={args.ema_decay} is not possible with DeepSpeed: launch with gpus or fsdp2")
        self.ema: WeightEMA | None = None
        if args.ema_decay is not None:
            self.ema = WeightEMA(self.model, args.ema_decay)
            self.add_callback(EMACallback(self))
        self.stopper = StopCallback(args.time_budget, self._any_process if args.world_size > 1 else None)
        self.add_callback(self.stopper)  # last, because it overrules the callbacks that ask for evaluations
        self._saving_folder: Path | None = None
        self._finite_until: torch.Tensor | None = None  # the last step of this call with a finite loss and gradient
        self._checkpoints_kept = args.save_total_limit
        self._is_evaluating = False

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = self.is_fsdp_enabled or shard_on_cpu(self.accelerator, self.args)

    def create_optimizer(self, model=None):
        if self.is_fsdp_enabled:
            if hasattr(self.model, "peft_config"):
                raise ValueError("adapters are small enough to be trained without FSDP: launch with gpus instead")
            shard_model(self.model, self.accelerator)
            if self.ema is not None:
                self.ema = WeightEMA(self.model, self.args.ema_decay)
        return super().create_optimizer(model)

    def _any_process(self, flag: bool) -> bool:
        if self.args.world_size == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.args.device)).item())

    # Training --------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, **kwargs):
        """Train as `Trainer.train` does; True resumes from the newest whole checkpoint, or starts if there are none.

        Checkpoints of later steps than the first that is saved, left by an earlier training, are then moved into
        `_replaced`. Afterwards `self.stopper.stopped` tells whether training stopped before its last step.

        Raises:
            ValueError: a checkpoint is refused, none is whole, or the processes see different ones.
            FloatingPointError: a loss, gradient or weight is no longer finite.
            MemoryError: a batch does not fit; the message says which setting to lower.
        """
        self.stopper.restart()
        if resume_from_checkpoint is False:
            resume_from_checkpoint = None
        if resume_from_checkpoint is True:
            newest = checkpoints.checkpoint_to_resume(self.args.output_dir, self._needed_files())
            resume_from_checkpoint = None if newest is None else str(newest)
            self.accelerator.wait_for_everyone()
            self._check_all_see(newest)
            if self.args.should_save:
                checkpoints.remove_leftovers(self.args.output_dir)
        if self.ema is not None and resume_from_checkpoint is None:
            self.ema = WeightEMA(self.model, self.args.ema_decay)  # the model may have moved to another device
        if resume_from_checkpoint is not None and self._is_last(resume_from_checkpoint):
            return TrainOutput(self.state.global_step, 0.0, {})
        if resume_from_checkpoint is not None:
            check_step(self.args, resume_from_checkpoint)
        self._finite_until = None
        # At the end, `Trainer` would delete the only checkpoint to resume from if another one is the best.
        self._checkpoints_kept, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with self.stopper.listening():
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            step = self.state.global_step
            raise MemoryError(memory_sentence(self.args, error, step, self._is_evaluating)) from error
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"checkpoint {resume_from_checkpoint} is refused: its optimizer.pt, scheduler.pt or rng_state.pth "
                f"holds more than tensors and plain values ({' '.join(str(error).split())[:200]}); delete it"
            ) from None
        finally:
            self.args.save_total_limit = self._checkpoints_kept

    def _check_all_see(self, newest: Path | None) -> None:
        """ValueError unless all processes start from the same checkpoint; otherwise their weights would differ."""
        if self.args.world_size == 1:
            return
        step = 0 if newest is None else checkpoints.checkpoint_step(newest)
        steps = self.accelerator.gather(torch.tensor([step], device=self.args.device)).tolist()
        if len(set(steps)) > 1:
            raise ValueError(
                f"the processes see different checkpoints in output_dir {self.args.output_dir}, of the steps {steps} "
                "(0: none): it must be one folder that all machines share"
            )

    def _needed_files(self) -> list[str]:
        """Files that a checkpoint of this run needs in addition to the usual ones."""
        return [] if self.ema is None else [checkpoints.TRAINING_WEIGHTS]

    def _is_last(self, checkpoint: str) -> bool:
        """Whether the checkpoint is of the last step; if so, load its weights and state."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / checkpoints.TRAINER_STATE))
        all_steps = self.args.max_steps if self.args.max_steps > 0 else state.max_steps
        grown = self.args.max_steps <= 0 and self.args.num_train_epochs > state.num_train_epochs
        if state.global_step < all_steps or grown:
            return False
        self._load_from_checkpoint(checkpoint)
        self.state = state
        if self.args.load_best_model_at_end and state.best_global_step:
            self._load_best_model()
        return True

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        if self.is_fsdp_enabled:
            load_weights(self.model, load_file(checkpoint / checkpoints.WEIGHTS))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        training_weights = checkpoint / checkpoints.TRAINING_WEIGHTS
        if self.ema is None:
            return
        self.ema = WeightEMA(self.model, self.args.ema_decay)
        if training_weights.is_file():
            load_weights(self.model, load_file(training_weights))

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, scheduler = (torch.load(Path(checkpoint) / name, weights_only=True) for name in STATES)
        load_optimizer_state(self.model, self.optimizer.optimizer, optimizer)
        self.lr_scheduler.load_state_dict(scheduler)

    def _save_optimizer_and_scheduler(self, output_dir) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        states = (whole_optimizer_state(self.model, self.optimizer.optimizer), self.lr_scheduler.state_dict())
        if self.args.should_save:
            for name, state in zip(STATES, states, strict=True):
                torch.save(state, Path(output_dir) / name)

    def _issue_warnings_after_load(self, load_result) -> None:
        """Do not report tied weights as missing: a checkpoint stores them once, under one of their names."""
        tied = set(getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", None) or ())
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *args, **kwargs) -> None:
        control = self.control
        at_rest = control.should_log or control.should_evaluate or control.should_save or control.should_training_stop
        # With fp16, an infinite gradient is routine and the scaler skips the update, so check the summed loss instead.
        norm = tr_loss if grad_norm is None or self.accelerator.scaler is not None else torch.as_tensor(grad_norm)
        step = self.state.global_step
        finite = tr_loss.isfinite().all() & norm.isfinite().all()
        self._finite_until = torch.where(finite, step, step - 1 if self._finite_until is None else self._finite_until)
        if at_rest or self.args.device.type == "cpu":  # on a GPU, waiting for this value in every step takes time
            what = None if finite else "the loss" if not is_finite(tr_loss) else "the norm of the gradients"
            if what is not None:
                raise self._diverged(what, int(self._finite_until) + 1)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _diverged(self, what: str, step: int) -> FloatingPointError:
        loader, accumulation = self.callback_handler.train_dataloader, self.args.gradient_accumulation_steps
        where = place_of_step(step, loader, accumulation)
        newest = checkpoints.newest_whole(self.args.output_dir, self._needed_files())
        kept = "there is no checkpoint yet" if newest is None else f"the last good checkpoint is {newest}"
        return FloatingPointError(
            f"{what} is no longer finite at {where} and was not saved; {kept}. Train in another output_dir with a "
            "lower learning_rate, more warmup_steps or a max_grad_norm such as 1"
        )

    # Saving ----------------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial=None) -> str:
        return super()._get_output_dir(trial) if self._saving_folder is None else str(self._saving_folder)

    def _save_checkpoint(self, model, trial=None) -> None:
        """Write the checkpoint under another name, then rename it; a full disk does not affect earlier ones."""
        name = not_finite(self.model)
        if self._any_process(name is not None):
            what = f"the weight {name}" if name else "a weight of another process"
            raise self._diverged(what, self.state.global_step)
        run_dir = Path(self.args.output_dir)
        self._saving_folder = checkpoints.staging_folder(run_dir)
        staged = self._saving_folder / f"checkpoint-{self.state.global_step}"
        try:
            with self._averaged_weights():
                super()._save_checkpoint(model, trial)
                training_weights = {} if self.ema is None else self._training_weights()
                if training_weights and self.args.should_save:
                    save_file(training_weights, staged / checkpoints.TRAINING_WEIGHTS)
            self.accelerator.wait_for_everyone()
            if self.state.best_model_checkpoint == str(staged):  # record its final path
                self.state.best_model_checkpoint = str(run_dir / staged.name)
                if self.args.should_save:
                    self.state.save_to_json(str(staged / checkpoints.TRAINER_STATE))
            if self.args.should_save:
                checkpoints.write_manifest(staged, step_fields(self.args))
                checkpoints.set_newer_aside(run_dir, self.state.global_step)
                publish_folder(staged, run_dir / staged.name)
                kept = (*self.best_steps(), self.state.best_global_step)
                checkpoints.thin_out(run_dir, self._checkpoints_kept, kept)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(staged, ignore_errors=True)
            if is_lost_process(error):
                raise
            raise OSError(f"{staged.name} cannot be saved in {run_dir} ({error}); earlier ones are intact") from error
        finally:
            self._saving_folder = None
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run_dir / staged.name))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._saving_folder is None:  # `Trainer` would upload the checkpoint before it is complete
            super()._push_from_checkpoint(checkpoint_folder)

    def _determine_best_metric(self, metrics, trial) -> bool:
        """Save the checkpoint that `load_best_model_at_end` will load, even if none is due at this step."""
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return is_best

    def _load_best_model(self) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"  # the run may have moved
        weights = checkpoints.weights_of(folder)
        damage = checkpoints.changed_file(folder, weights.name) if weights.is_file() else f"{weights.name} is missing"
        if damage is not None:
            raise ValueError(
                f"the best checkpoint {folder} cannot be loaded: {damage}. To end with the last weights instead, set "
                "load_best_model_at_end=False"
            )
        self.state.best_model_checkpoint = str(folder)
        if self.is_fsdp_enabled:
            load_weights(self.model, load_file(folder / checkpoints.WEIGHTS))
        else:
            super()._load_best_model()
        if self.ema is not None:  # the saved weights are averages already
            self.ema = WeightEMA(self.model, self.args.ema_decay)

    def save_model(self, output_dir=None, _internal_call: bool = False) -> None:
        """Save as `Trainer.save_model` does; with `ema_decay`, the averaged weights."""
        with self._final_model():
            super().save_model(output_dir, _internal_call)

    def predict(self, *args, **kwargs) -> PredictionOutput:
        """Predict as `Trainer.predict` does; with `ema_decay`, by the averaged weights."""
        with self._final_model():
            return super().predict(*args, **kwargs)

    def _averaged_weights(self) -> AbstractContextManager:
        return nullcontext() if self.ema is None else self.ema.applied()

    @contextmanager
    def _final_model(self) -> Iterator[None]:
        """A context in which `model` has the weights to save: averaged, and whole on each process."""
        with self._averaged_weights():
            if not self.is_fsdp_enabled:
                yield
                return
            trained = (self.model, self.model_wrapped)
            if is_sharded(self.model):
                self.model = self.model_wrapped = whole_model(self.model)
            self.is_fsdp_enabled = False
            try:
                yield
            finally:
                (self.model, self.model_wrapped), self.is_fsdp_enabled = trained, True

    def _training_weights(self) -> dict[str, torch.Tensor]:
        """The trained weights while the averages are in the model."""
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        return dict(zip(names, map(whole_tensor, self.ema.averages), strict=True))

    def best_steps(self) -> list[int]:
        """Steps of the `keep_best` checkpoints with the highest BLEU so far, best first.

        The current step counts as well, because its checkpoint is about to be saved.
        """
        steps = {checkpoints.checkpoint_step(path) for path in checkpoints.list_checkpoints(self.args.output_dir)}
        if self.is_in_train and self.state.global_step > 0:  # nothing is saved before the first step
            steps.add(self.state.global_step)
        return checkpoints.best_steps(self.state.log_history, BLEU, self.args.keep_best, steps)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer.log` does, and note in the state by which settings BLEU was measured."""
        super().log(logs, start_time)
        if BLEU in logs:
            self.state.log_history[-1][checkpoints.SCORE_SETTINGS] = self._score_settings()

    def _score_settings(self) -> str:
        """What BLEU depends on besides the weights: options that may change when a run resumes."""
        decoding = list(self.args.evaluation_settings().values())[-1:]
        others = {name: getattr(self.args, name) for name in ("eval_sentences", "bleu_tokenize")}
        return json.dumps([*decoding, others])

    # Final weights ---------------------------------------------------------------------------------------------------

    def choose_final_weights(self) -> dict:
        """Load the weights of the final model and report which they are.

        With `keep_best`, these are the average of the best checkpoints, or the best one if its BLEU is higher.
        Without it, they are those that `load_best_model_at_end` has loaded, or else the last ones (with `ema_decay`,
        their moving average).

        Returns:
            `final_model`, a description; with `keep_best` also `best_step`, `best_bleu` and, of an average,
            `average_of_steps` and `average_bleu`.
        """
        if is_sharded(self.model):
            with self._final_model():
                whole = self.model
            self.model = self.model_wrapped = whole
            self.ema = None
        self.is_fsdp_enabled = False
        steps = [step for step in self.best_steps() if self._has_whole_weights(step)]
        if not steps:
            if self.ema is not None:
                self.ema.swap()
                self.ema = None
            best = self.state.best_global_step if self.args.load_best_model_at_end else None
            return {"final_model": f"step {best or self.state.global_step}"}
        run_dir = Path(self.args.output_dir)
        folders = [run_dir / f"checkpoint-{step}" for step in steps]
        scores = checkpoints.comparable_scores(self.state.log_history, BLEU)
        report = {"best_step": steps[0], "best_bleu": scores[steps[0]]}
        if len(scores) > 1 and len(set(scores.values())) == 1:
            logger.warning(
                "BLEU was %s at every evaluation, so keep_best=%s kept the earliest checkpoints, not the best: "
                "evaluate more sentences, or set bleu_tokenize to sacreBLEU's tokenizer for the language",
                report["best_bleu"],
                self.args.keep_best,
            )
        self.ema = None  # the saved weights are averages already
        chosen, name = folders[0], f"step {steps[0]}"
        if len(folders) > 1:
            average = checkpoints.staging_folder(run_dir) / "average"
            if self.args.should_save:
                average_checkpoints(folders, average)
            self.accelerator.wait_for_everyone()
            scored_by = checkpoints.last_score_settings(self.state.log_history, BLEU)
            if scored_by not in (None, self._score_settings()):  # the average is scored by those of now
                self._load_weights(chosen)
                report["best_bleu"] = self.final_bleu()
            self._load_weights(average)
            report["average_of_steps"] = sorted(steps)
            report["average_bleu"] = self.final_bleu()
            if report["average_bleu"] >= report["best_bleu"]:
                chosen, name = average, f"average of steps {', '.join(map(str, sorted(steps)))}"
        self._load_weights(chosen)
        return {**report, "final_model": name}

    def _has_whole_weights(self, step: int) -> bool:
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{step}"
        damage = checkpoints.changed_file(checkpoint, checkpoints.weights_of(checkpoint).name)
        if damage is not None:
            logger.warning("%s is left out of the final model: %s", checkpoint, damage)
        return damage is None

    def _load_weights(self, folder: Path) -> None:
        if (folder / checkpoints.ADAPTER_WEIGHTS).is_file():
            super()._load_from_checkpoint(str(folder))
        else:
            self.model.load_state_dict(load_file(folder / checkpoints.WEIGHTS), strict=False)

    def final_bleu(self) -> float:
        """BLEU of the model's current weights, by the same setting as `eval_bleu` during training."""
        raise NotImplementedError
