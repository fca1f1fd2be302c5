import itertools

import torch

from modeling_jmnat.baselines.nat_dcrf import DynamicCRF, log_normaliser, viterbi
from tests.baselines.tiny_systems import batch_of, random_system

LENGTHS = (4, 2, 1)
IS_TOKEN = torch.arange(4) < torch.tensor(LENGTHS)[:, None]


def random_chain(num_candidates=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    emissions = torch.randn(3, 4, num_candidates, generator=generator)
    return emissions, torch.randn(3, 3, num_candidates, num_candidates, generator=generator)


def all_paths(emissions, transitions, row, length):
    """Every path of a row and its score."""
    for path in itertools.product(range(emissions.shape[-1]), repeat=length):
        score = sum(emissions[row, t, y] for t, y in enumerate(path))
        score += sum(transitions[row, t, path[t], path[t + 1]] for t in range(length - 1))
        yield path, score


def test_normaliser_and_best_path_against_all_paths():
    emissions, transitions = random_chain()
    totals, best = log_normaliser(emissions, transitions, IS_TOKEN), viterbi(emissions, transitions, IS_TOKEN)
    for row, length in enumerate(LENGTHS):
        paths = list(all_paths(emissions, transitions, row, length))
        assert torch.isclose(totals[row], torch.stack([score for _, score in paths]).logsumexp(dim=0))
        assert tuple(best[row, :length].tolist()) == max(paths, key=lambda pair: pair[1])[0]


def crf_of(vocab_size, seed=0):
    torch.manual_seed(seed)
    crf = DynamicCRF(vocab_size, d_model=6, rank=3)
    return crf, torch.randn(3, 4, 6), torch.randn(3, 4, vocab_size)


def test_loss_with_the_whole_vocabulary_in_the_beam_is_exact():
    crf, states, logits = crf_of(vocab_size=5)
    labels = torch.tensor([[4, 0, 2, 1], [3, 3, -100, -100], [1, -100, -100, -100]])
    every = torch.arange(5).expand(3, 4, 5)
    transitions = crf.transitions(states, every)
    expected = 0.0
    for row, length in enumerate(LENGTHS):
        scores = dict(all_paths(logits, transitions, row, length))
        gold = scores[tuple(labels[row, :length].tolist())]
        expected += torch.stack(list(scores.values())).logsumexp(dim=0) - gold
    assert torch.isclose(crf.loss(states, logits, labels, beam=64), expected)
    assert crf.loss(states, logits, labels, beam=2) < expected  # fewer paths compete with the reference


def test_transitions_have_low_rank_and_change_with_the_position():
    crf, states, _ = crf_of(vocab_size=5)
    transitions = crf.transitions(states, torch.arange(5).expand(3, 4, 5))
    assert torch.linalg.matrix_rank(transitions).max() <= 3
    assert not torch.allclose(transitions[:, 0], transitions[:, 1])
    dynamic = crf.dynamic_out(crf.dynamic_in(torch.cat([states[0, 1], states[0, 2]])).relu()).view(3, 3)
    expected = crf.left.weight[2] @ (torch.eye(3) + dynamic) @ crf.right.weight[4]
    assert torch.isclose(transitions[0, 1, 2, 4], expected)


def test_scores_of_the_best_path_add_up_to_its_log_probability():
    crf, states, logits = crf_of(vocab_size=5)
    tokens, scores = crf.best_path(states, logits, IS_TOKEN, beam=5)
    log_probs = (scores * IS_TOKEN).sum(dim=1)
    for row in range(3):
        alone = tokens[row : row + 1].masked_fill(~IS_TOKEN[row], -100)
        loss = crf.loss(states[row : row + 1], logits[row : row + 1], alone, beam=5)
        assert torch.isclose(-loss, log_probs[row], atol=1e-5)


def test_decoding_takes_the_best_path_of_each_candidate():
    model = random_system("nat_dcrf", crf_beam=8)
    with torch.no_grad():
        model.crf.left.weight.mul_(8)
        model.crf.right.weight.mul_(8)
    batch = batch_of(model.config)
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    lengths = torch.tensor([4, 6])
    found = model.generate(**source, target_lengths=lengths, num_length_candidates=1, suppress_tokens=[],
                           output_history=True)  # fmt: skip
    target_mask = torch.arange(6) < lengths[:, None]
    read = model.copy_source(**source, target_mask=target_mask)
    states = model.model(**source, decoder_input_ids=read, decoder_attention_mask=target_mask).last_hidden_state
    tokens, _ = model.crf.best_path(states, model.project(states), target_mask, 8)
    assert torch.equal(found.history[0].tokens[:, 0][target_mask], tokens[target_mask])
    assert not torch.equal(tokens, model.project(states).argmax(dim=-1))
