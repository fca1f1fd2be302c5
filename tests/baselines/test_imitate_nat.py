import pytest
import torch
import torch.nn.functional as F

from modeling_jmnat.baselines.imitate_nat import ImitatingLayer
from tests.baselines.tiny_systems import batch_of, random_system, random_teacher_of
from tests.helpers.teacher_samples import TINY

OF_TEACHER = {"d_model": TINY["d_model"], "decoder_layers": TINY["decoder_layers"]}


def layer_with(num_actions=2):
    model = random_system("imitate_nat", num_actions=num_actions)
    return model.model.decoder.layers[0]


def states_at(*values):
    return torch.tensor([[float(value)] for value in values]).repeat(1, 16)


def test_actions_are_the_nearest_centroids():
    layer = layer_with()
    layer.centroids.copy_(states_at(0, 10))
    before = layer.centroids.clone()
    assert layer.quantise(states_at(1, 4, 6, 12), learn=False).tolist() == [0, 0, 1, 1]
    assert torch.equal(layer.centroids, before)


def test_centroids_move_to_the_means_of_their_states():
    layer, states = layer_with(), states_at(0, 1, 10, 12)
    assert layer.quantise(states, learn=True).tolist() == [0, 0, 1, 1]  # begins at the first and the last state
    for _ in range(1000):
        actions = layer.quantise(states, learn=True)
    assert actions.tolist() == [0, 0, 1, 1]
    assert torch.allclose(layer.centroids, states_at(0.5, 11), atol=0.05)


def test_a_centroid_without_states_begins_anew():
    layer = layer_with()
    layer.centroids.copy_(states_at(5, 99))
    layer.sums.copy_(states_at(5, 0))
    layer.counts.copy_(torch.tensor([1.0, 1e-3]))
    layer.quantise(states_at(4, 6), learn=True)
    assert torch.allclose(layer.centroids[1], torch.full((16,), 6.0))


def test_a_layer_adds_what_the_predicted_actions_stand_for():
    layer = layer_with(num_actions=3)
    layer.centroids.normal_()
    states, source = torch.randn(2, 4, 16), torch.randn(2, 5, 16)
    positions = torch.randn(1, 4, 16)
    weights = layer.policy(states).softmax(dim=-1)
    added = sum(weights[..., k : k + 1] * layer.centroids[k] for k in range(3))
    expected = super(ImitatingLayer, layer).forward(states + layer.action_proj(added), source, positions)
    assert torch.allclose(layer(states, source, positions), expected, atol=1e-6)


def test_the_demonstrators_actions_are_learned():
    model, guide = random_system("imitate_nat", num_actions=4, **OF_TEACHER), random_teacher_of(23)
    batch = batch_of(model.config)
    with torch.no_grad():
        hints = model.train().hints(batch, guide, 0.5)
        model.eval()
        result = model(**batch, **hints)
    assert [len(actions) for actions in hints["actions"]] == [10, 10]  # target tokens, for each layer
    assert len(set(hints["actions"][0].tolist())) > 1
    seen = []
    handles = [layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
               for layer in model.model.decoder.layers]  # fmt: skip
    with torch.no_grad():
        model(**batch, **hints)
    for handle in handles:
        handle.remove()
    is_token, losses = batch["labels"] != -100, []
    for layer, states, actions in zip(model.model.decoder.layers, seen, hints["actions"], strict=True):
        losses.append(F.cross_entropy(layer.policy(states[is_token]), actions))
    assert torch.isclose(result.system_loss, sum(losses) / 2, atol=1e-5)


def test_a_demonstrator_of_another_size_is_refused():
    model = random_system("imitate_nat")
    with pytest.raises(ValueError, match="guide has d_model 32 and 2 decoder layers, the model 16 and 2: a demonstr"):
        model.hints(batch_of(model.config), random_teacher_of(23), 0.0)
