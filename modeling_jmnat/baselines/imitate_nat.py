"""Imitate-NAT: imitation of an autoregressive demonstrator (Wei et al., ACL 2019, "Imitation Learning for
Non-Autoregressive Neural Machine Translation").

The demonstrator, a frozen autoregressive model that reads the reference, has a state at each position and layer.
States are quantised: the nearest of K centroids, which k-means finds during training, is the action there. Before each
of its layers the NAT predicts the action of the demonstrator's layer and adds what the predicted actions stand for, on
average, to its own state. In the paper the demonstrator is trained along; here it is the teacher, of the same size.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn

from ..modeling_jmnat import JMNatDecoderLayer
from .base import NatConfig, NatForConditionalGeneration, option, teacher_batch

DECAY = 0.99  # of the moving averages of k-means
FEWEST = 0.01  # tokens of a step, on that average, below which a centroid begins anew


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

    @torch.no_grad()
    def quantise(self, states: torch.Tensor, learn: bool) -> torch.Tensor:
        """The nearest centroid (N,) of each of states (N, D); with `learn` they move towards their states."""
        if learn and not self.counts.any():
            self.begin_anew(torch.ones_like(self.counts, dtype=torch.bool), states)
        actions = torch.cdist(states, self.centroids).argmin(dim=1)
        if learn:
            chosen = F.one_hot(actions, len(self.counts)).float()  # (N, K)
            self.counts.lerp_(chosen.sum(dim=0), 1 - DECAY)
            self.sums.lerp_(chosen.T @ states, 1 - DECAY)
            self.begin_anew(self.counts < FEWEST, states)
            self.centroids.copy_(self.sums / self.counts[:, None])
        return actions

    def begin_anew(self, which: torch.Tensor, states: torch.Tensor) -> None:
        """Put the centroids `which` (K,) on states that are spread over the batch."""
        rows = torch.linspace(0, len(states) - 1, len(which), device=states.device).long()
        self.sums.copy_(torch.where(which[:, None], states[rows], self.sums))
        self.counts.masked_fill_(which, 1.0)
        self.centroids.copy_(torch.where(which[:, None], states[rows], self.centroids))


class ImitateNatForConditionalGeneration(NatForConditionalGeneration):
    config: ImitateNatConfig
    needs_guide = "an autoregressive demonstrator"
    recorded = {"output_hidden_states": True}

    def __init__(self, config: ImitateNatConfig):
        super().__init__(config)
        self.model.decoder.layers = nn.ModuleList([ImitatingLayer(config) for _ in range(config.decoder_layers)])
        self.post_init()

    def hints(self, batch, guide, progress):
        config, layers = self.config, self.model.decoder.layers
        if (guide.config.d_model, guide.config.decoder_layers) != (config.d_model, len(layers)):
            raise ValueError(
                f"guide has d_model {guide.config.d_model} and {guide.config.decoder_layers} decoder layers, the "
                f"model {config.d_model} and {len(layers)}: a demonstrator must be of the same size"
            )
        outputs = guide.base_model(**teacher_batch(guide, batch), output_hidden_states=True)
        is_token = batch["labels"] != -100
        states = [F.layer_norm(x[is_token].float(), x.shape[-1:]) for x in outputs.decoder_hidden_states[1:]]
        return {
            "actions": [layer.quantise(x, self.training) for layer, x in zip(layers, states, strict=True)]  # (N,) each
        }

    def system_loss(self, result, outputs, labels, hints):
        """Cross-entropy of the demonstrator's actions, the mean over layers."""
        losses = [
            F.cross_entropy(layer.policy(states[labels != -100]).float(), actions, reduction="sum")
            for layer, states, actions in zip(
                self.model.decoder.layers, outputs.decoder_hidden_states, hints["actions"], strict=False
            )  # the last state is that behind the last layer
        ]
        return torch.stack(losses).mean()
