"""Slow oracles, written with loops straight from the definitions, that the tests compare the package with."""

import itertools
import math
from collections import Counter, defaultdict

# ---------------------------------------------------------------------------------------------------- statistics


def chi_square_score(observed, probabilities):
    """Pearson's statistic as a number of standard normal deviations (Wilson-Hilferty); above 5 is no chance.

    Args:
        observed: Counter of outcomes.
        probabilities: dict of outcome to expected probability; an outcome beside them gives infinity.
    """
    total = sum(observed.values())
    if not set(observed) <= set(probabilities):
        return math.inf
    if len(probabilities) == 1:
        return 0.0
    statistic = sum((observed[key] - total * p) ** 2 / (total * p) for key, p in probabilities.items())
    freedom = len(probabilities) - 1
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


# -------------------------------------------------------------------------------------------------------- losses


def smoothed_nll(probs, targets, smoothing=0.0):
    """Sum of the label-smoothed negative log-likelihood; `probs` is a list of N rows of V probabilities."""
    total = 0.0
    for row, target in zip(probs, targets, strict=True):
        uniform = sum(-math.log(p) for p in row) / len(row)
        total += (1 - smoothing) * -math.log(row[target]) + smoothing * uniform
    return total


def ngrams(labels, masked, ngram_size):
    """Counter of the n-grams that start in A of one sentence; its total is |A|."""
    length = sum(label != -100 for label in labels)
    starts = [t for t in range(length - ngram_size + 1) if all(masked[t : t + ngram_size])]
    return Counter(tuple(labels[t : t + ngram_size]) for t in starts)


def ngram_loss(probs, labels, masked, ngram_size, alignment="any"):
    """|A| - sum over distinct n-grams of min(C(g), sum over t in A of q_t(g)), one sentence.

    Args:
        probs: T rows of V probabilities.
        labels: T token ids, -100 at padding.
        masked: T bools.
    """
    length = sum(label != -100 for label in labels)
    starts = [t for t in range(length - ngram_size + 1) if all(masked[t : t + ngram_size])]
    grams = {t: tuple(labels[t : t + ngram_size]) for t in starts}
    counts = Counter(grams.values())
    loss = float(len(starts))
    for gram, count in counts.items():
        expected = 0.0
        for t in starts:
            if alignment == "any" or grams[t] == gram:
                expected += math.prod(probs[t + i][token] for i, token in enumerate(gram))
        loss -= min(count, expected)
    return loss


# --------------------------------------------------------------------------------------------------------- masks


def source_positions(length, uniforms, ratio):
    """The positions of the max(1, round(ratio * length)) smallest uniform numbers."""
    count = max(1, round(ratio * length))
    return set(sorted(range(length), key=lambda position: uniforms[position])[:count])


def set_sizes(num_masked, set_size):
    """Sizes of the ceil(M / n) sets, the last one shorter if needed."""
    sizes = [set_size] * (num_masked // set_size)
    return sizes + ([num_masked % set_size] if num_masked % set_size else [])


def lay_out(units):
    """Positions masked by a row of units, ("set", size) or ("unmasked", 1)."""
    positions, position = set(), 0
    for kind, size in units:
        if kind == "set":
            positions.update(range(position, position + size))
        position += size
    return positions


def target_positions(length, num_masked, uniforms, set_size):
    """The units (sets first, then unmasked tokens) in the order of their uniform numbers, laid out."""
    units = [("set", size) for size in set_sizes(num_masked, set_size)] + [("unmasked", 1)] * (length - num_masked)
    return lay_out([units[i] for i in sorted(range(len(units)), key=lambda unit: uniforms[unit])])


def target_mask_distribution(length, num_masked, set_size):
    """Probability of every set of positions when all arrangements of sets and unmasked tokens are equally probable."""
    units = [("set", size) for size in set_sizes(num_masked, set_size)] + [("unmasked", 1)] * (length - num_masked)
    arrangements = set(itertools.permutations(units))  # equal units are not told apart
    distribution = defaultdict(float)
    for arrangement in arrangements:
        distribution[frozenset(lay_out(arrangement))] += 1 / len(arrangements)
    return dict(distribution)
