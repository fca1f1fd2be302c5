"""The CRF that chooses the tokens of a pass together: every sum and every path against all paths."""

import itertools

import pytest
import torch

from modeling_jmnat import JMNatForConditionalGeneration
from modeling_jmnat.crf_jmnat import DynamicCRF, log_normaliser, marginals, viterbi
from tests.helpers.random_models import random_model

LENGTHS = (4, 2, 1)
IS_TOKEN = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
LABELS = torch.tensor([[4, 0, 2, 1], [3, 3, -100, -100], [1, -100, -100, -100]])


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


def test_sums_and_best_path_against_all_paths():
    emissions, transitions = random_chain()
    totals, best = log_normaliser(emissions, transitions, IS_TOKEN), viterbi(emissions, transitions, IS_TOKEN)
    found = marginals(emissions, transitions, IS_TOKEN)
    for row, length in enumerate(LENGTHS):
        paths = list(all_paths(emissions, transitions, row, length))
        total = torch.stack([score for _, score in paths]).logsumexp(dim=0)
        assert torch.isclose(totals[row], total)
        assert tuple(best[row, :length].tolist()) == max(paths, key=lambda pair: pair[1])[0]
        for t, candidate in itertools.product(range(length), range(3)):
            through = torch.stack([score for path, score in paths if path[t] == candidate]).logsumexp(dim=0)
            assert torch.isclose(found[row, t, candidate], through - total, atol=1e-5)


def crf_of(vocab_size, seed=0):
    torch.manual_seed(seed)
    crf = DynamicCRF(vocab_size, d_model=6, rank=3)
    return crf, torch.randn(3, 4, 6), torch.randn(3, 4, vocab_size)


def test_transitions_have_low_rank_and_change_with_the_position():
    crf, states, _ = crf_of(vocab_size=5)
    transitions = crf(states, torch.arange(5).expand(3, 4, 5))
    assert torch.linalg.matrix_rank(transitions).max() <= 3
    assert not torch.allclose(transitions[:, 0], transitions[:, 1])
    dynamic = crf.dynamic_out(crf.dynamic_in(torch.cat([states[0, 1], states[0, 2]])).relu()).view(3, 3)
    expected = crf.left.weight[2] @ (torch.eye(3) + dynamic) @ crf.right.weight[4]
    assert torch.isclose(transitions[0, 1, 2, 4], expected)


def conditional(crf, states, logits, predicted, row, length, canvas=LABELS):
    """log P of every path of a row that has the given tokens, on condition of these."""
    given, every = canvas[row, :length].tolist(), torch.arange(5).expand(3, 4, 5)
    paths = [
        (path, score)
        for path, score in all_paths(logits, crf(states, every), row, length)
        if all(predicted[row, t] or path[t] == given[t] for t in range(length))
    ]
    total = torch.stack([score for _, score in paths]).logsumexp(dim=0)
    return {path: score - total for path, score in paths}


PREDICTED = [IS_TOKEN, IS_TOKEN & torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)]


@pytest.mark.parametrize("predicted", PREDICTED)
def test_loss_is_that_of_the_predicted_tokens_given_the_others(predicted, monkeypatch):
    crf, states, logits = crf_of(vocab_size=5)
    expected = 0.0
    for row, length in enumerate(LENGTHS):
        expected -= conditional(crf, states, logits, predicted, row, length)[tuple(LABELS[row, :length].tolist())]
    assert torch.isclose(crf.loss(states, logits[predicted], LABELS, predicted), expected, atol=1e-4)
    monkeypatch.setattr("modeling_jmnat.crf_jmnat.TRAINING_BEAM", 2)
    assert crf.loss(states, logits[predicted], LABELS, predicted) < expected  # fewer paths compete with the reference


def test_given_are_the_tokens_that_the_decoder_has_read():
    crf, states, logits = crf_of(vocab_size=5)
    predicted, canvas = PREDICTED[1], LABELS.clamp(min=0)
    canvas = torch.where(predicted, 4, (canvas + 1) % 5)  # second masks: wrong predictions stand beside them
    expected = 0.0
    for row, length in enumerate(LENGTHS):
        reference = tuple(torch.where(predicted, LABELS, canvas)[row, :length].tolist())
        expected -= conditional(crf, states, logits, predicted, row, length, canvas)[reference]
    assert torch.isclose(crf.loss(states, logits[predicted], LABELS, predicted, canvas), expected, atol=1e-4)
    assert not torch.isclose(crf.loss(states, logits[predicted], LABELS, predicted), expected, atol=1e-2)


def test_the_model_gives_its_canvas_to_the_crf():
    model = model_with_crf()
    labels = torch.tensor([[20, 21, 22, 2], [23, 24, 2, -100]])
    canvas, masked = torch.tensor([[4, 20, 4, 2], [22, 4, 2, 1]]), torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]]).bool()
    outputs = model(SOURCE, decoder_input_ids=canvas, labels=labels, masked_positions=masked)
    states = model.model(SOURCE, decoder_input_ids=canvas).last_hidden_state
    expected = model.crf.loss(states, outputs.logits[masked], labels, masked, canvas) / 3
    assert torch.isclose(outputs.crf_loss, expected, atol=1e-5)


@pytest.mark.parametrize("predicted", PREDICTED)
def test_best_path_and_its_probabilities_given_the_other_tokens(predicted):
    crf, states, logits = crf_of(vocab_size=5)
    canvas = LABELS.masked_fill(predicted | ~IS_TOKEN, 0)
    positions = torch.arange(4).expand(3, 4)
    tokens, log_probs = crf.best_path(states, logits, canvas, positions, predicted, IS_TOKEN, beam=5)
    for row, length in enumerate(LENGTHS):
        paths = conditional(crf, states, logits.log_softmax(dim=-1), predicted, row, length)
        best = max(paths, key=paths.get)
        assert tuple(tokens[row, :length].tolist()) == best
        for t in range(length):
            through = torch.stack([score for path, score in paths.items() if path[t] == best[t]]).logsumexp(dim=0)
            own = logits[row, t].log_softmax(dim=-1)[best[t]] if predicted[row, t] else torch.tensor(0.0)
            assert torch.isclose(log_probs[row, t], (through + own) / 2, atol=1e-4)


SIZES = {"vocab_size": 30, "max_target_length": 20}


def model_with_crf():
    return random_model(crf_rank=3, **SIZES)


SOURCE = torch.tensor([[7, 9, 5, 8, 6, 2], [11, 12, 2, 1, 1, 1]])


def options(**others):
    return {"num_length_candidates": 2, "return_dict_in_generate": True, "output_history": True} | others


@torch.no_grad()
def test_each_pass_takes_the_best_path_among_the_masked_positions():
    model = model_with_crf()
    found = model.generate(SOURCE, **options(num_iterations=3, num_length_candidates=1, suppress_tokens=[4]))
    for one_pass in found.history:
        read, tokens = one_pass.canvas[:, 0], one_pass.tokens[:, 0]
        is_token, masked = read != 1, read == 4
        states = model.model(SOURCE, decoder_input_ids=read, decoder_attention_mask=is_token).last_hidden_state
        positions = torch.arange(read.shape[1]).expand_as(read)
        logits = model.project(states)
        logits[..., 4] = -torch.inf  # otherwise a mask might stand for itself
        arguments = states, logits, read, positions, masked, is_token
        expected, log_probs = model.crf.best_path(*arguments, beam=8)
        assert torch.equal(tokens[masked], expected[masked])
        assert torch.allclose(one_pass.log_probs[:, 0][masked], log_probs[masked], atol=1e-5)


def test_without_its_beam_the_network_decodes_as_before():
    model = model_with_crf()
    plain = random_model(**SIZES)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("crf.")})
    for passes in (1, 3):
        same = model.generate(SOURCE, **options(num_iterations=passes, crf_beam=1))
        expected = plain.generate(SOURCE, **options(num_iterations=passes))
        assert torch.equal(same.sequences, expected.sequences)
        assert torch.equal(same.sequences_scores, expected.sequences_scores)
        other = model.generate(SOURCE, **options(num_iterations=passes))
        assert not torch.equal(other.history[0].tokens, expected.history[0].tokens)


@pytest.mark.parametrize(
    "decoding",
    [
        {},
        {"update_all": True},
        {"confidence_threshold": 0.5},
        {"early_stop": True},
        {"remask_repeats": True, "delete_repeats": True, "collapse_repeats": True},
        {"prune_candidates": 1},
        {"crf_beam": 64},  # more than the vocabulary
    ],
)
def test_a_sentence_gets_the_same_translation_alone_and_in_a_batch(decoding):
    model = model_with_crf()
    together = model.generate(SOURCE, **options(num_iterations=4, **decoding))
    for row, length in enumerate((6, 3)):
        alone = model.generate(SOURCE[row : row + 1, :length], **options(num_iterations=4, **decoding))
        width = min(alone.sequences.shape[1], together.sequences.shape[1])
        assert torch.equal(together.sequences[row, :width], alone.sequences[0, :width])
        assert torch.allclose(together.sequences_scores[row], alone.sequences_scores[0], atol=1e-4)


def test_given_tokens_are_kept():
    model, canvas = model_with_crf(), torch.tensor([[4, 20, 4, 4, 21, 2], [4, 4, 22, 2, 1, 1]])
    for passes in (1, 3):
        sequences = model.generate(SOURCE, decoder_input_ids=canvas, num_iterations=passes, num_length_candidates=1)
        width, fixed = sequences.shape[1], (canvas != 4) & (canvas != 1)
        assert torch.equal(sequences[fixed[:, :width]], canvas[:, :width][fixed[:, :width]])


def test_the_loss_reaches_the_crf_and_the_network():
    model = model_with_crf().train()
    labels = torch.tensor([[20, 21, 22, 2], [23, 2, -100, -100]])
    canvas = torch.tensor([[4, 21, 4, 4], [4, 2, 1, 1]])
    model(SOURCE, decoder_input_ids=canvas, labels=labels).crf_loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("crf.", "model.decoder.layers.0")):
            assert parameter.grad.abs().sum() > 0, name


def test_loss_is_the_sum_of_its_parts():
    model = model_with_crf()
    labels = torch.tensor([[20, 21, 22, 2], [23, 2, -100, -100]])
    outputs, config = model(SOURCE, labels=labels), model.config
    parts = outputs.nll_loss + config.ngram_loss_weight * outputs.ngram_loss
    parts = parts + config.length_loss_weight * outputs.length_loss + config.crf_loss_weight * outputs.crf_loss
    assert torch.isclose(outputs.loss, parts)
    model.config.crf_loss_weight = 0.0
    assert model(SOURCE, labels=labels).crf_loss is None


def test_round_trip_and_resized_vocabulary(tmp_path):
    model = model_with_crf()
    model.save_pretrained(tmp_path)
    loaded = JMNatForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(model.generate(SOURCE), loaded.generate(SOURCE))
    loaded.resize_token_embeddings(33)
    assert loaded.crf.left.weight.shape == loaded.crf.right.weight.shape == (33, 3)
    assert torch.equal(loaded.crf.left.weight[:30], model.crf.left.weight)


@pytest.mark.parametrize("beam", [0, 1.5, True, "8"])
def test_a_beam_that_is_no_count_is_refused(beam):
    with pytest.raises(ValueError, match="crf_beam=.* must be a whole number of at least 1"):
        model_with_crf().generate(SOURCE, crf_beam=beam)
