"""A lexical shortlist: which target tokens a source can call for, so that the decoder projects onto these alone.

The table holds the most probable translations of each source token, by IBM model 1 (Brown et al. 1993) over the
training pairs, beside the most frequent target tokens, which every source may call for.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from ..teacher.model import tokenizer_digest

TENSORS = {"table": 2, "always": 1}  # of a file, with their numbers of axes
DIGEST = "tokenizer_sha256"  # metadata of a file
SHORTLIST_FILE = "shortlist.safetensors"
MAX_LINKS = 20_000_000  # about as many pairs of a source and a target token are counted; more data change little
ROUNDS = 3  # of expectation maximisation
SPECIAL_TOKENS = 5  # `<s>`, `<pad>`, `</s>`, `<unk>`, `<mask>`


class Shortlist:
    """What `generate(..., shortlist=...)` takes.

    Args:
        table: (V, n) target tokens of each source token, -1 where there are fewer.
        always: (m,) target tokens of every source.
        digest: `tokenizer_digest` of the tokenizer that made the ids; None where it is not known.
    """

    def __init__(self, table: torch.Tensor, always: torch.Tensor, digest: str | None = None):
        self.table, self.always, self.digest = table.long(), always.long(), digest

    def ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(N,) rising target tokens that any of the sources (B, S) may call for, and the special tokens.

        Raises:
            ValueError: a token beyond the table.
        """
        source = input_ids.unique()
        if source.numel() and int(source[-1]) >= self.table.shape[0]:
            raise ValueError(
                f"input_ids holds {int(source[-1])}, the shortlist knows tokens below {self.table.shape[0]}"
            )
        found = self.table.to(source.device)[source].flatten()
        return torch.cat([found[found >= 0], self.always.to(source.device)]).unique()

    def save(self, directory: str | Path) -> Path:
        path = Path(directory) / SHORTLIST_FILE
        metadata = None if self.digest is None else {DIGEST: self.digest}
        save_file({"table": self.table.int(), "always": self.always.int()}, path, metadata)
        return path

    @classmethod
    def load(cls, path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> "Shortlist":
        """From a file, or a folder that holds one.

        Args:
            tokenizer: of the model that is to decode with it.

        Raises:
            ValueError: there is none, or it was built with another tokenizer.
        """
        path = Path(path) / SHORTLIST_FILE if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise ValueError(f"{path} does not exist: run_scripts/build_shortlist.py writes it")
        shortlist = cls(*read_shortlist(path))
        if tokenizer is not None:
            shortlist.check_tokenizer(tokenizer, path)
        return shortlist

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
        """Refuse a shortlist that is not the tokenizer's: it would translate into nonsense or fail on the way."""
        size, rows = len(tokenizer), self.table.shape[0]
        highest = max(int(ids.max(initial=-1)) for ids in (self.table.numpy(), self.always.numpy()))
        if rows < size or highest >= size:
            raise ValueError(
                f"shortlist={path} has {rows} source tokens and target tokens up to {highest}, "
                f"the tokenizer has {size} tokens: they do not belong together"
            )
        digest = tokenizer_digest(tokenizer)
        if self.digest not in (None, digest):
            raise ValueError(
                f"shortlist={path} was built with another tokenizer (hash {self.digest[:12]}) than the model's (hash "
                f"{digest[:12]}): build it from the model's data with run_scripts/build_shortlist.py"
            )


def read_shortlist(path: Path) -> tuple[torch.Tensor, torch.Tensor, str | None]:
    """`table`, `always` and `digest` of a file; ValueError for anything else than a whole shortlist."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError:
        tensors, metadata = {}, None
    if {name: tensor.ndim for name, tensor in tensors.items()} != TENSORS:
        raise ValueError(f"shortlist={path} is no shortlist: give a file that run_scripts/build_shortlist.py wrote")
    return tensors["table"], tensors["always"], (metadata or {}).get(DIGEST)


def translation_links(pairs: Iterable[tuple[Sequence[int], Sequence[int]]], vocab_size: int):
    """All pairs of a source and a target token of one sentence: (L,) keys source * V + target, (L,) target positions.

    A target position is a number of its own for each target token of the data. Of more data than `MAX_LINKS` allows,
    sentences from beginning to end are taken at even distances.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("a shortlist needs at least one pair of sentences, there is none")
    num_links = sum(len(source) * len(target) for source, target in pairs)
    num_taken = max(1, len(pairs) * MAX_LINKS // max(num_links, MAX_LINKS))
    keys, owners, num_targets = [], [], 0
    for number in range(num_taken):
        source, target = pairs[number * len(pairs) // num_taken]
        source, target = np.asarray(source, dtype=np.int64), np.asarray(target, dtype=np.int64)
        keys.append((source[:, None] * vocab_size + target[None]).ravel())
        owners.append(
            np.broadcast_to(np.arange(num_targets, num_targets + len(target)), (len(source), len(target))).ravel()
        )
        num_targets += len(target)
    return np.concatenate(keys), np.concatenate(owners)


def translation_probabilities(pairs: Iterable[tuple[Sequence[int], Sequence[int]]], vocab_size: int):
    """IBM model 1: source tokens (P,), target tokens (P,) and p(target | source) (P,) of all pairs counted.

    Raises:
        ValueError: no pairs.
    """
    keys, owners = translation_links(pairs, vocab_size)
    kinds, link_kind = np.unique(keys, return_inverse=True)
    source, target = kinds // vocab_size, kinds % vocab_size
    probs = np.ones(len(kinds))
    for _ in range(ROUNDS):
        shares = probs[link_kind]
        shares /= np.bincount(owners, weights=shares)[owners]  # of each target token, over the tokens of its source
        counts = np.bincount(link_kind, weights=shares, minlength=len(kinds))
        probs = counts / np.bincount(source, weights=counts)[source]
    return source, target, probs


def build_shortlist(
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]], vocab_size: int, per_token: int = 50, frequent: int = 200
) -> Shortlist:
    """From pairs of source and target ids.

    Args:
        per_token: n, the most probable translations of each source token.
        frequent: how many of the most frequent target tokens every source may call for.

    Raises:
        ValueError: no pairs, or a size below 1.
    """
    for name, value in (("per_token", per_token), ("frequent", frequent)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    pairs = list(pairs)
    source, target, probs = translation_probabilities(pairs, vocab_size)
    order = np.lexsort((-probs, source))
    source, target = source[order], target[order]
    first = np.searchsorted(source, source)  # where the translations of the same token begin
    rank = np.arange(len(source)) - first
    width = min(per_token, vocab_size)  # no token has more translations
    table = np.full((vocab_size, width), -1, dtype=np.int64)
    inside = rank < width
    table[source[inside], rank[inside]] = target[inside]
    counts = np.bincount(np.concatenate([np.asarray(labels) for _, labels in pairs]), minlength=vocab_size)
    most = np.argsort(-counts, kind="stable")[:frequent]
    always = np.union1d(most, np.arange(SPECIAL_TOKENS))
    return Shortlist(torch.from_numpy(table), torch.from_numpy(always))
