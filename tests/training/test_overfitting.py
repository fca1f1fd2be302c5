"""A hundred real pairs are memorised: text, tokenizer, masks, losses, trainer and decoding fit together."""

import gzip
from pathlib import Path

import pytest
import sacrebleu
from transformers import set_seed

from modeling_jmnat import (
    DataCollatorForJMNat,
    JMNatConfig,
    JMNatForConditionalGeneration,
    JMNatTrainer,
    JMNatTrainingArguments,
)
from modeling_jmnat.inference.translation import translate_lines
from modeling_jmnat.tokenization_jmnat import train_joint_tokenizer

CORPUS = Path(__file__).resolve().parents[2] / "run_scripts" / "demo_data" / "libreoffice-help"


def read_pairs(count: int, longest: int) -> list[tuple[str, str]]:
    with (
        gzip.open(CORPUS / "train.de.gz", "rt", "utf-8") as de,
        gzip.open(CORPUS / "train.en.gz", "rt", "utf-8") as en,
    ):
        pairs = [(source.strip(), target.strip()) for source, target in zip(de, en, strict=True)]
    pairs = [pair for pair in dict(pairs).items() if min(map(len, pair)) > 20 and max(map(len, pair)) < longest]
    return pairs[:: len(pairs) // count][:count]


@pytest.mark.slow
def test_hundred_real_pairs_reach_95_bleu_in_four_passes(tmp_path):
    pairs = read_pairs(100, longest=100)
    tokenizer = train_joint_tokenizer((text for pair in pairs for text in pair), vocab_size=600)
    examples = []
    for index, (source, target) in enumerate(pairs):
        encoded = tokenizer(source, text_target=target)
        examples.append({"id": index, "input_ids": encoded["input_ids"], "labels": encoded["labels"]})
    set_seed(1)
    model = JMNatForConditionalGeneration(
        JMNatConfig(
            vocab_size=len(tokenizer),
            d_model=128,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=256,
            decoder_layers=2,
            decoder_attention_heads=4,
            decoder_ffn_dim=256,
            dropout=0.0,
            label_smoothing=0.0,
            normalize_before=True,
        )
    )
    arguments = JMNatTrainingArguments(
        str(tmp_path),
        max_tokens=1000,
        max_steps=850,
        learning_rate=2e-3,
        warmup_steps=50,
        lr_scheduler_type="linear",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = DataCollatorForJMNat(tokenizer, full_mask_ratio=0.2)
    JMNatTrainer(model, arguments, collator, processing_class=tokenizer, train_dataset=examples).train()
    sources, references = zip(*pairs, strict=True)
    translations = translate_lines(model.eval(), tokenizer, sources, num_iterations=4, num_length_candidates=4)
    bleu = sacrebleu.corpus_bleu([translation.text for translation in translations], [list(references)]).score
    assert bleu >= 95
