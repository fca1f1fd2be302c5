"""Evaluation by a `TranslationTrainer`: exact losses over a data set, and sacreBLEU of its translations."""

import torch

from ..data.dataset_columns import column_lengths, text_column, without_text
from ..inference.translation import translate_lines
from ..utils.bleu import corpus_bleu

EVALUATION_TOKENS = 4096  # padded tokens of a batch for losses, small because all of them get vocabulary logits


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
