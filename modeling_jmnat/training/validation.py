"""Evaluation by a `TranslationTrainer`: exact losses over a data set, and sacreBLEU of its translations."""

import torch
from torch.utils.data import IterableDataset

from ..data.dataset_columns import column_lengths, text_column, without_text
from ..inference.translation import translate_lines
from ..utils.bleu import corpus_bleu

EVALUATION_TOKENS = 4096  # padded tokens of a batch for losses, small because all of them get vocabulary logits


def check_evaluation(args, dataset) -> None:
    """ValueError for data, or a dictionary of data sets, that evaluations under these arguments could not use."""
    if args.keep_best and isinstance(dataset, dict):
        raise ValueError(
            f"keep_best={args.keep_best} needs a single eval_dataset to choose by, not a dictionary of them"
        )
    if dataset is not None:
        check_eval_dataset(dataset, bool(args.evaluation_settings()))


def check_eval_dataset(dataset, translates: bool, name: str = "eval_dataset") -> None:
    """Refuse data that evaluations could not read, before the training that precedes the first of them.

    Args:
        dataset: a data set, or a dictionary of them.
        translates: whether evaluations also need text, in the columns `source` and `target`.

    Raises:
        ValueError: it is a stream, has no example, or lacks a column.
    """
    if isinstance(dataset, dict):
        for key, one in dataset.items():
            check_eval_dataset(one, translates, f"{name}[{key!r}]")
        return
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{name} is a stream ({type(dataset).__name__}), but evaluations choose their examples by number: give a "
            "list of examples, such as list(stream.take(1000))"
        )
    if not len(dataset):
        raise ValueError(f"{name} has no example: give at least one, or leave it out")
    columns = dataset[0]
    for column in ("input_ids", "labels", *(("source", "target") if translates else ())):
        if column not in columns:
            raise ValueError(
                f"{name} has no column {column!r}, only {', '.join(columns)}: add it, because losses need input_ids "
                "and labels, and BLEU the text in source and target"
            )


def chosen_eval_dataset(chosen, own, translates: bool):
    """The data set, or dictionary of them, to evaluate on.

    Args:
        chosen: a data set, the name of one in the dictionary `own`, or None, which is `own`.
        own: `eval_dataset` of the trainer.
        translates: as in `check_eval_dataset`.

    Raises:
        ValueError: there is none, or evaluations could not read it.
    """
    if isinstance(chosen, str):
        names = list(own) if isinstance(own, dict) else []
        if chosen not in names:
            raise ValueError(
                f"eval_dataset={chosen!r} is not the name of a data set: the trainer's eval_dataset must be a "
                f"dictionary with it, and has the names {names}"
            )
        chosen = own[chosen]
    dataset = own if chosen is None else chosen
    if dataset is None:
        raise ValueError("eval_dataset is None: give a data set to evaluate on")
    check_eval_dataset(dataset, translates)
    return dataset


def corpus_losses(trainer, dataset) -> dict[str, float]:
    """Loss and its parts as exact means over the data set; each process takes its share of the batches."""
    args = trainer.args
    longest = max(column_lengths(dataset, name).max() for name in ("input_ids", "labels"))
    most = min(EVALUATION_TOKENS, args.eval_batch_tokens or EVALUATION_TOKENS)
    batches = list(trainer.token_batches(dataset, max(most, longest), shuffle=False))
    dataset = without_text(dataset)
    sums = torch.zeros(len(trainer.loss_parts) + 2, dtype=torch.float64)
    ones = torch.ones(2, device=args.device)
    for indices in batches[args.process_index :: args.world_size]:
        batch = trainer._prepare_inputs(trainer.eval_data_collator([dataset[index] for index in indices]))
        with trainer.accelerator.autocast():
            outputs = trainer.loss_outputs(trainer.model, batch, ones)
        parts = [getattr(outputs, name) for name in trainer.loss_parts]
        sums += torch.tensor(
            [0.0 if part is None else float(part) for part in parts]
            + [float(trainer.count_predicted(batch)), float(len(indices))],
            dtype=torch.float64,
        )
    if args.world_size > 1:
        sums = trainer.accelerator.reduce(sums.to(args.device), reduction="sum").cpu()
    *parts, predicted, sentences = sums.tolist()
    means = {
        name: value / (sentences if name in trainer.parts_per_sentence else predicted)
        for name, value in zip(trainer.loss_parts, parts, strict=True)
    }
    metrics, weights = trainer.computed_parts(means), trainer.loss_weights()
    return {"loss": sum(weights[name] * value for name, value in metrics.items()), **metrics}


def translation_scores(trainer, dataset) -> dict[str, float]:
    """sacreBLEU of translations of the column `source` against `target`, for each of `args.evaluation_settings()`.

    `bleu` is the score of the last setting, which chooses checkpoints. The processes share the sentences.
    """
    args = trainer.args
    settings = args.evaluation_settings()
    if not settings:
        return {}
    from accelerate.utils import gather_object

    sources, references = (text_column(dataset, name, args.eval_sentences) for name in ("source", "target"))
    rank, world = args.process_index, args.world_size
    scores = {}
    for name, options in settings.items():
        translations = translate_lines(
            trainer.model,
            trainer.processing_class,
            sources[rank::world],
            max_batch_tokens=args.eval_batch_tokens,
            **options,
        )
        mine = [(rank + position * world, result.text) for position, result in enumerate(translations)]
        pairs = mine if world == 1 else gather_object(mine)
        hypotheses = [text for _, text in sorted(pairs)]
        scores[f"bleu_{name}"] = round(corpus_bleu(hypotheses, references, chosen=args.bleu_tokenize), 4)
    return {**scores, "bleu": scores[f"bleu_{list(settings)[-1]}"]}
