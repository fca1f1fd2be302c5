"""Properties of `generate` under arbitrary options, sources and canvases."""

import functools

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.arbitrary import examples
from tests.helpers.random_models import ARCHITECTURES, TINY, pad, random_model
from tests.helpers.reference_decoder import slow_decode
from tests.model.test_streaming import Recorder

PAD, EOS, MASK = 1, 2, 4
VOCABULARY, LONGEST = TINY["vocab_size"], TINY["max_target_length"]
SUPPRESSED = {0, PAD, MASK}


@functools.cache
def model_of(architecture, ngram_size, seed):
    """In double precision: no two probabilities are so near that a sum in another order would decide."""
    return random_model(seed, ngram_size=ngram_size, **ARCHITECTURES[architecture]).double()


models = st.builds(model_of, st.sampled_from([*ARCHITECTURES]), st.integers(1, 4), st.integers(0, 3))
tokens = st.integers(5, VOCABULARY - 1)
# Few different tokens in some, so that there are repeats by right.
sources = st.one_of(
    st.lists(tokens, max_size=12), st.lists(st.integers(5, 7), max_size=12), st.lists(st.integers(0, 22), max_size=12)
).map(lambda ids: [*(token for token in ids if token != PAD), EOS])


@st.composite
def decoding_options(draw, with_candidates=True):
    """Any options that `generate` accepts."""
    flags = ("remask_adjacent", "early_stop", "update_all", "remask_repeats", "delete_repeats", "collapse_repeats")
    options = {name: draw(st.booleans()) for name in flags}
    options |= {
        "num_iterations": draw(st.integers(1, 7)),
        "remask_schedule": draw(st.sampled_from(["linear", "cosine"])),
        "confidence_threshold": draw(st.one_of(st.none(), st.floats(1e-3, 1))),
        "prune_candidates": draw(st.one_of(st.none(), st.integers(1, 8))),
        "prune_to": draw(st.integers(1, 4)),
        "length_normalization": draw(st.floats(0, 2)),
        "length_offset": draw(st.sampled_from([0.0, 0.0, 5.0])),
        "consensus_weight": draw(st.sampled_from([0.0, 0.7, 10.0])),
        "repeatable_tokens": draw(st.one_of(st.none(), st.lists(tokens, max_size=6))),
        "suppress_tokens": draw(st.one_of(st.none(), st.lists(tokens, max_size=12).map(lambda x: [*SUPPRESSED, *x]))),
        "max_length": draw(st.one_of(st.none(), st.integers(2, LONGEST + 3))),
        "length_shift": draw(st.integers(-4, 4)),
    }
    if with_candidates:
        most = min(LONGEST, options["max_length"] or LONGEST) - 1
        options["num_length_candidates"] = draw(st.integers(1, LONGEST))
        options["num_return_sequences"] = draw(st.integers(1, min(3, most, options["num_length_candidates"])))
    return options


@st.composite
def canvases(draw):
    fixed = st.one_of(tokens, st.just(MASK), st.integers(0, VOCABULARY - 1).filter(lambda token: token != PAD))
    return draw(st.lists(fixed, min_size=2, max_size=LONGEST))


def rows_of(ids):
    return [[token for token in row if token != PAD] for row in ids.tolist()]


def fields_of(output, number, num_best):
    best = slice(number * num_best, (number + 1) * num_best)
    whole = ("candidate_lengths", "num_passes", "best_candidates")
    fields = {name: getattr(output, name)[number].tolist() for name in whole}
    return fields | {"texts": rows_of(output.sequences[best]), "lengths": output.lengths[best].tolist()}


@examples(60)
@given(
    model=models,
    batch=st.lists(sources, min_size=1, max_size=4),
    options=decoding_options(),
    side=st.sampled_from(["left", "right"]),
    extra=st.integers(0, 5),
)
def test_a_batch_equals_its_sentences_and_satisfies_every_invariant(model, batch, options, side, extra):
    options = {**options, "return_dict_in_generate": True}
    num_best, longest = options["num_return_sequences"], min(LONGEST, options["max_length"] or LONGEST)
    output = model.generate(*pad(batch, side, extra=extra), **options)
    suppressed = {*(options["suppress_tokens"] or SUPPRESSED)}
    for number, source in enumerate(batch):
        found = fields_of(output, number, num_best)
        alone = model.generate(torch.tensor([source]), **options)
        assert fields_of(alone, 0, num_best) == found
        scores = output.sequences_scores[number * num_best : (number + 1) * num_best]
        torch.testing.assert_close(alone.sequences_scores, scores, rtol=1e-5, atol=1e-6)
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        assert 1 <= found["num_passes"] <= options["num_iterations"]
        assert len({*found["candidate_lengths"]}) == min(options["num_length_candidates"], longest - 1)
        assert all(2 <= length <= longest for length in found["candidate_lengths"])
        assert len({*found["best_candidates"]}) == num_best
        for text in found["texts"]:
            assert text
            assert not suppressed & {*text}
            assert EOS not in text[:-1]
    stops = ("early_stop", "confidence_threshold", "prune_candidates")
    if not any(options[name] for name in stops):
        assert {*output.num_passes.tolist()} == {options["num_iterations"]}


@examples(10)
@given(model=models, source=sources, options=decoding_options())
def test_equals_the_slow_decoder(model, source, options):
    num_best = options["num_return_sequences"]
    output = model.generate(torch.tensor([source]), **options, return_dict_in_generate=True)
    given_options = {name: value for name, value in options.items() if value is not None}
    best, candidates = slow_decode(model, source, None, **given_options)
    found = fields_of(output, 0, num_best)
    assert found["texts"] == [candidate.text() for candidate in best]
    assert found["lengths"] == [candidate.length for candidate in best]
    assert found["candidate_lengths"] == [candidate.tried_length for candidate in candidates]
    assert found["num_passes"] == max(candidate.num_passes for candidate in candidates)


@examples(60)
@given(
    model=models,
    pairs=st.lists(st.tuples(sources, canvases()), min_size=1, max_size=4),
    options=decoding_options(with_candidates=False),
    extra=st.integers(0, 3),
)
def test_tokens_of_a_canvas_are_kept(model, pairs, options, extra):
    batch, rows = (list(side) for side in zip(*pairs, strict=True))
    canvas, _ = pad(rows, extra=extra)
    output = model.generate(*pad(batch), decoder_input_ids=canvas, **options, return_dict_in_generate=True)
    suppressed = {*(options["suppress_tokens"] or SUPPRESSED)}
    for number, (source, row) in enumerate(pairs):
        alone = model.generate(torch.tensor([source]), decoder_input_ids=torch.tensor([row]), **options)
        assert rows_of(alone) == rows_of(output.sequences[number : number + 1])
        expected = [*row[:-1], EOS if row[-1] == MASK else row[-1]]
        text = output.sequences[number].tolist()
        text = text[: len(expected)]
        end = expected.index(EOS) + 1 if EOS in expected else len(expected)
        assert all(new == old or old == MASK for new, old in zip(text[:end], expected[:end], strict=True))
        predicted = {new for new, old in zip(text[:end], expected[:end], strict=True) if old == MASK}
        assert not predicted & {*suppressed, EOS}
        assert output.num_passes[number] <= options["num_iterations"]


@examples(60)
@given(
    model=models,
    source=sources,
    options=decoding_options(),
    canvas=st.one_of(st.none(), canvases()),
)
def test_a_streamer_gets_a_draft_after_each_pass_and_then_the_sequences(model, source, options, canvas):
    options["num_return_sequences"] = 1
    if canvas is not None:
        options["decoder_input_ids"] = torch.tensor([canvas])
    streamer = Recorder()
    output = model.generate(torch.tensor([source]), streamer=streamer, return_dict_in_generate=True, **options)
    plain = model.generate(torch.tensor([source]), **options)
    assert torch.equal(plain, output.sequences)
    kinds = [kind for kind, _ in streamer.events]
    num_drafts = kinds.count("draft")
    assert kinds == ["draft"] * num_drafts + ["put", "end"]
    assert streamer.events[-2][1] == output.sequences.tolist()
    assert int(output.num_passes) == num_drafts
    assert canvas or all(MASK not in draft[0] for _, draft in streamer.events[:num_drafts])
    assert streamer.events[num_drafts - 1][1] == output.sequences.tolist()
