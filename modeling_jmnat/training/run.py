"""A training run from a prepared data set to a model folder; repeating the call resumes it."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from ..data.dataset_columns import column_lengths
from ..data.preparation import load_prepared
from ..modeling_jmnat import JMNatForConditionalGeneration
from ..utils.atomic_files import replace_files, same_path, write_json
from ..utils.fingerprints import data_settings, legacy_tokenizer_digest, same_fingerprint
from ..utils.finite import check_finite
from ..utils.json_files import read_json
from ..utils.locks import folder_lock
from ..utils.model_files import weight_files
from ..utils.signals import terminated_as_interrupted
from . import checkpoints
from .arguments import TranslationTrainingArguments
from .command import TrainingCommand
from .data_collator import DataCollatorForJMNat
from .elastic import STEP_FIELDS, keep_steps
from .initial_weights import initial_model
from .trainer import JMNatTrainer, TranslationTrainer

RESULTS = "results.json"
SETTINGS = "run_settings.json"
# Training arguments that may not change when a run resumes; the others (evaluation, saving, logging, workers) may.
FIXED_TRAINING_FIELDS = (
    "max_tokens",
    "max_sentences",
    "per_device_train_batch_size",
    "max_steps",
    "num_train_epochs",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "auto_find_batch_size",
    "ignore_data_skip",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "optim_target_modules",
    "neftune_noise_alpha",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "ema_decay",
    "bf16",
    "fp16",
    "seed",
    "data_seed",
    *STEP_FIELDS,
)
# Values of fields added later, for runs that began before and did not record them; None need not be listed, nor need
# training arguments, whose defaults are taken.
ADDED_FIELDS = {
    "batch_parts": 1,
    "second_mask_ratio": 0.0,
    "length_noise": 0.0,
    "length_smoothing": 0.0,
    "crf_rank": 0,
    "crf_loss_weight": 1.0,
}


@dataclass(frozen=True)
class Run:
    """The parts in which the runs of a student and of a teacher differ.

    Args:
        training: the training arguments; `output_dir` is the folder of the run.
        data: folder that `prepare` wrote.
        settings: sections of `run_settings.json`, to which `train_into_folder` adds that of the data.
        limits: `max_position_embeddings` and `max_target_length` of the model.
        make_trainer: called as make_trainer(processing_class=, train_dataset=, eval_dataset=) after the random seed is
            set, because it also makes the model.
        pad_to_multiple_of: lengths of batches are padded to a multiple of this; None: to the longest sentence.
        longer_targets: number of tokens that training may add to a target.
        final_scores: computes further figures of the final model for `results.json`.
    """

    training: TranslationTrainingArguments
    data: str
    settings: dict[str, dict]
    limits: dict[str, int]
    make_trainer: Callable[..., TranslationTrainer]
    pad_to_multiple_of: int | None = None
    longer_targets: int = 0
    final_scores: Callable[[TranslationTrainer], dict] | None = None


def run_training(
    command: TrainingCommand,
    model_class: type[JMNatForConditionalGeneration] = JMNatForConditionalGeneration,
    collator_class: type[DataCollatorForJMNat] = DataCollatorForJMNat,
    trainer_class: Callable[..., JMNatTrainer] = JMNatTrainer,
) -> dict:
    """Train a JM-NAT, or another system by its classes; see `train_into_folder` for its files, resuming and errors."""

    def make_trainer(processing_class, **datasets) -> JMNatTrainer:
        model = initial_model(command.run, command.model, processing_class, model_class)
        collator = collator_class(
            processing_class, **command.masking, ngram_size=command.model["ngram_size"], seed=command.training.seed
        )
        return trainer_class(model, command.training, collator, processing_class=processing_class, **datasets)

    start = [name for name in vars(command.run) if name not in ("data", "preset")]
    settings = {
        "model": command.model,
        "masking": command.masking,
        "training": fixed_settings(command.training, (*FIXED_TRAINING_FIELDS, "encoder_loss_weight_start")),
        "start": {name: getattr(command.run, name) for name in start},
    }
    multiple, longer = command.masking["pad_to_multiple_of"], int(command.masking["length_noise"] > 0)
    run = Run(command.training, command.run.data, settings, command.model, make_trainer, multiple, longer)
    return train_into_folder(run)


def train_into_folder(run: Run) -> dict:
    """Train, or resume, and write the final model.

    Writes into `output_dir`: `config.json`, `model.safetensors`, tokenizer, `generation_config.json`,
    `trainer_state.json` (the log), `run_settings.json` and, last, `results.json`. SIGTERM, SIGINT, SIGHUP and the
    time budget leave a checkpoint instead, from which the same call resumes.

    Returns:
        The figures of `results.json`; `finished` is False, and there are few others, if training was stopped.

    Raises:
        ValueError: data, model and settings do not fit together, or the folder is in use or holds another run.
        OSError: a file cannot be read or written.
    """
    output_dir = Path(run.training.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir={output_dir} is a file: name a folder")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        # Only one of several processes holds the lock.
        with (
            folder_lock(output_dir, "output_dir") if run.training.process_index == 0 else nullcontext(),
            terminated_as_interrupted(),
        ):
            return _train(run, output_dir)
    except KeyboardInterrupt:  # before or after the training itself, or a second signal
        newest = checkpoints.newest_whole(output_dir)
        max_steps = run.training.max_steps if run.training.max_steps > 0 else None  # otherwise the epochs decide
        return unfinished(output_dir, checkpoints.checkpoint_step(newest) if newest else 0, max_steps)


def _train(run: Run, output_dir: Path) -> dict:
    start = time.perf_counter()
    data, tokenizer = load_prepared(run.data)
    for split in ("train", "validation"):
        longer = run.longer_targets if split == "train" else 0
        check_data(data[split], tokenizer, run.limits, split, run.pad_to_multiple_of, longer)
    settings = {**run.settings, "data": data_settings(data["train"], tokenizer)}
    settings = json.loads(json.dumps(settings))  # in the form in which they are read back
    if run.training.elastic:
        settings["training"] |= go_on_with_other_processes(run.training, output_dir)
    compare_settings(output_dir, settings, tokenizer)
    if (output_dir / RESULTS).is_file():
        if not weight_files(output_dir):
            raise ValueError(
                f"output_dir {output_dir} holds {RESULTS} but no weights: restore model.safetensors, or delete "
                f"{RESULTS} and repeat the command, which goes on from the last checkpoint"
            )
        print(
            f"{output_dir} holds the finished run of this command: nothing is left to do, and options of evaluation "
            "and saving change nothing any more",
            file=sys.stderr,
        )
        return read_json(output_dir / RESULTS, what_to_do="delete it and repeat the command, which writes it again")
    set_seed(run.training.seed)  # before the weights are drawn
    trainer = run.make_trainer(
        processing_class=tokenizer, train_dataset=data["train"], eval_dataset=data["validation"]
    )
    if run.training.should_save:
        write_json(output_dir / SETTINGS, settings)
        parameters = trainer.model.num_parameters()
        print(f"training {parameters:,} parameters on {len(data['train']):,} pairs", file=sys.stderr)
        if checkpoints.list_checkpoints(output_dir):
            print(f"{output_dir} holds an unfinished run: resuming from its newest whole checkpoint", file=sys.stderr)
    trainer.train(resume_from_checkpoint=True)
    if trainer.stopper.stopped:
        return unfinished(output_dir, trainer.state.global_step, trainer.state.max_steps)
    return finish(trainer, output_dir, len(data["train"]), start, run.final_scores)


def unfinished(output_dir: Path, step: int, max_steps: int | None = None) -> dict:
    print("stopped; repeat the command to resume from the last checkpoint", file=sys.stderr)
    return {"finished": False, "output_dir": str(output_dir), "step": step, "max_steps": max_steps}


def finish(
    trainer: TranslationTrainer,
    output_dir: Path,
    num_pairs: int,
    start: float,
    final_scores: Callable[[TranslationTrainer], dict] | None = None,
) -> dict:
    """Write the final model and then, as the last file, the results, including those of `final_scores`."""
    report = trainer.choose_final_weights()
    check_finite(trainer.model, output_dir)
    if final_scores is not None:
        report.update(final_scores(trainer))
    speeds = [entry["target_tokens_per_second"] for entry in trainer.state.log_history if "nll_loss" in entry]
    results = {
        "finished": True,
        "output_dir": str(output_dir),
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 3),
        "train_pairs": num_pairs,
        "parameters": trainer.model.num_parameters(),
        **report,
        "target_tokens_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "seconds_of_this_call": round(time.perf_counter() - start, 1),
        "device": torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else trainer.args.device.type,
    }
    if trainer.args.should_save:
        with replace_files(output_dir) as staged:
            trainer.model.save_pretrained(staged)
            trainer.processing_class.save_pretrained(staged)
            trainer.state.save_to_json(str(staged / checkpoints.TRAINER_STATE))
        checkpoints.remove_leftovers(output_dir)
        write_json(output_dir / RESULTS, results)
    trainer.accelerator.wait_for_everyone()
    return results


def check_data(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    limits: dict,
    split: str,
    multiple: int | None,
    longer_targets: int = 0,
) -> None:
    """Refuse sentences too long for the model and, among the first 1,000, unknown ids and a missing `</s>`.

    Args:
        limits: the model's `max_position_embeddings` and `max_target_length`.
        multiple: lengths of batches are padded to a multiple of this.
        longer_targets: number of tokens that may be added to a target before padding.

    Raises:
        ValueError: naming the split, the column and what is allowed.
    """
    for column, limit in (("input_ids", "max_position_embeddings"), ("labels", "max_target_length")):
        longest = int(column_lengths(dataset, column).max())
        padded = longest + (longer_targets if column == "labels" else 0)
        padded = -(-padded // multiple) * multiple if multiple else padded
        if padded > limits[limit]:
            rounded = f", padded to {padded}," if padded > longest else ""
            raise ValueError(
                f"{split}: the longest {column} has {longest} tokens{rounded} and {limit} is {limits[limit]}: raise it"
            )
        highest = max(max(ids) for ids in dataset[column][:1000])
        if highest >= len(tokenizer):
            raise ValueError(
                f"{split}: token id {highest} in {column} is beyond the {len(tokenizer)} of the tokenizer; prepare "
                "the data again"
            )
        if any(ids[-1] != tokenizer.eos_token_id for ids in dataset[column][:1000]):
            raise ValueError(
                f"{split}: {column} must end in </s> (id {tokenizer.eos_token_id}); prepare the data again"
            )


def fixed_settings(training: TranslationTrainingArguments, names: Sequence[str]) -> dict:
    """The section training of `run_settings.json`."""
    return {name: getattr(training, name) for name in names}


def go_on_with_other_processes(training: TranslationTrainingArguments, output_dir: Path) -> dict[str, int]:
    """Keep the steps of the run in `output_dir`, if there is one; returns its numbers of processes and parts."""
    path = output_dir / SETTINGS
    if not path.is_file():
        return {}
    recorded = read_json(path, ("training",), "restore it or choose another output_dir")["training"]
    begun = {name: recorded.get(name, ADDED_FIELDS.get(name)) for name in STEP_FIELDS}
    if begun["gradient_accumulation_steps"] == training.gradient_accumulation_steps:  # otherwise it is refused later
        keep_steps(training, begun)
    return {name: begun[name] for name in ("world_size", "batch_parts")}


def compare_settings(output_dir: Path, settings: dict, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Refuse to resume a run under other settings than it began with.

    Args:
        tokenizer: the data's tokenizer, for runs that recorded its fingerprint in an earlier format.

    Raises:
        ValueError: a setting differs, or there is a run without its settings.
    """
    path = output_dir / SETTINGS
    if not path.is_file():
        begun = [*checkpoints.list_checkpoints(output_dir)[-1:], output_dir / RESULTS, output_dir / "config.json"]
        for left in (*begun, *weight_files(output_dir)):
            if left.exists():
                raise ValueError(
                    f"output_dir {output_dir} holds {left.name} but no {SETTINGS}, which identifies its run: restore "
                    "that file or choose another folder, because the model in this one would be overwritten"
                )
        return
    before = read_json(path, what_to_do="restore it or choose another output_dir")
    if tokenizer is not None:
        recorded, now = before.get("data", {}), settings["data"]["tokenizer"]
        if same_fingerprint(recorded.get("tokenizer"), now, lambda: legacy_tokenizer_digest(tokenizer)):
            recorded["tokenizer"] = now
    defaults = {item.name: item.default for item in fields(TranslationTrainingArguments)} | ADDED_FIELDS
    for section, values in settings.items():
        recorded = before.get(section, {})
        for name, value in values.items():
            earlier = recorded.get(name, defaults.get(name))
            if earlier != value and not (section == "start" and earlier and value and same_path(earlier, value)):
                elastic = "--elastic True keeps its steps, or " if name == "world_size" else ""
                raise ValueError(
                    f"output_dir {output_dir} holds a run with {section} {name}={earlier}, and now it is {value}: "
                    f"{elastic}choose another folder"
                )
