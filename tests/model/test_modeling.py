"""The network and its loss: against the loop-written twin, and what must not change a result."""

import copy
import math

import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM
from transformers.utils import find_labels

from modeling_jmnat import JMNatForConditionalGeneration, JMNatModel
from modeling_jmnat.modeling_jmnat import decoder_attend_mask, sinusoidal_positions
from tests.helpers.random_models import ARCHITECTURES, pad, random_batch, random_config, random_model, random_sources
from tests.helpers.reference_decoder import SlowModel, slow_loss

PARTS = ("nll_loss", "encoder_loss", "ngram_loss", "length_loss")


def logits_of(model, sources, targets, side="right", extra=0):
    input_ids, attention_mask = pad(sources, side, extra=extra)
    canvas, target_mask = pad(targets, extra=extra)
    with torch.no_grad():
        return model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=canvas,
            decoder_attention_mask=target_mask,
        )


def assert_close(actual, expected, tolerance=2e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


# ------------------------------------------------------------------------------------------------------- architecture


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padded_batch_equals_the_slow_model_on_each_sentence(architecture, backend):
    model = random_model(1, backend, **ARCHITECTURES[architecture])
    slow = SlowModel(model)
    sources = random_sources(model, 3, seed=3)
    targets = [*random_sources(model, 2, seed=4), [7]]  # a single token: with no-self masks it may see itself alone
    expected = [slow(source, target) for source, target in zip(sources, targets, strict=True)]
    for side in ("right", "left"):
        outputs = logits_of(model, sources, targets, side, extra=2)
        for row, (logits, length_logits, _) in enumerate(expected):
            assert_close(outputs.logits[row, : len(logits)].double(), logits)
            assert_close(outputs.length_logits[row, 1:].double(), length_logits[1:])
    assert outputs.length_logits.log_softmax(dim=-1)[:, 0].exp().eq(0).all()


def test_attention_is_bidirectional_without_any_padding():
    """Transformers' SDPA is causal where there is no mask and the module does not say otherwise."""
    for architecture in ("self_visible", "jmnat"):
        model = random_model(2, "sdpa", **ARCHITECTURES[architecture])
        source, target = [5, 6, 7, 8, 2], [9, 10, 11, 2]
        first = logits_of(model, [source], [target])
        later_target = logits_of(model, [source], [[9, 10, 11, 12]])
        assert (first.logits[0, 0] - later_target.logits[0, 0]).abs().max() > 1e-3
        later_source = logits_of(model, [[5, 6, 7, 9, 2]], [target])
        change = (first.encoder_last_hidden_state - later_source.encoder_last_hidden_state)[0, 0]
        assert change.abs().max() > 1e-3
        canvas, states = torch.tensor([target]), first.encoder_last_hidden_state
        without_mask = model.model.decoder(canvas, encoder_hidden_states=states).last_hidden_state
        with_mask = model.model.decoder(canvas, None, states, torch.ones(1, len(source))).last_hidden_state
        assert_close(without_mask, with_mask)


def test_no_position_attends_to_itself_unless_it_is_alone():
    lengths = torch.tensor([1, 2, 4])
    mask = torch.arange(4) < lengths[:, None]
    attend = decoder_attend_mask(mask, exclude_self=True).expand(3, 1, 4, 4)[:, 0]
    assert attend[0, 0].tolist() == [True, False, False, False]
    assert attend[1, :2].tolist() == [[False, True, False, False], [True, False, False, False]]
    assert torch.equal(attend[2], ~torch.eye(4, dtype=torch.bool))
    assert attend.any(dim=2).all()  # nowhere an empty softmax, in padding either
    empty = torch.zeros(2, 4, dtype=torch.bool)
    for exclude_self in (True, False):
        assert decoder_attend_mask(empty, exclude_self).any(dim=-1).all()
    model = random_model(attn_implementation="eager")
    with torch.no_grad():
        outputs = model(torch.tensor([[5, 6, 2]]), decoder_input_ids=torch.tensor([[4, 4]]), output_attentions=True)
    for weights in outputs.decoder_attentions:
        assert torch.equal(weights, torch.eye(2).flip(0).expand_as(weights))


def test_equal_words_are_distinguished_by_their_positions():
    model = random_model(4)
    logits = logits_of(model, [[5, 6, 7, 2]], [[4] * 6]).logits[0]
    assert (logits[1:] - logits[:-1]).abs().amax(dim=1).gt(1e-2).all()


def test_sinusoids_are_fairseqs():
    table = sinusoidal_positions(4, 6, torch.device("cpu"))
    angles = [3 * 10000 ** (-i / 2) for i in range(3)]
    assert_close(table[3], torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles]))


def test_shared_encoder_rows_equal_repeated_ones():
    """The decoder takes fewer source rows than canvas rows: consecutive rows share one."""
    model = random_model(5)
    sources = random_sources(model, 2, seed=8)
    canvases = random_sources(model, 6, seed=9)
    input_ids, mask = pad(sources)
    canvas, target_mask = pad(canvases)
    decoder = model.model.decoder
    with torch.no_grad():
        states = model.model.encoder(input_ids, mask).last_hidden_state
        shared = decoder(canvas, target_mask, states, mask).last_hidden_state
        repeated = decoder(
            canvas, target_mask, states.repeat_interleave(3, dim=0), mask.repeat_interleave(3, dim=0)
        ).last_hidden_state
        state = decoder.prepare_state(target_mask.bool(), mask.bool(), states)
        cached = decoder(canvas, state=state).last_hidden_state
    for hidden_states in (shared, cached):
        assert_close(hidden_states[target_mask.bool()], repeated[target_mask.bool()])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_at_wanted_positions_equal_those_among_all(architecture):
    """With few feed-forward rows: the last layer's are those of the wanted positions alone."""
    model = random_model(6, **ARCHITECTURES[architecture])
    input_ids, mask = pad(random_sources(model, 2, seed=8))
    canvas, target_mask = pad(random_sources(model, 6, seed=9))
    wanted = torch.stack([torch.randperm(canvas.shape[1])[:3] for _ in canvas])
    layers, rows = model.model.decoder.layers, []
    for layer in layers:
        layer.fc1.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[1]))
    with torch.no_grad():
        state = model.prepare_decoding(
            model.model.encoder(input_ids, mask).last_hidden_state, mask.bool(), target_mask.bool()
        )
        everywhere = model.model.decoder(canvas, state=state).last_hidden_state
        chosen = model.model.decoder(canvas, state=state, wanted_positions=wanted).last_hidden_state
    assert_close(chosen, torch.stack([states[index] for states, index in zip(everywhere, wanted, strict=True)]))
    assert rows[len(layers) :] == [canvas.shape[1]] * (len(layers) - 1) + [3]


# --------------------------------------------------------------------------------------------------- ways to call it


def test_inputs_embeds_equal_input_ids():
    model = random_model(3)
    batch = random_batch(model)
    decoder_mask = batch["decoder_attention_mask"]
    embed = model.get_input_embeddings()
    with torch.no_grad():
        by_ids = model(batch["input_ids"], batch["attention_mask"], batch["decoder_input_ids"], decoder_mask)
        by_embeddings = model(
            attention_mask=batch["attention_mask"],
            inputs_embeds=embed(batch["input_ids"]),
            decoder_inputs_embeds=embed(batch["decoder_input_ids"]),
            decoder_attention_mask=decoder_mask,
        )
    assert torch.equal(by_ids.logits, by_embeddings.logits)
    with pytest.raises(ValueError, match="masked_positions is missing"):
        model(batch["input_ids"], decoder_inputs_embeds=embed(batch["decoder_input_ids"]), labels=batch["labels"])
    with pytest.raises(ValueError, match="exactly one of token ids and embeddings"):
        model(batch["input_ids"], inputs_embeds=embed(batch["input_ids"]), decoder_input_ids=batch["input_ids"])


def test_encoder_outputs_are_reused():
    model = random_model(3)
    batch = random_batch(model)
    names = ("attention_mask", "decoder_input_ids", "decoder_attention_mask")
    rest = {name: batch[name] for name in names}
    calls = []
    model.model.encoder.register_forward_hook(lambda *args: calls.append(1))
    with torch.no_grad():
        expected = model(batch["input_ids"], **rest)
        named = model.model.encoder(batch["input_ids"], batch["attention_mask"])
        tupled = model.model.encoder(batch["input_ids"], batch["attention_mask"], return_dict=False)
        assert isinstance(tupled, tuple)
        calls.clear()
        for encoder_outputs in (named, tupled):
            outputs = model(encoder_outputs=encoder_outputs, **rest)
            assert torch.equal(outputs.logits, expected.logits)
            assert torch.equal(outputs.length_logits, expected.length_logits)
    assert not calls


def test_missing_masks_are_derived_from_padding():
    model = random_model(3)
    batch = random_batch(model)
    with torch.no_grad():
        given = model(**batch)
        for name in ("attention_mask", "decoder_attention_mask"):
            batch.pop(name)
        left_out = model(**batch)
        canvas = model(batch["input_ids"], labels=batch["labels"])
        all_masks = batch["labels"].ne(-100) * 4 + batch["labels"].eq(-100) * 1
        written = model(batch["input_ids"], decoder_input_ids=all_masks, labels=batch["labels"])
    assert torch.equal(given.loss, left_out.loss)
    assert torch.equal(given.logits, left_out.logits)
    assert torch.equal(canvas.loss, written.loss)
    with pytest.raises(ValueError, match="decoder_input_ids is missing"):
        model(batch["input_ids"])


def test_tuple_output_has_the_same_order():
    model = random_model(3)
    batch = random_batch(model)
    with torch.no_grad():
        named, tupled = model(**batch), model(**batch, return_dict=False)
    assert isinstance(tupled, tuple)
    assert torch.equal(tupled[0], named.loss)
    assert torch.equal(tupled[1], named.logits)
    for one, other in zip(named.to_tuple(), tupled, strict=True):
        assert torch.equal(one, other)


def test_labels_removed_by_a_trainer_are_reported():
    model = random_model(3)
    batch = random_batch(model)
    del batch["labels"]
    assert model(**batch).loss is None
    with pytest.raises(ValueError, match="labels is missing: Trainer removes it when label_smoothing_factor is set"):
        model.train()(**batch)


def test_hidden_states_and_attentions_on_request():
    model = random_model(3, "eager")
    batch = random_batch(model, batch_size=2)
    num_rows, source_length = batch["input_ids"].shape
    target_length = batch["labels"].shape[1]
    with torch.no_grad():
        outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    config = model.config
    *with_length_token, last = outputs.encoder_hidden_states
    assert [x.shape for x in with_length_token] == [(num_rows, source_length + 1, 16)] * 2
    assert torch.equal(last, outputs.encoder_last_hidden_state)
    assert [x.shape for x in outputs.decoder_hidden_states] == [(num_rows, target_length, 16)] * 3
    expected = {
        "encoder_attentions": (config.encoder_attention_heads, source_length + 1, source_length + 1),
        "decoder_attentions": (config.decoder_attention_heads, target_length, target_length),
        "cross_attentions": (config.decoder_attention_heads, target_length, source_length),
    }
    for name, shape in expected.items():
        assert [x.shape[1:] for x in outputs[name]] == [shape] * 2, name
        for weights in outputs[name]:
            assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    padding = batch["attention_mask"] == 0
    assert outputs.cross_attentions[0].transpose(1, 3)[padding].eq(0).all()


def test_labels_are_the_only_label_names():
    """Trainers take every argument with `label` in its name for a label."""
    assert find_labels(JMNatForConditionalGeneration) == ["labels"]


def test_errors_of_length_name_the_field():
    model = JMNatForConditionalGeneration(random_config(max_position_embeddings=5, max_target_length=4))
    with pytest.raises(ValueError, match="JMNatEncoder got 6 tokens, more than max_position_embeddings=5"):
        model(torch.full((1, 6), 7), decoder_input_ids=torch.full((1, 4), 4))
    with pytest.raises(ValueError, match="JMNatDecoder got 5 tokens, more than max_target_length=4"):
        model(torch.full((1, 5), 7), labels=torch.full((1, 5), 7))
    for position_embedding_type in ("learned", "sinusoidal"):  # both limits can be reached
        config = random_config(
            max_position_embeddings=3, max_target_length=7, position_embedding_type=position_embedding_type
        )
        model = JMNatForConditionalGeneration(config).eval()
        assert model(torch.full((1, 3), 7), labels=torch.full((1, 7), 7)).logits.shape == (1, 7, 23)


# --------------------------------------------------------------------------------------------------------------- loss


def without_padding(batch):
    """The collator's batch as lists for the slow twins."""
    sentences = []
    for row in range(len(batch["labels"])):
        source = batch["attention_mask"][row].bool()
        target = batch["labels"][row] != -100
        names = {"input_ids": source, "encoder_targets": source}
        names.update(dict.fromkeys(("decoder_input_ids", "labels", "masked_positions"), target))
        sentence = {name: batch[name][row][kept].tolist() for name, kept in names.items()}
        sentence["masked"] = sentence.pop("masked_positions")
        sentences.append(sentence)
    return sentences


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"ngram_size": 3, "ngram_loss_weight": 0.7, "encoder_loss_weight": 0.3, "label_smoothing": 0.2},
        {"ngram_alignment": "gold", "ngram_loss_weight": 1.0, "length_loss_weight": 2},
        {"normalize_before": True, "ngram_size": 1, "label_smoothing": 0.0},
        {"length_smoothing": 0.7},
    ],
)
def test_loss_and_parts_equal_the_slow_ones(overrides):
    model = random_model(6, dropout=0.0, **overrides)
    slow = SlowModel(model)
    batch = random_batch(model, 5, side="left")
    sentences = without_padding(batch)
    outputs = [slow(sentence["input_ids"], sentence["decoder_input_ids"]) for sentence in sentences]
    logits, length_logits, encoder_logits = zip(*outputs, strict=True)
    expected, parts = slow_loss(model.config, sentences, logits, length_logits, encoder_logits)
    for training in (False, True):  # no dropout in either; in training only masked positions are projected
        with torch.no_grad():
            result = model.train(training)(**batch)
        assert (result.logits is None) == training
        assert result.loss.item() == pytest.approx(expected, rel=1e-5)
        for name in PARTS:
            assert result[name].item() == pytest.approx(parts[name], rel=1e-4, abs=1e-6), name
        config = model.config
        weighted = (
            result.nll_loss
            + config.encoder_loss_weight * result.encoder_loss
            + config.ngram_loss_weight * result.ngram_loss
            + config.length_loss_weight * result.length_loss
        )
        assert result.loss.item() == pytest.approx(weighted.item(), rel=1e-6)


def test_masked_positions_default_to_mask_tokens():
    model = random_model(6)
    batch = random_batch(model)
    batch["masked_positions"] = batch["decoder_input_ids"] == model.config.mask_token_id
    with torch.no_grad():
        given = model(**batch).loss
        everywhere = {**batch, "masked_positions": batch["masked_positions"] | (batch["labels"] == -100)}
        assert torch.equal(given, model(**everywhere).loss)  # padding is not predicted
        batch.pop("masked_positions")
        assert torch.equal(given, model(**batch).loss)


def test_losses_of_a_split_batch_with_global_denominators_sum_to_the_whole():
    model = random_model(7)
    batch = random_batch(model, 6)
    denominators = torch.tensor([batch["masked_positions"].sum().item(), 6.0])

    def losses_and_gradients(batches):
        model.zero_grad()
        sums = dict.fromkeys(("loss", *PARTS), 0.0)
        for part in batches:
            result = model(**part, loss_denominators=denominators)
            result.loss.backward()
            for name in sums:
                sums[name] += result[name].item()
        return sums, {name: p.grad.clone() for name, p in model.named_parameters()}

    pieces = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    whole, whole_gradients = losses_and_gradients([batch])
    split, split_gradients = losses_and_gradients(pieces)
    assert whole["loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-6)  # its own counts are the same
    for name, value in whole.items():
        assert split[name] == pytest.approx(value, rel=1e-5), name
    for name, gradient in whole_gradients.items():
        assert_close(split_gradients[name], gradient)


def test_parts_that_are_switched_off_are_none_and_cost_nothing():
    model = random_model(6, ngram_loss_weight=0.0, length_loss_weight=0, encoder_loss_weight=0.0)
    batch = random_batch(model)
    with torch.no_grad():
        result = model(**batch)
    assert result.loss == result.nll_loss
    assert [getattr(result, name) for name in PARTS[1:]] == [None] * 3
    model = random_model(6)
    batch.pop("encoder_targets")
    with torch.no_grad():
        result = model(**batch)
    assert result.encoder_loss is None
    assert result.encoder_logits is None


def test_loss_without_masked_positions_is_finite():
    model = random_model(6)
    batch = random_batch(model)
    batch["masked_positions"][:] = False
    batch["encoder_targets"][:] = -100
    result = model(**batch)
    assert result.nll_loss == 0
    assert result.encoder_loss == 0
    assert result.ngram_loss == 0
    result.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_only_masked_positions_are_projected_in_training():
    model = random_model(6).train()
    batch = random_batch(model)
    rows = []
    model.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.numel() // output.shape[-1]))
    model(**batch)
    assert rows == [batch["masked_positions"].sum(), (batch["encoder_targets"] != -100).sum()]


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_checkpointing_changes_nothing(architecture, use_reentrant):
    model = random_model(6, **{"dropout": 0.0, **ARCHITECTURES[architecture]}).train()
    batch = random_batch(model)
    plain = model(**batch)
    plain.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    calls = []
    model.model.decoder.layers[0].fc1.register_forward_hook(lambda *args: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    result = model(**batch)
    result.loss.backward()
    assert len(calls) == 2  # forward and recomputed
    assert torch.equal(result.loss, plain.loss)
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, gradients[name])


def test_dropout_is_active_only_in_training():
    model = random_model(6, dropout=0.4)
    batch = random_batch(model)
    with torch.no_grad():
        assert model(**batch).loss == model(**batch).loss
        model.train()
        assert model(**batch).loss != model(**batch).loss


def test_every_parameter_gets_a_gradient():
    for overrides in ARCHITECTURES.values():
        model = random_model(6, **overrides)
        model(**random_batch(model)).loss.backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        # Softmax does not depend on what is added to all scores of a query.
        assert [name for name in missing if "k_proj.bias" not in name] == []


@pytest.mark.parametrize("normalize_before", [False, True])
def test_training_on_one_batch_brings_the_loss_down(normalize_before):
    torch.manual_seed(0)
    model = JMNatForConditionalGeneration(
        random_config(normalize_before=normalize_before, dropout=0.0, label_smoothing=0.0)
    ).train()
    batch = random_batch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        result = model(**batch)
        result.loss.backward()
        optimizer.step()
        losses.append(result)
    assert losses[-1].nll_loss < 0.1 * losses[0].nll_loss
    assert losses[-1].length_loss < 0.1 * losses[0].length_loss
    assert losses[-1].ngram_loss < 0.5 * losses[0].ngram_loss


# ------------------------------------------------------------------------------------------- source copy (basic NAT)


def test_source_copy_reads_tokens_of_the_source_and_predicts_all():
    model = random_model(8, decoder_input="source_copy")
    sources = [[5, 6, 7, 2], [8, 9, 10, 11, 12, 2]]
    labels = [[13, 14, 15, 16, 17, 2], [13, 14, 2]]
    copies = [[5, 5, 6, 7, 7, 2], [8, 10, 12]]  # source token floor(t S / T)
    expected = logits_of(copy_free(model), sources, copies)
    for side in ("right", "left"):
        input_ids, attention_mask = pad(sources, side)
        targets, _ = pad(labels, value=-100)
        with torch.no_grad():
            outputs = model(input_ids, attention_mask, labels=targets)
            asked = model(input_ids, attention_mask, decoder_input_ids=targets.clamp(min=0) + targets.eq(-100).long())
        for row, copied in enumerate(copies):
            assert_close(outputs.logits[row, : len(copied)], expected.logits[row, : len(copied)])
            assert_close(asked.logits[row, : len(copied)], expected.logits[row, : len(copied)])
        log_probs = outputs.logits.log_softmax(dim=-1)
        nll = torch.nn.functional.cross_entropy(
            log_probs.flatten(0, 1), targets.flatten(), label_smoothing=model.config.label_smoothing
        )
        assert outputs.nll_loss.item() == pytest.approx(nll.item(), rel=1e-5)
    with pytest.raises(ValueError, match="input_ids is missing"):
        model(inputs_embeds=model.get_input_embeddings()(input_ids), labels=targets)


def copy_free(model):
    """The same weights, reading what they are given."""
    twin = JMNatForConditionalGeneration(random_config()).eval()
    twin.load_state_dict(model.state_dict())
    return twin


# ------------------------------------------------------------------------------------------------------ loading, types


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_and_loaded_gives_the_same_logits(architecture, tmp_path):
    model = random_model(9, **ARCHITECTURES[architecture])
    batch = random_batch(model)
    with torch.no_grad():
        expected = model(**batch)
    model.save_pretrained(tmp_path)
    garbage = [torch.full((100, 100), math.nan) for _ in range(10)]  # freed memory that nothing may be read from
    del garbage
    loaded, report = JMNatForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        actual = loaded(**batch)
    for name in ("logits", "length_logits", "loss"):
        assert torch.equal(actual[name], expected[name]), name
    automatic = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert type(automatic) is JMNatForConditionalGeneration
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is JMNatModel
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    with torch.no_grad():
        states = base(**{name: batch[name] for name in names}).last_hidden_state
    assert torch.equal(model.lm_head(states), expected.logits)


def test_one_embedding_matrix_in_memory_and_after_loading(tmp_path):
    model = random_model(9)
    model.save_pretrained(tmp_path)
    for one in (model, JMNatForConditionalGeneration.from_pretrained(tmp_path), copy.deepcopy(model)):
        pointers = {
            one.lm_head.weight.data_ptr(),
            one.model.shared.weight.data_ptr(),
            one.model.encoder.embed_tokens.weight.data_ptr(),
            one.model.decoder.embed_tokens.weight.data_ptr(),
        }
        assert len(pointers) == 1
    untied = random_model(9, tie_word_embeddings=False)
    assert untied.lm_head.weight.data_ptr() != untied.model.shared.weight.data_ptr()
    ids = torch.tensor([[5, 6, 2]])
    embeddings = untied.get_input_embeddings()(ids)  # the table that the encoder reads
    assert torch.equal(untied.generate(inputs_embeds=embeddings), untied.generate(ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_close(dtype, tmp_path):
    model = random_model(9)
    batch = random_batch(model)
    with torch.no_grad():
        expected = model(**batch)
    model.to(dtype).save_pretrained(tmp_path)
    loaded = JMNatForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    for backend in ("eager", "sdpa"):
        loaded.set_attn_implementation(backend)
        with torch.no_grad():
            result = loaded(**batch)
        assert result.loss.dtype == torch.float32
        assert result.logits.dtype == dtype
        assert result.logits.isfinite().all()
        assert result.loss.item() == pytest.approx(expected.loss.item(), rel=0.1)
    loaded.train()
    loaded(**batch).loss.backward()
    assert all(p.grad.isfinite().all() for p in loaded.parameters() if p.grad is not None)
    ids = loaded.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], num_iterations=3)
    assert ids.shape[0] == 4


@pytest.mark.parametrize("tied", [True, False])
def test_vocabulary_can_be_resized(tied, tmp_path):
    model = random_model(9, tie_word_embeddings=tied)
    batch = random_batch(model)
    with torch.no_grad():
        expected = model(**batch).logits
    model.resize_token_embeddings(30)
    assert model.config.vocab_size == 30
    model.save_pretrained(tmp_path)
    for resized in (model, JMNatForConditionalGeneration.from_pretrained(tmp_path)):
        tables = (resized.lm_head, resized.model.decoder.embed_tokens, resized.get_input_embeddings())
        assert len({table.weight.data_ptr() for table in tables}) == (1 if tied else 3)
        with torch.no_grad():
            logits = resized(**batch).logits
        assert logits.shape[-1] == 30
        assert_close(logits[..., :23], expected)
        ids = resized.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        assert ids.max() < 30


def test_initialisation_follows_its_field():
    torch.manual_seed(0)
    fairseq = JMNatForConditionalGeneration(random_config(vocab_size=2000, d_model=64))
    weight = fairseq.model.shared.weight
    assert weight[5:].std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert weight[fairseq.config.pad_token_id].eq(0).all()
    bound = math.sqrt(6 / (64 + 64))
    projection = fairseq.model.decoder.layers[0].position_attn.q_proj
    assert 0.9 * bound < projection.weight.abs().max() <= bound
    assert projection.bias.eq(0).all()
    mask_predict = JMNatForConditionalGeneration(random_config(vocab_size=2000, d_model=64, init_std=0.02))
    for module in (mask_predict.model.shared, mask_predict.model.encoder.layers[0].fc1):
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_flash_attention_is_refused():
    with pytest.raises(ValueError, match="Flash Attention"):
        random_model(attn_implementation="flash_attention_2")


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="it compiles no model of Transformers 5.17")
@pytest.mark.slow
def test_compiled_forward_equals_eager():
    model = random_model(10, encoder_layers=1, decoder_layers=1)  # compiling more of the same takes longer
    compiled = torch.compile(model, dynamic=True)
    for seed in range(3):
        batch = random_batch(model, 2 + seed, seed=seed)
        batch.pop("labels")
        with torch.no_grad():
            assert_close(compiled(**batch).logits, model(**batch).logits)
