"""`DataCollatorForJMNat`: padded and masked batches of examples."""

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .masking import (
    choose_source_positions,
    choose_target_positions,
    corrupt_tokens,
    draw_num_masked,
    draw_uniforms,
    mix_seed,
)

TARGET_MASKS = ("consecutive", "random", "all")
# Arguments of the collator that are shares in [0, 1]; some may be None.
SHARES = (
    *("source_mask_ratio", "source_mask_ratio_full", "mask_token_prob", "random_token_prob", "full_mask_ratio"),
    *("correction_ratio", "glancing_ratio", "glancing_ratio_end", "second_mask_ratio", "length_noise"),
)

EVALUATION_SEED = 2020  # evaluation masks are the same in every run, whatever its seed
# Mixed with the seed for the draws of later additions, so that the masks of the paper do not change.
SECOND_MASK_DRAW, LENGTH_DRAW = 1, 2


class DataCollatorForJMNat:
    """Pads examples and draws the masks of sections 4.1 and 4.2, new ones in each epoch.

    The masks of an example depend only on (`seed`, epoch, `id`). Without an `id` (plain `Trainer` drops the column
    unless `remove_unused_columns=False`), a hash of its token ids is used. Call `set_epoch` at the start of each
    epoch; worker processes that are already running see it. Evaluate with `collator.evaluation()`, which leaves the
    source unmasked and always draws the same target masks.

    Args:
        tokenizer: provides the ids of `<pad>` and `<mask>`, and the special tokens, which are never drawn at random.
        source_mask_ratio: share of source tokens to mask and predict; 0: none.
        target_mask: "consecutive" (the paper), "random" (independent positions; CMLM with `mask_token_prob=1` and
            `random_token_prob=0`) or "all" (the whole target is `<mask>`: training for one decoding pass).
        ngram_size: n of "consecutive".
        mask_token_prob: share of chosen tokens, on both sides, that become `<mask>`.
        random_token_prob: share of chosen tokens that become a random token; the rest are left unchanged.
        source_mask_ratio_full: the source's mask ratio where the whole target is masked. The ratio changes linearly
            from `source_mask_ratio` to this with the masked share of the target, which is adaptive masking of the
            source as in AMOM (Xiao et al. 2023). None: always `source_mask_ratio`, as in the paper.
        full_mask_ratio: share of sentences whose whole target is `<mask>`, as in the first decoding pass. Not in the
            paper, where it is 0.
        correction_ratio: share of the visible target tokens that `JMNatTrainer` replaces by the model's own
            predictions, which it learns to correct (see `own_predictions.py`). Not in the paper, where it is 0.
        glancing_ratio: in sentences whose whole target is `<mask>`, `JMNatTrainer` reveals this many reference tokens
            for each token that the model gets wrong (see `own_predictions.py`). Not in the paper, where it is 0.
        glancing_ratio_end: glancing ratio of the last step, to which it changes linearly. None: no change.
        second_mask_ratio: share of sentences in which `JMNatTrainer` masks the model's own predictions a second time
            (AMOM; see `own_predictions.py`). Not in the paper, where it is 0.
        length_noise: share of sentences whose target gets a second `</s>`, as on a canvas that is one token too long.
            The model's length loss ignores it. Not in the paper, where it is 0.
        seed: seed of the masks.
        pad_to_multiple_of: pad S and T to a multiple of this, for tensor cores.

    Raises:
        ValueError: an argument is out of range, or the tokenizer lacks a token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        source_mask_ratio: float = 0.1,
        target_mask: str = "consecutive",
        ngram_size: int = 2,
        mask_token_prob: float = 0.8,
        random_token_prob: float = 0.1,
        full_mask_ratio: float = 0.0,
        seed: int = 0,
        pad_to_multiple_of: int | None = None,
        correction_ratio: float = 0.0,
        glancing_ratio: float = 0.0,
        glancing_ratio_end: float | None = None,
        source_mask_ratio_full: float | None = None,
        second_mask_ratio: float = 0.0,
        length_noise: float = 0.0,
    ):
        self.pad_token_id = tokenizer.pad_token_id
        self.mask_token_id = tokenizer.mask_token_id
        self.eos_token_id = getattr(tokenizer, "eos_token_id", None)
        special_ids = set(tokenizer.all_special_ids)
        self.vocab_size = len(tokenizer)  # `JMNatTrainer` sets that of its model, which may be larger
        self.random_token_ids = torch.tensor([i for i in range(len(tokenizer)) if i not in special_ids])
        self.source_mask_ratio = source_mask_ratio
        self.target_mask = target_mask
        self.ngram_size = ngram_size
        self.mask_token_prob = mask_token_prob
        self.random_token_prob = random_token_prob
        self.full_mask_ratio = full_mask_ratio
        self.correction_ratio = correction_ratio
        self.glancing_ratio = glancing_ratio
        self.glancing_ratio_end = glancing_ratio_end
        self.source_mask_ratio_full = source_mask_ratio_full
        self.second_mask_ratio = second_mask_ratio
        self.length_noise = length_noise
        self.seed = seed
        self.pad_to_multiple_of = pad_to_multiple_of
        # In shared memory, so that persistent workers see `set_epoch` of the main process.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._check()

    def _check(self) -> None:
        """Reject arguments that are out of range or contradict each other, and tokenizers that lack a token."""
        shares = {name: getattr(self, name) for name in SHARES}
        shares["mask_token_prob + random_token_prob"] = self.mask_token_prob + self.random_token_prob
        for name, share in shares.items():
            if share is not None and not 0.0 <= share <= 1.0 + 1e-9:
                raise ValueError(f"{name}={share} must be between 0 and 1")
        if self.target_mask not in TARGET_MASKS:
            raise ValueError(f"target_mask={self.target_mask!r} is not one of {', '.join(TARGET_MASKS)}")
        if self.glancing_ratio and self.target_mask != "all" and not self.full_mask_ratio:
            raise ValueError(
                f"glancing_ratio={self.glancing_ratio} needs fully masked targets: set full_mask_ratio above 0 or "
                "target_mask='all'"
            )
        if self.glancing_ratio_end is not None and not self.glancing_ratio:
            raise ValueError(
                f"glancing_ratio_end={self.glancing_ratio_end} needs a glancing_ratio above 0, where the ratio begins"
            )
        if self.second_mask_ratio and self.correction_ratio:
            raise ValueError(
                f"second_mask_ratio={self.second_mask_ratio} and correction_ratio={self.correction_ratio} both "
                "replace tokens by the model's own predictions: set only one of them"
            )
        for name in ("ngram_size", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name in ("pad_token_id", "mask_token_id"):
            if getattr(self, name) is None:
                raise ValueError(f"tokenizer has no {name}: it needs a <pad> and a <mask> token")
        if self.length_noise and self.eos_token_id is None:
            raise ValueError(
                f"length_noise={self.length_noise} needs a tokenizer with an eos_token_id, which is added to targets"
            )
        if self.random_token_prob > 0.0 and not len(self.random_token_ids):
            raise ValueError(
                f"random_token_prob={self.random_token_prob} must be 0: the tokenizer has only special tokens"
            )

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the masks of the next batches, also in the workers of a running `DataLoader`."""
        self._epoch.fill_(int(epoch))

    def evaluation(self) -> "DataCollatorForJMNat":
        """A collator for evaluation: no source masks, and the same target masks in every epoch and run."""
        twin = copy.copy(self)
        twin.source_mask_ratio = 0.0
        twin.source_mask_ratio_full = None
        twin.second_mask_ratio = 0.0
        twin.length_noise = 0.0
        twin.correction_ratio = 0.0
        twin.glancing_ratio = 0.0
        twin.seed = EVALUATION_SEED
        twin._epoch = torch.zeros((), dtype=torch.int64)  # not shared, so that `set_epoch` does not affect the twin
        return twin

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate `features`: dicts with `input_ids`, `labels` and preferably an integer `id`; other keys are ignored.

        Existing padding (`<pad>`, or -100 in labels) is removed first.

        Returns:
            - `input_ids`, `attention_mask` (B, S), and if the source is masked, `encoder_targets` (B, S), -100 where
              nothing is to be predicted;
            - `labels` (B, T), the whole target, -100 at padding; with `length_noise`, some have a second `</s>`;
            - `decoder_input_ids`, `decoder_attention_mask`, `masked_positions` (B, T);
            - with `correction_ratio`, `correction_positions` (B, T): the part of `masked_positions` where
              `decoder_input_ids` still hold the reference;
            - with `glancing_ratio`, `glancing_order` (B, T): ranks from 0 of the tokens of each fully masked target in
              a random order, and -1 elsewhere;
            - with `second_mask_ratio`, `second_mask_order` (B, T): such ranks for each target that is masked twice.
              With glancing, these do not include fully masked targets.

        Raises:
            ValueError: a feature lacks a column, has no token in it, or has an id that is not in the vocabulary.
        """
        sources = self._token_rows(features, "input_ids")
        targets = self._token_rows(features, "labels")
        example_ids = [
            example_id({**feature, "input_ids": source, "labels": target})
            for feature, source, target in zip(features, sources, targets, strict=True)
        ]
        if self.length_noise:
            targets = self._lengthened(targets, example_ids)
        input_ids, source_lengths = _pad(sources, self.pad_token_id, self.pad_to_multiple_of)
        target_ids, target_lengths = _pad(targets, self.pad_token_id, self.pad_to_multiple_of)
        # 2 numbers for each example, then 6 for each position, whatever the lengths of the other examples.
        sizes = (2 + 6 * torch.maximum(source_lengths, target_lengths)).tolist()
        uniforms = draw_uniforms(self.seed, self.epoch, example_ids, sizes)
        of_sentence, of_position = uniforms[:, :2], uniforms[:, 2:].view(len(features), -1, 6)

        # A fully masked target is the canvas of the first decoding pass; no token of it is random or left unchanged.
        is_full = of_sentence[:, 1] < (1.0 if self.target_mask == "all" else self.full_mask_ratio)
        num_masked = draw_num_masked(target_lengths, of_sentence[:, 0]).where(~is_full, target_lengths)
        source_ratio = self._source_ratio(num_masked / target_lengths.double())
        batch = self._mask_source(input_ids, source_lengths, source_ratio, of_position[..., :3])
        batch |= self._mask_target(target_ids, target_lengths, num_masked, is_full, of_position[..., 3:])
        if self.second_mask_ratio:
            rows = ~is_full if self.glancing_ratio else torch.ones_like(is_full)
            batch["second_mask_order"] = self._second_mask_order(example_ids, batch["labels"] != -100, rows)
        return batch

    def _lengthened(self, targets: list[np.ndarray], example_ids: list[int]) -> list[np.ndarray]:
        """The targets, with a second `</s>` for those that are drawn and end in `</s>`."""
        seed, end = mix_seed(self.seed, LENGTH_DRAW), self.eos_token_id
        draws = draw_uniforms(seed, self.epoch, example_ids, [1] * len(targets))[:, 0] < self.length_noise
        drawn = zip(targets, draws.tolist(), strict=True)
        return [np.append(target, end) if longer and target[-1] == end else target for target, longer in drawn]

    def _source_ratio(self, target_shares: torch.Tensor) -> float | torch.Tensor:
        """The share of source tokens to mask, for shares (B,) of masked target tokens."""
        start, end = self.source_mask_ratio, self.source_mask_ratio_full
        return start if end is None else start + (end - start) * target_shares

    def _token_rows(self, features: Sequence[dict[str, Any]], column: str) -> list[np.ndarray]:
        """The ids of each feature without padding, which would otherwise be masked and learned.

        Raises:
            ValueError: a feature lacks the column, has no token in it, or has an id that is not in the vocabulary.
        """
        rows = []
        for feature in features:
            if feature.get(column) is None:
                raise ValueError(
                    f"a feature has no {column!r}, only {', '.join(feature)}: input_ids and labels are needed"
                )
            row = np.asarray(feature[column], dtype=np.int64)
            row = row[(row != self.pad_token_id) & (row != -100)]
            if not row.size:
                raise ValueError(f"a feature (id {feature.get('id')}) has empty {column!r}: at least </s> is needed")
            rows.append(row)
        check_known_ids(features, column, rows, self.vocab_size)
        return rows

    def _mask_source(self, input_ids, lengths, ratio, uniforms) -> dict[str, torch.Tensor]:
        """Mask a share of input_ids (B, S) with lengths (B,), by uniforms (B, >= S, 3)."""
        is_token = torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)
        attention_mask = is_token.long()
        if not self.source_mask_ratio and not self.source_mask_ratio_full:
            return {"input_ids": input_ids, "attention_mask": attention_mask}
        uniforms = _fit(uniforms, input_ids.shape[1])
        chosen = choose_source_positions(lengths, uniforms[..., 0], ratio)
        return {
            "input_ids": self._corrupt(input_ids, chosen, uniforms[..., 1:]),
            "attention_mask": attention_mask,
            "encoder_targets": input_ids.masked_fill(~chosen, -100),
        }

    def _mask_target(self, target_ids, lengths, num_masked, is_full, uniforms) -> dict[str, torch.Tensor]:
        """Mask num_masked (B,) tokens of target_ids (B, T) with lengths (B,), by uniforms (B, >= T, 3)."""
        is_token = torch.arange(target_ids.shape[1]) < lengths.unsqueeze(1)
        is_full = is_full.unsqueeze(1) & is_token
        uniforms = _fit(uniforms, target_ids.shape[1])
        set_size = self.ngram_size if self.target_mask == "consecutive" else 1
        masked_positions = choose_target_positions(lengths, num_masked, uniforms[..., 0], set_size)
        decoder_input_ids = self._corrupt(target_ids, masked_positions, uniforms[..., 1:])
        batch = {
            "labels": target_ids.masked_fill(~is_token, -100),
            "decoder_input_ids": decoder_input_ids.masked_fill(is_full, self.mask_token_id),
            "decoder_attention_mask": is_token.long(),
            "masked_positions": masked_positions,
        }
        if self.correction_ratio:
            # Visible tokens do not use the number that chooses between <mask>, a random token and no change.
            visible = is_token & ~batch["masked_positions"]
            batch["correction_positions"] = visible & (uniforms[..., 1] < self.correction_ratio)
            batch["masked_positions"] = batch["masked_positions"] | batch["correction_positions"]
        if self.glancing_ratio:
            # Nor do fully masked targets.
            batch["glancing_order"] = _order(uniforms[..., 1], is_full)
        return batch

    def _second_mask_order(self, example_ids, is_token: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """`second_mask_order` (B, T) for the targets that are drawn among `rows` (B,)."""
        seed, sizes = mix_seed(self.seed, SECOND_MASK_DRAW), 1 + is_token.sum(dim=1)
        uniforms = _fit(draw_uniforms(seed, self.epoch, example_ids, sizes.tolist())[..., None], 1 + is_token.shape[1])
        takes_part = rows & (uniforms[:, 0, 0] < self.second_mask_ratio)
        return _order(uniforms[:, 1:, 0], takes_part[:, None] & is_token)

    def _corrupt(self, token_ids, chosen, uniforms) -> torch.Tensor:
        return corrupt_tokens(
            token_ids,
            chosen,
            uniforms,
            self.mask_token_id,
            self.random_token_ids,
            self.mask_token_prob,
            self.random_token_prob,
        )


def example_id(feature: dict[str, Any]) -> int:
    """The number that seeds the masks of an example: its `id`, or else a hash of its `input_ids` and `labels`.

    Raises:
        ValueError: `id` is not an integer.
    """
    number = feature.get("id")
    if number is not None:
        try:
            return int(number)
        except (TypeError, ValueError):
            raise ValueError(f"id={number!r} must be an integer (or left out)") from None
    source, target = (np.asarray(feature[name], dtype=np.int64) for name in ("input_ids", "labels"))
    digest = hashlib.blake2b(source.tobytes() + b"|" + target.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def check_known_ids(features: Sequence[dict], column: str, rows: Sequence, vocab_size: int) -> None:
    """ValueError for an id in one of the `rows`, which stand in a column of the features, that no model has."""
    ids = np.concatenate(rows)  # tested at once, because a test of each row would take longer
    if ids.min() >= 0 and ids.max() < vocab_size:
        return
    for feature, row in zip(features, map(np.asarray, rows), strict=True):
        for unknown in row[(row < 0) | (row >= vocab_size)]:
            raise ValueError(
                f"a feature (id {feature.get('id')}) has the token id {unknown} in {column!r}, and the vocabulary has "
                f"{vocab_size} ids, from 0: encode the data with the model's tokenizer"
            )


def _pad(rows: list[np.ndarray], pad_token_id: int, multiple: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the right to token ids (B, L), and their lengths (B,)."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    max_length = int(lengths.max())
    if multiple is not None:
        max_length = -(-max_length // multiple) * multiple
    padded = np.full((len(rows), max_length), pad_token_id, dtype=np.int64)
    padded[np.arange(max_length) < lengths[:, None]] = np.concatenate(rows)
    return torch.from_numpy(padded), torch.from_numpy(lengths)


def _order(uniforms: torch.Tensor, takes_part: torch.Tensor) -> torch.Tensor:
    """Ranks from 0 of the numbers (B, T) that take part (B, T) within their row; -1 for the others."""
    ranks = uniforms.masked_fill(~takes_part, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
    return ranks.masked_fill(~takes_part, -1)


def _fit(uniforms: torch.Tensor, length: int) -> torch.Tensor:
    """Cut (B, L, K) to `length` positions, or append zeros, which are at padding and never read."""
    missing = length - uniforms.shape[1]
    return torch.nn.functional.pad(uniforms, (0, 0, 0, missing)) if missing > 0 else uniforms[:, :length]
