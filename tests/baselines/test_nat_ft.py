import pytest
import torch

from modeling_jmnat.baselines.nat_ft import copy_by_fertility, fertilities_of, sample_fertilities
from tests.baselines.tiny_systems import batch_of, random_system, random_teacher_of


def test_copies_by_hand():
    ids = torch.tensor([[10, 11, 12, 2], [13, 2, 1, 1]])
    fertilities = torch.tensor([[2, 0, 1, 1], [3, 1, 0, 0]])
    assert copy_by_fertility(ids, fertilities, 4).tolist() == [[10, 10, 12, 2], [13, 13, 13, 2]]
    assert copy_by_fertility(ids, fertilities, 2).tolist() == [[10, 10], [13, 13]]
    assert copy_by_fertility(ids[:1], fertilities[:1], 6).tolist() == [[10, 10, 12, 2, 2, 2]]
    left = torch.tensor([[1, 10, 2]])  # padding on the left is read by nobody
    assert copy_by_fertility(left, torch.tensor([[0, 2, 1]]), 3).tolist() == [[10, 10, 2]]


def test_fertilities_by_hand():
    """Three target tokens behind three source tokens, and a shorter pair with padding on both sides."""
    attention = torch.tensor(
        [
            [[0.2, 0.3, 0.5], [0.4, 0.3, 0.3], [0.9, 0.1, 0.0]],  # `</s>` gets the last target token alone
            [[0.0, 0.9, 0.1], [0.5, 0.5, 0.0], [0.9, 0.1, 0.0]],
        ]
    )
    source_mask = torch.tensor([[True, True, True], [True, True, False]])
    target_mask = torch.tensor([[True, True, True], [True, True, False]])
    assert fertilities_of(attention, source_mask, target_mask).tolist() == [[1, 1, 1], [1, 1, 0]]
    attention[0, 0] = torch.tensor([0.6, 0.2, 0.2])
    assert fertilities_of(attention, source_mask, target_mask).tolist() == [[2, 0, 1], [1, 1, 0]]
    alone = fertilities_of(attention[:1, :, :1], source_mask[:1, :1], target_mask[:1])  # a source of `</s>` alone
    assert alone.tolist() == [[3]]


def test_samples_follow_the_distribution():
    log_probs = torch.tensor([0.25, 0.5, 0.25]).log().expand(1, 2, 3)
    uniforms = torch.tensor([0.0, 0.2, 0.3, 0.7, 0.8, 0.9999999]).expand(1, 2, 6)
    assert sample_fertilities(log_probs, uniforms)[0, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_training_reads_the_source_by_the_teachers_attention():
    model, teacher = random_system("nat_ft"), random_teacher_of(23)
    batch = batch_of(model.config)
    with torch.no_grad():
        hints = model.hints(batch, teacher, 1.0)
    assert torch.equal(hints["fertilities"].sum(dim=1), (batch["labels"] != -100).sum(dim=1))
    assert not hints["fertilities"][batch["attention_mask"] == 0].any()
    result = model(**batch, **hints)
    states = model.model.encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    log_probs = model.fertility_head(states).log_softmax(dim=-1)
    expected = -log_probs.gather(2, hints["fertilities"][..., None])[batch["attention_mask"].bool()].sum()
    assert torch.isclose(result.system_loss, expected / (batch["labels"] != -100).sum())


def test_noisy_parallel_decoding():
    model, teacher = random_system("nat_ft", max_fertility=3, max_target_length=30), random_teacher_of(23)
    with torch.no_grad():
        model.fertility_head.weight.mul_(4)
    batch = batch_of(model.config)
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states, mask, _ = model.encode_for_generation(**source)
    fertilities = model.candidate_fertilities(states, mask, source["input_ids"], 20)
    assert torch.equal(fertilities[:, 0], model.fertility_head(states).argmax(dim=-1).masked_fill(~mask, 0))
    assert len({tuple(row.tolist()) for row in fertilities[0]}) > 5
    assert not fertilities.transpose(1, 2)[~mask].any()
    fewer = model.candidate_fertilities(states[1:], mask[1:], source["input_ids"][1:], 20)
    assert torch.equal(fewer[0], fertilities[1])  # a sentence's samples are its own
    found = model.generate(**source, num_length_candidates=20, reranker=teacher, return_dict_in_generate=True)
    assert torch.equal(found.candidate_lengths, fertilities.sum(dim=-1).clamp(min=2, max=30))
    plain = model.generate(**source, num_length_candidates=20, return_dict_in_generate=True, num_return_sequences=20)
    rows = found.best_candidates[:, 0]
    for sentence in range(2):  # what the teacher chose is one of the candidates
        place = plain.best_candidates[sentence].tolist().index(int(rows[sentence]))
        width = found.sequences.shape[1]
        candidate = plain.sequences.view(2, 20, -1)[sentence, place, :width]
        assert torch.equal(found.sequences[sentence, : len(candidate)], candidate)


def test_fine_tuning_against_a_slow_twin():
    """In the last updates: the teacher's expected surprise word by word, and REINFORCE for the fertilities."""
    model, teacher = random_system("nat_ft", fine_tuning_begin=0.75, max_fertility=3).train(), random_teacher_of(23)
    batch = batch_of(model.config) | {"uniforms": torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(1))}
    hints = {progress: model.hints(batch, teacher, progress) for progress in (0.7, 0.75)}
    assert model.eval().hints(batch, teacher, 1.0)["guide"] is None
    assert hints[0.7]["guide"] is None
    results = [model(**batch, **found) for found in hints.values()]
    added = (results[1].system_loss - results[0].system_loss) * (batch["labels"] != -100).sum()

    states, mask, _ = model.encode_for_generation(batch["input_ids"], batch["attention_mask"])
    log_probs, expected = model.fertility_head(states).log_softmax(dim=-1), 0.0
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        draws = batch["uniforms"][row, :length, 0]
        sampled = sample_fertilities(log_probs[row : row + 1, :length], draws[None, :, None])[0, :, 0]
        surprises = []
        for fertilities in (sampled, log_probs[row, :length].argmax(dim=-1)):
            source = batch["input_ids"][row : row + 1, :length]
            size = min(max(int(fertilities.sum()), 2), model.config.max_target_length)
            read = copy_by_fertility(source, fertilities[None], size)
            decoded = model.model.decoder(read, encoder_hidden_states=states[row : row + 1, :length])
            probs = model.project(decoded.last_hidden_state)[0].softmax(dim=-1)  # (T, V)
            surprise, words = 0.0, [teacher.config.decoder_start_token_id]
            for position in range(size):
                theirs = teacher(input_ids=source, decoder_input_ids=torch.tensor([words])).logits[0, -1]
                surprise = surprise - (probs[position] * theirs.log_softmax(dim=-1).detach()).sum()
                words.append(int(probs[position].argmax()))
            surprises.append((surprise, surprise.detach() / size))
        chosen = log_probs[row, range(length), sampled].sum()
        expected = expected + surprises[0][0] + (surprises[0][1] - surprises[1][1]) * chosen
    assert torch.isclose(added, expected / 3, rtol=1e-4)
    parameters = [model.fertility_head.weight, model.model.decoder.layers[0].fc1.weight]
    for mine, other in zip(*(torch.autograd.grad(x, parameters) for x in (added, expected / 3)), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_lengths_are_not_for_the_caller_to_set():
    model = random_system("nat_ft")
    with pytest.raises(ValueError, match="target_lengths is not supported by a nat_ft model"):
        model.generate(torch.tensor([[5, 2]]), target_lengths=[3])
