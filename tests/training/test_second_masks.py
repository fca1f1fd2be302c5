"""Adaptive masks: the source's ratio that follows the target's, and masks over the model's own predictions."""

import shutil

import pytest
import torch

from modeling_jmnat import DataCollatorForJMNat
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.training.own_predictions import after_second_mask, predictions_of
from tests.helpers.tiny_runs import prepare_tiny_data, tiny_model
from tests.training.test_glancing import examples, labels_with_mistakes
from tests.training.test_trainer import assert_same_step, make_trainer, one_step


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_prepared(prepare_tiny_data(tmp_path_factory.mktemp("tiny")))


def collator_of(tiny, **fields):
    return DataCollatorForJMNat(tiny[1], seed=3, **fields)


# The source's ratio --------------------------------------------------------------------------------------------------


def num_chosen(batch):
    return (batch["encoder_targets"] != -100).sum(dim=1).tolist() if "encoder_targets" in batch else None


def sentence_pairs(count, source=20, target=10):
    return [{"id": i, "input_ids": [7] * (source - 1) + [2], "labels": [7] * (target - 1) + [2]} for i in range(count)]


@pytest.mark.parametrize(("start", "end"), [(0.3, 0.1), (0.1, 0.5), (0.4, 0.0), (0.0, 0.2)])
def test_source_ratio_is_linear_in_the_masked_share_of_the_target(tiny, start, end):
    pairs = sentence_pairs(300)
    batch = collator_of(tiny, source_mask_ratio=start, source_mask_ratio_full=end, full_mask_ratio=0.2)(pairs)
    masked, chosen = batch["masked_positions"].sum(dim=1).tolist(), num_chosen(batch)
    assert set(masked) == set(range(1, 11))
    for num_masked, count in zip(masked, chosen, strict=True):
        ratio = start + (end - start) * num_masked / 10
        assert count == (max(1, round(20 * ratio)) if ratio > 1e-9 else 0)


def test_source_ratio_of_fully_masked_targets_moves_nothing_else(tiny):
    plain, adaptive = collator_of(tiny)(examples(tiny)), collator_of(tiny, source_mask_ratio_full=0.9)(examples(tiny))
    for name in ("labels", "decoder_input_ids", "masked_positions", "attention_mask"):
        assert torch.equal(plain[name], adaptive[name]), name
    same = collator_of(tiny, source_mask_ratio_full=0.1)(examples(tiny))
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    more = adaptive["encoder_targets"] != -100
    assert (more | (plain["encoder_targets"] == -100)).all()  # the same order of positions, more of them
    all_masked = collator_of(tiny, target_mask="all", source_mask_ratio=0.3, source_mask_ratio_full=0.0)(
        examples(tiny)
    )
    assert (all_masked["encoder_targets"] == -100).all()
    assert "encoder_targets" not in collator_of(tiny, source_mask_ratio_full=0.5).evaluation()(examples(tiny))


# Second masks --------------------------------------------------------------------------------------------------------


def test_order_of_the_drawn_targets_moves_no_mask_and_does_not_depend_on_the_batch(tiny):
    plain = collator_of(tiny, full_mask_ratio=0.3)(examples(tiny))
    collator = collator_of(tiny, full_mask_ratio=0.3, second_mask_ratio=0.5, pad_to_multiple_of=16)
    wide = collator(examples(tiny))
    collator.pad_to_multiple_of = None
    batch = collator(examples(tiny))
    order = batch["second_mask_order"]
    assert wide["second_mask_order"].shape == wide["labels"].shape
    assert torch.equal(wide["second_mask_order"][:, : order.shape[1]], order)
    assert all(torch.equal(plain[name], batch[name]) for name in plain)
    is_token = batch["labels"] != -100
    takes_part = (order >= 0).any(dim=1)
    assert 12 <= takes_part.sum() <= 36
    for row, tokens, drawn in zip(order, is_token, takes_part, strict=True):
        expected = list(range(int(tokens.sum()))) if drawn else [-1] * int(tokens.sum())
        assert sorted(row[tokens].tolist()) == expected
        assert (row[~tokens] == -1).all()
    for row, example in enumerate(examples(tiny, 6)):
        alone = collator([example])["second_mask_order"][0]
        assert torch.equal(order[row, : len(alone)], alone)
    collator.set_epoch(1)
    assert not torch.equal(collator(examples(tiny))["second_mask_order"], order)
    assert "second_mask_order" not in collator.evaluation()(examples(tiny, 2))


def test_glancing_keeps_the_fully_masked_targets_for_itself(tiny):
    batch = collator_of(tiny, full_mask_ratio=0.5, glancing_ratio=0.5, second_mask_ratio=1.0)(examples(tiny))
    glancing, second = (batch[name] >= 0 for name in ("glancing_order", "second_mask_order"))
    assert glancing.any()
    assert torch.equal(glancing ^ second, batch["labels"] != -100)


def test_contradictory_options_are_refused(tiny):
    with pytest.raises(ValueError, match="second_mask_ratio=1.5 must be between 0 and 1"):
        collator_of(tiny, second_mask_ratio=1.5)
    with pytest.raises(ValueError, match="source_mask_ratio_full=-1 must be between 0 and 1"):
        collator_of(tiny, source_mask_ratio_full=-1)
    with pytest.raises(ValueError, match="second_mask_ratio=0.5 and correction_ratio=0.3 both replace tokens"):
        collator_of(tiny, second_mask_ratio=0.5, correction_ratio=0.3)
    with pytest.raises(ValueError, match="second_mask_order needs JMNatTrainer"):
        tiny_model(tiny[1])(**collator_of(tiny, second_mask_ratio=0.5)(examples(tiny, 2)))


@pytest.mark.parametrize(
    ("wrong", "masked"),
    # Rows 0 and 1 have T = 6 and 5 tokens, of which 4 and 3 are predicted. d of M wrong ones mask round(T d / M):
    # 6 * 2/4 = 3; 5 * 1/3 = 1.67; none wrong leave one mask; all wrong mask all; halves to even: 6 * 1/4 = 1.5 gives 2
    [((2, 1), (3, 2)), ((0, 3), (1, 5)), ((4, 0), (6, 1)), ((1, 2), (2, 3))],
)
def test_second_mask_covers_the_share_that_was_wrong(tiny, wrong, masked):
    tokenizer = tiny[1]
    model = tiny_model(tokenizer, dropout=0.5).train()
    mask = tokenizer.mask_token_id
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 2, 1], [5, 9, 7, 2]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]),
        # A random token (12) and a kept one stand at predicted positions, too.
        "decoder_input_ids": torch.tensor(
            [[mask, 12, mask, mask, 9, 2], [mask, mask, 8, mask, 2, 1], [7, mask, 2, 1, 1, 1]]
        ),
        "decoder_attention_mask": torch.tensor([[1] * 6, [1] * 5 + [0], [1] * 3 + [0] * 3]),
        "masked_positions": torch.tensor(
            [[True] * 4 + [False] * 2, [True, True, False, True, False, False], [False, True] + [False] * 4]
        ),
    }
    is_token, predicted = batch["decoder_attention_mask"].bool(), batch["masked_positions"]
    predictions = torch.full((3, 6), -100)
    predictions[predicted] = predictions_of(model, batch, predicted)
    labels = batch["decoder_input_ids"].masked_fill(~is_token, -100)
    for row, count in enumerate((*wrong, 1)):
        at = predicted[row].nonzero()[:, 0]
        labels[row, at] = labels_with_mistakes(predictions[row, at][None], [count])[0]
    batch["labels"] = labels
    order = torch.tensor([[3, 0, 5, 1, 4, 2], [4, 2, 0, 1, 3, -1], [-1] * 6])
    after = after_second_mask(model, batch | {"second_mask_order": order})
    assert model.training
    assert after.keys() == batch.keys()
    for row, count in enumerate(masked):
        expected = (order[row] >= 0) & (order[row] < count)
        assert torch.equal(after["masked_positions"][row], expected)
        shown = after["decoder_input_ids"][row]
        assert (shown[expected] == mask).all()
        own = predicted[row] & ~expected
        assert torch.equal(shown[own], predictions[row][own])
        kept = ~predicted[row] & ~expected
        assert torch.equal(shown[kept & is_token[row]], labels[row][kept & is_token[row]])
        assert (shown[~is_token[row]] == 1).all()
    for name in batch:
        assert torch.equal(after[name][2], batch[name][2]), name
        if name not in ("decoder_input_ids", "masked_positions"):
            assert torch.equal(after[name], batch[name]), name


def test_predictions_are_those_of_the_masked_target_alone(tiny):
    """Row by row, by a plain pass of the model over what the first masks show."""
    tokenizer = tiny[1]
    model = tiny_model(tokenizer).eval()
    batch = collator_of(tiny, second_mask_ratio=1.0)(examples(tiny, 5))
    order = batch.pop("second_mask_order")
    after = after_second_mask(model, batch | {"second_mask_order": order})
    with torch.no_grad():
        for row, target in enumerate(batch["labels"]):
            length, size = int(target.ne(-100).sum()), int(batch["attention_mask"][row].sum())
            source, canvas = batch["input_ids"][row, :size], batch["decoder_input_ids"][row, :length]
            logits = model(input_ids=source[None], decoder_input_ids=canvas[None]).logits[0]
            logits[:, [tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.bos_token_id]] = -torch.inf
            first, second = (masks["masked_positions"][row, :length] for masks in (batch, after))
            wrong = (logits.argmax(dim=-1) != target[:length])[first].double().mean().item()
            assert int(second.sum()) == max(1, round(wrong * length))
            own = first & ~second
            assert torch.equal(after["decoder_input_ids"][row, :length][own], logits.argmax(dim=-1)[own])


def test_batch_without_drawn_targets_is_unchanged(tiny):
    batch = collator_of(tiny, second_mask_ratio=0.5)(examples(tiny, 3))
    order = torch.full_like(batch.pop("second_mask_order"), -1)
    after = after_second_mask(tiny_model(tiny[1]), batch | {"second_mask_order": order})
    assert after.keys() == batch.keys()
    assert all(torch.equal(after[name], batch[name]) for name in batch)


BOTH = {"full_mask_ratio": 0.5, "glancing_ratio": 0.5, "second_mask_ratio": 0.7}


@pytest.mark.parametrize("fields", [{"second_mask_ratio": 0.7}, BOTH])
def test_accumulation_gives_the_same_loss_and_gradients(tiny, tmp_path, fields):
    whole, parts = (one_step(tiny, tmp_path, *sizes, collator_of(tiny, **fields)) for sizes in ((8, 1), (2, 4)))
    assert_same_step(whole, parts)
    assert one_step(tiny, tmp_path, 8, 1, collator_of(tiny))[0]["loss"] != whole[0]["loss"]


def test_trainer_divides_by_the_second_masks(tiny, tmp_path):
    collator = collator_of(tiny, second_mask_ratio=1.0)
    trainer = make_trainer(tiny, tmp_path, {"dropout": 0.0}, collator)
    batch = collator(examples(tiny, 8))
    (masked,), denominators = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    expected = after_second_mask(trainer.model, batch)
    assert torch.equal(masked["masked_positions"], expected["masked_positions"])
    assert denominators.tolist() == [float(expected["masked_positions"].sum()), 8.0]


# Settings that change from step to step ------------------------------------------------------------------------------

SCHEDULES = {**BOTH, "glancing_ratio_end": 0.1, "source_mask_ratio_full": 0.3}


def test_resumed_run_ends_in_the_same_weights(tiny, tmp_path):
    def trainer(collator_fields=SCHEDULES, **more):
        fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2, **more}
        return make_trainer(
            tiny, tmp_path, {"dropout": 0.2}, collator_of(tiny, **collator_fields), max_tokens=60, **fields
        )

    whole, resumed = (trainer(encoder_loss_weight_start=1.0) for _ in range(2))
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)
    others = (trainer(), trainer({**SCHEDULES, "glancing_ratio_end": None}, encoder_loss_weight_start=1.0))
    for other in others:  # each schedule counts
        shutil.rmtree(tmp_path)
        other.train()
        weights = other.model.state_dict()
        assert any(not torch.equal(weights[name], value) for name, value in whole.model.state_dict().items())


def test_glancing_ratio_changes_linearly(tiny, tmp_path, monkeypatch):
    from modeling_jmnat.training import trainer as module

    ratios = []
    plain = module.with_final_masks
    monkeypatch.setattr(
        module, "with_final_masks", lambda model, batch, ratio: ratios.append(ratio) or plain(model, batch, ratio)
    )
    for end, expected in ((0.1, [0.5, 0.4, 0.3, 0.2, 0.1]), (None, [0.5] * 5)):
        collator = collator_of(tiny, full_mask_ratio=0.5, glancing_ratio=0.5, glancing_ratio_end=end)
        make_trainer(tiny, tmp_path, None, collator, max_steps=5).train()
        assert ratios == pytest.approx(expected)
        ratios.clear()
    with pytest.raises(ValueError, match="glancing_ratio_end=0.3 needs a glancing_ratio above 0"):
        collator_of(tiny, glancing_ratio_end=0.3)


def test_weight_of_the_source_loss_changes_linearly(tiny, tmp_path):
    """The logged loss of each of three steps is the sum of its parts with a1 = 2, 1.25 and 0.5; validation has 0.5."""
    weights = {"encoder_loss_weight": 0.5, "ngram_loss_weight": 0.25, "length_loss_weight": 0.125}
    fields = {"max_steps": 3, "logging_steps": 1, "encoder_loss_weight_start": 2.0}
    trainer = make_trainer(tiny, tmp_path, weights, **fields)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "nll_loss" in log]
    for log, weight in zip(logs, (2.0, 1.25, 0.5), strict=True):
        others = log["nll_loss"] + 0.25 * log["ngram_loss"] + 0.125 * log["length_loss"]
        assert log["loss"] == pytest.approx(others + weight * log["encoder_loss"], rel=1e-5)
    assert trainer.model.config.encoder_loss_weight == 0.5
    with pytest.raises(ValueError, match="encoder_loss_weight_start needs an encoder_loss_weight above 0"):
        make_trainer(tiny, tmp_path, {"encoder_loss_weight": 0.0}, **fields)
    with pytest.raises(ValueError, match="encoder_loss_weight_start=-1.0 must be at least 0"):
        make_trainer(tiny, tmp_path, encoder_loss_weight_start=-1.0)
