"""Glancing: who takes part, how much of the reference is shown, and that the losses are divided by what is left."""

import shutil

import pytest
import torch

from modeling_jmnat import DataCollatorForJMNat
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.training.own_predictions import after_glancing, first_pass_predictions
from tests.helpers.tiny_runs import prepare_tiny_data, tiny_model
from tests.training.test_trainer import assert_same_step, make_trainer, one_step


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_prepared(prepare_tiny_data(tmp_path_factory.mktemp("tiny")))


def examples(tiny, count=48):
    return [tiny[0]["train"][index] for index in range(count)]


def collator_of(tiny, **fields):
    return DataCollatorForJMNat(tiny[1], seed=3, **{"full_mask_ratio": 0.5, "glancing_ratio": 0.5, **fields})


def test_order_is_a_permutation_of_fully_masked_targets_and_moves_no_mask(tiny):
    before = collator_of(tiny, glancing_ratio=0.0)(examples(tiny))
    batch = collator_of(tiny)(examples(tiny))
    order = batch.pop("glancing_order")
    assert before.keys() == batch.keys()
    assert all(torch.equal(before[name], batch[name]) for name in batch)
    is_token = batch["labels"].ne(-100)
    takes_part = 0
    for row, tokens, shown in zip(order, is_token, batch["decoder_input_ids"], strict=True):
        if not (row >= 0).any():
            continue
        takes_part += 1
        assert (shown[tokens] == tiny[1].mask_token_id).all()
        assert sorted(row[tokens].tolist()) == list(range(int(tokens.sum())))
        assert (row[~tokens] == -1).all()
    assert 12 <= takes_part <= 36
    assert len({tuple(row[:4].tolist()) for row in order if row[0] >= 0}) > 5  # not the same order for all


def test_order_changes_with_the_epoch_and_not_with_the_batch(tiny):
    collator = collator_of(tiny, full_mask_ratio=1.0)
    together = collator(examples(tiny, 6))["glancing_order"]
    for row, example in enumerate(examples(tiny, 6)):
        alone = collator([example])["glancing_order"][0]
        assert torch.equal(together[row, : len(alone)], alone)
    collator.set_epoch(1)
    assert not torch.equal(collator(examples(tiny, 6))["glancing_order"], together)


def test_off_in_evaluation_and_refused_where_nothing_is_fully_masked(tiny, tmp_path):
    assert "glancing_order" not in collator_of(tiny).evaluation()(examples(tiny, 2))
    with pytest.raises(ValueError, match="glancing_ratio=0.5 needs fully masked targets: set full_mask_ratio"):
        DataCollatorForJMNat(tiny[1], glancing_ratio=0.5)
    assert DataCollatorForJMNat(tiny[1], glancing_ratio=0.5, target_mask="all").glancing_ratio == 0.5
    with pytest.raises(ValueError, match="glancing_ratio=-0.1 must be between 0 and 1"):
        collator_of(tiny, glancing_ratio=-0.1)
    with pytest.raises(ValueError, match="glancing_ratio needs decoder_input=mask"):
        make_trainer(tiny, tmp_path, {"decoder_input": "source_copy"}, collator_of(tiny))


def labels_with_mistakes(predictions, wrong_counts):
    """Labels from which the predictions of row i differ in the first `wrong_counts[i]` tokens alone."""
    labels = predictions.clone()
    for row, count in enumerate(wrong_counts):
        labels[row, :count] = predictions[row, :count] + 1
    return labels


@pytest.mark.parametrize(
    ("ratio", "wrong", "shown"),
    # round(ratio * d), halves to the even neighbour: 0.5 * 5 = 2.5 gives 2, 0.5 * 3 = 1.5 gives 2, 0.3 * 6 gives 2
    [
        (0.5, (0, 5), (0, 2)),
        (0.5, (3, 1), (2, 0)),
        (0.3, (6, 4), (2, 1)),
        (1.0, (6, 2), (6, 2)),
        (0.5, (0, 0), (0, 0)),
    ],
)
def test_reveals_exactly_as_many_tokens_as_are_wrong(tiny, ratio, wrong, shown):
    tokenizer = tiny[1]
    model = tiny_model(tokenizer, dropout=0.5).train()
    mask = tokenizer.mask_token_id
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 2, 1], [5, 9, 7, 2]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]),
        "decoder_input_ids": torch.tensor([[mask] * 6, [mask] * 5 + [1], [7, mask, 9, 2, 1, 1]]),
        "decoder_attention_mask": torch.tensor([[1] * 6, [1] * 5 + [0], [1] * 4 + [0] * 2]),
    }
    is_token = batch["decoder_attention_mask"].bool()
    predictions = torch.full((3, 6), -100)
    predictions[is_token] = first_pass_predictions(model, batch, is_token)
    # Row 2 is all wrong, but it is not fully masked and takes no part.
    batch["labels"] = labels_with_mistakes(predictions, (*wrong, 4))
    batch["masked_positions"] = is_token & (batch["decoder_input_ids"] == mask)
    order = torch.tensor([[3, 0, 5, 1, 4, 2], [4, 2, 0, 1, 3, -1], [-1] * 6])
    after = after_glancing(model, batch | {"glancing_order": order}, ratio)
    assert model.training
    assert after.keys() == batch.keys()
    for row, count in enumerate(shown):
        expected = (order[row] >= 0) & (order[row] < count)
        assert int(expected.sum()) == count
        assert torch.equal(batch["masked_positions"][row] & ~after["masked_positions"][row], expected)
        assert torch.equal(after["decoder_input_ids"][row][expected], batch["labels"][row][expected])
        assert torch.equal(after["decoder_input_ids"][row][~expected], batch["decoder_input_ids"][row][~expected])
    for name in batch:
        assert torch.equal(after[name][2], batch[name][2]), name


def test_batch_without_fully_masked_targets_is_unchanged(tiny):
    model = tiny_model(tiny[1])
    batch = collator_of(tiny)(examples(tiny, 3))
    plain = {name: value for name, value in batch.items() if name != "glancing_order"}
    batch["glancing_order"] = torch.full_like(batch["glancing_order"], -1)
    after = after_glancing(model, batch, 0.5)
    assert after.keys() == plain.keys()
    assert all(torch.equal(after[name], plain[name]) for name in plain)


def one_glancing_step(tiny, output_dir, batch_size, accumulation, **fields):
    return one_step(tiny, output_dir, batch_size, accumulation, collator_of(tiny, **fields))


def test_accumulation_gives_the_same_loss_and_gradients(tiny, tmp_path):
    whole = one_glancing_step(tiny, tmp_path, 8, 1)
    assert_same_step(whole, one_glancing_step(tiny, tmp_path, 2, 4))
    assert_same_step(whole, one_glancing_step(tiny, tmp_path, 1, 8))
    assert one_glancing_step(tiny, tmp_path, 8, 1, glancing_ratio=0.0)[0]["loss"] != whole[0]["loss"]


def test_trainer_divides_by_what_is_left_to_predict(tiny, tmp_path):
    collator = collator_of(tiny, glancing_ratio=1.0)
    trainer = make_trainer(tiny, tmp_path, {"dropout": 0.0}, collator)
    batch = collator(examples(tiny, 8))
    (left,), denominators = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    expected = after_glancing(trainer.model, batch, 1.0)
    assert torch.equal(left["masked_positions"], expected["masked_positions"])
    assert denominators.tolist() == [float(expected["masked_positions"].sum()), 8.0]
    assert denominators[0] < batch["masked_positions"].sum()


def test_a_fully_revealed_batch_has_a_finite_loss(tiny):
    """A short sentence that the model has all wrong, at a ratio of 1: no target token is left to predict."""
    model = tiny_model(tiny[1], dropout=0.0).train()
    batch = collator_of(tiny, full_mask_ratio=1.0, source_mask_ratio=0.0)(examples(tiny, 2))
    takes_part = batch["glancing_order"] >= 0
    batch["labels"][takes_part] = first_pass_predictions(model, batch, takes_part) + 1
    batch = after_glancing(model, batch, 1.0)
    assert not batch["masked_positions"].any()
    outputs = model(**batch, loss_denominators=torch.tensor([1.0, 2.0]))
    assert outputs.nll_loss == 0
    assert outputs.ngram_loss == 0
    outputs.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_resumed_run_ends_in_the_same_weights(tiny, tmp_path):
    def trainer():
        fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
        return make_trainer(tiny, tmp_path, {"dropout": 0.2}, collator_of(tiny), max_tokens=60, **fields)

    whole, resumed = trainer(), trainer()
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)
