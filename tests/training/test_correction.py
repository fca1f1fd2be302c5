"""Correction training: which tokens are replaced, by what, and that they are predicted and counted."""

import pytest
import torch

from modeling_jmnat import DataCollatorForJMNat, JMNatTrainer, JMNatTrainingArguments
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.training.own_predictions import with_own_predictions
from tests.helpers.tiny_runs import prepare_tiny_data, tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_prepared(prepare_tiny_data(tmp_path_factory.mktemp("tiny")))


def examples(tiny, count=48):
    return [tiny[0]["train"][index] for index in range(count)]


def test_positions_are_visible_tokens_in_the_right_number(tiny):
    plain = DataCollatorForJMNat(tiny[1], seed=3)
    correcting = DataCollatorForJMNat(tiny[1], seed=3, correction_ratio=0.4, full_mask_ratio=0.2)
    plain.full_mask_ratio = 0.2
    visible = corrected = 0
    for epoch in range(8):
        plain.set_epoch(epoch)
        correcting.set_epoch(epoch)
        before, batch = plain(examples(tiny)), correcting(examples(tiny))
        positions = batch["correction_positions"]
        # The masks are those of a run without correction; the positions come on top.
        assert torch.equal(before["decoder_input_ids"], batch["decoder_input_ids"])
        assert torch.equal(batch["masked_positions"], before["masked_positions"] | positions)
        free = before["labels"].ne(-100) & ~before["masked_positions"]
        assert not (positions & ~free).any()
        assert torch.equal(batch["decoder_input_ids"][positions], batch["labels"][positions])
        visible += int(free.sum())
        corrected += int(positions.sum())
    assert corrected / visible == pytest.approx(0.4, abs=0.05)


def test_positions_do_not_depend_on_the_batch(tiny):
    collator = DataCollatorForJMNat(tiny[1], seed=3, correction_ratio=0.4)
    together = collator(examples(tiny, 6))
    for row, example in enumerate(examples(tiny, 6)):
        alone = collator([example])["correction_positions"][0]
        assert torch.equal(together["correction_positions"][row, : len(alone)], alone)
        assert not together["correction_positions"][row, len(alone) :].any()


def test_no_positions_without_the_ratio_and_in_evaluation(tiny):
    assert "correction_positions" not in DataCollatorForJMNat(tiny[1])(examples(tiny, 2))
    evaluation = DataCollatorForJMNat(tiny[1], correction_ratio=0.5).evaluation()
    assert "correction_positions" not in evaluation(examples(tiny, 2))
    with pytest.raises(ValueError, match="correction_ratio=1.5 must be between 0 and 1"):
        DataCollatorForJMNat(tiny[1], correction_ratio=1.5)


def test_tokens_are_replaced_by_predictions_of_the_first_decoding_pass(tiny):
    tokenizer = tiny[1]
    model = tiny_model(tokenizer, dropout=0.5).train()
    batch = DataCollatorForJMNat(tokenizer, correction_ratio=1.0)(examples(tiny, 5))
    positions = batch["correction_positions"]
    replaced = with_own_predictions(model, batch)
    assert model.training
    assert "correction_positions" not in replaced
    assert set(batch) - set(replaced) == {"correction_positions"}
    with torch.no_grad():
        model.eval()
        for row, target in enumerate(batch["labels"]):
            length = int(target.ne(-100).sum())
            source = batch["input_ids"][row, : int(batch["attention_mask"][row].sum())]
            canvas = torch.full((1, length), tokenizer.mask_token_id)
            logits = model(input_ids=source[None], decoder_input_ids=canvas).logits[0]
            logits[:, [tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.bos_token_id]] = -torch.inf
            at = positions[row, :length]
            assert torch.equal(replaced["decoder_input_ids"][row, :length][at], logits.argmax(dim=-1)[at])
    kept = ~positions
    assert torch.equal(replaced["decoder_input_ids"][kept], batch["decoder_input_ids"][kept])
    assert not torch.equal(replaced["decoder_input_ids"], batch["decoder_input_ids"])


def test_trainer_predicts_and_counts_corrected_tokens(tiny, tmp_path):
    data, tokenizer = tiny
    arguments = JMNatTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, report_to=[], save_strategy="no", max_steps=2
    )
    model = tiny_model(tokenizer, dropout=0.0, label_smoothing=0.0)
    collator = DataCollatorForJMNat(tokenizer, seed=3, correction_ratio=0.5)
    trainer = JMNatTrainer(model, arguments, collator, processing_class=tokenizer, train_dataset=data["train"])
    batch = collator(examples(tiny, 8))
    (denominators,) = [trainer._get_num_items_in_batch([batch], torch.device("cpu"))]
    assert denominators.tolist() == [float(batch["masked_positions"].sum()), 8.0]
    model.train()
    output = trainer.loss_outputs(model, dict(batch), denominators)
    replaced = with_own_predictions(model, batch)
    with torch.no_grad():
        logits = model.eval()(**replaced).logits
    log_probs = logits.log_softmax(dim=-1)
    positions = batch["masked_positions"]
    by_hand = -log_probs[positions].gather(1, batch["labels"][positions][:, None]).mean()
    assert output.nll_loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    trainer.train()
    assert trainer.state.global_step == 2
