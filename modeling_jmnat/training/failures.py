"""Messages of a training that must stop: the place in the data, and which setting to lower."""

import itertools

from torch.utils.data import DataLoader
from transformers.trainer_utils import has_length

from ..utils.command_line import OUT_OF_MEMORY, asked_memory
from .arguments import TranslationTrainingArguments

NAMED_SENTENCES = 20


def place_of_step(step: int, loader: DataLoader, accumulation: int) -> str:
    """Where in the data an optimizer step is, with the ids of this process's sentences; for a stream, only the step.

    Args:
        step: counted from 1.
        loader: the training data loader, whose order depends only on the epoch.
        accumulation: number of batches in a step.
    """
    if not has_length(loader):
        return f"step {step}"
    steps_of_epoch = -(-len(loader) // accumulation)
    epoch, step_of_epoch = divmod(step - 1, steps_of_epoch)
    first = step_of_epoch * accumulation
    last = min(first + accumulation, len(loader))
    sampler = loader.batch_sampler
    for listener in (loader, sampler, getattr(sampler, "batch_sampler", None)):
        if hasattr(listener, "set_epoch"):
            listener.set_epoch(epoch)
    indices = list(itertools.chain.from_iterable(itertools.islice(sampler, first, last)))
    ids = [str(loader.dataset[index].get("id", index)) for index in indices[:NAMED_SENTENCES]]
    others = f" and {len(indices) - len(ids)} more" if len(indices) > len(ids) else ""
    return f"step {step} (batch {last} of epoch {epoch + 1}, sentences with the ids {', '.join(ids)}{others})"


def memory_sentence(args: TranslationTrainingArguments, error: BaseException, step: int, evaluating: bool) -> str:
    """The message for a step or evaluation that ran out of memory, with the setting to lower."""
    start = f"{OUT_OF_MEMORY}{asked_memory(error)} in "
    if evaluating:
        given = args.eval_batch_tokens or args.per_device_eval_batch_size
        name = "eval_batch_tokens" if args.eval_batch_tokens else "eval_batch_tokens (or per_device_eval_batch_size)"
        return f"{start}the evaluation at step {step}: lower {name}, now {given}"
    size = "per_device_train_batch_size" if args.max_tokens is None else "max_tokens"
    parts, accumulation = 2 * args.batch_parts, 2 * args.gradient_accumulation_steps
    return (
        f"{start}step {step + 1}: a batch of {size}={getattr(args, size)} is too large. Steps stay the same with "
        f"batch_parts={parts} and gradient_accumulation_steps={accumulation}; on the command line, resume with "
        f"--elastic True --batch_parts {parts}. Or lower {size} in another output_dir"
    )
