"""Data that evaluations or the model cannot use are refused in one sentence, before training if possible."""

import pytest

from modeling_jmnat import DataCollatorForJMNat, JMNatTrainer, JMNatTrainingArguments
from modeling_jmnat.data.preparation import load_prepared
from tests.helpers.tiny_runs import prepare_tiny_data, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "save_strategy": "no", "max_tokens": 100}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(data set, tokenizer)"""
    return load_prepared(prepare_tiny_data(tmp_path_factory.mktemp("tiny")))


def make_trainer(tiny, output_dir, eval_dataset, train_dataset=None, vocabulary=None, **settings):
    data, tokenizer = tiny
    return JMNatTrainer(
        tiny_model(tokenizer) if vocabulary is None else tiny_model(range(vocabulary)),
        JMNatTrainingArguments(str(output_dir), **BASE, **settings),
        processing_class=tokenizer,
        train_dataset=data["train"] if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data.remove_columns(["target"]), "eval_dataset has no column 'target', only id, source, "),
        (lambda data: data.remove_columns(["labels"]), "eval_dataset has no column 'labels', only "),
        (lambda data: data.to_iterable_dataset(), r"eval_dataset is a stream \(IterableDataset\)"),
        (iter, "eval_dataset is a stream"),
        (lambda data: data.select([]), "eval_dataset has no example: give at least one"),
        (lambda data: [], "eval_dataset has no example: give at least one"),
        (lambda data: {"news": data, "talks": data.select([])}, r"eval_dataset\['talks'\] has no example"),
    ],
)
def test_data_that_cannot_be_evaluated_is_refused_at_once(tiny, tmp_path, change, sentence):
    good = tiny[0]["validation"]
    with pytest.raises(ValueError, match=f"^{sentence}"):
        make_trainer(tiny, tmp_path, change(good), eval_num_iterations=[1])
    with pytest.raises(ValueError, match=f"^{sentence}"):
        make_trainer(tiny, tmp_path, good, eval_num_iterations=[1]).evaluate(change(good))


def test_text_is_needed_only_by_evaluations_that_translate(tiny, tmp_path):
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in tiny[0]["validation"]]
    assert make_trainer(tiny, tmp_path, rows).evaluate()["eval_loss"] > 0


def test_one_of_several_data_sets_is_evaluated_by_its_name(tiny, tmp_path):
    data = tiny[0]["validation"]
    trainer = make_trainer(tiny, tmp_path, {"first": data.select(range(4)), "rest": data.select(range(4, 9))})
    every = trainer.evaluate()
    assert every["eval_first_loss"] != every["eval_rest_loss"]
    assert trainer.evaluate("rest")["eval_loss"] == every["eval_rest_loss"]
    with pytest.raises(ValueError, match=r"eval_dataset='talks' is not the name .* has the names \['first', 'rest'\]"):
        trainer.evaluate("talks")
    with pytest.raises(ValueError, match="eval_dataset='talks' is not the name of a data set"):
        make_trainer(tiny, tmp_path, data).evaluate("talks")


@pytest.mark.parametrize("column", ["input_ids", "labels"])
@pytest.mark.parametrize("unknown", [-1, "the first beyond the model"])
def test_an_id_that_the_model_does_not_have_is_named(tiny, tmp_path, column, unknown):
    data, tokenizer = tiny
    number = len(tokenizer) + 8
    rows, unknown = list(data["train"]), number if isinstance(unknown, str) else unknown
    rows[7] = {**rows[7], column: [unknown, *rows[7][column]]}
    sentence = (
        rf"a feature \(id {rows[7]['id']}\) has the token id {unknown} in '{column}', and the vocabulary has {number} "
        "ids, from 0: encode the data with the model's tokenizer"
    )
    with pytest.raises(ValueError, match=sentence):
        make_trainer(tiny, tmp_path, None, rows, vocabulary=number, num_train_epochs=1).train()
    with pytest.raises(ValueError, match=sentence):
        make_trainer(tiny, tmp_path, None, vocabulary=number).evaluate(rows)


def test_all_ids_of_the_model_can_be_learned(tiny, tmp_path):
    """The model may have more than the tokenizer, by which a collator alone judges."""
    data, tokenizer = tiny
    number = len(tokenizer) + 8
    rows = [{**row, "labels": [number - 1, *row["labels"]]} for row in data["train"]]
    trainer = make_trainer(tiny, tmp_path, None, rows, vocabulary=number, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1
    with pytest.raises(
        ValueError, match=f"token id {number - 1} in 'labels', and the vocabulary has {len(tokenizer)}"
    ):
        DataCollatorForJMNat(tokenizer)(rows[:2])
