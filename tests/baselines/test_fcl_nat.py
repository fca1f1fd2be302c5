import pytest
import torch

from modeling_jmnat.baselines.fcl_nat import substitute, substitution_rate
from tests.baselines.tiny_systems import batch_of, random_system

LABELS = torch.tensor([[10, 11, 2], [12, 2, -100]])
COPIED = torch.tensor([[20, 21, 22], [23, 24, 24]])


@pytest.mark.parametrize(
    ("progress", "rate"), [(0.0, 0.0), (0.2, 0.0), (0.3, 0.25), (0.5, 0.75), (0.6, 1.0), (1.0, 1.0)]
)
def test_schedule(progress, rate):
    assert substitution_rate(progress, 0.2, 0.6) == pytest.approx(rate)


def test_schedule_without_a_curriculum_is_a_step():
    assert [substitution_rate(progress, 0.5, 0.5) for progress in (0.4, 0.5)] == [0.0, 1.0]


def test_substitution_by_hand():
    uniforms = torch.tensor([[[0.1, 0.9], [0.8, 0.0], [0.2, 0.0]], [[0.9, 0.3], [0.9, 0.9], [0.9, 0.9]]])
    lower = torch.ones(3, 3, dtype=torch.bool).tril()
    valid = torch.tensor([True, True, False])
    read, attend = substitute(LABELS, COPIED, 0, 0.0, uniforms)  # an autoregressive model
    assert read.tolist() == [[0, 10, 11], [0, 12, 24]]
    assert torch.equal(attend, torch.stack([lower, lower & valid]))
    read, attend = substitute(LABELS, COPIED, 0, 0.5, uniforms)  # two inputs of one sentence, the mask of the other
    assert read.tolist() == [[20, 10, 22], [23, 24, 24]]
    assert torch.equal(attend, torch.stack([lower, valid.expand(3, 3)]))
    read, attend = substitute(LABELS, COPIED, 0, 1.0, uniforms)  # a basic NAT
    assert torch.equal(read, COPIED)
    assert torch.equal(attend, torch.stack([torch.ones(3, 3, dtype=torch.bool), valid.expand(3, 3)]))


def test_before_the_curriculum_nothing_is_read_ahead():
    model = random_system("fcl_nat")
    batch = batch_of(model.config) | {"uniforms": torch.rand(2, 6, 4), "rate": 0.0}
    before = model(**batch).logits
    changed = batch["labels"].clone()
    changed[1, 3] = 9  # is read at position 4
    after = model(**batch | {"labels": changed}).logits
    assert torch.equal(before[1, :4], after[1, :4])
    assert not torch.allclose(before[1, 4:], after[1, 4:])


def test_behind_the_curriculum_it_is_a_basic_nat():
    model = random_system("fcl_nat")
    batch = batch_of(model.config) | {"uniforms": torch.rand(2, 6, 4)}
    almost, done = model(**batch, rate=1.0 - 1e-9), model(**batch, rate=1.0)
    assert torch.allclose(almost.logits[batch["labels"] != -100], done.logits[batch["labels"] != -100], atol=1e-5)
    assert torch.isclose(almost.loss, done.loss)


def test_progress_of_the_training_sets_the_rate():
    model = random_system("fcl_nat", curriculum_begin=0.0, curriculum_end=0.5)
    assert [model.hints({}, None, progress)["rate"] for progress in (0.0, 0.25, 1.0)] == [0.0, 0.5, 1.0]
