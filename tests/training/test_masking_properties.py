"""Properties of the collator's masks on arbitrary pairs."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_jmnat import DataCollatorForJMNat
from tests.helpers.arbitrary import examples

PAD, MASK, VOCABULARY = 1, 4, 40
tokens = st.integers(0, VOCABULARY - 1).filter(lambda token: token != PAD)
sentences = st.lists(tokens, min_size=1, max_size=40)
features = st.lists(
    st.builds(lambda source, target: {"input_ids": source, "labels": target}, sentences, sentences),
    min_size=1,
    max_size=5,
)
collator_options = st.fixed_dictionaries(
    {
        "target_mask": st.sampled_from(["consecutive", "random", "all"]),
        "ngram_size": st.integers(1, 4),
        "seed": st.integers(0, 2**40),
        "full_mask_ratio": st.sampled_from([0.0, 0.5, 1.0]),
        "correction_ratio": st.sampled_from([0.0, 0.3]),
        "second_mask_ratio": st.sampled_from([0.0, 0.6]),
        "pad_to_multiple_of": st.sampled_from([None, 8]),
    }
).filter(lambda options: not (options["correction_ratio"] and options["second_mask_ratio"]))


class Tokenizer:
    pad_token_id, mask_token_id, padding_side = PAD, MASK, "right"
    all_special_ids = [0, 1, 2, 3, 4]

    def __len__(self):
        return VOCABULARY


def rows_of(batch):
    """What each example gets, without padding."""
    rows = []
    for number in range(len(batch["labels"])):
        widths = {name: int(batch[f"{name}attention_mask"][number].sum()) for name in ("", "decoder_")}
        of_source = ("input_ids", "encoder_targets", "attention_mask")
        rows.append(
            {
                name: values[number, : widths["" if name in of_source else "decoder_"]].tolist()
                for name, values in batch.items()
            }
        )
    return rows


@examples(150)
@given(pairs=features, options=collator_options, epoch=st.integers(0, 1000), with_id=st.booleans(), data=st.data())
def test_number_of_masks_follows_the_paper_and_depends_only_on_the_example(pairs, options, epoch, with_id, data):
    collator = DataCollatorForJMNat(Tokenizer(), **options)
    collator.set_epoch(epoch)
    if with_id:
        pairs = [{**pair, "id": number} for number, pair in enumerate(pairs)]
    batch = collator(pairs)
    rows = rows_of(batch)
    for pair, row in zip(pairs, rows, strict=True):
        size = len(pair["input_ids"])
        chosen = [i for i, target in enumerate(row["encoder_targets"]) if target != -100]
        assert len(chosen) == max(1, round(0.1 * size))
        assert row["labels"] == pair["labels"]
        for i, (shown, own) in enumerate(zip(row["input_ids"], pair["input_ids"], strict=True)):
            assert shown == own or i in chosen
            assert row["encoder_targets"][i] in (-100, own)
            assert shown in (own, MASK) or shown > 4
        assert any(row["masked_positions"])
        for shown, own, masked in zip(row["decoder_input_ids"], row["labels"], row["masked_positions"], strict=True):
            assert shown == own or (masked and (shown == MASK or shown > 4))
        assert row.get("second_mask_order", [-1])[0] == -1 or sorted(row["second_mask_order"]) == [
            *range(len(pair["labels"]))
        ]
        if options["target_mask"] == "all" or options["full_mask_ratio"] == 1.0:
            assert {*row["decoder_input_ids"]} == {MASK}
    outside = batch["decoder_attention_mask"] == 0
    assert (batch["labels"] == -100).equal(outside)
    assert (batch["decoder_input_ids"][outside] == PAD).all()
    assert not batch["masked_positions"][outside].any()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == PAD).all()
    order = data.draw(st.permutations(range(len(pairs))))
    assert rows_of(collator([pairs[i] for i in order])) == [rows[i] for i in order]
    assert [rows_of(collator([pair]))[0] for pair in pairs] == rows
    state = torch.get_rng_state()
    collator(pairs)
    assert torch.equal(torch.get_rng_state(), state)
