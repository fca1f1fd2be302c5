"""A linear-chain CRF on the decoder: the tokens that one pass predicts are chosen together, not each by itself.

After Sun et al. (NeurIPS 2019, "Fast Structured Decoding for Sequence Models"). A target y has the score

    sum_t s_t(y_t) + sum_t M_t(y_{t-1}, y_t),    M_t = E1 (I + f(h_{t-1}, h_t)) E2^T.

s are the logits; tables E1, E2 (V, r) and a small network f of the decoder's states h give transitions of rank r that
change with the position. Tokens that the decoder reads are given: their positions have no other candidate, and the CRF
is the distribution of the masked tokens on condition of the visible ones. The other positions have their k most
probable tokens as candidates, in training with the reference's token among them.

Shapes: B rows, T positions, M of them to predict, N predicted tokens of a batch, k candidates, D width, V vocabulary.
"""

import torch
from torch import nn

TRAINING_BEAM = 64  # candidates of a position in training
IMPOSSIBLE = -1e4  # the score of a candidate that no path takes


class DynamicCRF(nn.Module):
    """The transitions with their loss and their best path; `rank` is r, the width of both tables."""

    network_share = 0.5  # of the network in the probability of a token, beside its marginal

    def __init__(self, vocab_size: int, d_model: int, rank: int):
        super().__init__()
        self.rank = rank
        self.left = nn.Embedding(vocab_size, rank)
        self.right = nn.Embedding(vocab_size, rank)
        self.dynamic_in = nn.Linear(2 * d_model, d_model)
        self.dynamic_out = nn.Linear(d_model, rank * rank)

    def forward(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Transitions (B, T - 1, k, k) from the candidates (B, T, k) of each position to those of the next one.

        Args:
            states: (B, T, D) of the decoder.
        """
        pairs = torch.cat([states[:, :-1], states[:, 1:]], dim=-1)
        dynamic = self.dynamic_out(self.dynamic_in(pairs).relu()).unflatten(-1, (self.rank, -1))
        left, right = self.left(tokens[:, :-1]), self.right(tokens[:, 1:])  # (B, T - 1, k, r)
        return ((left + left @ dynamic) @ right.transpose(-1, -2)).float()

    def on_device(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The transitions where the states are. Called as a module: offloading, sharding and adapters act then."""
        return self(states, tokens).to(states.device)

    def loss(self, states, logits: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor, canvas=None):
        """Sum over the batch of -log P of the predicted tokens on condition of the others.

        Args:
            states: (B, T, D).
            logits: (N, V) at the predicted positions, row after row.
            labels: (B, T), -100 at padding.
            predicted: (B, T) bool, True at N positions.
            canvas: (B, T) what the decoder has read: with second masks, other tokens than the labels. Default: those.
        """
        index, beam = predicted.flatten().nonzero().squeeze(1), min(TRAINING_BEAM, logits.shape[-1])
        gold = labels.clamp(min=0).flatten()
        ranked = logits.detach().scatter(1, gold[index, None], torch.finfo(logits.dtype).max)
        candidates = ranked.topk(beam, dim=-1).indices  # (N, k), the reference's first
        given = gold if canvas is None else canvas.flatten()
        tokens = given[:, None].repeat(1, beam).index_copy(0, index, candidates).view(*labels.shape, beam)
        emissions = only_the_first(*labels.shape, beam, states.device).flatten(0, 1)
        emissions = emissions.index_copy(0, index, logits.gather(1, candidates).float()).view_as(tokens)
        is_token, transitions = labels != -100, self.on_device(states, tokens)
        score = (emissions[..., 0] * is_token).sum() + (transitions[..., 0, 0] * is_token[:, 1:]).sum()
        return log_normaliser(emissions, transitions, is_token).sum() - score

    def best_path(self, states, logits, canvas, positions, predicted, is_token, beam: int):
        """The most probable path, at `positions`: its tokens (B, M), and the logarithms of their probabilities (B, M).

        The probability of a token is the geometric mean, weighted by `network_share`, of the network's and of its
        marginal, which is too sure of what fits its neighbours.

        Args:
            states: (B, T, D).
            logits: (B, M, V) at `positions` (B, M).
            canvas: (B, T) what the decoder has read.
            predicted, is_token: (B, T) bool, True at positions to predict, and at all but padding.
            beam: k.
        """
        best = logits.float().log_softmax(dim=-1).topk(min(beam, logits.shape[-1]), dim=-1)
        shape, index = (*canvas.shape, best.values.shape[-1]), positions[..., None].expand_as(best.values)
        tokens = canvas[..., None].expand(shape)
        tokens = torch.where(predicted[..., None], tokens.scatter(1, index, best.indices), tokens)
        emissions = only_the_first(*shape, states.device)
        scattered = emissions.scatter(1, index, best.values.clamp(min=IMPOSSIBLE))
        emissions = torch.where(predicted[..., None], scattered, emissions)
        transitions = self.on_device(states, tokens)
        path = viterbi(emissions, transitions, is_token).gather(1, positions)[..., None]  # (B, M, 1)
        log_probs = marginals(emissions, transitions, is_token).lerp(emissions, self.network_share)
        found = (values.gather(1, index).gather(2, path)[..., 0] for values in (tokens, log_probs))
        return tuple(found)


def only_the_first(rows: int, positions: int, beam: int, device: torch.device) -> torch.Tensor:
    """Emissions (B, T, k) of given tokens: no path takes another candidate than the first."""
    emissions = torch.full((rows, positions, beam), IMPOSSIBLE, device=device)
    emissions[..., 0] = 0.0
    return emissions


# Each function below takes emissions (B, T, k), transitions (B, T - 1, k, k) and is_token (B, T) bool, which is False
# at padding on the right.


def forward_scores(emissions: torch.Tensor, transitions: torch.Tensor, is_token: torch.Tensor) -> list[torch.Tensor]:
    """T tensors (B, k): logarithms of the sums over all paths up to a candidate; at padding those of the last one."""
    totals = [emissions[:, 0]]
    for t in range(1, emissions.shape[1]):
        longer = (totals[-1][:, :, None] + transitions[:, t - 1]).logsumexp(dim=1) + emissions[:, t]
        totals.append(torch.where(is_token[:, t, None], longer, totals[-1]))
    return totals


def log_normaliser(emissions: torch.Tensor, transitions: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
    """log Z (B,) over all paths through the candidates."""
    return forward_scores(emissions, transitions, is_token)[-1].logsumexp(dim=1)


def marginals(emissions: torch.Tensor, transitions: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
    """Log-probability (B, T, k) of each candidate over all paths; without meaning at padding."""
    behind = [torch.zeros_like(emissions[:, 0])]  # of all paths behind a candidate, from the last position on
    for t in range(emissions.shape[1] - 1, 0, -1):
        longer = (transitions[:, t - 1] + (emissions[:, t] + behind[-1])[:, None]).logsumexp(dim=2)
        behind.append(longer.masked_fill(~is_token[:, t, None], 0.0))
    scores = torch.stack(forward_scores(emissions, transitions, is_token), dim=1) + torch.stack(behind[::-1], dim=1)
    return scores.log_softmax(dim=-1)


def viterbi(emissions: torch.Tensor, transitions: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
    """Candidates (B, T) of the path with the highest score."""
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
