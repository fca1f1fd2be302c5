"""What a system generates for a sentence depends on that sentence alone, whatever stands beside it in the batch."""

import pytest
import torch

from modeling_jmnat.baselines import SYSTEMS
from tests.baselines.tiny_systems import random_system
from tests.helpers.random_models import pad, random_sources

SETTINGS = ({"num_length_candidates": 1}, {"num_length_candidates": 4, "num_return_sequences": 4})  # all of them


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request):
    return random_system(request.param, **({"max_fertility": 4} if request.param == "nat_ft" else {}))


def passes_of(system):
    return {"num_iterations": 3 if system.config.model_type == "nat_ir" else 1}


def translations(system, sources, side="right", extra=0, **options):
    """Of each source its candidates: tokens without padding, and score."""
    input_ids, attention_mask = pad(sources, side=side, extra=extra)
    found = system.generate(input_ids, attention_mask, return_dict_in_generate=True, **passes_of(system), **options)
    rows = found.sequences.view(len(sources), -1, found.sequences.shape[-1])
    scores = found.sequences_scores.view(len(sources), -1)
    tokens = [[[token for token in row if token != 1] for row in candidates] for candidates in rows.tolist()]
    return list(zip(tokens, scores, strict=True))


@pytest.mark.parametrize("options", SETTINGS)
def test_neighbours_their_order_and_padding_change_nothing(system, options):
    sources = random_sources(system, count=5)
    alone = [translations(system, [source], **options)[0] for source in sources]
    assert len({str(tokens) for tokens, _ in alone}) > 1
    order = [3, 0, 4, 2, 1]
    together = {
        "batch": translations(system, sources, **options),
        "left": translations(system, sources, side="left", **options),
        "extra": translations(system, sources, extra=3, **options),
        "order": [translations(system, [sources[i] for i in order], **options)[order.index(i)] for i in range(5)],
    }
    for kind, found in together.items():
        for (tokens, scores), (expected, expected_scores) in zip(found, alone, strict=True):
            assert tokens == expected, kind
            assert torch.allclose(scores, expected_scores, atol=1e-5), kind
