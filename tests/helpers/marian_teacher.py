"""Teachers with the layout of opus-mt, whose own weights tests cannot fetch: made and trained from text.

What opus-mt has: one vocabulary of two SentencePiece models with `</s>` and `<unk>` first and `<pad>` last, decoding
that starts from `<pad>`, layer norm after each block, swish, scaled embeddings, six layers a side and a bias of the
output projection. As a command, a teacher of any size:

    python tests/helpers/marian_teacher.py --source train.de --target train.en --output DIR
"""

import argparse
import gzip
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.models.marian.modeling_marian import shift_tokens_right

LONGEST = 40  # tokens; longer pairs are left out


def train_segmenter(lines: Iterable[str], vocab_size: int, model_type: str = "unigram") -> bytes:
    """A SentencePiece model with the special pieces of opus-mt's, as the bytes of its file."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=vocab_size,
        model_type=model_type,
        character_coverage=0.9995,
        bos_id=-1,
        eos_id=0,
        unk_id=1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def pieces_of(segmenter: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=segmenter)
    return [processor.id_to_piece(index) for index in range(len(processor))]


def write_tokenizer(folder: Path, source: bytes, target: bytes, prefixes: Sequence[str] = ()) -> MarianTokenizer:
    """`source.spm`, `target.spm` and `vocab.json`: special pieces, prefixes, the pieces of both, and `<pad>` last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, segmenter in (("source.spm", source), ("target.spm", target)):
        (folder / name).write_bytes(segmenter)
    pieces = dict.fromkeys(["</s>", "<unk>", *prefixes, *pieces_of(source), *pieces_of(target), "<pad>"])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    MarianTokenizer.from_pretrained(folder).save_pretrained(folder)
    return MarianTokenizer.from_pretrained(folder)


def opus_model(tokenizer: MarianTokenizer, target_ids: Iterable[Sequence[int]] = (), **sizes: int) -> MarianMTModel:
    """A model with random weights, whose output bias grows with how often a token stands in `target_ids`."""
    pad = tokenizer.pad_token_id
    config = MarianConfig(
        vocab_size=len(tokenizer),
        activation_function="swish",
        scale_embedding=True,
        static_position_embeddings=True,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=0,
        decoder_start_token_id=pad,
        forced_eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=512,
        init_std=sizes["d_model"] ** -0.5,
        **sizes,
    )
    model = MarianMTModel(config)
    embeddings = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not embeddings:
            nn.init.xavier_uniform_(module.weight)
    counts = Counter(token for ids in target_ids for token in ids)
    for token in range(len(tokenizer)):
        model.final_logits_bias[0, token] = 0.1 * math.log(1 + counts[token])
    model.generation_config.update(bad_words_ids=[[pad]], num_beams=4, max_length=512)
    return model


class TeacherTrainer(Seq2SeqTrainer):
    """Logits of real target tokens alone: those of padding take most of the time on a CPU."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        pad = model.config.pad_token_id
        starts = shift_tokens_right(labels, pad, model.config.decoder_start_token_id)
        with self.accelerator.autocast():  # which the trainer puts around `model.forward` alone
            states = model.model(**inputs, decoder_input_ids=starts).last_hidden_state[labels != -100]
            logits = model.lm_head(states) + model.final_logits_bias
        return nn.functional.cross_entropy(logits.float(), labels[labels != -100], label_smoothing=0.1)


def train(model: MarianMTModel, tokenizer: MarianTokenizer, pairs: Dataset, output: Path, **arguments) -> None:
    """Train on `pairs` (columns `source` and `target`) by Transformers' own trainer, and save model and tokenizer."""

    def tokenised(batch):
        return tokenizer(batch["source"], text_target=batch["target"])

    options = Seq2SeqTrainingArguments(
        output_dir=str(output / "checkpoints"),
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        adam_beta2=0.98,
        save_total_limit=1,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        **arguments,
    )
    data = pairs.map(tokenised, batched=True, remove_columns=pairs.column_names)
    data = data.filter(lambda row: max(len(row["input_ids"]), len(row["labels"])) <= LONGEST)
    collator = DataCollatorForSeq2Seq(tokenizer)
    trainer = TeacherTrainer(model=model, args=options, train_dataset=data, data_collator=collator)
    trainer.train(resume_from_checkpoint=any(output.glob("checkpoints/checkpoint-*")))
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def read_lines(path: Path) -> list[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\n") for line in file]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="text, a sentence a line, perhaps gzipped")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vocab_size", type=int, default=6000, help="pieces of each side")
    parser.add_argument("--d_model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6, help="of encoder and decoder each")
    parser.add_argument("--max_steps", type=int, default=1600)
    parser.add_argument("--batch_size", type=int, default=512, help="sentences")
    parser.add_argument("--learning_rate", type=float, default=7e-4)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    source, target = read_lines(options.source), read_lines(options.target)
    segmenters = [train_segmenter(lines, options.vocab_size) for lines in (source, target)]
    tokenizer = write_tokenizer(options.output, *segmenters)
    torch.manual_seed(1)
    sizes = {f"{half}_layers": options.layers for half in ("encoder", "decoder")}
    sizes |= {f"{half}_attention_heads": options.d_model // 64 for half in ("encoder", "decoder")}
    sizes |= {f"{half}_ffn_dim": 4 * options.d_model for half in ("encoder", "decoder")}
    model = opus_model(tokenizer, tokenizer(text_target=target)["input_ids"], d_model=options.d_model, **sizes)
    model.set_attn_implementation("eager")  # in bfloat16 on a CPU, the backward pass of the fused one is slow
    train(
        model,
        tokenizer,
        Dataset.from_dict({"source": source, "target": target}),
        options.output,
        per_device_train_batch_size=options.batch_size,
        max_steps=options.max_steps,
        learning_rate=options.learning_rate,
        warmup_steps=options.max_steps // 6,
        bf16=options.bf16,
        logging_steps=50,
        save_steps=200,
    )


if __name__ == "__main__":
    main()
