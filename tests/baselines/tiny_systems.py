"""Random tiny models of a system, with decided predictions."""

import torch

from modeling_jmnat.baselines.training import system_class
from tests.helpers.random_models import TINY
from tests.helpers.teacher_samples import random_teacher


def random_system(name, seed=0, **fields):
    """In evaluation mode; cross-attention and lengths are sharpened so that they follow the source."""
    torch.manual_seed(seed)
    model_class = system_class(name)
    config = model_class.config_class(**{**TINY, "dropout": 0.0, "label_smoothing": 0.0, **fields})
    model = model_class(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("encoder_attn.q_proj.weight", "encoder_attn.out_proj.weight", "embed_lengths.weight")):
                parameter *= 4
    return model


def batch_of(config, lengths=((5, 4), (3, 6)), seed=0):
    """`input_ids`, `attention_mask` and `labels` of sentences with these lengths of source and target."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [max(column) for column in zip(*lengths, strict=True)]
    shape = len(lengths), sizes[0]
    input_ids = torch.randint(5, config.vocab_size, shape, generator=generator)
    labels = torch.randint(5, config.vocab_size, (len(lengths), sizes[1]), generator=generator)
    for row, (source, target) in enumerate(lengths):
        input_ids[row, source - 1 :] = config.pad_token_id
        input_ids[row, source - 1] = labels[row, target - 1] = config.eos_token_id
        labels[row, target:] = -100
    return {"input_ids": input_ids, "attention_mask": (input_ids != config.pad_token_id).long(), "labels": labels}


def random_teacher_of(vocab_size, seed=0):
    """An autoregressive model of that vocabulary, with strong cross-attention that it tells."""

    class Tokenizer:
        pad_token_id, bos_token_id, eos_token_id = 1, 0, 2
        get_vocab = dict

        def __len__(self):
            return vocab_size

    teacher = random_teacher(Tokenizer(), seed=seed)
    teacher.set_attn_implementation("eager")
    return teacher
