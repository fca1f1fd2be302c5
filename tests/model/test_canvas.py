"""`generate(decoder_input_ids=...)`: given tokens are kept; a training batch's decoder input is not a canvas."""

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from modeling_jmnat import DataCollatorForJMNat
from modeling_jmnat.inference.cuda_graphs import StaticShapeJMNat
from tests.helpers.random_models import ARCHITECTURES, pad, random_batch, random_model, random_sources
from tests.helpers.reference_decoder import slow_decode

MASK, PAD, EOS = 4, 1, 2
OPTIONS = {
    "default": {},
    "one_pass": {"num_iterations": 1},
    "not_adjacent": {"remask_adjacent": False, "num_iterations": 4},
    "cosine": {"remask_schedule": "cosine"},
    "early_stop": {"early_stop": True},
    "threshold": {"confidence_threshold": 0.6},
    "update_all": {"update_all": True, "num_iterations": 4},
    "prune": {"prune_candidates": 2},
    "consensus": {"consensus_weight": 5.0, "num_length_candidates": 6},
    "repeats": {"remask_repeats": True, "delete_repeats": True, "collapse_repeats": True, "length_shift": 2},
    "all_rules": {"early_stop": True, "confidence_threshold": 0.9, "update_all": True, "remask_repeats": True},
}


def random_canvases(count, seed, longest=12):
    """Rows of 2 to `longest` tokens, about half of them `<mask>`; the first is all masks, the second all fixed."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        length = int(torch.randint(2, longest + 1, (1,), generator=generator))
        row = torch.randint(5, 23, (length,), generator=generator)
        masked = torch.rand(length, generator=generator) < {0: 2.0, 1: 0.0}.get(number, 0.5)
        row[masked] = MASK
        row[-1] = EOS
        rows.append(row.tolist())
    return rows


def stands(canvases, sequences):
    """Whether every token that is not a mask is in its place, and nothing else was added."""
    for canvas, ids in zip(canvases, sequences.tolist(), strict=True):
        text = [token for token in ids if token != PAD]
        if len(text) != len(canvas) or any(a not in (b, MASK) for a, b in zip(canvas, text, strict=True)):
            return False
    return True


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_slow_decoder(name):
    for seed, ngram_size in ((11, 2), (12, 3)):
        model = random_model(seed, ngram_size=ngram_size)
        sources, canvases = random_sources(model, 8, seed), random_canvases(8, seed)
        options = {"num_iterations": 6, **OPTIONS[name]}
        input_ids, attention_mask = pad(sources)
        output = model.generate(
            input_ids, attention_mask, decoder_input_ids=pad(canvases)[0], return_dict_in_generate=True, **options
        )
        assert stands(canvases, output.sequences)
        for row, (source, canvas) in enumerate(zip(sources, canvases, strict=True)):
            ((best,), _) = slow_decode(model, source, canvas=canvas, **options)
            assert output.sequences[row, : len(canvas)].tolist() == best.tokens
            assert output.sequences_scores[row].item() == pytest.approx(best.final_score, abs=1e-4)
            assert output.num_passes[row] == best.num_passes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_and_backend_keeps_the_given_tokens(architecture):
    model = random_model(3, **ARCHITECTURES[architecture])
    sources, canvases = random_sources(model, 6, 3), random_canvases(6, 3)
    inputs = {"input_ids": pad(sources)[0], "attention_mask": pad(sources)[1], "decoder_input_ids": pad(canvases)[0]}
    expected = model.generate(**inputs)
    assert stands(canvases, expected)
    assert torch.equal(StaticShapeJMNat(model).generate(**inputs), expected)
    for number, source in enumerate(sources):  # nothing depends on the batch
        alone = model.generate(torch.tensor([source]), decoder_input_ids=torch.tensor([canvases[number]]))
        assert alone[0].tolist() == [token for token in expected[number].tolist() if token != PAD]


def test_a_canvas_of_masks_equals_a_given_length():
    model = random_model(13)
    sources = random_sources(model, 4, 13)
    lengths = torch.tensor([3, 5, 7, 12])
    canvas = torch.where(torch.arange(14) < lengths[:, None], MASK, PAD)
    output = model.generate(pad(sources)[0], decoder_input_ids=canvas, return_dict_in_generate=True)
    assert output.lengths.tolist() == output.candidate_lengths.flatten().tolist() == lengths.tolist()
    for row, length in zip(output.sequences.tolist(), lengths.tolist(), strict=True):
        assert row.index(EOS) == length - 1
    mask = torch.arange(14) < torch.tensor([3, 5, 7, 10])[:, None]
    shorter = model.generate(pad(sources)[0], decoder_input_ids=canvas, decoder_attention_mask=mask)
    assert (shorter != PAD).sum(dim=1).tolist() == [3, 5, 7, 10]


def test_exported_graphs_keep_the_given_tokens(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra `bench` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `bench` is not installed")
    from modeling_jmnat.inference.onnx_runtime import ORTJMNatForConditionalGeneration
    from modeling_jmnat.onnx_export.export import export_onnx

    model = random_model(3)
    export_onnx(model, tmp_path, int8=False)
    sources, canvases = random_sources(model, 6, 3), random_canvases(6, 3)
    inputs = {"input_ids": pad(sources)[0], "attention_mask": pad(sources)[1], "decoder_input_ids": pad(canvases)[0]}
    found = ORTJMNatForConditionalGeneration.from_pretrained(tmp_path).generate(**inputs)
    assert torch.equal(found, model.generate(**inputs))


@pytest.mark.parametrize(
    ("canvas", "options", "sentence"),
    [
        ([[5, 4, 2]], {}, "decoder_input_ids has 1 rows but must have one for each source"),
        ([5, 4, 2], {}, r"decoder_input_ids has shape \(3,\) but must have \(B, T\)"),
        ([[5, 4, 2], [1, 4, 2]], {}, "decoder_input_ids holds padding before other tokens: pad on the right"),
        ([[0], [0]], {}, "decoder_input_ids has rows of 1 to 1 tokens, but each must have 2 to 12"),
        ([[4] * 13] * 2, {}, "decoder_input_ids has rows of 13 to 13 tokens"),
        ([[23, 4, 2]] * 2, {}, r"decoder_input_ids must lie in \[0, 23\)"),
        ([[5, 4, 2]] * 2, {"num_return_sequences": 2}, "leave out target_lengths and num_return_sequences"),
        ([[5, 4, 2]] * 2, {"target_lengths": [3, 3]}, "leave out target_lengths and num_return_sequences"),
    ],
)
def test_invalid_canvases_are_refused(canvas, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        random_model().generate(torch.tensor([[5, 2], [6, 2]]), decoder_input_ids=torch.tensor(canvas), **options)


def test_models_that_copy_the_source_refuse_a_canvas():
    model = random_model(1, decoder_input="source_copy")
    with pytest.raises(ValueError, match="decoder_input_ids is not supported with decoder_input='source_copy'"):
        model.generate(torch.tensor([[5, 2]]), decoder_input_ids=torch.tensor([[4, 2]]), num_iterations=1)


# What training hands over -------------------------------------------------------------------------------------------


def test_decoder_input_ids_of_a_training_batch_are_not_a_canvas():
    """Its `decoder_input_ids` hold half of the reference: scores would be too good."""
    model = random_model(16)
    batch = random_batch(model)
    source = torch.where(batch["encoder_targets"] == -100, batch["input_ids"], batch["encoder_targets"])
    expected = model.generate(source, attention_mask=batch["attention_mask"])
    assert torch.equal(model.generate(**batch), expected)
    for name in ("labels", "masked_positions", "encoder_targets"):
        kept = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask", name)
        part = {**{key: batch[key] for key in kept}, "input_ids": source}
        assert torch.equal(model.generate(**part), expected)
    wanted = model.generate(source, batch["attention_mask"], decoder_input_ids=batch["decoder_input_ids"])
    assert not torch.equal(wanted, expected)


def test_masked_source_tokens_are_put_back_in_every_backend():
    model = random_model(16)
    batch = random_batch(model)
    source = torch.where(batch["encoder_targets"] == -100, batch["input_ids"], batch["encoder_targets"])
    for backend in (model, StaticShapeJMNat(model)):
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "encoder_targets")}
        expected = backend.generate(source, attention_mask=batch["attention_mask"])
        assert torch.equal(backend.generate(**given), expected)
        assert not torch.equal(backend.generate(batch["input_ids"], batch["attention_mask"]), expected)


def test_seq2seq_trainer_translates_the_unmasked_source(tmp_path):
    model = random_model(16, max_target_length=30)
    sources, targets = random_sources(model, 8, 1), random_sources(model, 8, 2)
    rows = [{"input_ids": source, "labels": target} for source, target in zip(sources, targets, strict=True)]

    class Tokenizer:
        pad_token_id, mask_token_id, padding_side = PAD, MASK, "right"
        all_special_ids = [0, 1, 2, 3, 4]

        def __len__(self):
            return 23

    collator = DataCollatorForJMNat(Tokenizer())
    arguments = Seq2SeqTrainingArguments(
        tmp_path, predict_with_generate=True, remove_unused_columns=False, report_to=[], use_cpu=True
    )
    collator_output = collator(rows)
    assert (collator_output["encoder_targets"] != -100).any()
    trainer = Seq2SeqTrainer(model=model, args=arguments, data_collator=collator)
    predicted = trainer.predict(rows).predictions
    expected = model.generate(*pad(sources)).tolist()
    for row, text in zip(predicted.tolist(), expected, strict=True):
        assert [t for t in row if t not in (PAD, -100)] == [t for t in text if t != PAD]
