"""Training as users of Transformers do it: one collator, stock trainers, `compute_metrics`, the best model."""

import logging

import numpy as np
import pytest
import sacrebleu
import torch
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from modeling_jmnat import DataCollatorForJMNat, JMNatTrainer, JMNatTrainingArguments
from modeling_jmnat.commands.finetune_example import LOGGED, metric_scores
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.inference.translation import translate_lines
from modeling_jmnat.modeling_jmnat import NOT_MASKED
from modeling_jmnat.training.checkpoints import list_checkpoints
from modeling_jmnat.utils.translation_scores import score_translations
from tests.helpers.random_models import random_batch, random_model
from tests.helpers.tiny_runs import prepare_tiny_data, tiny_model

BASE = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "seed": 3, "warmup_steps": 5}
EVERY = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 20, "save_steps": 20}
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "chrf", "predict_with_generate": True}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(data set, tokenizer)"""
    return load_prepared(prepare_tiny_data(tmp_path_factory.mktemp("tiny")))


def chrf_of(tokenizer):
    """As `finetune_example.py` and the documentation of Transformers compute BLEU; chrF rises earlier."""

    def chrf(prediction):
        texts = [np.where(ids < 0, tokenizer.pad_token_id, ids) for ids in prediction]
        hypotheses, references = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in texts)
        return {"chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score, "eval_count": len(hypotheses)}

    return chrf


def test_plain_evaluation_translates_the_whole_source(tiny, tmp_path):
    """One collator for training and evaluation: its source masks are for learning, translations are of clean text."""
    data, tokenizer = tiny
    masks = DataCollatorForJMNat(tokenizer, source_mask_ratio=0.5, seed=3)

    fields = {**BASE, **EVERY, **BEST, "learning_rate": 0.01, "per_device_train_batch_size": 16}
    fields |= {"max_steps": 240, "eval_steps": 80, "save_steps": 80}
    arguments = Seq2SeqTrainingArguments(str(tmp_path), **fields)
    trainer = Seq2SeqTrainer(
        tiny_model(tokenizer, dropout=0.0),
        arguments,
        masks,
        data["train"],
        data["validation"],
        processing_class=tokenizer,
        compute_metrics=chrf_of(tokenizer),
    )
    trainer.train()
    scores = [log["eval_chrf"] for log in trainer.state.log_history if "eval_chrf" in log]
    assert trainer.state.best_metric == max(scores) > 20
    found = trainer.predict(data["validation"])
    assert found.metrics["test_chrf"] == max(scores)
    lines = translate_lines(trainer.model, tokenizer, data["validation"]["source"])
    hypotheses = [line.text for line in lines]
    clean = sacrebleu.corpus_chrf(hypotheses, [data["validation"]["target"]]).score
    assert found.metrics["test_chrf"] == pytest.approx(clean)
    texts = tokenizer.batch_decode(np.where(found.predictions < 0, 1, found.predictions), skip_special_tokens=True)
    assert texts == hypotheses
    batch = masks([data["validation"][index] for index in range(4)])
    masked = {name: batch[name] for name in ("input_ids", "attention_mask")}
    whole = trainer.model.generate(**masked, encoder_targets=batch["encoder_targets"])
    assert tokenizer.batch_decode(whole, skip_special_tokens=True) == hypotheses[:4]
    assert tokenizer.batch_decode(trainer.model.generate(**masked), skip_special_tokens=True) != hypotheses[:4]
    with pytest.raises(ValueError, match="encoder_targets has shape"):
        trainer.model.generate(**masked, encoder_targets=batch["encoder_targets"][:, 1:])


# A collator without masks --------------------------------------------------------------------------------------------


@pytest.fixture
def warnings_of(monkeypatch):
    """The messages that the model's module logs, each once."""
    from modeling_jmnat import modeling_jmnat

    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    modeling_jmnat.logger.warning_once.cache_clear()
    modeling_jmnat.logger.addHandler(handler)
    yield messages
    modeling_jmnat.logger.removeHandler(handler)


def test_a_collator_without_masks_warns_once(tiny, tmp_path, warnings_of):
    data, tokenizer = tiny
    fields = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"}
    trainer = Seq2SeqTrainer(
        tiny_model(tokenizer),
        Seq2SeqTrainingArguments(str(tmp_path), **BASE, **fields),
        DataCollatorForSeq2Seq(tokenizer),
        data["train"].select_columns(["input_ids", "labels"]),
        data["validation"].select_columns(["input_ids", "labels"]),
    )
    trainer.train()
    assert warnings_of == [NOT_MASKED]


def test_warns_only_of_targets_without_masks(warnings_of):
    model = random_model(3)
    batch = random_batch(model)
    unmasked = {**batch, "decoder_input_ids": batch["labels"].clamp(min=1)}
    del unmasked["masked_positions"]
    model(**batch), model(**unmasked), model(batch["input_ids"], labels=batch["labels"])  # in evaluation mode
    model.train()(**batch)
    copying = random_model(3, decoder_input="source_copy").train()  # the basic NAT has no masks
    copying(batch["input_ids"], labels=batch["labels"])
    assert not warnings_of
    model(**unmasked)
    assert warnings_of == [NOT_MASKED]


@pytest.mark.parametrize("masks", [{"correction_ratio": 0.3}, {"full_mask_ratio": 1.0, "glancing_ratio": 0.5}])
def test_masks_that_a_stock_trainer_cannot_use_are_refused(tiny, tmp_path, masks):
    """They would make the model learn to copy what it reads, or be ignored."""
    data, tokenizer = tiny
    arguments = Seq2SeqTrainingArguments(str(tmp_path), **BASE, max_steps=1)
    collator = DataCollatorForJMNat(tokenizer, **masks)
    trainer = Seq2SeqTrainer(tiny_model(tokenizer), arguments, collator, data["train"])
    with pytest.raises(ValueError, match="needs JMNatTrainer"):
        trainer.train()
    batch = collator([data["train"][index] for index in range(4)])
    clean = torch.where(batch["encoder_targets"] == -100, batch["input_ids"], batch["encoder_targets"])
    model = trainer.model.eval()
    assert torch.equal(model.generate(**batch), model.generate(clean, attention_mask=batch["attention_mask"]))


# JMNatTrainer as Seq2SeqTrainer --------------------------------------------------------------------------------------


def own_trainer(tiny, folder, **fields):
    data, tokenizer = tiny
    arguments = JMNatTrainingArguments(str(folder), **{**BASE, "max_tokens": 200, "learning_rate": 0.01, **fields})
    return JMNatTrainer(
        tiny_model(tokenizer, dropout=0.0),
        arguments,
        None,
        data["train"],
        data["validation"],
        processing_class=tokenizer,
        compute_metrics=chrf_of(tokenizer),
    )


def test_the_metric_of_the_library_evaluate_serves_both_trainers(tiny, tmp_path):
    """As finetune_example.py uses it: the scores of what `generate` gives, the same from either trainer."""
    data, tokenizer = tiny
    scores = metric_scores(tokenizer)
    own = own_trainer(tiny, tmp_path, predict_with_generate=True)
    own.compute_metrics = scores
    arguments = Seq2SeqTrainingArguments(str(tmp_path), predict_with_generate=True, **BASE)
    collator = DataCollatorForJMNat(tokenizer)
    stock = Seq2SeqTrainer(own.model, arguments, collator, None, data["validation"], compute_metrics=scores)
    found = [{name: trainer.evaluate()[f"eval_{name}"] for name in LOGGED} for trainer in (own, stock)]
    predicted = stock.predict(data["validation"])
    texts = [np.where(ids < 0, tokenizer.pad_token_id, ids) for ids in (predicted.predictions, predicted.label_ids)]
    expected = score_translations(*(tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in texts))
    assert found[0] == found[1] == {name: expected[score] for name, score in LOGGED.items()}


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_best_model_is_loaded_at_the_end(tiny, tmp_path, ema_decay):
    """By the figure of `compute_metrics`; its checkpoint outlives newer ones and a resumed run finds it again."""
    fields = {**EVERY, **BEST, "eval_num_iterations": [2], "save_total_limit": 2, "ema_decay": ema_decay}
    fields["metric_for_best_model"] = "score"
    trainer = own_trainer(tiny, tmp_path, max_steps=40, **fields)
    scores = iter([5.0, 3.0, 4.0, 1.0, 0.0])
    chrf = trainer.compute_metrics
    trainer.compute_metrics = lambda prediction: {**chrf(prediction), "score": next(scores)}
    trainer.train()
    fields["max_steps"] = 80
    trainer = own_trainer(tiny, tmp_path, **fields)
    trainer.compute_metrics = lambda prediction: {**chrf(prediction), "score": next(scores)}
    trainer.train(resume_from_checkpoint=True)
    log = [entry for entry in trainer.state.log_history if "eval_score" in entry]
    assert [entry["eval_score"] for entry in log] == [5.0, 3.0, 4.0, 1.0]
    for entry in log:  # `compute_metrics` and the options of this trainer
        assert entry["eval_count"] == 9
        assert {"eval_bleu", "eval_bleu_k2", "eval_loss", "eval_nll_loss", "eval_length_loss"} <= entry.keys()
    assert trainer.state.best_global_step == 20
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-20")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-60", "checkpoint-80"]
    evaluated = trainer.evaluate()
    assert evaluated["eval_bleu_k2"] == log[0]["eval_bleu_k2"]
    assert evaluated["eval_loss"] == pytest.approx(log[0]["eval_loss"], rel=1e-5)
    assert trainer.choose_final_weights() == {"final_model": "step 20"}
    again = own_trainer(tiny, tmp_path, **fields)
    again.compute_metrics = lambda prediction: {"score": 0.0}
    again.train(resume_from_checkpoint=True)  # nothing is left to do
    assert again.evaluate()["eval_loss"] == pytest.approx(log[0]["eval_loss"], rel=1e-5)


def test_metrics_are_those_of_seq2seq_trainer(tiny, tmp_path):
    """Of the same weights, with the options of `generate` from the arguments and from the call."""
    data, tokenizer = tiny
    trainer = own_trainer(tiny, tmp_path, predict_with_generate=True, max_steps=30, save_strategy="no")
    trainer.train()
    arguments = Seq2SeqTrainingArguments(str(tmp_path), **BASE, predict_with_generate=True)
    stock = Seq2SeqTrainer(
        trainer.model,
        arguments,
        DataCollatorForJMNat(tokenizer).evaluation(),
        eval_dataset=data["validation"],
        compute_metrics=chrf_of(tokenizer),
    )
    scores = []
    for options in ({}, {"num_iterations": 1}, {"num_beams": 2}, {"max_length": 4}):
        ours, theirs = trainer.evaluate(**options), stock.evaluate(**options)
        assert ours["eval_chrf"] == theirs["eval_chrf"]
        scores.append(ours["eval_chrf"])
        found = trainer.predict(data["validation"], **options)
        assert found.metrics["test_chrf"] == ours["eval_chrf"]
    assert len(set(scores)) > 1


def test_metrics_of_logits_and_the_best_alone_is_saved(tiny, tmp_path):
    """Without `predict_with_generate` predictions are logits, as in `Trainer`."""
    data, tokenizer = tiny
    widths = []
    fields = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best"}
    trainer = own_trainer(tiny, tmp_path, **fields, metric_for_best_model="score", greater_is_better=True)
    scores = iter([1.0, 2.0, 0.0, 3.0])
    trainer.compute_metrics = lambda found: widths.append(found.predictions.shape[-1]) or {"score": next(scores)}
    trainer.train()
    assert widths == [len(tokenizer)] * 4
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]


def test_warns_if_bleu_cannot_choose_a_checkpoint(tiny, tmp_path, caplog):
    """Evaluations that all score alike, as BLEU of the wrong tokenizer does, keep the oldest checkpoint."""
    fields = {**EVERY, "max_steps": 40, "keep_best": 1, "eval_num_iterations": [1], "bleu_tokenize": "none"}
    trainer = own_trainer(tiny, tmp_path, **fields, learning_rate=0.0)
    trainer.compute_metrics = None
    trainer.train()
    assert trainer.choose_final_weights()["best_step"] == 20
    assert any("BLEU was 0.0 at every evaluation, so keep_best=1" in x.getMessage() for x in caplog.records)
