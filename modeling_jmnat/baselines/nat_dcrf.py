"""NAT-DCRF: a linear-chain CRF on the basic NAT (Sun et al., NeurIPS 2019, "Fast Structured Decoding for Sequence
Models").

A target y has the score sum_t s_t(y_t) + sum_t M_t(y_{t-1}, y_t). s are the NAT's logits. The transitions have low
rank and change with the position: M_t = E1 (I + f(h_{t-1}, h_t)) E2^T with tables E1, E2 (V, r) and a small network f
of the decoder's states. Normaliser and best path look at the k most probable tokens of each position alone. In
training the reference's tokens are among these.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .base import NatConfig, NatForConditionalGeneration, option


@strict
class NatDcrfConfig(NatConfig):
    model_type = "nat_dcrf"
    system_loss_weight: float | int = option(2.0, "Weight of the CRF's loss; the paper weighs the NAT's by 0.5 to it.")
    crf_rank: int = option(32, "r, rank of the transitions.", 1)
    crf_beam: int = option(64, "k, tokens of each position that normaliser and best path look at.", 2)


class DynamicCRF(nn.Module):
    """The transitions, the likelihood and the best path. k candidates stand at each of T positions."""

    def __init__(self, vocab_size: int, d_model: int, rank: int):
        super().__init__()
        self.left = nn.Embedding(vocab_size, rank)
        self.right = nn.Embedding(vocab_size, rank)
        self.dynamic_in = nn.Linear(2 * d_model, d_model)
        self.dynamic_out = nn.Linear(d_model, rank * rank)

    def transitions(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Scores (B, T - 1, k, k) of the candidates (B, T, k) of each position before those of the next one.

        Args:
            states: (B, T, D) of the decoder.
        """
        pairs = torch.cat([states[:, :-1], states[:, 1:]], dim=-1)
        dynamic = self.dynamic_out(self.dynamic_in(pairs).relu()).unflatten(-1, (self.left.embedding_dim, -1))
        left, right = self.left(tokens[:, :-1]), self.right(tokens[:, 1:])  # (B, T - 1, k, r)
        return ((left + left @ dynamic) @ right.transpose(-1, -2)).float()

    def loss(self, states, logits, labels: torch.Tensor, beam: int) -> torch.Tensor:
        """Sum over sentences of -log P of labels (B, T), -100 at padding, given logits (B, T, V)."""
        is_token, gold = labels != -100, labels.clamp(min=0)
        ranked = logits.detach().scatter(2, gold[..., None], torch.finfo(logits.dtype).max)
        tokens = ranked.topk(min(beam, logits.shape[-1]), dim=-1).indices  # (B, T, k), the reference's first
        emissions = logits.gather(2, tokens).float()
        transitions = self.transitions(states, tokens)
        score = (emissions[..., 0] * is_token).sum() + (transitions[..., 0, 0] * is_token[:, 1:]).sum()
        return log_normaliser(emissions, transitions, is_token).sum() - score

    def best_path(self, states, logits, is_token: torch.Tensor, beam: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Most probable tokens (B, T), and numbers (B, T) whose sum over is_token (B, T) is their log-probability."""
        tokens = logits.topk(min(beam, logits.shape[-1]), dim=-1).indices
        emissions, transitions = logits.gather(2, tokens).float(), self.transitions(states, tokens)
        path = viterbi(emissions, transitions, is_token)[..., None]  # (B, T, 1)
        scores = emissions.gather(2, path)[..., 0]
        rows = transitions.gather(2, path[:, :-1, :, None].expand(-1, -1, -1, transitions.shape[-1]))[:, :, 0]
        scores[:, 1:] += rows.gather(2, path[:, 1:])[..., 0]
        share = log_normaliser(emissions, transitions, is_token) / is_token.sum(dim=1).clamp(min=1)
        return tokens.gather(2, path)[..., 0], scores - share[:, None]


def log_normaliser(emissions: torch.Tensor, transitions: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
    """log Z (B,) over all paths through the candidates.

    Args:
        emissions: (B, T, k).
        transitions: (B, T - 1, k, k).
        is_token: (B, T) bool, False at padding on the right.
    """
    total = emissions[:, 0]  # (B, k) of all paths that end in a candidate
    for t in range(1, emissions.shape[1]):
        longer = (total[:, :, None] + transitions[:, t - 1]).logsumexp(dim=1) + emissions[:, t]
        total = torch.where(is_token[:, t, None], longer, total)
    return total.logsumexp(dim=1)


def viterbi(emissions: torch.Tensor, transitions: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
    """Candidates (B, T) of the path with the highest score; arguments as for `log_normaliser`."""
    best, came_from = emissions[:, 0], []
    for t in range(1, emissions.shape[1]):
        scores, before = (best[:, :, None] + transitions[:, t - 1]).max(dim=1)
        inside = is_token[:, t, None]
        best = torch.where(inside, scores + emissions[:, t], best)
        came_from.append(torch.where(inside, before, torch.arange(before.shape[1], device=before.device)))
    path = [best.argmax(dim=1)]
    for before in reversed(came_from):
        path.append(before.gather(1, path[-1][:, None])[:, 0])
    return torch.stack(path[::-1], dim=1)


class NatDcrfForConditionalGeneration(NatForConditionalGeneration):
    config: NatDcrfConfig
    needs_logits = True

    def __init__(self, config: NatDcrfConfig):
        super().__init__(config)
        self.crf = DynamicCRF(config.vocab_size, config.d_model, config.crf_rank)
        self.post_init()

    def system_loss(self, result, outputs, labels, hints):
        return self.crf.loss(outputs.last_hidden_state, result.logits, labels, self.config.crf_beam)

    def predict_tokens(self, canvas, positions, state, suppressed):
        """The best path, where JM-NAT takes each position's best token."""
        hidden_states = self.model.decoder(canvas, state=state).last_hidden_state  # (R, T, D)
        logits = self.project(hidden_states)
        if suppressed is not None:
            logits = logits.masked_fill(suppressed, torch.finfo(logits.dtype).min)
        is_token = state.attend_mask.any(dim=2)[:, 0]  # (R, T)
        tokens, scores = self.crf.best_path(hidden_states, logits, is_token, self.config.crf_beam)
        return tokens.gather(1, positions), scores.gather(1, positions)
