"""Decoding: against the slow decoder, independent of the batch, with as much work as it should take and no more."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BatchEncoding,
    GenerationConfig,
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from modeling_jmnat import JMNatForConditionalGeneration, JMNatGenerationConfig
from modeling_jmnat.configuration_jmnat import OPTION_NAMES, JMNatOptions
from modeling_jmnat.passes_jmnat import Canvas, RemaskOrder, Repeats, consensus, num_remasked
from tests.helpers.hub_server import stand_in_hub, take_for_the_hub
from tests.helpers.random_models import ARCHITECTURES, pad, random_batch, random_model, random_sources
from tests.helpers.reference_decoder import (
    less_probable_repeats,
    remasked_positions,
    slow_decode,
    without_repeats,
    wrong_repeats,
)
from tests.helpers.reference_decoder import num_remasked as slow_num_remasked

# Each changes something that the others leave alone; several are combined with several.
OPTIONS = {
    "default": {"num_iterations": 10},
    "one_pass": {"num_iterations": 1},
    "four_passes": {"num_iterations": 4},
    "more_passes_than_tokens": {"num_iterations": 17},
    "not_adjacent": {"remask_adjacent": False},
    "cosine": {"remask_schedule": "cosine", "num_iterations": 6},
    "early_stop": {"early_stop": True},
    "early_stop_not_adjacent": {"early_stop": True, "remask_adjacent": False, "num_iterations": 5},
    "threshold": {"confidence_threshold": 0.6},
    "threshold_early_stop": {"confidence_threshold": 0.9, "early_stop": True, "remask_adjacent": False},
    "prune": {"prune_candidates": 2, "num_iterations": 5},
    "prune_to_two": {"prune_candidates": 1, "prune_to": 2, "num_iterations": 5, "length_normalization": 2.0},
    "prune_to_more_than_there_are": {"prune_candidates": 2, "prune_to": 9},
    "prune_n_best": {"prune_candidates": 1, "num_return_sequences": 2, "early_stop": True},
    "prune_after_the_last": {"prune_candidates": 4, "num_iterations": 4},
    "all_rules": {"early_stop": True, "confidence_threshold": 0.9, "prune_candidates": 2, "prune_to": 2},
    "update_all": {"update_all": True, "num_iterations": 5},
    "update_all_early_stop": {"update_all": True, "early_stop": True},
    "nothing_suppressed": {"suppress_tokens": []},
    "eos_suppressed": {"suppress_tokens": [0, 1, 2, 4]},
    "n_best": {"num_return_sequences": 3},
    "sum_of_scores": {"length_normalization": 0.0, "num_return_sequences": 4},
    "favour_length": {"length_normalization": 2.5, "length_offset": 5.0},
    "consensus": {"consensus_weight": 5.0, "num_length_candidates": 6},
    "consensus_n_best": {"consensus_weight": 5.0, "num_return_sequences": 3, "length_normalization": 1.5},
    "consensus_pruned": {"consensus_weight": 5.0, "prune_candidates": 1, "prune_to": 3, "num_length_candidates": 6},
    "consensus_of_long_texts": {"consensus_weight": 5.0, "consensus_min_length": 5, "num_length_candidates": 3},
    "consensus_of_long_texts_pruned": {
        "consensus_weight": 5.0,
        "consensus_min_length": 5,
        "num_length_candidates": 5,
        "prune_candidates": 1,
        "prune_to": 2,
    },
    "consensus_of_one": {"consensus_weight": 5.0, "num_length_candidates": 1},
    "one_candidate": {"num_length_candidates": 1},
    "remask_repeats": {"remask_repeats": True},
    "remask_repeats_not_adjacent": {"remask_repeats": True, "remask_adjacent": False, "num_iterations": 4},
    "collapse_repeats": {"collapse_repeats": True, "num_iterations": 2, "num_return_sequences": 4},
    "collapse_some_repeats": {"collapse_repeats": True, "num_iterations": 1, "repeatable_tokens": [*range(5, 15)]},
    "delete_repeats": {"delete_repeats": True, "num_iterations": 4, "num_return_sequences": 4},
    "delete_repeats_update_all": {"delete_repeats": True, "update_all": True, "remask_adjacent": False},
    "repeats_early_stop": {"delete_repeats": True, "early_stop": True, "collapse_repeats": True, "num_iterations": 4},
    "repeats_threshold": {"delete_repeats": True, "remask_repeats": True, "confidence_threshold": 0.5},
    "repeats_pruned": {"delete_repeats": True, "collapse_repeats": True, "prune_candidates": 2, "prune_to": 2},
    "repeats_consensus": {"remask_repeats": True, "collapse_repeats": True, "consensus_weight": 5.0},
    "every_rule_of_repeats": {
        **{"remask_repeats": True, "delete_repeats": True, "collapse_repeats": True, "length_shift": 1},
        **{"num_return_sequences": 3, "num_iterations": 4},
    },
    "shorter": {"length_shift": -2},
    "far_too_long": {"length_shift": 9, "num_iterations": 3},
    "as_many_candidates_as_lengths": {"num_length_candidates": 12, "num_iterations": 3, "consensus_weight": 5.0},
    "fewer_lengths_than_candidates": {"max_length": 3, "consensus_weight": 5.0, "num_return_sequences": 2},
    "a_single_length": {"max_length": 2, "consensus_weight": 5.0},
    "many_candidates": {"num_length_candidates": 11, "num_iterations": 3, "num_return_sequences": 2},
}


def generate(model, sources, side="right", extra=0, **options):
    input_ids, attention_mask = pad(sources, side, extra=extra)
    return model.generate(input_ids=input_ids, attention_mask=attention_mask, return_dict_in_generate=True, **options)


def unmasked(batch):
    """The source ids of a training batch before some of them were masked."""
    return torch.where(batch["encoder_targets"] == -100, batch["input_ids"], batch["encoder_targets"])


def texts(output, pad_token_id=1):
    return [[token for token in row if token != pad_token_id] for row in output.sequences.tolist()]


def assert_equals_slow_decoder(model, sources, target_lengths=None, **options):
    output = generate(model, sources, target_lengths=target_lengths, **options)
    found, expected, scores, lengths, passes = texts(output), [], [], [], []
    if "suppress_tokens" in options and not {1} & set(options["suppress_tokens"]):
        found = None  # a predicted <pad> cannot be told from padding
    for i, source in enumerate(sources):
        target_length = None if target_lengths is None else int(target_lengths[i])
        best, candidates = slow_decode(model, source, target_length, **options)
        expected += [candidate.text() for candidate in best]
        scores += [candidate.final_score for candidate in best]
        lengths += [candidate.length for candidate in best]
        passes.append(max(candidate.num_passes for candidate in candidates))
        assert output.candidate_lengths[i].tolist() == [candidate.tried_length for candidate in candidates]
    if found is None:
        found = [row[: len(text)] for row, text in zip(output.sequences.tolist(), expected, strict=True)]
    assert found == expected
    assert output.lengths.tolist() == lengths
    assert output.num_passes.tolist() == passes
    torch.testing.assert_close(output.sequences_scores, torch.tensor(scores), rtol=1e-4, atol=1e-5)
    return output


# ---------------------------------------------------------------------------------------------- the plain slow decoder


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_slow_decoder(name):
    for seed, ngram_size in ((11, 2), (12, 3)):
        model = random_model(seed, ngram_size=ngram_size)
        assert_equals_slow_decoder(model, random_sources(model, 3, seed), **{"num_iterations": 6, **OPTIONS[name]})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_equals_the_slow_decoder(architecture):
    for seed, ngram_size in ((21, 1), (22, 2)):
        model = random_model(seed, ngram_size=ngram_size, **ARCHITECTURES[architecture])
        assert_equals_slow_decoder(model, random_sources(model, 4, seed), num_iterations=5)


@pytest.mark.parametrize("seed", range(6))
def test_random_options_equal_the_slow_decoder(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*values):
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    for _ in range(4):
        architecture = draw(*ARCHITECTURES.values())
        model = random_model(draw(*range(100)), draw("eager", "sdpa"), ngram_size=draw(1, 2, 3, 4), **architecture)
        num_candidates = draw(1, 2, 3, 5)
        options = {
            "num_iterations": draw(1, 2, 3, 5, 8),
            "num_length_candidates": num_candidates,
            "num_return_sequences": draw(1, num_candidates),
            "remask_adjacent": draw(True, False),
            "remask_schedule": draw("linear", "cosine"),
            "early_stop": draw(True, False),
            "confidence_threshold": draw(None, 0.3, 0.7, 0.95),
            "prune_candidates": draw(None, 1, 3),
            "prune_to": draw(1, 2),
            "update_all": draw(True, False),
            "length_normalization": draw(0.0, 0.7, 1.0, 1.5),
            "consensus_weight": draw(0.0, 1.0, 10.0),
            "remask_repeats": draw(True, False),
            "delete_repeats": draw(True, False),
            "collapse_repeats": draw(True, False),
            "repeatable_tokens": draw(None, [5, 7, 9, 11]),
            "length_shift": draw(0, 0, 1),
            "crf_beam": draw(1, 2, 8, 30),
        }
        assert_equals_slow_decoder(model, random_sources(model, 4, draw(*range(100))), **options)


def test_consensus_by_hand():
    """Tokens 5 6 7 | 5 6 8 | 9 9 and padding, with what lies behind the ends."""
    tokens = torch.tensor([[[5, 6, 7, 5], [5, 6, 8, 7], [9, 9, 1, 1]]])
    ends = torch.tensor([[3, 3, 2]])
    # The first two share 4 of 6 tokens and 2 of 4 pairs: (2/3 + 1/2) / 2 = 7/12. The third has nothing in common.
    found = consensus(tokens, ends, torch.tensor([[True, True, True]]))
    torch.testing.assert_close(found, torch.tensor([[7 / 24, 7 / 24, 0.0]]))
    found = consensus(tokens, ends, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(found, torch.tensor([[7 / 12, 7 / 12, 0.0]]))
    assert consensus(tokens, ends, torch.tensor([[True, False, False]]))[0, 0] == 0.0  # nobody else
    tokens = torch.tensor([[[5, 2, 1], [5, 2, 7], [2, 1, 1]]])  # the last, a single token, has no pair
    found = consensus(tokens, torch.tensor([[2, 2, 1]]), torch.tensor([[True, True, True]]))
    torch.testing.assert_close(found, torch.tensor([[(1 + 1 / 3) / 2, (1 + 1 / 3) / 2, 1 / 3]]))


def test_given_lengths_equal_the_slow_decoder():
    model = random_model(13)
    sources = random_sources(model, 6, 13)
    target_lengths = torch.tensor([2, 3, 12, 7, 11, 5])
    output = assert_equals_slow_decoder(model, sources, target_lengths, num_iterations=4, num_length_candidates=5)
    assert output.candidate_lengths[3].tolist() == [7, 8, 6, 9, 5]
    one = generate(model, sources, target_lengths=target_lengths, num_length_candidates=1, num_iterations=4)
    assert torch.equal(one.lengths, target_lengths)


def test_source_copy_equals_the_slow_decoder():
    model = random_model(14, decoder_input="source_copy")
    sources = random_sources(model, 6, 14)
    output = assert_equals_slow_decoder(model, sources, num_iterations=1, num_return_sequences=2, output_history=True)
    longest = int(output.candidate_lengths[0, 0])
    copied = [sources[0][t * len(sources[0]) // longest] for t in range(longest)]
    assert output.history[0].canvas[0, 0, :longest].tolist() == copied
    assert texts(generate(model, sources, "left", 2, num_iterations=1, num_return_sequences=2)) == texts(output)
    assert model.generate(torch.tensor([[7, 8, 2], [1, 1, 1]])).shape[0] == 2  # also of a source of padding alone
    with pytest.raises(ValueError, match="num_iterations=4 must be 1 with decoder_input='source_copy'"):
        generate(model, sources, num_iterations=4)


def test_random_models_give_varied_output():
    """Repeats, equal lengths or a text that never changes between passes would hide many mistakes."""
    model = random_model(11)
    sources = random_sources(model, 32, 11)
    output = generate(model, sources, output_history=True)
    assert len({tuple(text) for text in texts(output)}) > 15
    candidates = output.history[-1].tokens.flatten(0, 1).tolist()
    assert sum(len({*candidate} - {1}) for candidate in candidates) > 2.2 * len(candidates)
    assert len(set(output.candidate_lengths[:, 0].tolist())) > 5
    ended_early = [len(text) < length for text, length in zip(texts(output), output.lengths.tolist(), strict=True)]
    assert 3 < sum(ended_early) < 24
    tokens = [entry.tokens for entry in output.history]
    changed = [(a != b).any(dim=-1).float().mean() for a, b in zip(tokens, tokens[1:], strict=False)]
    assert sum(changed) > 3
    assert len(set(output.best_candidates.flatten().tolist())) == 4


# ----------------------------------------------------------------------------------------------- independence of batch


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"early_stop": True, "num_return_sequences": 2},
        {"confidence_threshold": 0.7, "remask_schedule": "cosine"},
        {"prune_candidates": 3, "remask_adjacent": False},
        {"prune_candidates": 2, "prune_to": 2, "early_stop": True},
        {"update_all": True, "num_iterations": 4},
        {"remask_repeats": True, "collapse_repeats": True, "num_iterations": 2, "num_return_sequences": 2},
        {"delete_repeats": True, "collapse_repeats": True, "num_iterations": 4, "length_shift": 1},
        {"delete_repeats": True, "remask_repeats": True, "early_stop": True, "consensus_weight": 2.0},
        {"delete_repeats": True, "prune_candidates": 2, "prune_to": 2, "num_iterations": 4},
    ],
)
def test_translation_does_not_depend_on_the_rest_of_the_batch(options):
    model = random_model(15)
    sources = random_sources(model, 32, 15)
    num_best = options.get("num_return_sequences", 1)
    whole = generate(model, sources, **options)
    expected = texts(whole)
    alone = [generate(model, [source], **options) for source in sources]
    assert [text for output in alone for text in texts(output)] == expected
    scores = torch.cat([output.sequences_scores for output in alone])
    torch.testing.assert_close(scores, whole.sequences_scores, rtol=1e-4, atol=1e-5)
    assert torch.cat([output.num_passes for output in alone]).tolist() == whole.num_passes.tolist()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = texts(generate(model, [sources[i] for i in order], **options))
    assert shuffled == [text for i in order for text in expected[i * num_best : (i + 1) * num_best]]
    assert texts(generate(model, sources, extra=45, **options)) == expected
    assert texts(generate(model, sources, "left", 3, **options)) == expected
    long_neighbour = [*sources, [*range(5, 22), *range(5, 22), 2]]
    assert texts(generate(model, long_neighbour, **options))[: len(expected)] == expected
    model.set_attn_implementation("eager")
    assert texts(generate(model, sources, **options)) == expected
    assert texts(generate(model, sources, "left", 3, **options)) == expected


def test_ways_to_give_the_source():
    model = random_model(16)
    input_ids, attention_mask = pad(random_sources(model, 5, 16))
    expected = model.generate(input_ids=input_ids, attention_mask=attention_mask)
    assert torch.equal(model.generate(input_ids), expected)
    assert torch.equal(model.generate(inputs=input_ids, attention_mask=attention_mask), expected)
    embeddings = model.get_input_embeddings()(input_ids)
    assert torch.equal(model.generate(inputs_embeds=embeddings, attention_mask=attention_mask), expected)
    with torch.no_grad():
        named = model.model.encoder(input_ids, attention_mask)
        tupled = model.model.encoder(input_ids, attention_mask, return_dict=False)
    for encoder_outputs in (named, tupled):
        assert torch.equal(model.generate(encoder_outputs=encoder_outputs, attention_mask=attention_mask), expected)
    with pytest.raises(ValueError, match="exactly one of token ids and embeddings"):
        model.generate()
    for mask in (attention_mask[:, :-1], attention_mask[:4], attention_mask[:, None, None]):
        with pytest.raises(ValueError, match=r"attention_mask has shape .* but must have that of the tokens, \(5, "):
            model.generate(input_ids=input_ids, attention_mask=mask)
    with pytest.raises(ValueError, match=r"input_ids has shape \(0, 4\): at least one token"):
        model.generate(input_ids[:0, :4])
    with pytest.raises(ValueError, match="encoder_outputs has no length_logits"):
        model.generate(encoder_outputs=(named.last_hidden_state,))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("Hallo", r"input_ids is a str but must be a tensor \(B, S\) of token ids"),
        ([[5, 6, 2]], "input_ids is a list but must be a tensor"),
        (np.array([[5, 6, 2]]), "input_ids is a ndarray but must be a tensor"),
        (BatchEncoding({"input_ids": torch.tensor([[5, 2]])}), "input_ids is a BatchEncoding but must be a tensor"),
        (torch.tensor([5, 6, 2]), r"input_ids has shape \(3,\) but must have \(B, S\)"),
        (torch.ones(1, 3, 4), r"input_ids has shape \(1, 3, 4\) but must have \(B, S\)"),
        (torch.tensor([[5.0, 2.0]]), "input_ids has the type torch.float32 but must hold whole numbers"),
        (torch.tensor([[5, 23, 2]]), r"input_ids holds 23, but ids must lie in \[0, 23\)"),
        (torch.tensor([[5, -100, 2]]), r"input_ids holds -100, but ids must lie in \[0, 23\)"),
    ],
)
def test_sources_that_are_no_batch_of_ids_are_refused(source, message):
    model = random_model()
    for given in ({"inputs": source}, {"input_ids": source}):
        with pytest.raises(ValueError, match=message):
            model.generate(**given)


# ------------------------------------------------------------------------------------------------------- work it takes


class Counter:
    """Counts calls of modules, and the rows of what the vocabulary projection receives."""

    def __init__(self, model):
        self.decoder = self.encoder = 0
        self.projected, self.rows, self.keys = [], [], {}
        decoder = model.model.decoder
        decoder.register_forward_hook(lambda *args: setattr(self, "decoder", self.decoder + 1))
        decoder.register_forward_hook(lambda module, args, output: self.rows.append(len(output[0])))
        model.model.encoder.register_forward_hook(lambda *args: setattr(self, "encoder", self.encoder + 1))
        model.lm_head.register_forward_hook(lambda module, args, output: self.projected.append(output[..., 0].numel()))
        for i, layer in enumerate(decoder.layers):
            for block in ("encoder_attn", "position_attn"):
                module = getattr(layer, block).k_proj
                module.register_forward_hook(lambda m, args, output, key=(i, block): self.count(key, output))

    def count(self, key, output):
        self.keys.setdefault(key, []).append(len(output))


@pytest.mark.parametrize("num_iterations", [1, 2, 4, 10])
def test_decoding_makes_exactly_k_passes(num_iterations):
    model = random_model(17)
    sources = random_sources(model, 6, 17)
    counter = Counter(model)
    output = generate(model, sources, num_iterations=num_iterations, num_length_candidates=3)
    assert counter.decoder == num_iterations
    assert counter.encoder == 1
    assert output.num_passes.tolist() == [num_iterations] * 6
    layers = range(model.config.decoder_layers)
    # Keys of the sources: once, for 6 sentences and not for 18 candidates. Of positions: once, for all rows together.
    assert counter.keys == {
        **{(i, "encoder_attn"): [6] for i in layers},
        **{(i, "position_attn"): [1] for i in layers},
    }
    # As many rows are projected onto the vocabulary as the longest candidate has masked tokens.
    longest = int(output.candidate_lengths.max())
    counts = [longest, *(slow_num_remasked(longest, i, num_iterations, "linear") for i in range(1, num_iterations))]
    assert counter.projected == [18 * count for count in counts]


def test_only_masked_positions_are_projected():
    model = random_model(17)
    sources = random_sources(model, 6, 17)
    counter = Counter(model)
    output = generate(
        model,
        sources,
        num_length_candidates=1,
        target_lengths=torch.full((6,), 9),
        num_iterations=7,
        output_history=True,
    )
    masked = [(entry.canvas == model.config.mask_token_id).sum().item() for entry in output.history]
    assert masked == [54, 42, 36, 30, 18, 12, 6]  # 6 times 9, then floor(9 (1 - i/7))
    assert counter.projected == masked


def test_stopped_rows_leave_the_batch():
    model = random_model(18)
    sources = random_sources(model, 16, 18)
    counter = Counter(model)
    output = generate(model, sources, early_stop=True)
    assert counter.rows[0] == 64
    assert counter.rows == sorted(counter.rows, reverse=True)
    assert counter.rows[-1] < 40
    assert output.num_passes.min() < 10
    assert sum(counter.rows) < 64 * 10 * 0.8
    pruned = Counter(model)
    generate(model, sources, prune_candidates=3, num_return_sequences=2, num_iterations=5)
    assert pruned.rows == [64, 64, 64, 32, 32]


def test_rules_apply_when_no_row_leaves_the_batch():
    """If no step may wait for the device, dropped candidates stay in the batch and change nothing."""
    model = random_model(19)
    sources = random_sources(model, 8, 19)
    options = {"prune_candidates": 2, "prune_to": 2, "num_iterations": 5}
    expected = generate(model, sources, **options)
    whole = generate(model, sources, num_iterations=5)
    assert texts(whole) != texts(expected)
    states, source_mask, log_probs = model.encode_for_generation(*pad(sources))
    resolved = model._resolve_generation_options(None, {**options, "return_dict_in_generate": True})
    lengths = model._choose_lengths(log_probs, resolved, None)
    counter = Counter(model)
    output, _ = model._decode(resolved, lengths, states, source_mask, num_positions=12)
    assert counter.rows == [32] * 5
    assert texts(output) == texts(expected)


def test_a_reranker_chooses_among_all_candidates():
    model = random_model(20)
    sources = random_sources(model, 4, 20)
    seen = []

    class Reranker:
        def score(self, input_ids, attention_mask, candidates):
            seen.append(candidates)
            return torch.arange(16.0)  # the last candidate is the best

    output = generate(model, sources, reranker=Reranker())
    assert output.best_candidates.flatten().tolist() == [3] * 4
    assert not (seen[0] == model.config.mask_token_id).any()


@pytest.mark.parametrize("seed", range(12))
def test_remaining_rows_keep_their_sources(seed):
    """As many rows may be left as there were sources, and yet some sources have more of them than others."""
    model = random_model(11)
    sources = random_sources(model, 3, seed)
    options = {"early_stop": True, "num_iterations": 12, "num_length_candidates": 2}
    whole = generate(model, sources, **options)
    alone = [generate(model, [source], **options) for source in sources]
    assert texts(whole) == [text for output in alone for text in texts(output)]
    assert whole.num_passes.tolist() == [int(output.num_passes) for output in alone]


def test_no_gradients_are_kept():
    model = random_model(17)
    output = generate(model, random_sources(model, 2))
    assert not output.sequences_scores.requires_grad
    assert torch.is_grad_enabled()


# ---------------------------------------------------------------------------------------------------------- re-masking


def remask_order(log_probs, lengths, set_size):
    """Positions (R, T) of each row in the order in which they are masked again."""
    return RemaskOrder(lengths, log_probs.shape[1], set_size)(log_probs)


@pytest.mark.parametrize(
    ("probs", "set_size", "expected"),
    [
        # Lowest is 2, then 5, 0, 4, 1, 3.
        ([0.30, 0.70, 0.10, 0.80, 0.60, 0.20], 1, [2, 5, 0, 4, 1, 3]),
        # 2 takes 3 along; 5, the last, takes 4 along; 0 takes 1 along.
        ([0.30, 0.70, 0.10, 0.80, 0.60, 0.20], 2, [2, 3, 5, 4, 0, 1]),
        # 2 takes 3 and 4; 5 stands in the last set, 3..5; 0 takes 1 (and 2 again).
        ([0.30, 0.70, 0.10, 0.80, 0.60, 0.20], 3, [2, 3, 4, 5, 0, 1]),
        # 1 takes 2; 2 is there already and takes 3; 0 takes 1 again.
        ([0.50, 0.10, 0.20, 0.90], 2, [1, 2, 3, 0]),
        # Longer sets than the row: everything, the nearest to the lowest first.
        ([0.90, 0.10], 3, [1, 0]),
        # The set of 2 is 1..3, where 1 and 3 are equally near: from left to right.
        ([0.90, 0.80, 0.10, 0.70], 3, [2, 1, 3, 0]),
        # Equal probabilities from left to right.
        ([0.5, 0.5, 0.5], 1, [0, 1, 2]),
    ],
)
def test_order_of_remasking_by_hand(probs, set_size, expected):
    log_probs = torch.tensor(probs).log()
    length = len(probs)
    assert remask_order(log_probs[None], torch.tensor([length]), set_size)[0].tolist() == expected
    assert remasked_positions(log_probs.tolist(), length, set_size) == expected
    # Beside a longer row, padding comes last.
    padded = torch.cat([log_probs, torch.full((3,), -9.0)])[None].expand(2, -1)
    order = remask_order(padded, torch.tensor([length, length + 3]), set_size)
    assert order[0, :length].tolist() == expected


@pytest.mark.parametrize("set_size", [1, 2, 3, 4])
def test_order_of_remasking_equals_the_slow_one(set_size):
    generator = torch.Generator().manual_seed(set_size)
    lengths = torch.randint(1, 13, (200,), generator=generator)
    log_probs = torch.rand(200, 12, generator=generator).mul(8).floor().div(8).add(0.01).log()  # many ties
    log_probs = log_probs.masked_fill(torch.arange(12) >= lengths[:, None], 0.0)
    order = remask_order(log_probs, lengths, set_size)
    for row, length in enumerate(lengths.tolist()):
        assert order[row, :length].tolist() == remasked_positions(log_probs[row, :length].tolist(), length, set_size)
        assert sorted(order[row].tolist()) == list(range(12))


def test_number_of_remasked_tokens():
    assert [num_remasked(10, i, 10, "linear") for i in range(1, 10)] == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert [num_remasked(7, i, 4, "linear") for i in range(1, 4)] == [5, 3, 1]
    assert [num_remasked(2, i, 4, "linear") for i in range(1, 4)] == [1, 1, 1]
    assert [num_remasked(10, i, 4, "cosine") for i in range(1, 4)] == [9, 7, 3]
    assert num_remasked(10, 2, 3, "cosine") == 5  # cos 60 degrees is a half, whatever floating point makes of it
    lengths = torch.arange(1, 300)
    for schedule in ("linear", "cosine"):
        for num_iterations in (3, 10, 30):
            for i in range(1, num_iterations):
                expected = [slow_num_remasked(length, i, num_iterations, schedule) for length in lengths.tolist()]
                assert num_remasked(lengths, i, num_iterations, schedule).tolist() == expected
                assert [num_remasked(length, i, num_iterations, schedule) for length in (1, 7, 299)] == [
                    expected[0],
                    expected[6],
                    expected[298],
                ]


@pytest.mark.parametrize("ngram_size", [2, 3])
def test_adjacent_remasking_masks_the_exact_number_in_sets(ngram_size):
    model = random_model(19, ngram_size=ngram_size)
    sources = random_sources(model, 16, 19)
    length, mask = 12, model.config.mask_token_id
    output = generate(
        model,
        sources,
        num_iterations=4,
        num_length_candidates=1,
        target_lengths=torch.full((16,), length),
        output_history=True,
    )
    for i, count in ((1, 9), (2, 6), (3, 3)):
        before, now = output.history[i - 1], output.history[i]
        for row in range(16):
            masked = (now.canvas[row, 0] == mask).tolist()
            assert sum(masked) == count
            assert masked[before.log_probs[row, 0].argmin()]
            runs = [len(run) for run in "".join("x" if m else " " for m in masked).split()]
            assert sum(run < ngram_size for run in runs) <= 1  # only the last set may be cut short


# -------------------------------------------------------------------------------------------------- repeated tokens


def canvas_of(tokens, probs):
    """One row, beside padding."""
    tokens, probs = torch.tensor([[*tokens, 1, 1]]), torch.tensor([[*probs, 1.0, 1.0]])
    return Canvas(tokens, probs.log(), torch.tensor([3]), torch.tensor([tokens.shape[1] - 2]))


@pytest.mark.parametrize(
    ("tokens", "probs", "less_probable", "left", "left_probs"),
    [
        ([5, 6, 6, 7], [0.5, 0.4, 0.3, 0.2], [2], [5, 6, 7], [0.5, 0.4, 0.2]),
        ([5, 6, 6, 7], [0.5, 0.3, 0.4, 0.2], [1], [5, 6, 7], [0.5, 0.4, 0.2]),
        ([5, 6, 6, 7], [0.5, 0.3, 0.3, 0.2], [2], [5, 6, 7], [0.5, 0.3, 0.2]),  # of equals the second
        ([6, 6, 6, 2], [0.9, 0.3, 0.5, 0.2], [1], [6, 2], [0.9, 0.2]),  # 1 is the lesser one in both pairs
        ([6, 6, 6, 2], [0.4, 0.9, 0.5, 0.2], [0, 2], [6, 2], [0.9, 0.2]),
        ([6, 6, 7, 7], [0.4, 0.9, 0.5, 0.2], [0, 3], [6, 7], [0.9, 0.5]),
        ([6, 7, 6, 7], [0.4, 0.9, 0.5, 0.2], [], [6, 7, 6, 7], [0.4, 0.9, 0.5, 0.2]),  # no neighbours
        ([8, 8, 6, 6], [0.4, 0.9, 0.5, 0.2], [3], [8, 8, 6], [0.4, 0.9, 0.5]),  # 8 may stand twice
        ([9, 9, 9, 6], [0.4, 0.9, 0.5, 0.2], [], [9, 9, 9, 6], [0.4, 0.9, 0.5, 0.2]),  # the source has 9 9
        ([7, 2, 2, 2], [0.4, 0.9, 0.5, 0.2], [2, 3], [7, 2], [0.4, 0.9]),  # the end is a word like others
        ([4, 4, 3, 3], [0.4, 0.9, 0.5, 0.2], [], [4, 4, 3, 3], [0.4, 0.9, 0.5, 0.2]),  # special tokens are not
    ],
)
def test_repeats_by_hand(tokens, probs, less_probable, left, left_probs):
    model = random_model(1)
    source, repeatable = [9, 9, 5, 6, 2], [8]
    options = JMNatOptions(collapse_repeats=True, repeatable_tokens=repeatable)
    rightful = model._rightful_repeats(options, torch.ones(1, 5, dtype=torch.bool), torch.tensor([source]))
    repeats, canvas = Repeats(rightful, torch.tensor([0])), canvas_of(tokens, probs)
    assert repeats.less_probable(canvas)[0].nonzero().flatten().tolist() == less_probable
    shorter = canvas.without(repeats(canvas.tokens), 1)
    padding = len(tokens) + 2 - len(left)
    assert shorter.tokens[0].tolist() == left + [1] * padding
    torch.testing.assert_close(shorter.log_probs.exp()[0], torch.tensor(left_probs + [1.0] * padding))
    assert (shorter.lengths.item(), shorter.num_passes.item()) == (len(left), 3)
    slow = source, tokens, torch.tensor(probs).log().tolist()
    assert sorted(set(less_probable_repeats(*slow, [0, 1, 3, 4, 8]))) == less_probable
    assert without_repeats(*slow, [0, 1, 3, 4, 8])[0] == left


def test_only_repeats_of_the_source_are_allowed():
    """Padding on either side makes no pair, nor does an id that other sentences repeat."""
    model = random_model(1)
    sources = [[7, 7, 2], [7, 8, 7, 2], [5, 5, 5, 6, 6, 2]]
    for side in ("right", "left"):
        input_ids, mask = pad(sources, side, value=7)
        rightful = model._rightful_repeats(JMNatOptions(remask_repeats=True), mask.bool(), input_ids)
        assert [row.nonzero().flatten().tolist() for row in rightful] == [
            *([0, 1, 3, 4, 7], [0, 1, 3, 4], [0, 1, 3, 4, 5, 6]),
        ]
    rightful = model._rightful_repeats(JMNatOptions(delete_repeats=True), mask.bool(), None)
    assert [row.nonzero().flatten().tolist() for row in rightful] == [[0, 1, 3, 4]] * 3
    assert model._rightful_repeats(JMNatOptions(length_shift=1), mask.bool(), input_ids) is None


def test_collapsed_texts_have_no_repeats_and_keep_their_scores():
    model = random_model(11)
    sources = random_sources(model, 48, 11)
    options = {"num_iterations": 2, "num_return_sequences": 4}
    plain = generate(model, sources, **options)
    repeats = [len(wrong_repeats(sources[row // 4], text, [0, 1, 3, 4])) for row, text in enumerate(texts(plain))]
    assert sum(repeats) > 30
    output = generate(model, sources, collapse_repeats=True, output_history=True, **options)
    rightful = 0
    for row, text in enumerate(texts(output)):
        assert not wrong_repeats(sources[row // 4], text, [0, 1, 3, 4])
        rightful += any(one == two for one, two in zip(text, text[1:], strict=False))
        best = output.best_candidates.flatten()[row]
        last = output.history[-1]
        length = int(output.candidate_lengths[row // 4, best])
        tokens, log_probs = (values[row // 4, best, :length].tolist() for values in last[1:])
        tokens, log_probs = without_repeats(sources[row // 4], tokens, log_probs, [0, 1, 3, 4])
        assert tokens[: len(text)] == text
        assert len(tokens) == output.lengths[row]
        assert sum(log_probs) / len(tokens) == pytest.approx(float(output.sequences_scores[row]), rel=1e-4)
        scores = output.token_scores[row]
        assert scores[: len(text)].tolist() == pytest.approx(log_probs[: len(text)])
        assert not scores[len(text) :].any()
    assert rightful > 0  # of the source
    everything = generate(model, sources, collapse_repeats=True, repeatable_tokens=list(range(23)), **options)
    assert texts(everything) == texts(plain)
    assert torch.equal(everything.sequences_scores, plain.sequences_scores)


def test_repeats_are_deleted_only_before_the_last_pass():
    model = random_model(11)
    sources = random_sources(model, 24, 11)
    counter = Counter(model)
    output = generate(model, sources, delete_repeats=True, num_iterations=4, output_history=True)
    assert counter.decoder == 4
    assert output.num_passes.tolist() == [4] * 24
    plain = generate(model, sources, num_iterations=4, output_history=True)
    for before, now in zip(plain.history[:3], output.history[:3], strict=True):
        assert torch.equal(now.tokens, before.tokens)
    shorter, third, last = 0, output.history[2], output.history[3]
    for row, source in enumerate(sources):
        for c, length in enumerate(output.candidate_lengths[row].tolist()):
            kept, _ = without_repeats(
                source, third.tokens[row, c, :length].tolist(), third.log_probs[row, c, :length].tolist(), [0, 1, 3, 4]
            )
            canvas = last.canvas[row, c].tolist()
            num_masked = slow_num_remasked(len(kept), 3, 4, "linear")
            assert canvas.count(4) == num_masked
            assert all(token in (4, old) for token, old in zip(canvas, kept, strict=False))
            assert canvas[len(kept) :] == [1] * (len(canvas) - len(kept))
            assert last.tokens[row, c, len(kept) :].eq(1).all()
            shorter += len(kept) < length
    assert shorter > 20
    for few in ({"num_iterations": 1}, {"num_iterations": 4, "repeatable_tokens": list(range(23))}):
        without = generate(model, sources, **{"delete_repeats": False, **few})
        assert texts(generate(model, sources, delete_repeats=True, **few)) == texts(without)


def test_repeats_are_remasked_first():
    model = random_model(11, ngram_size=2)
    sources = random_sources(model, 24, 11)
    for adjacent in (False, True):
        options = {
            "remask_repeats": True,
            "remask_adjacent": adjacent,
            "num_iterations": 4,
            "num_length_candidates": 1,
        }
        output = generate(model, sources, output_history=True, **options)
        seen = 0
        for before, now in zip(output.history, output.history[1:], strict=False):
            for row, source in enumerate(sources):
                length = int(output.candidate_lengths[row, 0])
                tokens, log_probs = (values[row, 0, :length].tolist() for values in before[1:])
                first = set(less_probable_repeats(source, tokens, log_probs, [0, 1, 3, 4]))
                masked = {t for t, token in enumerate(now.canvas[row, 0].tolist()) if token == 4}
                lowest = min(first, key=lambda t: log_probs[t], default=None)
                assert lowest is None or lowest in masked
                if not adjacent:
                    assert first <= masked or masked <= first
                seen += len(first)
        assert seen > 20


def test_given_lengths_are_not_shifted():
    model = random_model(13)
    sources = random_sources(model, 3, 13)
    given = {"target_lengths": torch.tensor([3, 5, 7]), "num_length_candidates": 1}
    assert generate(model, sources, length_shift=2, **given).candidate_lengths.flatten().tolist() == [3, 5, 7]
    plain, shifted = (generate(model, sources, length_shift=shift).candidate_lengths for shift in (0, 3))
    for before, after in zip((plain + 3).clamp(max=12).tolist(), shifted.tolist(), strict=True):
        assert len(set(after)) == 4
        if len(set(before)) == 4:  # otherwise others come for the twins
            assert after == before
        assert list(dict.fromkeys(before)) == [length for length in after if length in before]


def test_a_source_without_ids_allows_no_repeats():
    model = random_model(16)
    input_ids, attention_mask = pad([[5, 5, 9, 2], [6, 7, 2]])
    options = {"attention_mask": attention_mask, "collapse_repeats": True, "num_iterations": 1}
    embeddings = model.get_input_embeddings()(input_ids)
    for row in model.generate(inputs_embeds=embeddings, **options).tolist():
        assert not wrong_repeats([], row, [0, 1, 3, 4])


# -------------------------------------------------------------------------------------------------- what is returned


def test_history_records_every_pass():
    model = random_model(20)
    mask, pad_token_id = model.config.mask_token_id, model.config.pad_token_id
    sources = random_sources(model, 5, 20)
    output = generate(model, sources, num_iterations=4, num_length_candidates=3, output_history=True)
    lengths = output.candidate_lengths
    longest = int(lengths.max())
    inside = torch.arange(longest) < lengths[..., None]
    assert len(output.history) == 4
    assert torch.equal(output.history[0].canvas, torch.where(inside, mask, pad_token_id))
    for before, now in zip(output.history, output.history[1:], strict=False):
        kept = now.canvas != mask
        assert torch.equal(now.canvas[kept], before.tokens[kept])
        assert torch.equal(now.tokens[kept], before.tokens[kept])
        assert torch.equal(now.log_probs[kept], before.log_probs[kept])
    for entry in output.history:
        assert entry.tokens[~inside].eq(pad_token_id).all()
        assert entry.log_probs[~inside].eq(0).all()
        assert not torch.isin(entry.tokens[inside], torch.tensor([0, 1, 4])).any()
    # The last pass's log-probabilities are those that a plain forward pass gives.
    last = output.history[-1]
    input_ids, attention_mask = pad(sources)
    for c in range(3):
        with torch.no_grad():
            logits = model(
                input_ids,
                attention_mask,
                decoder_input_ids=last.canvas[:, c],
                decoder_attention_mask=inside[:, c],
            ).logits
        logits[..., [0, 1, 4]] = -math.inf
        best, tokens = logits.log_softmax(dim=-1).max(dim=-1)
        masked = last.canvas[:, c] == mask
        assert torch.equal(last.tokens[:, c][masked], tokens[masked])
        torch.testing.assert_close(last.log_probs[:, c][masked], best[masked], rtol=1e-4, atol=1e-5)


def test_history_of_stopped_rows_does_not_change():
    model = random_model(18)
    output = generate(model, random_sources(model, 8, 18), early_stop=True, output_history=True)
    stopped = 0
    for before, now in zip(output.history, output.history[1:], strict=False):
        same = (now.canvas == before.tokens).all(dim=-1)  # no mask: this row read nothing any more
        assert torch.equal(now.tokens[same], before.tokens[same])
        stopped += int(same.sum())
    assert stopped > 0


def test_scores_and_token_scores():
    model = random_model(20)
    output = generate(model, random_sources(model, 8, 20), num_return_sequences=3, output_history=True)
    assert output.sequences.shape[0] == 24
    log_probs = output.history[-1].log_probs
    sums = log_probs.sum(dim=-1) / output.candidate_lengths
    assert output.best_candidates.shape == (8, 3)
    torch.testing.assert_close(output.sequences_scores.view(8, 3), sums.gather(1, output.best_candidates))
    assert output.sequences_scores.view(8, 3).diff(dim=1).le(0).all()
    assert torch.equal(output.lengths.view(8, 3), output.candidate_lengths.gather(1, output.best_candidates))
    padding = output.sequences == model.config.pad_token_id
    assert output.token_scores[padding].eq(0).all()
    assert output.token_scores[~padding].lt(0).all()
    for row, candidate in enumerate(output.best_candidates.flatten().tolist()):
        width = int((~padding[row]).sum())
        torch.testing.assert_close(output.token_scores[row, :width], log_probs[row // 3, candidate, :width])


def test_tokens_per_forward_counts_the_passes_of_each_sentence():
    model = random_model(18)
    sources = random_sources(model, 8, 18)
    output = generate(model, sources, num_iterations=4, num_return_sequences=2)
    assert output.tokens_per_forward.tolist() == [len(text) / 4 for text in texts(output)]
    output = generate(model, sources, early_stop=True)
    assert len(set(output.num_passes.tolist())) > 1
    expected = [len(text) / passes for text, passes in zip(texts(output), output.num_passes.tolist(), strict=True)]
    torch.testing.assert_close(output.tokens_per_forward, torch.tensor(expected))


def test_text_ends_at_the_first_eos_token():
    model = random_model(11)
    for suppress_tokens in (None, [0, 1, 2, 4]):
        output = generate(model, random_sources(model, 64, 11), suppress_tokens=suppress_tokens)
        cut = 0
        for text, length in zip(texts(output), output.lengths.tolist(), strict=True):
            assert 2 not in text[:-1]
            assert len(text) == length or text[-1] == 2
            cut += len(text) < length
        assert (cut > 0) == (suppress_tokens is None)
        assert (output.sequences[:, -1] != 1).any()  # no wider than the longest text


def test_suppressed_tokens_are_never_predicted():
    model = random_model(11)
    sources = random_sources(model, 64, 11)
    default = set(generate(model, sources).sequences.flatten().tolist())
    assert default.isdisjoint({0, 4})
    common = max(default - {1, 2}, key=lambda token: default and token)
    without = set(generate(model, sources, suppress_tokens=[0, 1, 4, common]).sequences.flatten().tolist())
    assert common not in without
    with torch.no_grad():  # a model that loves <mask>
        model.model.shared.weight[4] = model.model.shared.weight[common] * 3
    assert 4 in generate(model, sources, suppress_tokens=[], num_iterations=1).sequences
    assert 4 not in generate(model, sources, num_iterations=1).sequences


# ------------------------------------------------------------------------------------------------- options, bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_iterations": 0}, "num_iterations=0 must be a whole number of at least 1"),
        ({"num_iterations": 2.5}, "num_iterations=2.5 must be a whole number"),
        ({"num_iterations": True}, "num_iterations=True must be a whole number"),
        ({"num_length_candidates": 0}, "num_length_candidates=0 must be a whole number of at least 1"),
        (
            {"num_length_candidates": 13},
            "num_length_candidates=13 is more than the 12 possible target lengths: choose fewer",
        ),
        (
            {"max_length": 3, "num_return_sequences": 3},
            "num_return_sequences=3 is more than the 2 target lengths from 2 to 3: raise max_length",
        ),
        ({"max_length": 1}, "max_length=1 must be a whole number of at least 2"),
        ({"num_return_sequences": 5}, "num_return_sequences=5 is more than num_length_candidates=4"),
        ({"remask_schedule": "sine"}, "remask_schedule='sine' is not one of linear, cosine"),
        ({"prune_candidates": 0}, "prune_candidates=0 must be a whole number of at least 1"),
        ({"prune_to": 0}, "prune_to=0 must be a whole number of at least 1"),
        ({"confidence_threshold": 1.5}, r"confidence_threshold=1.5 must be None or in \(0, 1\]"),
        ({"confidence_threshold": "a"}, "confidence_threshold='a' must be None or in"),
        ({"length_normalization": -1.0}, r"length_normalization=-1.0 must be in \[0, 100\]"),
        ({"consensus_min_length": -1}, "consensus_min_length=-1 must be a whole number of at least 0"),
        ({"consensus_weight": -0.5}, r"consensus_weight=-0.5 must be in \[0, 100\]"),
        ({"length_normalization": math.nan}, r"length_normalization=nan must be in \[0, 100\]"),
        ({"length_normalization": "x"}, "length_normalization='x' must be in"),
        ({"length_offset": -5}, r"length_offset=-5 must be in \[0, 100\]"),
        ({"max_length": 3.5}, "max_length=3.5 must be a whole number of at least 2"),
        ({"suppress_tokens": 5}, "suppress_tokens=5 must be None or a list of token ids"),
        ({"suppress_tokens": [True]}, r"suppress_tokens=\[True\] must be None or a list of token ids"),
        ({"early_stop": "yes"}, "early_stop='yes' must be True or False"),
        ({"collapse_repeats": 1}, "collapse_repeats=1 must be True or False"),
        ({"delete_repeats": "last"}, "delete_repeats='last' must be True or False"),
        ({"repeatable_tokens": "letters"}, "repeatable_tokens='letters' must be None or a list of token ids"),
        ({"repeatable_tokens": [5, 23], "remask_repeats": True}, r"repeatable_tokens holds 23, .* in \[0, 23\)"),
        ({"repeatable_tokens": [5, -1], "remask_repeats": True}, r"repeatable_tokens holds -1, .* in \[0, 23\)"),
        ({"length_shift": 0.5}, r"length_shift=0.5 must be a whole number in \[-100, 100\]"),
        ({"length_shift": True}, "length_shift=True must be a whole number in"),
        ({"length_shift": 101}, "length_shift=101 must be a whole number in"),
        ({"suppress_tokens": [23]}, r"suppress_tokens=\[23\] must lie in \[0, 23\)"),
        (
            {"target_lengths": torch.tensor([3])},
            r"target_lengths has shape \(1,\) but must hold one length for each of 2",
        ),
        ({"logits_processor": [print]}, "logits_processor and stopping_criteria are not supported"),
    ],
)
def test_bad_options_are_named(options, sentence):
    model = random_model()
    with pytest.raises(ValueError, match=sentence):
        generate(model, random_sources(model, 2), **options)


# Options that `generate` does not have, and what it says to each.
UNKNOWN = {
    "early_stopping": (True, "did you mean early_stop?"),
    "length_penalty": (2.0, "did you mean length_normalization?"),
    "do_sample": (True, "nothing is sampled"),
    "temperature": (0.7, "nothing is sampled"),
    "top_k": (3, "nothing is sampled"),
    "no_repeat_ngram_size": (2, "did you mean remask_repeats"),
    "min_length": (40, "set target_lengths"),
    "num_beam_groups": (2, "did you mean num_length_candidates?"),
    "bad_words_ids": ([[7]], "did you mean suppress_tokens"),
    "output_scores": (True, "return_dict_in_generate=True"),
    "num_iteration": (4, "did you mean num_iterations?"),
    "remask_adjacnt": (False, "did you mean remask_adjacent?"),
    "xyz": (0, "JMNatGenerationConfig explains all options"),
    "pad_token_id": (5, "1 in this model"),
    "eos_token_id": ([7, 8], "2 in this model"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_option_gives_the_same_short_error_wherever_it_is_set(name):
    model = random_model()
    (value, hint), input_ids = UNKNOWN[name], torch.tensor([[5, 6, 2]])
    plain = GenerationConfig()
    setattr(plain, name, value)
    answers = set()
    for given in ({name: value}, {"generation_config": plain}, {"generation_config": JMNatGenerationConfig()}, {}):
        if isinstance(given.get("generation_config"), JMNatGenerationConfig):
            setattr(given["generation_config"], name, value)
        if not given:
            setattr(model.generation_config, name, value)
        with pytest.raises(ValueError, match=re.escape(name)) as refused:
            model.generate(input_ids, **given)
        answers.add(str(refused.value))
    (answer,) = answers
    assert hint in answer
    assert len(answer) < 200


def test_all_unknown_options_are_named_at_once():
    with pytest.raises(ValueError, match=r"do_sample=True \(each.*\), temperature=0.7 \(each pass"):
        generate(random_model(), [[5, 2]], temperature=0.7, do_sample=True)
    with pytest.raises(ValueError, match="assistant_model=") as refused:
        generate(random_model(), [[5, 2]], assistant_model=torch.ones(100))
    assert len(str(refused.value)) < 150


def test_options_mean_the_same_wherever_they_are_set():
    for name, value in {"num_beams": 2, "num_length_candidates": 3, "max_new_tokens": 4, "num_iterations": 3}.items():
        plain, model = GenerationConfig(**{name: value}), random_model(16)
        sources = random_sources(model, 8, 16)
        by_argument = generate(model, sources, **{name: value})
        assert not torch.equal(by_argument.sequences, generate(model, sources).sequences)
        by_config = generate(model, sources, generation_config=plain)
        setattr(model.generation_config, name, value)
        for other in (by_config, generate(model, sources)):
            assert torch.equal(by_argument.sequences, other.sequences)
            assert torch.equal(by_argument.candidate_lengths, other.candidate_lengths)


def test_default_valued_options_of_transformers_are_accepted():
    model = random_model(16)
    sources = random_sources(model, 8, 16)
    expected = generate(model, sources).sequences
    usual = {**GenerationConfig._get_default_generation_params(), "eos_token_id": [2], "pad_token_id": 1}
    del usual["max_length"], usual["num_beams"], usual["return_dict_in_generate"]
    assert torch.equal(generate(model, sources, **usual).sequences, expected)
    assert torch.equal(generate(model, sources, generation_config=GenerationConfig(**usual)).sequences, expected)
    model.generation_config.update(**usual)
    assert torch.equal(generate(model, sources).sequences, expected)


def test_candidate_lengths_are_distinct():
    model = random_model(16)
    sources = random_sources(model, 5, 16)
    for name, value, expected in (
        *(("num_length_candidates", 5, 5), ("num_length_candidates", 12, 11)),
        *(("max_length", 3, 2), ("max_new_tokens", 3, 2), ("max_length", 2, 1)),
    ):
        for target_lengths in (None, torch.tensor([2, 3, 12, 40, 0])):
            lengths = generate(model, sources, target_lengths=target_lengths, **{name: value}).candidate_lengths
            assert lengths.shape == (5, expected)
            assert all(len(set(row)) == len(row) and min(row) >= 2 for row in lengths.tolist())
    window = generate(model, sources, target_lengths=[2, 3, 12, 40, 7], num_length_candidates=5).candidate_lengths
    shifted = [[2, 3, 4, 5, 6], [3, 4, 2, 5, 6], [12, 11, 10, 9, 8], [12, 11, 10, 9, 8], [7, 8, 6, 9, 5]]
    assert window.tolist() == shifted


@pytest.mark.parametrize("left", [[], [1, 2], [0, 1, 2, 3, 4]])
def test_suppressing_every_token_is_refused(left):
    model = random_model(16)
    suppressed = [token for token in range(23) if token not in left]
    with pytest.raises(ValueError, match=r"suppress_tokens=\[.*\] leaves no token that a text could hold"):
        generate(model, [[5, 2]], suppress_tokens=suppressed)
    suppressed.remove(9)
    assert 9 in generate(model, [[5, 2]], suppress_tokens=suppressed, num_iterations=1).sequences


def test_arguments_that_transformers_passes_are_accepted():
    model = random_model(16)
    batch = random_batch(model)
    source = {"input_ids": unmasked(batch), "attention_mask": batch["attention_mask"]}
    expected = model.generate(**source, num_length_candidates=2)
    assert torch.equal(model.generate(**batch, num_beams=2, synced_gpus=False, use_cache=True), expected)
    assert torch.equal(model.generate(**source, num_beams=7, num_length_candidates=2), expected)
    assert torch.equal(model.generate(**source, num_beams=2, num_length_candidates=None), expected)
    assert torch.equal(model.generate(**source, num_length_candidates=2, do_sample=False, streamer=None), expected)


def test_max_length_limits_the_candidates():
    model = random_model(16)
    sources = random_sources(model, 16, 16)
    assert generate(model, sources, num_length_candidates=12).candidate_lengths.max() == 12
    for name in ("max_length", "max_new_tokens"):
        output = generate(model, sources, **{name: 6})
        assert output.candidate_lengths.max() <= 6
        assert output.sequences.shape[1] <= 6
    target_lengths = torch.full((16,), 11)
    assert generate(model, sources, target_lengths=target_lengths, max_length=6).lengths.max() == 6
    assert generate(model, sources, max_length=6, max_new_tokens=None).candidate_lengths.max() <= 6


def test_a_length_below_two_counts_as_two():
    model = random_model(16)
    with torch.no_grad():
        model.model.encoder.embed_lengths.weight[1:] *= 0.0
        model.model.encoder.embed_lengths.weight[1] += 10 * model.model.encoder(torch.tensor([[5, 2]]))[0][0, 0].sign()
    output = generate(model, random_sources(model, 3, 16), num_length_candidates=12)
    assert output.candidate_lengths[0, 0] == 2
    assert sorted(output.candidate_lengths[0].tolist()) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


def test_the_mask_may_come_second_and_options_third():
    model = random_model(16)
    input_ids, mask = pad(random_sources(model, 3, 16))
    mask[:, 1] = 0
    expected = model.generate(input_ids, attention_mask=mask)
    assert torch.equal(model.generate(input_ids, mask), expected)
    assert not torch.equal(model.generate(input_ids), expected)
    options = JMNatGenerationConfig(num_iterations=1, num_length_candidates=1)
    expected = model.generate(input_ids, attention_mask=mask, generation_config=options)
    assert torch.equal(model.generate(input_ids, mask, options), expected)
    assert not torch.equal(model.generate(input_ids, mask), expected)
    expected = model.generate(input_ids, generation_config=options)
    assert torch.equal(model.generate(input_ids, None, options), expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("nonsense", "generation_config is a str but must be a GenerationConfig"),
        (JMNatGenerationConfig(target_lengths=[3]), r"target_lengths=\[3\] \(it is an argument of generate\)"),
        (JMNatGenerationConfig(min_length=4, num_iteration=3), r"min_length=4 \(.*\), num_iteration=3 \(did you mean"),
    ],
)
def test_configs_with_unsupported_options_are_refused(config, message):
    model = random_model(16)
    with pytest.raises(ValueError, match=message):
        model.generate(pad(random_sources(model, 3, 16))[0], generation_config=config)


def test_precedence_of_options():
    model = random_model(16)
    sources = random_sources(model, 3, 16)

    def num_passes(**options):
        return generate(model, sources, **options).num_passes[0].item()

    assert num_passes() == 10
    model.generation_config.num_iterations = 7
    assert num_passes() == 7
    assert num_passes(generation_config=GenerationConfig(num_iterations=9)) == 9
    assert num_passes(generation_config=JMNatGenerationConfig(num_iterations=8)) == 8
    assert num_passes(generation_config=JMNatGenerationConfig(early_stop=False)) == 7
    assert num_passes(generation_config=JMNatGenerationConfig(num_iterations=8), num_iterations=3) == 3
    # None turns off what it stands for.
    model.generation_config.confidence_threshold, model.generation_config.prune_candidates = 0.5, 1
    assert model._resolve_generation_options(None, {}).prune_candidates == 1
    off = model._resolve_generation_options(None, {"confidence_threshold": None, "prune_candidates": None})
    assert off.confidence_threshold is None
    assert off.prune_candidates is None
    assert model._resolve_generation_options(None, {"num_iterations": None}).num_iterations == 7
    # Beams are length candidates, unless the config names these.
    beams = GenerationConfig(num_beams=3)
    assert model._resolve_generation_options(beams, {}).num_length_candidates == 3
    assert model._resolve_generation_options(beams, {"num_length_candidates": 2}).num_length_candidates == 2
    both = JMNatGenerationConfig(num_beams=3, num_length_candidates=5)
    assert model._resolve_generation_options(both, {}).num_length_candidates == 5
    # So are new tokens the length, unless it is given.
    new = GenerationConfig(max_new_tokens=5)
    assert model._resolve_generation_options(new, {}).max_length == 5
    assert model._resolve_generation_options(new, {"max_length": 4}).max_length == 4
    model.generation_config.max_new_tokens = 6
    assert model._resolve_generation_options(None, {}).max_length == 6
    # numpy's numbers are numbers.
    assert model._resolve_generation_options(None, {"num_iterations": np.int64(3)}).num_iterations == 3
    assert model._resolve_generation_options(None, {"length_offset": np.float32(3)}).length_offset == 3
    # False, 0 and [] are values.
    defaults = JMNatOptions()
    model.generation_config = JMNatGenerationConfig(
        remask_adjacent=True,
        early_stop=True,
        update_all=True,
        output_history=True,
        return_dict_in_generate=True,
        suppress_tokens=[5],
        length_normalization=2.0,
    )
    off = {
        "remask_adjacent": False,
        "early_stop": False,
        "update_all": False,
        "output_history": False,
        "return_dict_in_generate": False,
        "suppress_tokens": [],
        "length_normalization": 0.0,
    }
    for config, kwargs in ((None, off), (JMNatGenerationConfig(**off), {}), (GenerationConfig(**off), {})):
        options = model._resolve_generation_options(config, kwargs)
        assert {name: getattr(options, name) for name in off} == off
        assert options.num_iterations == defaults.num_iterations
        assert isinstance(model.generate(pad(sources)[0], generation_config=config, **kwargs), torch.Tensor)
    assert model.generate(pad(sources)[0]).history is not None


# ------------------------------------------------------------------------------------------------- saving the options

FIRST = {
    "num_iterations": 7,
    "num_length_candidates": 3,
    "remask_adjacent": False,
    "remask_schedule": "cosine",
    "early_stop": True,
    "suppress_tokens": [],
    "length_normalization": 0.0,
    "length_offset": 5.0,
    "consensus_weight": 2.0,
    "consensus_min_length": 6,
    "num_return_sequences": 2,
    "prune_candidates": 3,
    "prune_to": 2,
    "confidence_threshold": 0.5,
    "update_all": True,
    "remask_repeats": True,
    "delete_repeats": True,
    "collapse_repeats": True,
    "repeatable_tokens": [],
    "length_shift": -1,
    "crf_beam": 1,
    "output_history": True,
    "return_dict_in_generate": True,
    "max_length": 20,  # the library's default, as a user's choice
}
SECOND = {
    "num_iterations": 10,
    "num_length_candidates": 4,
    "remask_adjacent": True,
    "remask_schedule": "linear",
    "early_stop": False,
    "suppress_tokens": [1, 5],
    "length_normalization": 1.0,
    "length_offset": 0.0,
    "consensus_weight": 0.0,
    "consensus_min_length": 0,
    "num_return_sequences": 1,
    "prune_candidates": None,
    "prune_to": 1,
    "confidence_threshold": None,
    "update_all": False,
    "remask_repeats": False,
    "delete_repeats": False,
    "collapse_repeats": False,
    "repeatable_tokens": [5, 22],
    "length_shift": 0,
    "crf_beam": 64,
    "output_history": False,
    "return_dict_in_generate": False,
    "max_length": None,
}


def test_every_option_survives_saving_into_a_new_process(tmp_path):
    assert set(FIRST) == set(SECOND) == set(OPTION_NAMES)
    folders = []
    for number, options in enumerate((FIRST, SECOND)):
        model = random_model(16)
        model.generation_config = JMNatGenerationConfig(**options)
        model.save_pretrained(tmp_path / str(number))
        folders.append(str(tmp_path / str(number)))
    random_model(16).save_pretrained(tmp_path / "untouched")
    folders.append(str(tmp_path / "untouched"))
    code = """
import json, sys
from transformers import AutoModelForSeq2SeqLM
import modeling_jmnat
for folder in sys.argv[1:]:
    for config in (AutoModelForSeq2SeqLM.from_pretrained(folder).generation_config,
                   modeling_jmnat.JMNatGenerationConfig.from_pretrained(folder)):
        assert type(config) is modeling_jmnat.JMNatGenerationConfig
        names = modeling_jmnat.configuration_jmnat.OPTION_NAMES
        print(json.dumps({name: getattr(config, name) for name in names}))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, *folders],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    first, first_alone, second, second_alone, untouched, _ = map(json.loads, result.stdout.splitlines())
    assert first == first_alone == FIRST
    assert second == second_alone == SECOND
    assert untouched == {**JMNatOptions().__dict__, "max_length": 12}


def test_options_changed_on_a_fresh_model_survive(tmp_path):
    """The library marks a config made from the model's as derived, and such a config loses custom keys on loading."""
    model = random_model(16)
    model.generation_config.num_iterations = 3
    model.generation_config.early_stop = True
    model.save_pretrained(tmp_path)
    assert "_from_model_config" not in json.loads((tmp_path / "generation_config.json").read_text())
    loaded = JMNatForConditionalGeneration.from_pretrained(tmp_path)
    assert (loaded.generation_config.num_iterations, loaded.generation_config.early_stop) == (3, True)
    loaded.save_pretrained(tmp_path / "again")
    again = JMNatForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert again.generation_config.to_dict() == loaded.generation_config.to_dict()
    (tmp_path / "generation_config.json").unlink()
    without = JMNatForConditionalGeneration.from_pretrained(tmp_path)
    assert type(without.generation_config) is JMNatGenerationConfig
    assert without.generation_config.num_iterations == 10


def test_fields_of_the_model_changed_in_loading_are_no_options_of_generate(tmp_path):
    random_model(16).save_pretrained(tmp_path / "saved")
    model = JMNatForConditionalGeneration.from_pretrained(tmp_path / "saved", crf_rank=3, dropout=0.3)
    assert (model.config.crf_rank, model.config.dropout) == (3, 0.3)
    model.save_pretrained(tmp_path / "again")
    for name in ("saved", "again"):
        saved = json.loads((tmp_path / name / "generation_config.json").read_text())
        assert not {"crf_rank", "dropout"} & saved.keys()
    again = JMNatForConditionalGeneration.from_pretrained(tmp_path / "again")
    sequences = [each.generate(torch.tensor([[5, 6, 2]])) for each in (model, again)]
    assert torch.equal(*sequences)


def test_a_damaged_generation_config_is_not_replaced_by_the_defaults(tmp_path):
    random_model(16).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"num_iterations": 3')
    with pytest.raises(OSError, match=r"^generation_config.json of .* cannot be read: .* is not a valid JSON file\.$"):
        JMNatForConditionalGeneration.from_pretrained(tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in that this process takes for the Hub, with a model of 3 passes."""
    model = random_model(16)
    model.generation_config.num_iterations = 3
    model.save_pretrained(tmp_path / "model")
    with stand_in_hub() as server:
        take_for_the_hub(monkeypatch, server, tmp_path / "cache")
        server.repositories["someone/tiny"] = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        yield server


def loaded_passes(**options):
    return JMNatForConditionalGeneration.from_pretrained("someone/tiny", **options).generation_config.num_iterations


def test_a_generation_config_that_cannot_be_fetched_is_not_replaced_by_the_defaults(hub):
    hub.fail_on = "generation_config.json"
    with pytest.raises(OSError, match="^generation_config.json of someone/tiny cannot be read: "):
        loaded_passes()
    assert loaded_passes(local_files_only=True) == 10  # offline, what is not here is missing
    hub.fail_on = None
    assert loaded_passes() == loaded_passes(local_files_only=True) == 3


def test_a_hub_model_without_generation_config_has_the_defaults(hub):
    del hub.repositories["someone/tiny"]["generation_config.json"]
    assert loaded_passes() == loaded_passes(local_files_only=True) == 10
    hub.fail_on = "someone"  # the Hub does not answer any more, but said before that there is none
    assert loaded_passes() == 10


def test_a_given_generation_config_is_kept_when_loading(tmp_path):
    random_model(16).save_pretrained(tmp_path)
    for config in (JMNatGenerationConfig(num_iterations=2), GenerationConfig(num_iterations=2)):
        model = JMNatForConditionalGeneration.from_pretrained(tmp_path, generation_config=config)
        assert type(model.generation_config) is JMNatGenerationConfig
        assert model.generation_config.num_iterations == 2


def test_bad_options_are_refused_when_made_and_when_saved(tmp_path):
    with pytest.raises(ValueError, match="num_iterations=0"):
        JMNatGenerationConfig(num_iterations=0)
    model = random_model(16)
    model.generation_config.remask_schedule = "sine"
    with pytest.raises(ValueError, match="remask_schedule='sine'"):
        model.save_pretrained(tmp_path)
    for name, value in (("length_penalty", 1.3), ("temperature", 0.7)):  # of beam search and sampling
        model = random_model(16)
        setattr(model.generation_config, name, value)
        with pytest.raises(ValueError, match=name):
            model.save_pretrained(tmp_path)
    model.generation_config.temperature = None
    model.generation_config.num_beams, model.generation_config.length_penalty = 4, 2.0  # fits a beam search
    with pytest.raises(ValueError, match=r"length_penalty=2.0.*length_normalization"):
        model.save_pretrained(tmp_path)


def test_seq2seq_trainer_decodes_and_saves_no_length_limit(tmp_path):
    """`Seq2SeqTrainer` writes the library's defaults, max_length=20 among them, into the model's generation config."""
    model = random_model(16, max_target_length=30, max_position_embeddings=40)
    batch = random_batch(model, 4)
    dataset = [{name: values[row] for name, values in batch.items()} for row in range(4)]
    arguments = Seq2SeqTrainingArguments(
        tmp_path / "run",
        predict_with_generate=True,
        per_device_eval_batch_size=2,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
    )
    trainer = Seq2SeqTrainer(
        model=model, args=arguments, data_collator=lambda rows: {k: torch.stack([r[k] for r in rows]) for k in rows[0]}
    )
    predicted = trainer.predict(dataset)
    source = {"input_ids": unmasked(batch), "attention_mask": batch["attention_mask"]}
    expected = model.generate(**source)
    assert not torch.equal(model.generate(batch["input_ids"], batch["attention_mask"]), expected)
    for row, text in zip(predicted.predictions, expected.tolist(), strict=True):
        assert [t for t in row.tolist() if t not in (1, -100)] == [t for t in text if t != 1]
    assert predicted.predictions.shape[1] <= 30
    assert max(generate(model, random_sources(model, 64, 16)).candidate_lengths.flatten()) > 20
    assert model.generation_config.max_length == 30
    model.save_pretrained(tmp_path / "model")
    loaded = JMNatForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.generate(**source), expected)
    model.generation_config = JMNatGenerationConfig(num_iterations=4)  # one without a max_length
    predicted = trainer.predict(dataset)
    assert predicted.predictions.shape[1] < 2000  # they are padded to it
    assert model.generation_config.max_length >= 512
    limited = trainer.predict(dataset, max_length=5, num_beams=2).predictions
    assert (torch.as_tensor(limited).gt(1).sum(dim=1) <= 5).all()


# ----------------------------------------------------------------------------------------------------------- reranker


def test_a_reranker_with_a_score_method_chooses():
    model = random_model(20)
    sources = random_sources(model, 5, 20)
    seen = []

    class ShortestFirst:
        def score(self, input_ids, attention_mask, candidate_ids):
            seen.append((input_ids, attention_mask, candidate_ids))
            return -(candidate_ids != 1).sum(dim=1).float()

    output = generate(model, sources, reranker=ShortestFirst(), num_return_sequences=4)
    ((input_ids, attention_mask, candidates),) = seen
    expected_ids, expected_mask = pad(sources)
    assert torch.equal(input_ids, expected_ids)
    assert torch.equal(attention_mask, expected_mask)
    assert len(candidates) == 20  # the 4 of a sentence in consecutive rows
    texts_seen = {tuple(t for t in row if t != 1) for row in candidates[4:8].tolist()}
    assert texts_seen == {tuple(text) for text in texts(output)[4:8]}
    lengths = torch.tensor([len(text) for text in texts(output)]).view(5, 4)
    assert lengths.diff(dim=1).ge(0).all()
    assert torch.equal(output.sequences_scores.view(5, 4), -lengths.float())
    # The exponent of the length applies to its means as well.
    sums = generate(model, sources, reranker=ShortestFirst(), num_return_sequences=4, length_normalization=0.0)
    ends = torch.tensor([len(text) for text in texts(sums)])
    assert torch.equal(sums.sequences_scores, -(ends * sums.lengths).float())
    pruned = generate(model, sources, reranker=ShortestFirst(), prune_candidates=2)
    survivors = generate(model, sources, prune_candidates=2)
    assert texts(pruned) == texts(survivors)
    # All candidates of a sentence may stop before that pass, or no pass may follow it: the reranker sees as few.
    for options in (
        {"prune_candidates": 6, "early_stop": True},
        {"prune_candidates": 3, "confidence_threshold": 0.3},
        {"prune_candidates": 4, "num_iterations": 4},
    ):
        together = generate(model, sources, reranker=ShortestFirst(), **options)
        assert texts(together) == texts(generate(model, sources, **options))
        assert texts(together) == [
            texts(generate(model, [source], reranker=ShortestFirst(), **options))[0] for source in sources
        ]
    with pytest.raises(ValueError, match="reranker is a str but must be an autoregressive model"):
        generate(model, sources, reranker="opus-mt")
    with pytest.raises(ValueError, match="reranker needs input_ids"):
        model.generate(inputs_embeds=model.get_input_embeddings()(expected_ids), reranker=ShortestFirst())


def test_an_autoregressive_model_of_the_same_vocabulary_reranks():
    model = random_model(20)
    torch.manual_seed(5)
    config = MarianConfig(
        vocab_size=23,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=40,
        pad_token_id=1,
        eos_token_id=2,
        bos_token_id=0,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
        init_std=0.5,
    )
    teacher = MarianMTModel(config).eval()
    sources = random_sources(model, 6, 20)
    with pytest.raises(ValueError, match="reranker has 23 tokens and the model 100: it needs the same vocabulary"):
        generate(random_model(20, vocab_size=100), sources, reranker=teacher)
    headless = MarianMTModel(config).eval()
    headless.generation_config.decoder_start_token_id = None
    vars(headless.config)["decoder_start_token_id"] = None  # Marian's own configuration refuses it, others do not
    with pytest.raises(ValueError, match="reranker has no decoder_start_token_id"):
        generate(model, sources, reranker=headless)
    output = generate(model, sources, reranker=teacher, num_return_sequences=4)
    plain = generate(model, sources, num_return_sequences=4)
    assert sorted(map(tuple, texts(output))) == sorted(map(tuple, texts(plain)))
    assert texts(output) != texts(plain)
    scores = []
    for row, text in enumerate(texts(output)):
        total, source = 0.0, torch.tensor([sources[row // 4]])
        for t, token in enumerate(text):  # one token after the other, nothing padded
            with torch.no_grad():
                logits = teacher(input_ids=source, decoder_input_ids=torch.tensor([[2, *text[:t]]])).logits
            total += logits[0, -1].log_softmax(dim=-1)[token].item()
        scores.append(total / len(text))
    torch.testing.assert_close(output.sequences_scores, torch.tensor(scores), rtol=1e-4, atol=1e-5)
    assert output.sequences_scores.view(6, 4).diff(dim=1).le(0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["encoder.layers.0.fc1.bias", "shared.weight"])
def test_weights_that_are_not_finite_give_no_translation(name, value):
    model = random_model()
    model.model.get_parameter(name).data.view(-1)[-1] = value
    ids, mask = pad(random_sources(model))
    with pytest.raises(ValueError, match="the scores are NaN, so weights are not finite"):
        model.generate(ids, attention_mask=mask)
