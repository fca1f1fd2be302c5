"""Each term of the loss against its loop-written definition, hand-computed values and the properties it must have."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tests.helpers.reference as reference
from modeling_jmnat import losses_jmnat
from modeling_jmnat.losses_jmnat import (
    chosen_log_probs,
    label_smoothed_nll,
    length_nll,
    ngram_loss,
    reference_log_probs,
    smoothed_nll,
)


def draw_batch(generator, batch_size=10, max_length=12, vocab_size=3):
    """Few words, so that n-grams repeat; sentences of 1 to `max_length` tokens; every density of masks."""
    lengths = torch.randint(1, max_length + 1, (batch_size,), generator=generator)
    is_token = torch.arange(max_length) < lengths[:, None]
    labels = torch.randint(0, vocab_size, (batch_size, max_length), generator=generator).masked_fill(~is_token, -100)
    density = torch.rand(batch_size, 1, generator=generator) * 1.2
    masked = (torch.rand(batch_size, max_length, generator=generator) < density) & is_token
    sharpness = 4 * torch.rand(batch_size, 1, 1, generator=generator)
    logits = sharpness * torch.randn(batch_size, max_length, vocab_size, generator=generator)
    return labels, masked, logits.log_softmax(dim=-1)


def sentence_losses(log_probs, labels, masked, ngram_size=2, alignment="any"):
    """(B, T, V) log probabilities of all positions -> (B,)."""
    token_log_probs = reference_log_probs(log_probs[masked], labels, masked)[0]
    return ngram_loss(token_log_probs, labels, masked, ngram_size, alignment)


@pytest.mark.parametrize("alignment", ["any", "gold"])
@pytest.mark.parametrize("ngram_size", [1, 2, 3])
def test_ngram_loss_equals_brute_force_on_1000_draws(ngram_size, alignment):
    generator = torch.Generator().manual_seed(ngram_size)
    num_repeated = num_elsewhere = 0
    for _ in range(100):
        labels, masked, log_probs = draw_batch(generator)
        losses = sentence_losses(log_probs, labels, masked, ngram_size, alignment)
        for loss, sentence, mask, probs in zip(losses, labels, masked, log_probs.exp(), strict=True):
            sentence, mask, probs = sentence.tolist(), mask.tolist(), probs.tolist()
            expected = reference.ngram_loss(probs, sentence, mask, ngram_size, alignment)
            grams = reference.ngrams(sentence, mask, ngram_size)
            assert loss.item() == pytest.approx(expected, abs=2e-5)
            assert 0.0 <= loss.item() <= grams.total()
            num_repeated += len(grams) < grams.total()
            num_elsewhere += expected != reference.ngram_loss(probs, sentence, mask, ngram_size, "gold")
    assert num_repeated > 50  # the draws do hold what they are to test
    assert alignment == "gold" or num_elsewhere > 100


def test_ngram_loss_by_hand():
    labels = torch.tensor([[0, 1, 0, 1]])  # a b a b: "ab" twice, "ba" once
    masked = torch.ones(1, 4, dtype=torch.bool)
    uniform = torch.full((1, 4, 2), 0.5).log()
    # Each bigram is expected 3 * 1/4 times: 3 - min(2, 3/4) - min(1, 3/4).
    assert sentence_losses(uniform, labels, masked).item() == pytest.approx(1.5)
    assert sentence_losses(uniform, labels, masked, alignment="gold").item() == pytest.approx(3 - 3 / 4)
    # One unmasked token leaves A = {0}.
    masked[0, 2] = False
    assert sentence_losses(uniform, labels, masked).item() == pytest.approx(1 - 1 / 4)


def test_ngram_at_another_position_counts_only_with_alignment_any():
    labels = torch.tensor([[0, 1, 2, 3]])
    masked = torch.ones(1, 4, dtype=torch.bool)
    shifted = F.one_hot(torch.tensor([[4, 0, 1, 2]]), 5).float().clamp(min=1e-9).log()
    assert sentence_losses(shifted, labels, masked).item() == pytest.approx(1.0, abs=1e-5)  # only "2 3" is missing
    assert sentence_losses(shifted, labels, masked, alignment="gold").item() == pytest.approx(3.0, abs=1e-5)


@pytest.mark.parametrize("ngram_size", [1, 2, 3])
@pytest.mark.parametrize("alignment", ["any", "gold"])
def test_ngram_loss_falls_from_uniform_to_right_predictions(ngram_size, alignment):
    labels = torch.tensor([[3, 1, 4, 1, 5, 3, 1]])
    masked = torch.ones(1, 7, dtype=torch.bool)
    right = F.one_hot(labels, 50).float()
    losses = [
        sentence_losses((right * boost).log_softmax(-1), labels, masked, ngram_size, alignment).item()
        for boost in (0.0, 1.0, 2.0, 4.0, 8.0, 60.0)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0.8 * (8 - ngram_size)
    assert losses[-1] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("ngram_size", [1, 2, 3])
def test_raising_a_right_logit_lowers_the_loss(ngram_size):
    generator = torch.Generator().manual_seed(7)
    labels = torch.randperm(60, generator=generator)[:30].view(3, 10)
    masked = torch.ones(3, 10, dtype=torch.bool)
    masked[0, 4] = False
    for alignment, scale in (("any", 0.2), ("gold", 2.0)):
        logits = (scale * torch.randn(3, 10, 60, generator=generator)).requires_grad_()
        loss = sentence_losses(logits.log_softmax(-1), labels, masked, ngram_size, alignment).sum()
        loss.backward()
        right = logits.grad.gather(2, labels[..., None])[..., 0]
        assert (right[masked] < 0).all()
        assert (logits.grad[~masked] == 0).all()
        # A finite step along the right logits agrees with the gradient's sign.
        raised = logits.detach() + 0.1 * F.one_hot(labels, 60)
        assert sentence_losses(raised.log_softmax(-1), labels, masked, ngram_size, alignment).sum() < loss


def test_ngram_loss_gradient_equals_finite_differences():
    generator = torch.Generator().manual_seed(3)
    labels, masked, log_probs = draw_batch(generator, batch_size=4)
    logits = log_probs.detach().clone().requires_grad_()
    weights = torch.rand(4, generator=generator)
    (weights * sentence_losses(logits.log_softmax(-1), labels, masked)).sum().backward()
    for index in [(0, 0, 0), (1, 2, 1), (2, 1, 2), (3, 0, 1)]:
        step = torch.zeros_like(log_probs)
        step[index] = 1e-2
        up, down = (
            (weights * sentence_losses((log_probs + sign * step).log_softmax(-1), labels, masked)).sum()
            for sign in (1, -1)
        )
        assert logits.grad[index].item() == pytest.approx((up - down).item() / 2e-2, abs=2e-3)


@pytest.mark.parametrize("alignment", ["any", "gold"])
def test_more_padding_changes_nothing(alignment):
    generator = torch.Generator().manual_seed(5)
    labels, masked, log_probs = draw_batch(generator)
    for extra in (1, 9):
        longer_labels = F.pad(labels, (0, extra), value=-100)
        longer_masked = F.pad(masked, (0, extra), value=False)
        longer_log_probs = F.pad(log_probs, (0, 0, 0, extra), value=-1.0)
        longer = sentence_losses(longer_log_probs, longer_labels, longer_masked, 2, alignment)
        torch.testing.assert_close(longer, sentence_losses(log_probs, labels, masked, 2, alignment))


@pytest.mark.parametrize("alignment", ["any", "gold"])
def test_ngram_loss_is_zero_without_masked_ngrams(alignment):
    labels = torch.tensor([[1, 2, 3, 2, -100], [1, 2, -100, -100, -100]])
    masked = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]]).bool()
    log_probs = torch.randn(2, 5, 6).log_softmax(-1)
    assert sentence_losses(log_probs, labels, masked, 2, alignment).tolist() == [0.0, 0.0]
    assert sentence_losses(log_probs, labels, masked, 9, alignment).tolist() == [0.0, 0.0]  # n above T
    assert sentence_losses(log_probs, labels, masked & False, 1, alignment).tolist() == [0.0, 0.0]  # N = 0
    marked_padding = masked | (labels == -100)  # a mask at padding is no n-gram
    token_log_probs = torch.full((2, 5, 5), -1.0)
    assert ngram_loss(token_log_probs, labels, marked_padding, 2, alignment).tolist() == [0.0, 0.0]


def test_values_at_unmasked_positions_are_never_read():
    generator = torch.Generator().manual_seed(11)
    labels, masked, log_probs = draw_batch(generator)
    token_log_probs = reference_log_probs(log_probs[masked], labels, masked)[0]
    unused = ~masked[:, :, None] | (labels == -100)[:, None, :]
    for alignment in ("any", "gold"):
        expected = ngram_loss(token_log_probs, labels, masked, 2, alignment)
        for junk in (float("inf"), float("nan"), 1e30):
            spoiled = token_log_probs.masked_fill(unused, junk).requires_grad_()
            losses = ngram_loss(spoiled, labels, masked, 2, alignment)
            assert torch.equal(losses, expected)
            losses.sum().backward()
            assert spoiled.grad.isfinite().all()
            assert (spoiled.grad[unused] == 0).all()


def test_a_probability_of_zero_has_a_finite_gradient():
    labels = torch.tensor([[1, 2, 1]])
    masked = torch.ones(1, 3, dtype=torch.bool)
    logits = torch.randn(1, 3, 4)
    logits[0, 1, 2] = -float("inf")
    logits.requires_grad_()
    sentence_losses(logits.log_softmax(-1), labels, masked).sum().backward()
    assert logits.grad.isfinite().all()


def test_losses_are_float32_for_every_input_dtype():
    generator = torch.Generator().manual_seed(13)
    labels, masked, log_probs = draw_batch(generator)
    rows = log_probs[masked].bfloat16()
    for alignment in ("any", "gold"):
        expected = ngram_loss(reference_log_probs(rows.float(), labels, masked)[0], labels, masked, 2, alignment)
        token_log_probs = reference_log_probs(rows, labels, masked)[0]
        assert token_log_probs.dtype == torch.float32
        assert torch.equal(ngram_loss(token_log_probs, labels, masked, 2, alignment), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = ngram_loss(reference_log_probs(rows.float(), labels, masked)[0], labels, masked, 2, alignment)
        assert losses.dtype == torch.float32
        assert torch.equal(losses, expected)
    targets = labels[masked]
    assert label_smoothed_nll(rows, targets, 0.1).dtype == torch.float32
    assert length_nll(torch.randn(3, 9).bfloat16(), torch.tensor([1, 2, 8])).dtype == torch.float32


class OperationRecorder(TorchDispatchMode):
    """Counts tensor operations and keeps the number of elements of the largest result."""

    def __init__(self):
        super().__init__()
        self.num_operations, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.num_operations += 1
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize("alignment", ["any", "gold"])
def test_no_loops_and_quadratic_memory(alignment):
    counts = []
    for batch_size, length in ((2, 8), (16, 40)):
        generator = torch.Generator().manual_seed(1)
        labels, masked, log_probs = draw_batch(generator, batch_size, length, vocab_size=500)
        rows = log_probs[masked].requires_grad_()
        with OperationRecorder() as forward:
            token_log_probs = reference_log_probs(rows, labels, masked)[0]
            losses = ngram_loss(token_log_probs, labels, masked, 3, alignment)
        with OperationRecorder() as backward:
            losses.sum().backward()
        assert forward.largest <= max(batch_size * length**2, rows.numel())  # the softmax of the rows themselves
        assert backward.largest <= max(batch_size * length**2, rows.numel())
        counts.append((forward.num_operations, backward.num_operations))
    assert counts[0] == counts[1]


def test_reference_log_probs_entry_by_entry():
    generator = torch.Generator().manual_seed(17)
    labels, masked, log_probs = draw_batch(generator)
    table = reference_log_probs(log_probs[masked], labels, masked)[0]
    for b in range(10):
        for t in range(12):
            for s in range(12):
                is_used = bool(masked[b, t]) and int(labels[b, s]) != -100
                expected = float(log_probs[b, t, labels[b, s]]) if is_used else 0.0
                assert table[b, t, s].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 20, 2**18])
def test_chosen_log_probs_and_their_gradient(dtype, block, monkeypatch):
    """Against `log_softmax` and `gather`, with blocks of one row, of some rows and of all; tokens may repeat."""
    monkeypatch.setitem(losses_jmnat.BLOCK, "cpu", block)
    generator = torch.Generator().manual_seed(23)
    logits = (3 * torch.randn(9, 7, generator=generator)).to(dtype).requires_grad_()
    tokens = torch.randint(0, 7, (9, 5), generator=generator)
    weights, mean_weights = torch.randn(9, 5, generator=generator), torch.randn(9, generator=generator)
    gradients = []
    for plain in (True, False):
        if plain:
            log_probs = logits.float().log_softmax(dim=1)
            chosen, means = log_probs.gather(1, tokens), log_probs.mean(dim=1)
            expected = chosen, means
        else:
            chosen, means = chosen_log_probs(logits, tokens)
            assert chosen.dtype == means.dtype == torch.float32
            torch.testing.assert_close((chosen, means), expected)
        gradients.append(torch.autograd.grad((chosen * weights).sum() + (means * mean_weights).sum(), logits)[0])
    tolerance = {"rtol": 0.01, "atol": 0.01} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(*gradients, **tolerance)
    empty = torch.empty(0, 7, requires_grad=True)
    assert [x.shape for x in chosen_log_probs(empty, torch.empty(0, 3, dtype=torch.long))] == [(0, 3), (0,)]


def test_the_diagonal_and_the_means_are_the_smoothed_loss():
    labels, masked, _ = draw_batch(torch.Generator().manual_seed(29))
    logits = torch.randn(int(masked.sum()), 3)
    table, means = reference_log_probs(logits, labels, masked)
    loss = smoothed_nll(table.diagonal(dim1=1, dim2=2), means, 0.2)
    torch.testing.assert_close(loss, label_smoothed_nll(logits, labels[masked], 0.2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothed_nll(smoothing):
    generator = torch.Generator().manual_seed(19)
    logits = torch.randn(12, 7, generator=generator)
    targets = torch.randint(0, 7, (12,), generator=generator)
    loss = label_smoothed_nll(logits.log_softmax(-1), targets, smoothing)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum"))
    expected = reference.smoothed_nll(logits.softmax(-1).tolist(), targets.tolist(), smoothing)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_label_smoothed_nll_by_hand():
    log_probs = torch.tensor([[0.5, 0.25, 0.25]]).log()
    # 0.9 ln 2 + 0.1 (ln 2 + 2 ln 4) / 3
    loss = label_smoothed_nll(log_probs, torch.tensor([0]), 0.1)
    assert loss.item() == pytest.approx(0.9 * 0.693147 + 0.1 * 5 * 0.693147 / 3, abs=1e-5)


def test_length_nll_with_an_impossible_class():
    logits = torch.tensor([[-float("inf"), 0.0, 0.0], [-float("inf"), 1.0, 1.0]], requires_grad=True)
    loss = length_nll(logits, torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(2 * 0.693147, abs=1e-5)
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, -0.5, 0.5], [0.0, 0.5, -0.5]]))


def test_length_of_a_sentence_without_target_adds_nothing():
    logits = torch.tensor([[-math.inf, 0.0, 0.0], [-math.inf, 1.0, 2.0]], requires_grad=True)
    loss = length_nll(logits, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert logits.grad[1].eq(0).all()


def test_smoothed_lengths_by_hand():
    """With this deviation a neighbour weighs half as much as the target length and the next one 1/16."""
    smoothing = (2 * math.log(2)) ** -0.5
    lowest = torch.finfo(torch.float32).min
    logits = torch.tensor([[lowest, 0.0, math.log(2), 0.0], [lowest, math.log(2), 0.0, 0.0], [lowest, 1.0, 2.0, 3.0]])
    logits.requires_grad_()
    # Probabilities 1/4, 1/2, 1/4 with weights 1/4, 1/2, 1/4; 1/2, 1/4, 1/4 with weights 16/25, 8/25, 1/25; no target.
    expected = math.log(2) * (2 * 2 / 4 + 1 / 2) + math.log(2) * (16 + 2 * 8 + 2) / 25
    loss = length_nll(logits, torch.tensor([2, 1, 0]), smoothing)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    by_hand = [[0.0, 0.0, 0.0, 0.0], [0.0, 0.5 - 16 / 25, 0.25 - 8 / 25, 0.25 - 1 / 25], [0.0] * 4]
    torch.testing.assert_close(logits.grad, torch.tensor(by_hand))
    narrow = length_nll(logits, torch.tensor([2, 1, 0]), 1e-3)
    torch.testing.assert_close(narrow, length_nll(logits, torch.tensor([2, 1, 0])))
    assert length_nll(logits.bfloat16(), torch.tensor([1, 2, 3]), 1.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"ngram_size": 0}, "ngram_size=0 must"), ({"alignment": "best"}, "alignment='best' is not one of any, gold")],
)
def test_bad_arguments_are_named(arguments, message):
    labels = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match=message):
        ngram_loss(torch.zeros(1, 2, 2), labels, labels > 0, **arguments)


def test_masks_of_another_shape_are_refused():
    labels = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match=r"masked_positions has shape \(1, 3\)"):
        reference_log_probs(torch.zeros(3, 4), labels, torch.ones(1, 3, dtype=torch.bool))[0]
