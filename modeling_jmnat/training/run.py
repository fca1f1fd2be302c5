"""One training run from a prepared data set to a model folder; the same call goes on where an earlier one stopped."""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from ..configuration_jmnat import JMNatConfig
from ..data.dataset_columns import column_lengths
from ..data.preparation import load_prepared
from ..inference.translation import check_vocabulary
from ..modeling_jmnat import JMNatForConditionalGeneration
from ..teacher.model import load_teacher, load_teacher_tokenizer, tokenizer_digest
from ..teacher.weights import copy_teacher_weights
from ..tokenization_jmnat import JMNatTokenizer
from ..utils.atomic_files import same_path, write_json
from ..utils.signals import terminated_as_interrupted
from . import checkpoints
from .arguments import TranslationTrainingArguments
from .command import TrainingCommand
from .data_collator import DataCollatorForJMNat
from .halves import freeze_half, restart_half
from .options import FREE_MODEL_FIELDS, ModelOptions
from .trainer import JMNatTrainer

RESULTS = "results.json"
SETTINGS = "run_settings.json"
# What may not change when a run goes on; everything else (evaluation, saving, logging, workers) may.
FIXED_TRAINING_FIELDS = (
    "max_tokens",
    "max_sentences",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
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
    "world_size",  # processes: a step has as many batches
)


def run_training(command: TrainingCommand) -> dict:
    """Train, or go on, and write the final model; returns the figures, `finished` among them.

    Writes into the run's folder: `config.json`, `model.safetensors`, tokenizer, `generation_config.json`,
    `trainer_state.json` (the log), `run_settings.json` and, last, `results.json`. SIGTERM, SIGINT and the time budget
    leave a checkpoint instead, from which the same call goes on.

    Raises:
        ValueError: data, model and settings that do not fit together, or a folder in use or with another run.
        OSError: a file cannot be read or written.
    """
    return run_exclusively(command.training, lambda output_dir: _run(command, output_dir))


def run_exclusively(training: TranslationTrainingArguments, run: Callable[[Path], dict]) -> dict:
    """Call `run(output_dir)` while no other process trains into that folder; a signal ends it with what is saved."""
    output_dir = Path(training.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        # One process of several holds the lock.
        with (
            checkpoints.run_lock(output_dir) if training.process_index == 0 else nullcontext(),
            terminated_as_interrupted(),
        ):
            return run(output_dir)
    except KeyboardInterrupt:  # before or after the training itself, or a second signal
        newest = checkpoints.newest_whole(output_dir)
        return unfinished(output_dir, checkpoints.checkpoint_step(newest) if newest else 0)


def _run(command: TrainingCommand, output_dir: Path) -> dict:
    start = time.perf_counter()
    data, tokenizer = load_prepared(command.run.data)
    check_data(data["train"], tokenizer, command.model, "train", command.masking["pad_to_multiple_of"])
    check_data(data["validation"], tokenizer, command.model, "validation", command.masking["pad_to_multiple_of"])
    settings = run_settings(command, data["train"], tokenizer)
    compare_settings(output_dir, settings)
    if (output_dir / RESULTS).is_file():
        print(f"{output_dir} holds the finished run of this command: nothing is left to do", file=sys.stderr)
        return json.loads((output_dir / RESULTS).read_text())
    set_seed(command.training.seed)  # before the weights are drawn
    model = build_model(command, tokenizer)
    collator = DataCollatorForJMNat(
        tokenizer, **command.masking, ngram_size=command.model["ngram_size"], seed=command.training.seed
    )
    trainer = JMNatTrainer(
        model,
        command.training,
        collator,
        processing_class=tokenizer,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
    )
    if command.training.should_save:
        write_json(output_dir / SETTINGS, settings)
    trainer.train(resume_from_checkpoint=True)
    if trainer.stopper.stopped:
        return unfinished(output_dir, trainer.state.global_step, trainer.state.max_steps)
    return finish(trainer, output_dir, len(data["train"]), start)


def unfinished(output_dir: Path, step: int, max_steps: int | None = None) -> dict:
    print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
    return {"finished": False, "output_dir": str(output_dir), "step": step, "max_steps": max_steps}


def finish(
    trainer: JMNatTrainer,
    output_dir: Path,
    num_pairs: int,
    start: float,
    final_scores: Callable[[], dict] | None = None,
) -> dict:
    """Write the final model and then, as the last file, the results, with those of `final_scores()` among them."""
    report = trainer.choose_final_weights()
    if final_scores is not None:
        report.update(final_scores())
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
        staged = checkpoints.staging_folder(output_dir) / "final"
        trainer.model.save_pretrained(staged)
        trainer.processing_class.save_pretrained(staged)
        trainer.state.save_to_json(str(staged / checkpoints.TRAINER_STATE))
        for path in staged.iterdir():
            path.replace(output_dir / path.name)
        checkpoints.remove_leftovers(output_dir)
        write_json(output_dir / RESULTS, results)
    trainer.accelerator.wait_for_everyone()
    return results


def build_model(command: TrainingCommand, tokenizer: PreTrainedTokenizerBase) -> JMNatForConditionalGeneration:
    """The model to train, in float32: new, from another model's weights, or with what a teacher can give.

    Raises:
        ValueError: the start is no such model, or its tokenizer or sizes are not those of this run.
    """
    run = command.run
    if run.init_from is not None:
        changes = {name: command.model[name] for name in FREE_MODEL_FIELDS}
        config = JMNatConfig.from_pretrained(run.init_from, **changes)
        for name in {item.name for item in fields(ModelOptions)} - FREE_MODEL_FIELDS:
            if getattr(config, name) != command.model[name]:
                raise ValueError(
                    f"{name} is {getattr(config, name)} in {run.init_from} and {command.model[name]} here: weights "
                    "fit a model of their own sizes only"
                )
        check_same_tokenizer(JMNatTokenizer.from_pretrained(run.init_from), tokenizer, run.init_from)
        # Changes given to the model's from_pretrained would end in its generation config as well.
        model = JMNatForConditionalGeneration.from_pretrained(run.init_from, config=config, dtype=torch.float32)
    else:
        model = JMNatForConditionalGeneration(JMNatConfig(vocab_size=len(tokenizer), **command.model))
    if run.init_from_teacher is not None:
        check_same_tokenizer(load_teacher_tokenizer(run.init_from_teacher), tokenizer, run.init_from_teacher)
        copied = copy_teacher_weights(model, load_teacher(run.init_from_teacher)[0])
        print(f"from the teacher {run.init_from_teacher}: {copied.describe()}", file=sys.stderr)
    check_vocabulary(model, tokenizer)
    if run.restart is not None:
        restart_half(model, run.restart)
    if run.freeze is not None:
        freeze_half(model, run.freeze)
    return model


def check_same_tokenizer(theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase, folder: str) -> None:
    """Refuse weights that were trained on other token ids: they would be noise without any error."""
    digests = [tokenizer_digest(tokenizer)[:12] for tokenizer in (theirs, ours)]
    if digests[0] != digests[1]:
        raise ValueError(
            f"the tokenizer of {folder} (hash {digests[0]}) is not that of the data (hash {digests[1]}): prepare the "
            f"data with --tokenizer {folder}"
        )


def check_data(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: dict, split: str, multiple: int | None
) -> None:
    """Refuse sentences too long for the model, and among the first 1,000 ids beyond the vocabulary and no `</s>`.

    `multiple`: what batches are padded to a multiple of.
    """
    limits = {"input_ids": "max_position_embeddings", "labels": "max_target_length"}
    for column, limit in limits.items():
        longest = int(column_lengths(dataset, column).max())
        padded = -(-longest // multiple) * multiple if multiple else longest
        if padded > model[limit]:
            rounded = f", padded to {padded}," if padded > longest else ""
            raise ValueError(
                f"{split}: the longest {column} has {longest} tokens{rounded} and {limit} is {model[limit]}"
            )
        highest = max(max(ids) for ids in dataset[column][:1000])
        if highest >= len(tokenizer):
            raise ValueError(
                f"{split}: token id {highest} in {column} is beyond the {len(tokenizer)} of the tokenizer"
            )
        if any(ids[-1] != tokenizer.eos_token_id for ids in dataset[column][:1000]):
            raise ValueError(
                f"{split}: {column} must end in </s> (id {tokenizer.eos_token_id}); prepare the data again"
            )


def run_settings(command: TrainingCommand, train_data: Dataset, tokenizer: PreTrainedTokenizerBase) -> dict:
    """What makes this run this run."""
    settings = {
        "model": command.model,
        "masking": command.masking,
        "training": {name: getattr(command.training, name) for name in FIXED_TRAINING_FIELDS},
        "start": {
            name: getattr(command.run, name) for name in ("init_from", "init_from_teacher", "freeze", "restart")
        },
        "data": data_settings(train_data, tokenizer),
    }
    return json.loads(json.dumps(settings))  # as it will be read back


def data_settings(train_data: Dataset, tokenizer: PreTrainedTokenizerBase) -> dict:
    """What tells one training set from another."""
    digest = hashlib.blake2b(digest_size=16)
    for column in ("input_ids", "labels"):
        for chunk in train_data.with_format("arrow")[column][:].chunks:
            digest.update(chunk.flatten().to_numpy().tobytes())
    return {"pairs": len(train_data), "ids": digest.hexdigest(), "tokenizer": tokenizer_digest(tokenizer)}


def compare_settings(output_dir: Path, settings: dict) -> None:
    """Refuse to go on with a run under other settings than it began with."""
    path = output_dir / SETTINGS
    if not path.is_file():
        return
    before = json.loads(path.read_text())
    for section, values in settings.items():
        recorded = before.get(section, {})
        for name, value in values.items():
            earlier = recorded.get(name)
            if earlier != value and not (section == "start" and earlier and value and same_path(earlier, value)):
                raise ValueError(
                    f"output_dir {output_dir} holds a run with {section} {name}={earlier}, and now it is {value}: "
                    "choose another folder"
                )
