import torch
import torch.nn.functional as F

from modeling_jmnat.baselines.nat_reg import back_translation_loss, similarity_loss
from tests.baselines.tiny_systems import batch_of, random_system, random_teacher_of


def test_similarity_by_hand():
    states = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]])
    words = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [5.0, 5.0]]])
    is_token = torch.tensor([[True, True, True, False]])
    # Equal states of different words cost 2; different states, and states of equal words, cost 1.
    assert similarity_loss(states, words, is_token).item() == 3.0
    assert similarity_loss(states, states, is_token).item() == 2.0


def test_back_translation_of_certain_words_is_that_of_their_ids():
    teacher = random_teacher_of(23).requires_grad_(False)
    batch = batch_of(random_system("nat_reg").config)
    labels, is_token = batch["labels"].clamp(min=1), batch["labels"] != -100
    source = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    logits = (60.0 * F.one_hot(labels, 23)).requires_grad_()
    found = back_translation_loss(teacher, logits, is_token, source)
    read = F.pad(batch["input_ids"][:, :-1], (1, 0), value=teacher.config.decoder_start_token_id)
    exact = teacher(input_ids=labels, attention_mask=is_token.long(), decoder_input_ids=read).logits
    expected = F.cross_entropy(exact.flatten(0, 1), source.flatten(), ignore_index=-100, reduction="sum")
    assert torch.isclose(found, expected, rtol=1e-4)


def test_the_gradient_reaches_the_translation_and_not_the_guide():
    teacher, model = random_teacher_of(23).requires_grad_(False), random_system("nat_reg", similarity_weight=0.0)
    batch = batch_of(model.config)
    result = model(**batch, guide=teacher)
    result.system_loss.backward()
    assert model.model.decoder.layers[0].fc1.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for weight in (0.0, 0.5):  # both parts are weighed within the system's loss
        model.config.back_translation_weight = weight
        with torch.no_grad():
            assert (float(model(**batch, guide=teacher).system_loss) == 0.0) == (weight == 0.0)
