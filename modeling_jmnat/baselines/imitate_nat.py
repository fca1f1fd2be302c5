"""Imitate-NAT: imitation of an autoregressive demonstrator (Wei et al., ACL 2019, "Imitation Learning for
Non-Autoregressive Neural Machine Translation").

The demonstrator, a frozen autoregressive model that reads the reference, has a state at each position and layer.
States are quantised: the nearest of K centroids, which k-means finds during training, is the action there. Before each
of its layers the NAT predicts the action of the demonstrator's layer and adds what the predicted actions stand for, on
average, to its own state. The loss is L_NAT + w L_IL, the cross-entropy of the actions. In the paper the demonstrator
is trained along; here it is the teacher, of the same size, so that all systems have the same one, and w is our choice.
A model starts with actions that add nothing, so that a teacher's weights compute at first what they did.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from ..modeling_jmnat import JMNatDecoderLayer
from .base import NatConfig, NatForConditionalGeneration, option, teacher_batch

DECAY = 0.99  # of the moving averages of k-means
FIRST_ROUNDS = 10  # of k-means on the first step's states
FEWEST = 0.05  # of a centroid's fair share of the states: with fewer it moves to where there are more


@strict
class ImitateNatConfig(NatConfig):
    model_type = "imitate_nat"
    system_loss_weight: float | int = option(0.5, "Weight of the imitation of actions.")
    num_actions: int = option(256, "K, centroids of each layer.", 2)


class ImitatingLayer(JMNatDecoderLayer):
    """A decoder layer that acts first. `centroids` (K, D), with the averages that they are made of."""

    def __init__(self, config: ImitateNatConfig):
        super().__init__(config)
        self.policy = nn.Linear(config.d_model, config.num_actions)
        self.action_proj = nn.Linear(config.d_model, config.d_model)
        self.register_buffer("centroids", torch.zeros(config.num_actions, config.d_model))
        self.register_buffer("sums", torch.zeros(config.num_actions, config.d_model))
        self.register_buffer("counts", torch.zeros(config.num_actions))

    def forward(self, hidden_states, *args, **kwargs):
        if hidden_states is not None:
            probs = self.policy(hidden_states).softmax(dim=-1)
            hidden_states = hidden_states + self.action_proj(probs @ self.centroids.to(probs.dtype))
        return super().forward(hidden_states, *args, **kwargs)

    def quantise(self, states: torch.Tensor) -> torch.Tensor:
        """The nearest centroid (N,) of each of states (N, D)."""
        return torch.cdist(states, self.centroids).argmin(dim=1)

    def learn(self, states: torch.Tensor, total: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """`quantise`, then a round of k-means.

        Args:
            states: (N, D) of a step in this process.
            total: adds up a tensor over the processes, so that all have the same centroids.
        """
        is_first = not self.counts.any()
        if is_first:
            moments = torch.stack([torch.ones_like(states), states, states.square()]).sum(dim=1)  # (3, D)
            number, mean, square = total(moments)
            deviation = (square / number - (mean / number).square()).clamp(min=0).sqrt()
            self.centroids.copy_(mean / number + deviation * self.noise())
        for _ in range(FIRST_ROUNDS if is_first else 1):
            actions = self.quantise(states)
            for average, values in ((self.counts, torch.ones_like(states[:, 0])), (self.sums, states)):
                new = total(torch.zeros_like(average).index_add_(0, actions, values))
                average.lerp_(new, 1.0 if is_first else 1 - DECAY)
            self.centroids.copy_(self.sums / self.counts.clamp(min=1e-6)[:, None])
            self.divide_largest()
        return actions

    def divide_largest(self) -> None:
        """Centroids with hardly any states move beside those with most, and get half of their states."""
        order = self.counts.argsort(stable=True)
        poor, rich = order[: len(order) // 2], order.flip(0)[: len(order) // 2]
        moves = self.counts[poor] < FEWEST * self.counts.mean()  # (K / 2,)
        places = self.centroids[rich] + 0.1 * self.noise()[poor]
        self.centroids[poor] = torch.where(moves[:, None], places, self.centroids[poor])
        half = self.counts[rich] / 2
        self.counts[poor] = torch.where(moves, half, self.counts[poor])
        self.counts[rich] = torch.where(moves, half, self.counts[rich])
        self.sums.copy_(self.centroids * self.counts[:, None])

    def noise(self) -> torch.Tensor:
        """(K, D), always the same."""
        drawn = torch.randn(self.centroids.shape, generator=torch.Generator().manual_seed(2019))
        return drawn.to(self.centroids.device)


class ImitateNatForConditionalGeneration(NatForConditionalGeneration):
    config: ImitateNatConfig
    needs_guide = "an autoregressive demonstrator"
    recorded = {"output_hidden_states": True}

    def __init__(self, config: ImitateNatConfig):
        super().__init__(config)
        self.model.decoder.layers = nn.ModuleList([ImitatingLayer(config) for _ in range(config.decoder_layers)])
        self.post_init()
        for layer in self.model.decoder.layers:
            init.zeros_(layer.action_proj.weight)

    def check_guide(self, guide):
        theirs, ours = ((x.d_model, x.decoder_layers) for x in (guide.config, self.config))
        if theirs != ours:
            raise ValueError(
                f"guide has d_model {theirs[0]} and {theirs[1]} decoder layers, the model {ours[0]} and {ours[1]}: a "
                "demonstrator must be of the same size"
            )

    def demonstration(self, batch: dict, guide) -> list[torch.Tensor]:
        """The demonstrator's states (N, D) at the N target tokens, of each layer."""
        outputs = guide.base_model(**teacher_batch(guide, batch), output_hidden_states=True)
        is_token = batch["labels"] != -100
        return [
            F.layer_norm(states[is_token].float(), states.shape[-1:]) for states in outputs.decoder_hidden_states[1:]
        ]

    def learn_from_step(self, batches, guide, total):
        demonstrated = [self.demonstration(batch, guide) for batch in batches]
        sizes = [len(states[0]) for states in demonstrated]
        for batch in batches:
            batch["actions"] = []
        for layer, *states in zip(self.model.decoder.layers, *demonstrated, strict=True):
            actions = layer.learn(torch.cat([layer.centroids[:0], *states]), total)  # there may be no batch
            for batch, chosen in zip(batches, actions.split(sizes), strict=True):
                batch["actions"].append(chosen)

    def hints(self, batch, guide, progress):
        if "actions" in batch:
            return {}
        states = self.demonstration(batch, guide)
        return {"actions": [layer.quantise(x) for layer, x in zip(self.model.decoder.layers, states, strict=True)]}

    def system_loss(self, result, outputs, labels, hints):
        """Cross-entropy of the demonstrator's actions, the mean over layers."""
        losses = [
            F.cross_entropy(layer.policy(states[labels != -100]).float(), actions, reduction="sum")
            for layer, states, actions in zip(
                self.model.decoder.layers, outputs.decoder_hidden_states, hints["actions"], strict=False
            )  # the last state is that behind the last layer
        ]
        return torch.stack(losses).mean()
