import pytest
import torch

from modeling_jmnat.baselines.nat_ir import corrupt
from tests.baselines.tiny_systems import batch_of, random_system


def test_a_random_number_that_is_rounded_to_1_is_still_a_token():
    uniforms = torch.tensor([[[0.0, 0.4, float(torch.tensor(1 - 1e-9))]]])
    assert corrupt(torch.tensor([[10]]), torch.tensor([1]), uniforms, 0.5, vocab_size=20).tolist() == [[19]]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([None, None, None, None], [10, 11, 12, 13]),
        ([0.0, None, None, None], [10, 10, 12, 13]),  # replaces the one behind
        ([0.4, None, None, None], [7, 11, 12, 13]),  # becomes a random token
        ([0.9, None, None, None], [11, 10, 12, 13]),  # changes places with the one behind
        ([0.9, 0.9, None, None], [11, 12, 10, 13]),  # from left to right: 10 has moved on
        ([0.0, 0.0, 0.0, None], [10, 10, 10, 10]),
        ([None, None, None, 0.9], [10, 11, 12, 13]),  # the last has none behind it
        ([None, None, None, 0.4], [10, 11, 12, 7]),
    ],
)
def test_corruption_by_hand(kinds, expected):
    uniforms = torch.tensor([[[1.0 if kind is None else 0.0, kind or 0.0, 7.5 / 20] for kind in kinds]])
    tokens = torch.tensor([[10, 11, 12, 13]])
    assert corrupt(tokens, torch.tensor([4]), uniforms, 0.5, vocab_size=20).tolist() == [expected]
    padded = torch.cat([tokens, torch.ones(1, 2, dtype=torch.long)], dim=1)
    more = torch.cat([uniforms, torch.zeros(1, 2, 3)], dim=1)
    assert corrupt(padded, torch.tensor([4]), more, 0.5, vocab_size=20).tolist() == [[*expected, 1, 1]]


def test_each_pass_reads_the_whole_translation_of_the_pass_before():
    model = random_system("nat_ir")
    batch = batch_of(model.config)
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    lengths = torch.tensor([4, 7])
    output = model.generate(**source, target_lengths=lengths, num_length_candidates=1, num_iterations=3,
                            output_history=True, suppress_tokens=[])  # fmt: skip
    target_mask = torch.arange(7) < lengths[:, None]
    read = model.copy_source(**source, target_mask=target_mask)
    for decoded in output.history:
        assert torch.equal(decoded.canvas[:, 0][target_mask], read[target_mask])
        states = model.model(**source, decoder_input_ids=read, decoder_attention_mask=target_mask).last_hidden_state
        read = model.project(states).argmax(dim=-1).masked_fill(~target_mask, model.config.pad_token_id)
        assert torch.equal(decoded.tokens[:, 0], read)
    assert not torch.equal(output.history[0].tokens, output.history[1].tokens)


def test_losses_of_first_and_refining_passes():
    model = random_system("nat_ir", refining_passes=2, length_loss_weight=0.0)
    batch = batch_of(model.config)
    result = model(**batch)
    target_mask = batch["labels"] != -100
    read, losses = model.copy_source(batch["input_ids"], batch["attention_mask"], target_mask), []
    for _ in range(3):
        states = model.model(batch["input_ids"], batch["attention_mask"], read, target_mask).last_hidden_state
        logits = model.project(states)
        losses.append(torch.nn.functional.cross_entropy(logits[target_mask], batch["labels"][target_mask]))
        read = logits.argmax(dim=-1)
    assert torch.isclose(result.nll_loss, losses[0])
    assert torch.isclose(result.system_loss, (losses[1] + losses[2]) / 2)
    assert torch.isclose(result.loss, losses[0] + (losses[1] + losses[2]) / 2)


def test_a_share_of_the_sentences_reads_a_corruption_in_training():
    model = random_system("nat_ir", denoising_share=0.5, corruption=1.0).train()
    labels = torch.tensor([[5, 6, 2], [7, 8, 2]])
    uniforms = torch.zeros(2, 3, 4)  # each token replaces the one behind it
    uniforms[1, 0, 3] = 0.6  # not this sentence
    predictions = torch.full((2, 3), 9)
    assert model.with_corruption(predictions, labels, uniforms, 1).tolist() == [[5, 5, 5], [9, 9, 9]]
    # Drawn anew in the second pass: 0.618 and, of the other sentence, 0.218, where a token becomes a random one.
    uniforms[1, :, 2] = 0.618
    random_id = int((uniforms[1, 0, 2] + 0.618 - 1) * model.config.vocab_size)
    assert model.with_corruption(predictions, labels, uniforms, 2).tolist() == [[9, 9, 9], [random_id] * 3]
    assert torch.equal(model.eval().with_corruption(predictions, labels, uniforms, 1), predictions)
