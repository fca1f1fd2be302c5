"""Targets with a second `</s>`: which they are, and that the length loss does not count it."""

import copy

import pytest
import torch

from modeling_jmnat import DataCollatorForJMNat
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.losses_jmnat import length_nll
from modeling_jmnat.training.run import check_data
from tests.helpers.tiny_runs import prepare_tiny_data, tiny_model
from tests.training.test_glancing import examples
from tests.training.test_trainer import make_trainer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_prepared(prepare_tiny_data(tmp_path_factory.mktemp("tiny")))


def targets_of(batch):
    return [row[row != -100].tolist() for row in batch["labels"]]


def test_a_share_of_the_targets_has_a_second_end(tiny):
    end = tiny[1].eos_token_id
    collator = DataCollatorForJMNat(tiny[1], seed=3, length_noise=0.4)
    lengthened, count = set(), 0
    for epoch in range(8):
        collator.set_epoch(epoch)
        batch = collator(examples(tiny))
        targets = targets_of(batch)
        drawn = frozenset(i for i, target in enumerate(targets) if target[-2:] == [end, end])
        for i, (example, target) in enumerate(zip(examples(tiny), targets, strict=True)):
            assert target == example["labels"] + [end] * (i in drawn)
            assert batch["decoder_attention_mask"][i].sum() == len(target)
        lengthened.add(drawn)
        count += len(drawn)
        for row, example in enumerate(examples(tiny, 6)):
            assert targets_of(collator([example])) == [targets[row]]
    assert len(lengthened) == 8
    assert count / (8 * 48) == pytest.approx(0.4, abs=0.08)
    hidden = batch["masked_positions"] & (batch["labels"] == end)
    assert hidden[list(drawn)].any(dim=1).any()  # it is masked and predicted as any token


def test_other_masks_and_evaluation_do_not_change(tiny):
    plain, noisy = (DataCollatorForJMNat(tiny[1], seed=3, length_noise=noise) for noise in (0.0, 0.5))
    before, after = (collator(examples(tiny)) for collator in (plain, noisy))
    for row, (old, new) in enumerate(zip(targets_of(before), targets_of(after), strict=True)):
        if old == new:
            for name in ("decoder_input_ids", "masked_positions"):
                assert torch.equal(before[name][row, : len(old)], after[name][row, : len(old)])
    one, other = (collator.evaluation()(examples(tiny)) for collator in (plain, noisy))
    assert all(torch.equal(one[name], other[name]) for name in one)
    cut_off = {"id": 1, "input_ids": [7, 2], "labels": [7, 8]}
    assert targets_of(DataCollatorForJMNat(tiny[1], length_noise=1.0)([cut_off])) == [[7, 8]]


def test_the_length_loss_counts_one_end(tiny):
    model = tiny_model(tiny[1]).eval()
    batch = DataCollatorForJMNat(tiny[1], length_noise=1.0, source_mask_ratio=0.0)(examples(tiny, 5))
    lengths = torch.tensor([len(example["labels"]) for example in examples(tiny, 5)])
    assert torch.equal((batch["labels"] != -100).sum(dim=1), lengths + 1)
    with torch.no_grad():
        outputs = model(**batch)
    torch.testing.assert_close(outputs.length_loss, length_nll(outputs.length_logits, lengths) / 5)


def test_a_model_trains_with_length_noise(tiny, tmp_path):
    collator = DataCollatorForJMNat(tiny[1], seed=3, length_noise=0.5)
    fields = {"max_steps": 30, "learning_rate": 0.01, "warmup_steps": 3, "logging_steps": 10}
    trainer = make_trainer(tiny, tmp_path, {"length_smoothing": 1.0}, collator, **fields)
    before = trainer.evaluate()["eval_length_loss"]
    trainer.train()
    losses = [log["length_loss"] for log in trainer.state.log_history if "length_loss" in log]
    assert losses[0] > losses[-1]
    assert trainer.evaluate()["eval_length_loss"] < before


def test_room_for_it_is_checked_and_values_out_of_range_refused(tiny):
    data, tokenizer = tiny
    longest = max(map(len, data["train"]["labels"]))
    limits = {"max_position_embeddings": 64, "max_target_length": longest}
    check_data(data["train"], tokenizer, limits, "train", None)
    with pytest.raises(
        ValueError, match=f"longest labels has {longest} tokens, padded to {longest + 1}, and max_target"
    ):
        check_data(data["train"], tokenizer, limits, "train", None, longer_targets=1)
    with pytest.raises(ValueError, match="length_noise=2 must be between 0 and 1"):
        DataCollatorForJMNat(tokenizer, length_noise=2)
    endless = copy.copy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="length_noise=0.5 needs a tokenizer with an eos_token_id"):
        DataCollatorForJMNat(endless, length_noise=0.5)
    with pytest.raises(ValueError, match="length_smoothing=-1.0 must be at least 0"):
        tiny_model(tokenizer, length_smoothing=-1.0)
