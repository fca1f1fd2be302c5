"""`DataCollatorForJMNat`: makes padded and masked batches of examples."""

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .masking import choose_source_positions, choose_target_positions, corrupt_tokens, draw_num_masked, draw_uniforms

TARGET_MASKS = ("consecutive", "random", "all")

EVALUATION_SEED = 2020  # evaluation masks are the same for every run, whatever its own seed


class DataCollatorForJMNat:
    """Pads examples and draws the masks of sections 4.1 and 4.2, anew in each epoch.

    The masks of an example depend only on (`seed`, epoch, `id`). Without an `id` (plain `Trainer` drops the column
    unless `remove_unused_columns=False`), a hash of its token ids takes its place. Call `set_epoch` at the start of
    each epoch; worker processes that are already running see it, too. Evaluate with `collator.evaluation()`, which
    leaves the source unmasked and always draws the same target masks.

    Args:
        tokenizer: gives the ids of `<pad>` and `<mask>`, and the special tokens, which are never drawn at random.
        source_mask_ratio: share of source tokens to mask and predict; 0: none.
        target_mask: "consecutive" (the paper), "random" (independent positions; CMLM with `mask_token_prob=1` and
            `random_token_prob=0`) or "all" (the whole target is `<mask>`: training for one decoding pass).
        ngram_size: n of "consecutive".
        mask_token_prob: share of chosen tokens, on both sides, that become `<mask>`.
        random_token_prob: share of chosen tokens that become a random token; the rest stay as they are.
        full_mask_ratio: share of sentences whose whole target is `<mask>`, as in the first decoding pass. Beyond the
            paper, where it is 0.
        correction_ratio: share of the visible target tokens that `JMNatTrainer` replaces by the model's own
            predictions and that it learns to correct (see `own_predictions.py`). Beyond the paper, where it is 0.
        glancing_ratio: in sentences whose whole target is `<mask>`, `JMNatTrainer` shows this many reference tokens
            for each one that the model gets wrong (see `own_predictions.py`). Beyond the paper, where it is 0.
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
    ):
        shares = {
            "source_mask_ratio": source_mask_ratio,
            "mask_token_prob": mask_token_prob,
            "random_token_prob": random_token_prob,
            "full_mask_ratio": full_mask_ratio,
            "correction_ratio": correction_ratio,
            "glancing_ratio": glancing_ratio,
            "mask_token_prob + random_token_prob": mask_token_prob + random_token_prob,
        }
        for name, share in shares.items():
            if not 0.0 <= share <= 1.0 + 1e-9:
                raise ValueError(f"{name} is {share}, it must be between 0 and 1")
        if target_mask not in TARGET_MASKS:
            raise ValueError(f"target_mask is {target_mask!r}, it must be one of {', '.join(TARGET_MASKS)}")
        if glancing_ratio and target_mask != "all" and not full_mask_ratio:
            raise ValueError(
                f"glancing_ratio is {glancing_ratio} and no target is wholly masked: full_mask_ratio must be above 0 "
                "or target_mask 'all'"
            )
        for name, value in {"ngram_size": ngram_size, "pad_to_multiple_of": pad_to_multiple_of}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")
        for name in ("pad_token_id", "mask_token_id"):
            if getattr(tokenizer, name) is None:
                raise ValueError(f"tokenizer has no {name}: it needs a <pad> and a <mask> token")
        self.pad_token_id = tokenizer.pad_token_id
        self.mask_token_id = tokenizer.mask_token_id
        special_ids = set(tokenizer.all_special_ids)
        self.random_token_ids = torch.tensor([i for i in range(len(tokenizer)) if i not in special_ids])
        if random_token_prob > 0.0 and not len(self.random_token_ids):
            raise ValueError("tokenizer has special tokens only: random_token_prob must be 0")
        self.source_mask_ratio = source_mask_ratio
        self.target_mask = target_mask
        self.ngram_size = ngram_size
        self.mask_token_prob = mask_token_prob
        self.random_token_prob = random_token_prob
        self.full_mask_ratio = full_mask_ratio
        self.correction_ratio = correction_ratio
        self.glancing_ratio = glancing_ratio
        self.seed = seed
        self.pad_to_multiple_of = pad_to_multiple_of
        # In shared memory, so that `set_epoch` in the main process is seen by persistent workers.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the masks of the next batches, here and in the workers of a running `DataLoader`."""
        self._epoch.fill_(int(epoch))

    def evaluation(self) -> "DataCollatorForJMNat":
        """A collator for evaluation: no source masks, and the same target masks in every epoch and run."""
        twin = copy.copy(self)
        twin.source_mask_ratio = 0.0
        twin.correction_ratio = 0.0
        twin.glancing_ratio = 0.0
        twin.seed = EVALUATION_SEED
        twin._epoch = torch.zeros((), dtype=torch.int64)  # its own: `set_epoch` here does not reach the twin
        return twin

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate `features`: dicts with `input_ids`, `labels` and preferably an integer `id`; other keys are ignored.

        Padding that they have already (`<pad>`, or -100 in labels) is removed first.

        Returns:
            - `input_ids`, `attention_mask` (B, S), and with a masked source `encoder_targets` (B, S), -100 where
              nothing is to be predicted;
            - `labels` (B, T), the whole target, -100 at padding;
            - `decoder_input_ids`, `decoder_attention_mask`, `masked_positions` (B, T);
            - with `correction_ratio`, `correction_positions` (B, T): the part of `masked_positions` where
              `decoder_input_ids` still hold the reference;
            - with `glancing_ratio`, `glancing_order` (B, T): a random order of the tokens of each fully masked target,
              counted from 0, and -1 elsewhere.

        Raises:
            ValueError: a feature lacks a column or holds no token.
        """
        sources = self._token_rows(features, "input_ids")
        targets = self._token_rows(features, "labels")
        example_ids = [
            example_id({**feature, "input_ids": source, "labels": target})
            for feature, source, target in zip(features, sources, targets, strict=True)
        ]
        input_ids, source_lengths = _pad(sources, self.pad_token_id, self.pad_to_multiple_of)
        target_ids, target_lengths = _pad(targets, self.pad_token_id, self.pad_to_multiple_of)
        # Per example 2 numbers, then 6 per position; nothing depends on how long the others are.
        sizes = (2 + 6 * torch.maximum(source_lengths, target_lengths)).tolist()
        uniforms = draw_uniforms(self.seed, self.epoch, example_ids, sizes)
        of_sentence, of_position = uniforms[:, :2], uniforms[:, 2:].view(len(features), -1, 6)

        batch = self._mask_source(input_ids, source_lengths, of_position[..., :3])
        batch |= self._mask_target(target_ids, target_lengths, of_sentence, of_position[..., 3:])
        return batch

    def _token_rows(self, features: Sequence[dict[str, Any]], column: str) -> list[np.ndarray]:
        """The ids of each feature without padding, which would otherwise be masked and learned."""
        rows = []
        for feature in features:
            if feature.get(column) is None:
                raise ValueError(
                    f"a feature has no {column!r}, only {', '.join(feature)}: input_ids and labels are needed"
                )
            row = np.asarray(feature[column], dtype=np.int64)
            row = row[(row != self.pad_token_id) & (row != -100)]
            if not row.size:
                raise ValueError(f"a feature (id {feature.get('id')}) has empty {column!r}, at least </s> is needed")
            rows.append(row)
        return rows

    def _mask_source(self, input_ids, lengths, uniforms) -> dict[str, torch.Tensor]:
        """Mask input_ids (B, S) with lengths (B,), by uniforms (B, >= S, 3)."""
        is_token = torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)
        attention_mask = is_token.long()
        if self.source_mask_ratio == 0.0:
            return {"input_ids": input_ids, "attention_mask": attention_mask}
        uniforms = _fit(uniforms, input_ids.shape[1])
        chosen = choose_source_positions(lengths, uniforms[..., 0], self.source_mask_ratio)
        return {
            "input_ids": self._corrupt(input_ids, chosen, uniforms[..., 1:]),
            "attention_mask": attention_mask,
            "encoder_targets": input_ids.masked_fill(~chosen, -100),
        }

    def _mask_target(self, target_ids, lengths, of_sentence, uniforms) -> dict[str, torch.Tensor]:
        """Mask target_ids (B, T) with lengths (B,), by of_sentence (B, 2) and uniforms (B, >= T, 3)."""
        is_token = torch.arange(target_ids.shape[1]) < lengths.unsqueeze(1)
        uniforms = _fit(uniforms, target_ids.shape[1])
        set_size = self.ngram_size if self.target_mask == "consecutive" else 1
        num_masked = draw_num_masked(lengths, of_sentence[:, 0])
        masked_positions = choose_target_positions(lengths, num_masked, uniforms[..., 0], set_size)
        decoder_input_ids = self._corrupt(target_ids, masked_positions, uniforms[..., 1:])
        # A fully masked target is the canvas of the first decoding pass and shows nothing of the reference.
        full_mask_ratio = 1.0 if self.target_mask == "all" else self.full_mask_ratio
        is_full = (of_sentence[:, 1] < full_mask_ratio).unsqueeze(1) & is_token
        batch = {
            "labels": target_ids.masked_fill(~is_token, -100),
            "decoder_input_ids": decoder_input_ids.masked_fill(is_full, self.mask_token_id),
            "decoder_attention_mask": is_token.long(),
            "masked_positions": masked_positions | is_full,
        }
        if self.correction_ratio:
            # At visible tokens, the number that chooses how a masked token is shown is unused.
            visible = is_token & ~batch["masked_positions"]
            batch["correction_positions"] = visible & (uniforms[..., 1] < self.correction_ratio)
            batch["masked_positions"] = batch["masked_positions"] | batch["correction_positions"]
        if self.glancing_ratio:
            # In fully masked targets it is unused, too.
            order = uniforms[..., 1].masked_fill(~is_full, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
            batch["glancing_order"] = order.masked_fill(~is_full, -1)
        return batch

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
    """What the masks of an example are drawn from: its `id`, else a hash of its `input_ids` and `labels`."""
    number = feature.get("id")
    if number is not None:
        try:
            return int(number)
        except (TypeError, ValueError):
            raise ValueError(f"id is {number!r}, it must be an integer (or left out)") from None
    source, target = (np.asarray(feature[name], dtype=np.int64) for name in ("input_ids", "labels"))
    digest = hashlib.blake2b(source.tobytes() + b"|" + target.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _pad(rows: list[np.ndarray], pad_token_id: int, multiple: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the right to token ids (B, L), and their lengths (B,)."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    max_length = int(lengths.max())
    if multiple is not None:
        max_length = -(-max_length // multiple) * multiple
    padded = np.full((len(rows), max_length), pad_token_id, dtype=np.int64)
    padded[np.arange(max_length) < lengths[:, None]] = np.concatenate(rows)
    return torch.from_numpy(padded), torch.from_numpy(lengths)


def _fit(uniforms: torch.Tensor, length: int) -> torch.Tensor:
    """Cut (B, L, K) to `length` positions, or fill it up with zeros, which are at padding and not read."""
    missing = length - uniforms.shape[1]
    return torch.nn.functional.pad(uniforms, (0, 0, 0, missing)) if missing > 0 else uniforms[:, :length]
