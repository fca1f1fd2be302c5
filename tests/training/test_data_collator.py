"""What a batch holds, and that masks depend on (seed, epoch, id) and on nothing else."""

import copy
import pickle
import random
from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

import tests.helpers.reference as reference
from modeling_jmnat.training.data_collator import DataCollatorForJMNat

PAD, EOS, MASK = 1, 2, 4
VOCAB_SIZE = 40


@pytest.fixture(scope="module")
def tokenizer():
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"w{i}" for i in range(5, VOCAB_SIZE - 1)), "<length>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")),
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        extra_special_tokens=["<length>"],
    )


def make_examples(count, max_length=20, seed=0, with_id=True):
    draw = random.Random(seed)

    def sentence():
        return [draw.randrange(5, VOCAB_SIZE - 1) for _ in range(draw.randrange(max_length))] + [EOS]

    examples = [{"id": 1000 + i, "input_ids": sentence(), "labels": sentence(), "source": "x"} for i in range(count)]
    return examples if with_id else [{key: e[key] for key in ("input_ids", "labels")} for e in examples]


def rows_without_padding(batch):
    """One comparable tuple per example."""
    rows = []
    for b in range(len(batch["labels"])):
        src_length, tgt_length = batch["attention_mask"][b].sum(), batch["decoder_attention_mask"][b].sum()
        source = [batch[key][b, :src_length].tolist() for key in ("input_ids", "encoder_targets") if key in batch]
        target = [batch[key][b, :tgt_length].tolist() for key in ("labels", "decoder_input_ids", "masked_positions")]
        rows.append((*source, *target))
    return rows


def test_keys_and_shapes_of_a_batch(tokenizer):
    examples = make_examples(64)
    batch = DataCollatorForJMNat(tokenizer)(examples)
    src_lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    tgt_lengths = torch.tensor([len(example["labels"]) for example in examples])
    assert set(batch) == {
        "input_ids",
        "attention_mask",
        "encoder_targets",
        "labels",
        "decoder_input_ids",
        "decoder_attention_mask",
        "masked_positions",
    }
    src_shape, tgt_shape = (64, int(src_lengths.max())), (64, int(tgt_lengths.max()))
    for key, tensor in batch.items():
        assert tensor.shape == (src_shape if key in ("input_ids", "attention_mask", "encoder_targets") else tgt_shape)
        assert tensor.dtype == (torch.bool if key == "masked_positions" else torch.int64)
    assert torch.equal(batch["attention_mask"].sum(1), src_lengths)
    assert torch.equal(batch["decoder_attention_mask"].sum(1), tgt_lengths)
    for b, example in enumerate(examples):
        source, target = example["input_ids"], example["labels"]
        assert batch["labels"][b].tolist() == target + [-100] * (tgt_shape[1] - len(target))
        assert (batch["input_ids"][b, len(source) :] == PAD).all()
        assert (batch["decoder_input_ids"][b, len(target) :] == PAD).all()
        assert not batch["masked_positions"][b, len(target) :].any()
        # The source: what is to be predicted is the original token, all else is as it was.
        chosen = batch["encoder_targets"][b] != -100
        assert chosen.sum() == max(1, round(0.1 * len(source)))
        restored = torch.where(chosen, batch["encoder_targets"][b], batch["input_ids"][b])
        assert restored[: len(source)].tolist() == source
        # The target: between 1 and T tokens are chosen, all others are as they were.
        masked = batch["masked_positions"][b]
        assert 1 <= masked.sum() <= len(target)
        kept = ~masked & (batch["labels"][b] != -100)
        assert torch.equal(batch["decoder_input_ids"][b, kept], batch["labels"][b, kept])


def test_random_tokens_are_never_special(tokenizer):
    collator = DataCollatorForJMNat(
        tokenizer, source_mask_ratio=1.0, target_mask="random", mask_token_prob=0.0, random_token_prob=1.0
    )
    batch = collator(make_examples(800))
    ordinary = set(range(5, VOCAB_SIZE - 1))
    assert set(batch["input_ids"][batch["encoder_targets"] != -100].tolist()) == ordinary
    assert set(batch["decoder_input_ids"][batch["masked_positions"]].tolist()) == ordinary


def test_80_10_10_on_both_sides(tokenizer):
    examples = [{"id": i, "input_ids": [7] * 10, "labels": [7] * 10} for i in range(4000)]
    batch = DataCollatorForJMNat(tokenizer, source_mask_ratio=0.5)(examples)
    share = 0.1 / (VOCAB_SIZE - 6)
    expected = dict.fromkeys(range(5, VOCAB_SIZE - 1), share) | {MASK: 0.8, 7: 0.1 + share}
    for tokens in (
        batch["input_ids"][batch["encoder_targets"] != -100],
        batch["decoder_input_ids"][batch["masked_positions"]],
    ):
        assert reference.chi_square_score(Counter(tokens.tolist()), expected) < 5


@pytest.mark.parametrize(("target_mask", "set_size"), [("consecutive", 2), ("random", 1)])
def test_the_whole_target_policy_against_the_exact_distribution(tokenizer, target_mask, set_size):
    length = 5
    examples = [{"id": i, "input_ids": [7] * 9, "labels": [7] * 4 + [EOS]} for i in range(20000)]
    masked = DataCollatorForJMNat(tokenizer, target_mask=target_mask)(examples)["masked_positions"]
    expected = Counter()
    for num_masked in range(1, length + 1):
        for mask, p in reference.target_mask_distribution(length, num_masked, set_size).items():
            expected[mask] += p / length
    observed = Counter(frozenset(row.nonzero()[:, 0].tolist()) for row in masked)
    assert reference.chi_square_score(observed, expected) < 5
    assert any(4 in mask and len(mask) < 5 for mask in observed)  # </s> is masked without all the others


def test_source_ratio_zero_switches_off_and_leaves_the_target_alone(tokenizer):
    examples = make_examples(16)
    batch, clean = (DataCollatorForJMNat(tokenizer, source_mask_ratio=ratio)(examples) for ratio in (0.1, 0.0))
    assert "encoder_targets" not in clean
    for b, example in enumerate(examples):
        assert clean["input_ids"][b, : len(example["input_ids"])].tolist() == example["input_ids"]
    for key in ("labels", "decoder_input_ids", "masked_positions"):
        assert torch.equal(batch[key], clean[key])


def test_cmlm_masks(tokenizer):
    collator = DataCollatorForJMNat(
        tokenizer, source_mask_ratio=0.0, target_mask="random", mask_token_prob=1.0, random_token_prob=0.0
    )
    batch = collator(make_examples(50))
    is_token = batch["labels"] != -100
    assert torch.equal(batch["decoder_input_ids"] == MASK, batch["masked_positions"])
    assert torch.equal(batch["decoder_input_ids"] == PAD, ~is_token)


def test_all_and_full_mask_ratio_hide_the_whole_reference(tokenizer):
    examples = make_examples(2000)
    batch = DataCollatorForJMNat(tokenizer, target_mask="all")(examples)
    is_token = batch["labels"] != -100
    assert torch.equal(batch["masked_positions"], is_token)
    assert (batch["decoder_input_ids"][is_token] == MASK).all()
    assert (batch["decoder_input_ids"][~is_token] == PAD).all()

    plain = DataCollatorForJMNat(tokenizer)(examples)
    mixed = DataCollatorForJMNat(tokenizer, full_mask_ratio=0.3)(examples)
    is_long = is_token.sum(1) >= 10
    is_full = ((mixed["decoder_input_ids"] == MASK) == is_token).all(1)
    by_chance = ((plain["decoder_input_ids"] == MASK) == is_token).all(1)[is_long].double().mean().item()
    assert is_full[is_long].double().mean().item() == pytest.approx(0.3 + 0.7 * by_chance, abs=0.05)
    assert torch.equal(mixed["masked_positions"][is_full], is_token[is_full])
    for key in ("masked_positions", "decoder_input_ids"):  # the others are as without the switch
        assert torch.equal(mixed[key][~is_full], plain[key][~is_full])


# ------------------------------------------------------------------------------ the same draw whatever is around it


@pytest.mark.parametrize("with_id", [True, False])
def test_same_draw_whatever_the_batch_order_and_padding(tokenizer, with_id):
    examples = make_examples(48, with_id=with_id)
    collator = DataCollatorForJMNat(tokenizer, seed=3)
    expected = rows_without_padding(collator(examples))
    alone = [rows_without_padding(collator([example]))[0] for example in examples]
    assert alone == expected
    order = random.Random(1).sample(range(48), 48)
    shuffled = rows_without_padding(collator([examples[i] for i in order]))
    assert shuffled == [expected[i] for i in order]
    padded = DataCollatorForJMNat(tokenizer, seed=3, pad_to_multiple_of=16)(examples)
    assert padded["input_ids"].shape[1] % 16 == 0
    assert padded["labels"].shape[1] % 16 == 0
    assert rows_without_padding(padded) == expected
    one_long = {"id": 5, "input_ids": [7] * 50, "labels": [7] * 3}
    assert rows_without_padding(collator([one_long, *examples]))[1:] == expected


def test_seed_epoch_and_id_each_change_the_draw(tokenizer):
    examples = make_examples(32)
    collator = DataCollatorForJMNat(tokenizer)
    first = rows_without_padding(collator(examples))
    collator.set_epoch(1)
    second = rows_without_padding(collator(examples))
    collator.set_epoch(0)
    assert rows_without_padding(collator(examples)) == first != second
    assert rows_without_padding(DataCollatorForJMNat(tokenizer, seed=1)(examples)) not in (first, second)
    renumbered = [example | {"id": example["id"] + 1} for example in examples]
    assert rows_without_padding(collator(renumbered)) != first


def test_the_global_random_generator_is_not_used(tokenizer):
    collator = DataCollatorForJMNat(tokenizer)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = collator(make_examples(8))
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(1)
    assert torch.equal(collator(make_examples(8))["decoder_input_ids"], first["decoder_input_ids"])


def test_workers_see_the_epoch_and_draw_the_same(tokenizer):
    examples = make_examples(60)
    expected = []
    collator = DataCollatorForJMNat(tokenizer)
    for epoch in (0, 1, 2):
        collator.set_epoch(epoch)
        expected.append(rows_without_padding(collator(examples)))
    assert expected[0] != expected[1] != expected[2]

    collator = DataCollatorForJMNat(tokenizer)
    loader = DataLoader(examples, batch_size=7, num_workers=2, persistent_workers=True, collate_fn=collator)
    for epoch in (0, 1, 2, 1):
        collator.set_epoch(epoch)
        assert [row for batch in loader for row in rows_without_padding(batch)] == expected[epoch]


def test_evaluation_masks_are_fixed_and_leave_the_source_unmasked(tokenizer):
    examples = make_examples(32)
    collator = DataCollatorForJMNat(tokenizer, seed=4)
    evaluation = collator.evaluation()
    first = evaluation(examples)
    assert "encoder_targets" not in first
    for b, example in enumerate(examples):
        assert first["input_ids"][b, : len(example["input_ids"])].tolist() == example["input_ids"]
    collator.set_epoch(5)
    other_run = DataCollatorForJMNat(tokenizer, seed=9).evaluation()
    for again in (evaluation(examples), collator.evaluation()(examples), other_run(examples)):
        assert all(torch.equal(again[key], first[key]) for key in first)
    assert collator.epoch == 5
    assert "encoder_targets" in collator(examples)
    assert not torch.equal(collator(examples)["masked_positions"], first["masked_positions"])


def test_copies_and_pickles_draw_the_same(tokenizer):
    examples = make_examples(8)
    collator = DataCollatorForJMNat(tokenizer)
    collator.set_epoch(2)
    expected = rows_without_padding(collator(examples))
    for twin in (copy.deepcopy(collator), pickle.loads(pickle.dumps(collator))):
        assert rows_without_padding(twin(examples)) == expected


def test_tensors_and_arrays_are_collated_like_lists(tokenizer):
    examples = make_examples(8)
    collator = DataCollatorForJMNat(tokenizer)
    expected = rows_without_padding(collator(examples))
    for convert in (torch.tensor, lambda ids: torch.tensor(ids).numpy()):
        converted = [{key: e[key] if key == "source" else convert(e[key]) for key in e} for e in examples]
        assert rows_without_padding(collator(converted)) == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_examples_is_removed(tokenizer, side):
    examples = make_examples(8)
    collator = DataCollatorForJMNat(tokenizer)

    def padded(ids, pad):
        padding = [pad] * (40 - len(ids))
        return [*padding, *ids] if side == "left" else [*ids, *padding]

    for target_pad in (-100, tokenizer.pad_token_id):
        rows = [
            example
            | {"input_ids": padded(example["input_ids"], tokenizer.pad_token_id), "attention_mask": [1] * 40}
            | {"labels": padded(example["labels"], target_pad)}
            for example in examples
        ]
        batch = collator(rows)
        for name, expected in collator(examples).items():
            assert torch.equal(batch[name], expected)
    with pytest.raises(ValueError, match="has empty 'labels'"):
        collator([rows[0] | {"labels": [-100, -100]}])


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source_mask_ratio": -0.1}, "source_mask_ratio=-0.1 must be between 0 and 1"),
        ({"source_mask_ratio": 10}, "source_mask_ratio=10 must"),
        ({"mask_token_prob": 0.95}, r"mask_token_prob \+ random_token_prob=1.05 must"),
        ({"full_mask_ratio": 2}, "full_mask_ratio=2 must"),
        ({"target_mask": "span"}, "target_mask='span' is not one of consecutive, random, all"),
        ({"ngram_size": 0}, "ngram_size=0 must be at least 1"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of=0 must"),
    ],
)
def test_bad_arguments_are_named(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        DataCollatorForJMNat(tokenizer, **arguments)


def test_a_tokenizer_without_mask_token_is_refused():
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), pad_token="a"
    )
    with pytest.raises(ValueError, match="tokenizer has no mask_token_id"):
        DataCollatorForJMNat(bare)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"id": 3, "input_ids": [5, 2]}, "no 'labels', only id, input_ids"),
        ({"id": 3, "input_ids": [], "labels": [2]}, r"\(id 3\) has empty 'input_ids'"),
        ({"id": "third", "input_ids": [2], "labels": [2]}, "id='third' must be an integer"),
    ],
)
def test_bad_features_are_named(tokenizer, feature, message):
    with pytest.raises(ValueError, match=message):
        DataCollatorForJMNat(tokenizer)([feature])
