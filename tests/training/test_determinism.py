"""Training and decoding run with PyTorch's deterministic algorithms, and give the same results twice."""

import pytest
import torch

from modeling_jmnat import DataCollatorForJMNat, JMNatTrainer, JMNatTrainingArguments
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.inference.translation import translate_lines
from modeling_jmnat.teacher.model import build_teacher
from modeling_jmnat.teacher.trainer import TeacherTrainer
from modeling_jmnat.training.arguments import TeacherTrainingArguments
from tests.helpers.teacher_samples import random_lines, random_teacher
from tests.helpers.tiny_runs import MODEL, prepare_tiny_data, tiny_model
from tests.helpers.translation_samples import tiny_student, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "save_strategy": "no", "seed": 3, "max_steps": 4}
BASE |= {"max_tokens": 60, "learning_rate": 1e-2, "warmup_steps": 1}


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def train_student(tiny, output_dir, **masks):
    data, tokenizer = tiny
    arguments = JMNatTrainingArguments(str(output_dir), **BASE, ema_decay=0.5, bf16=bool(masks))
    collator = DataCollatorForJMNat(tokenizer, **masks)
    model = tiny_model(tokenizer, dropout=0.1)
    return JMNatTrainer(model, arguments, collator, data["train"], data["validation"], tokenizer)


def train_teacher(tiny, output_dir):
    data, tokenizer = tiny
    torch.manual_seed(0)
    model = build_teacher({**MODEL, "dropout": 0.1}, tokenizer, 1)
    arguments = TeacherTrainingArguments(str(output_dir), **BASE)
    return TeacherTrainer(
        model, arguments, processing_class=tokenizer, train_dataset=data["train"], eval_dataset=data["validation"]
    )


def test_training_twice_gives_the_same_weights(deterministic, tmp_path):
    tiny = load_prepared(prepare_tiny_data(tmp_path))
    masks = {"full_mask_ratio": 0.5, "glancing_ratio": 0.5, "correction_ratio": 0.3}
    for make, options in ((train_student, {}), (train_student, masks), (train_teacher, {})):
        found = []
        for _ in range(2):
            trainer = make(tiny, tmp_path / "run", **options)
            trainer.train()
            found.append((trainer.model.state_dict(), trainer.evaluate()["eval_loss"]))
        assert found[0][1] == found[1][1]
        for name, weight in found[0][0].items():
            assert torch.equal(weight, found[1][0][name]), name


@pytest.mark.parametrize(
    "options",
    [
        {"num_length_candidates": 3},
        {"num_length_candidates": 3, "prune_candidates": 1, "prune_to": 2, "consensus_weight": 0.5},
        {"confidence_threshold": 0.3, "update_all": True, "early_stop": True},
        {"remask_repeats": True, "delete_repeats": True, "collapse_repeats": True, "remask_adjacent": False},
    ],
)
def test_deterministic_algorithms_do_not_change_decoding(options, request):
    tokenizer = tiny_tokenizer()
    model, lines = tiny_student(tokenizer), random_lines(12, seed=3)
    reranker = random_teacher(tokenizer)
    settings = [{**options}, {**options, "reranker": reranker}]
    before = [[result.text for result in translate_lines(model, tokenizer, lines, **one)] for one in settings]
    request.getfixturevalue("deterministic")
    assert before == [[result.text for result in translate_lines(model, tokenizer, lines, **one)] for one in settings]
