"""Fine-tune the shipped model on another kind of text with the trainers of Transformers: three minutes on a CPU.

Give --data FOLDER for your own text. The default is German typed without umlauts and capitals ("fuer das menue"). All
arguments of `Seq2SeqTrainingArguments` are accepted as well, such as --report_to tensorboard or --push_to_hub True.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..utils.command_line import check_counts, command, parse_arguments, print_help, wants_help
from ..utils.imports import import_library
from ..utils.text_files import read_parallel
from .shipped import demo_text, shipped_model

WITHOUT_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss"})
DEFAULTS = {
    "output_dir": "runs/finetuned",
    "max_steps": 100,
    "learning_rate": 5e-4,
    "warmup_steps": 10,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 50,
    "logging_steps": 20,
    "save_strategy": "no",
    "predict_with_generate": True,
    "train_sampling_strategy": "group_by_length",
}
# The metric's script, of which hub_card/metrics/nat_translation has a copy.
METRIC = Path(__file__).parents[1] / "utils" / "nat_translation.py"
# Names in the log, and those of the metric. Leave out `metrics` in the call to compute all scores.
LOGGED = {"bleu": "sacrebleu", "chrfpp": "chrfpp", "ter": "ter", "repeated_words": "repeated_tokens_per_sentence"}


@dataclass
class ExampleArguments:
    """Which model, on which text."""

    data: str = field(default="", metadata={"help": "Folder with train.de.gz, train.en.gz, valid.de.gz, valid.en.gz."})
    model: str = field(
        default="", metadata={"help": "Model to fine-tune. Default: the one that comes with the project."}
    )
    train_pairs: int = field(default=8000, metadata={"help": "Number of training pairs, from the first."})
    valid_pairs: int = field(
        default=150, metadata={"help": "Number of validation pairs, from the first, to score before and after."}
    )


def metric_scores(tokenizer):
    """For `compute_metrics` of `Seq2SeqTrainer` and `JMNatTrainer`: scores of the metric `nat_translation`."""
    import numpy as np

    metric = import_library("evaluate").load(str(METRIC))

    def scores(prediction) -> dict[str, float]:  # both are token ids (B, T), padded with -100
        texts = [np.where(ids < 0, tokenizer.pad_token_id, ids) for ids in prediction]
        hypotheses, references = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in texts)
        found = metric.compute(predictions=hypotheses, references=references, metrics=list(LOGGED.values()))
        return {name: found[score] for name, score in LOGGED.items()}

    return scores


@command
def main(argv=None):
    if wants_help(argv):
        print_help([ExampleArguments], __doc__)

    from datasets import Dataset
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

    from .. import DataCollatorForJMNat, EpochCallback
    from ..inference.loading import NO_FOREIGN_CODE, is_jmnat_itself
    from ..utils.finite import check_finite
    from ..utils.locks import folder_lock

    arguments, training = parse_arguments(argv, (ExampleArguments, Seq2SeqTrainingArguments), __doc__, DEFAULTS)
    check_counts(arguments, ("train_pairs", "valid_pairs"))
    name = arguments.model or shipped_model()
    folder = Path(arguments.data) if arguments.data else demo_text()

    tokenizer = AutoTokenizer.from_pretrained(name, **NO_FOREIGN_CODE)
    model = AutoModelForSeq2SeqLM.from_pretrained(name, **NO_FOREIGN_CODE)
    if not is_jmnat_itself(model.config):
        raise ValueError(f"model {name} is a {model.config.model_type} model but must be a JM-NAT")
    check_finite(model, name)
    model.generation_config.num_iterations = 4

    def load(split, limit):
        source, target = read_parallel(folder / f"{split}.de.gz", folder / f"{split}.en.gz")
        if not arguments.data:
            source = [line.lower().translate(WITHOUT_UMLAUTS) for line in source]
        cut = {"truncation": True, "max_length": model.config.max_target_length}
        return Dataset.from_dict(dict(tokenizer(source[:limit], text_target=target[:limit], **cut)))

    collator = DataCollatorForJMNat(tokenizer, ngram_size=model.config.ngram_size)
    valid = load("valid", arguments.valid_pairs)
    scores = metric_scores(tokenizer)
    scorer = Seq2SeqTrainer(model, training, collator.evaluation(), eval_dataset=valid, compute_metrics=scores)
    train = load("train", arguments.train_pairs)
    new_masks = EpochCallback(collator)
    trainer = Trainer(model, training, collator, train, processing_class=tokenizer, callbacks=[new_masks])

    with folder_lock(training.output_dir, "output_dir"):
        found = {"before": scorer.evaluate()}
        trainer.train()
        check_finite(model, f"step {trainer.state.global_step}")
        scorer.state = trainer.state  # so that the log has the step of the scores
        found["after"] = scorer.evaluate()
        trainer.save_model()
    figures = {f"{name}_{when}": found[when][f"eval_{name}"] for name in LOGGED for when in found}
    print(json.dumps({**figures, "output_dir": training.output_dir}))
