"""The CRF itself is tested in tests/model/test_crf.py."""

import torch

from tests.baselines.tiny_systems import batch_of, random_system


def dcrf():
    model = random_system("nat_dcrf")
    with torch.no_grad():
        model.crf.left.weight.mul_(8)
        model.crf.right.weight.mul_(8)
    return model


def states_of(model, source, target_mask):
    read = model.copy_source(**source, target_mask=target_mask)
    return read, model.model(**source, decoder_input_ids=read, decoder_attention_mask=target_mask).last_hidden_state


def test_decoding_takes_the_best_path_of_each_candidate():
    model = dcrf()
    batch = batch_of(model.config)
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    lengths = torch.tensor([4, 6])
    found = model.generate(**source, target_lengths=lengths, num_length_candidates=1, suppress_tokens=[],
                           output_history=True)  # fmt: skip
    target_mask = torch.arange(6) < lengths[:, None]
    read, states = states_of(model, source, target_mask)
    positions = torch.arange(6).expand(2, 6)
    chosen = (states, model.project(states), read, positions, target_mask, target_mask, 8)
    tokens, log_probs = model.crf.best_path(*chosen)
    assert torch.equal(found.history[0].tokens[:, 0][target_mask], tokens[target_mask])
    assert not torch.equal(tokens, model.project(states).argmax(dim=-1))
    # Marginals alone: those of JM-NAT are means of them and the network's.
    model.crf.network_share = 0.5
    network = model.project(states).log_softmax(dim=-1).gather(2, tokens[..., None])[..., 0]
    means = model.crf.best_path(*chosen)[1]
    assert torch.allclose((log_probs + network)[target_mask] / 2, means[target_mask], atol=1e-5)
    assert torch.equal(found.history[0].log_probs[:, 0][target_mask], log_probs[target_mask])


def test_the_loss_weighs_the_crf_twice_as_much_as_the_tokens():
    model = dcrf()
    batch = batch_of(model.config)
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    outputs, is_token = model(**source, labels=batch["labels"]), batch["labels"] != -100
    _, states = states_of(model, source, is_token)
    crf_loss = model.crf.loss(states, model.project(states[is_token]), batch["labels"], is_token) / is_token.sum()
    assert torch.isclose(outputs.crf_loss, crf_loss)
    lengths = model.config.length_loss_weight * outputs.length_loss
    assert torch.isclose(outputs.loss, outputs.nll_loss + 2 * crf_loss + lengths)
