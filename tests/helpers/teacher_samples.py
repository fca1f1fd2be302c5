"""Made-up text, prepared data and random teachers for the tests of teacher, distillation and reranking."""

import random

import torch

from modeling_jmnat.data.preparation import PreparationArguments, prepare
from modeling_jmnat.teacher.model import build_teacher
from modeling_jmnat.tokenization_jmnat import BYTE_TOKENS

WORDS = [a + b for a in ("ba", "de", "gi", "ko", "lu", "ma") for b in ("n", "r", "s", "t", "x")]
TINY = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "max_target_length": 64,
}


def write_text(folder, name, lines):
    path = folder / name
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def random_lines(count, seed):
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(1, 12))) for _ in range(count)]


def prepare_words(folder, train=60, **options):
    """Prepared data whose target is the source reversed, in `folder / "data"`."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {}
    for split, count, seed in (("train", train, 0), ("validation", 10, 1)):
        sources = random_lines(count, seed)
        targets = [" ".join(reversed(line.split())) for line in sources]
        arguments[f"{split}_source"] = write_text(folder, f"{split}.src", sources)
        arguments[f"{split}_target"] = write_text(folder, f"{split}.tgt", targets)
    prepare(PreparationArguments(**arguments, output_dir=str(folder / "data"), **{"vocab_size": 330, **options}))
    return folder / "data"


@torch.no_grad()
def rarely_write_bytes(model, tokenizer):
    """Byte pieces by chance form no character, and decoding drops them: let the model write words instead."""
    vocabulary, weight = tokenizer.get_vocab(), model.get_input_embeddings().weight
    rows = [vocabulary[piece] for piece in BYTE_TOKENS if piece in vocabulary]
    weight[[row for row in rows if row < len(weight)]] *= 0.3


def random_teacher(tokenizer, normalize_before=True, seed=0):
    """Random weights with strong cross-attention, so that the translation depends on the source."""
    torch.manual_seed(seed)
    model = build_teacher({**TINY, "normalize_before": normalize_before}, tokenizer).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder_attn." in name and name.endswith("weight"):
                parameter *= 3
    rarely_write_bytes(model, tokenizer)
    return model
