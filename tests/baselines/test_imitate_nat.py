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


def alone(tensor):
    """The sum over one process."""
    return tensor


def test_actions_are_the_nearest_centroids():
    layer = layer_with()
    layer.centroids.copy_(states_at(0, 10))
    before = layer.centroids.clone()
    assert layer.quantise(states_at(1, 4, 6, 12)).tolist() == [0, 0, 1, 1]
    assert torch.equal(layer.centroids, before)


def test_centroids_move_to_the_means_of_their_states():
    layer, states = layer_with(), states_at(0, 1, 10, 12)
    actions = layer.learn(states, alone)
    assert actions[0] == actions[1] != actions[2] == actions[3]
    expected = torch.zeros(2, 16)
    expected[actions] = states_at(0.5, 0.5, 11, 11)
    assert torch.allclose(layer.centroids, expected, atol=1e-4)
    for _ in range(1000):  # the states move, and the centroids after them
        assert torch.equal(layer.learn(states + 3, alone), actions)
    assert torch.allclose(layer.centroids, expected + 3, atol=1e-3)
    assert torch.allclose(layer.counts, torch.tensor([2.0, 2.0]), atol=1e-3)


def test_a_centroid_without_states_gets_half_of_the_largest():
    layer = layer_with(num_actions=4)
    layer.centroids.copy_(states_at(5, 99, 20, 30))
    layer.counts.copy_(torch.tensor([6.0, 1e-3, 1.0, 1.0]))
    layer.sums.copy_(layer.centroids * layer.counts[:, None])
    layer.learn(states_at(5, 5, 5, 5, 5, 5, 20, 30), alone)
    assert torch.allclose(layer.counts, torch.tensor([3.0, 3.0, 1.0, 1.0]), atol=1e-2)
    assert torch.allclose(layer.centroids, states_at(5, 5, 20, 30), atol=1.0)
    assert not torch.equal(layer.centroids[0], layer.centroids[1])


def test_few_of_many_centroids_stay_without_states():
    layer, states = layer_with(num_actions=16), torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    first = layer.learn(states, alone)
    assert len(first.unique()) >= 12
    distances = torch.cdist(states, layer.centroids).square()
    assert distances.amin(dim=1).mean() < 0.9 * states.sub(states.mean(dim=0)).square().sum(dim=1).mean()


def test_centroids_of_a_step_are_those_of_its_sums_over_processes():
    """As many states in one process, or a third of them here and the sums of the others from elsewhere."""
    states = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    whole, part = layer_with(num_actions=4), layer_with(num_actions=4)
    sums = []
    whole.learn(states, lambda tensor: sums.append(tensor.clone()) or tensor)
    received = iter(sums)
    actions = part.learn(states[:20], lambda tensor: next(received).clone())
    assert torch.equal(part.centroids, whole.centroids)
    assert torch.equal(part.counts, whole.counts)
    assert len(actions) == 20


def test_a_layer_adds_what_the_predicted_actions_stand_for():
    layer = layer_with(num_actions=3)
    assert not layer.action_proj.weight.any()  # nothing at first
    torch.nn.init.normal_(layer.action_proj.weight, std=0.1)
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
        model.learn_from_step([batch], guide, alone)
        hints = {"actions": batch.pop("actions")}
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
        model.check_guide(random_teacher_of(23))
