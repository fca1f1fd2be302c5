"""Glossaries: target terms that stand in the translation of every sentence that holds their source terms.

Where a translation lacks a term, the word that depends most on the source term gives way to it: the one that becomes
least probable when the source term is masked. The word before it, often an article, is predicted anew; the rest stays.
L tokens of a translation, W words of it, S source tokens.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ..modeling_jmnat import JMNatForConditionalGeneration
from ..utils.id_batches import pad_batch
from ..utils.text_files import iterate_lines
from .cuda_graphs import StaticShapeJMNat

# A word goes with the one that depends most on a source term where it depends on it by this share as much.
SHARE_OF_DEPENDENCE = 0.8
ROWS_AT_ONCE = 16  # of a sentence's words, each masked in a canvas of its own
# Options that decide about several candidates of a sentence: a translation with terms is one.
OF_CANDIDATES = ("num_length_candidates", "num_beams", "num_return_sequences", "reranker", "streamer")


def whole(term: str) -> str:
    """A pattern of `term` with no letter, digit or `_` beside it, and any white space between its words."""
    return r"(?<!\w)" + r"\s+".join(re.escape(word) for word in term.split()) + r"(?!\w)"


class Glossary:
    """What source terms must become.

    A source term counts where it stands whole, in any case; of those that overlap the first and longest. Its target
    term then stands in the translation once at least, as it is written here.

    Args:
        terms: target terms by source terms.
    """

    def __init__(self, terms: Mapping[str, str]):
        self.terms = {
            " ".join(source.split()).casefold(): " ".join(target.split()) for source, target in terms.items()
        }
        if not self.terms or not all((*self.terms, *self.terms.values())):
            raise ValueError("a glossary needs at least one term, and no empty ones")
        longest_first = sorted((" ".join(source.split()) for source in terms), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(whole, longest_first)), re.IGNORECASE)

    @classmethod
    def read(cls, path: str | Path) -> "Glossary":
        """From lines of a source term, a tab and a target term; ValueError for others, by the line's number."""
        terms: dict[str, str] = {}
        for number, line in enumerate(iterate_lines(path), start=1):
            columns = [column.strip() for column in line.split("\t")]
            if columns == [""]:
                continue
            if len(columns) != 2 or not all(columns):
                raise ValueError(f"{path}: line {number} must be a source term, a tab and a target term")
            source, target = columns
            if terms.setdefault(source.casefold(), target) != target:
                raise ValueError(f"{path}: line {number} gives {source!r} another target term than a line before")
        if not terms:
            raise ValueError(f"{path}: the glossary is empty, at least one line is needed")
        return cls(terms)

    def found(self, sentence: str) -> dict[str, re.Match]:
        """The target terms that its translation must hold, with the first of their source terms."""
        found: dict[str, re.Match] = {}
        for match in self.pattern.finditer(sentence):
            target = self.terms.get(" ".join(match[0].split()).casefold())
            if target is not None:
                found.setdefault(target, match)
        return found

    def missing(self, sentence: str, translation: str) -> dict[str, re.Match]:
        """Those of `found` that a translation lacks."""
        terms = self.found(sentence).items()
        return {term: match for term, match in terms if not re.search(whole(term), translation)}

    def check(self, model: Any, tokenizer: Any) -> None:
        """ValueError for a backend that gives no probabilities, and for a term that the tokenizer cannot write."""
        if not isinstance(network_of(model), JMNatForConditionalGeneration):
            raise ValueError("a glossary needs a JM-NAT model and the backend torch or cuda_graphs")
        for term in self.terms.values():
            written = tokenizer.decode(ids_of(tokenizer, term), skip_special_tokens=True).strip()
            if written != term:
                raise ValueError(f"the model cannot write the target term {term!r}, it would become {written!r}")


def network_of(model: Any) -> Any:
    return model.model if isinstance(model, StaticShapeJMNat) else model


def ids_of(tokenizer: Any, term: str) -> list[int]:
    return tokenizer(text_target=term, add_special_tokens=False)["input_ids"]


def words_of(tokenizer: Any, ids: Sequence[int]) -> list[list[int]]:
    """Ids of each word (W); signs without a letter or digit are words of their own."""
    keys, number, before = [], 0, ""
    for index, token in enumerate(ids):
        text = tokenizer.decode(ids[: index + 1])
        is_sign = not re.search(r"\w", tokenizer.decode([token]))
        if is_sign or len(text.split()) > len(before.split()):
            number += 1
        keys.append(number)
        before, number = text, number + is_sign
    return [
        [token for _, token in group] for _, group in groupby(zip(keys, ids, strict=True), key=lambda pair: pair[0])
    ]


@torch.no_grad()
def word_log_probs(
    network: JMNatForConditionalGeneration, source: Sequence[int], words: list[list[int]]
) -> torch.Tensor:
    """Mean log-probability (W,) of each word's tokens where it alone is masked, of a source of ids (S,)."""
    config, device = network.config, network.device
    flat = [token for word in words for token in word] + [config.eos_token_id]
    positions = torch.arange(len(flat), device=device)
    ends = torch.tensor([len(word) for word in words], device=device).cumsum(dim=0)[:, None]
    masked = (positions < ends) & (positions >= torch.nn.functional.pad(ends, (0, 0, 1, 0))[:-1])  # (W, L)
    targets = torch.tensor(flat, device=device)
    found = []
    for canvases in torch.where(masked, config.mask_token_id, targets).split(ROWS_AT_ONCE):
        sources = torch.tensor([source], device=device).expand(len(canvases), -1)
        log_probs = network(input_ids=sources, decoder_input_ids=canvases).logits.float().log_softmax(dim=-1)
        found.append(log_probs.gather(2, targets.expand(len(canvases), -1)[..., None])[..., 0])  # (rows, L)
    return (torch.cat(found) * masked).sum(dim=1) / masked.sum(dim=1)


def place_term(
    network: JMNatForConditionalGeneration,
    source: Sequence[int],
    without: Sequence[int],
    words: list[list[int]],
    fixed: list[bool],
    term: list[int],
) -> tuple[list[list[int]], list[bool]]:
    """Words with `term` in place of what depends most on its source term, and whether each is a term of the glossary.

    Args:
        source, without: ids of the source as it is, and with its term masked.
        fixed: whether each of the words is such a term already.
    """
    if all(fixed):
        return [*words, term], [*fixed, True]
    losses = word_log_probs(network, source, words) - word_log_probs(network, without, words)
    losses = losses.masked_fill(torch.tensor(fixed, device=losses.device), -torch.inf)
    begin = end = int(losses.argmax())
    least = SHARE_OF_DEPENDENCE * losses[begin].clamp(min=0.0)
    while begin > 0 and losses[begin - 1] > least:
        begin -= 1
    while end + 1 < len(words) and losses[end + 1] > least:
        end += 1
    return [*words[:begin], term, *words[end + 1 :]], [*fixed[:begin], True, *fixed[end + 1 :]]


def shorten(words: list[list[int]], fixed: list[bool], most: int) -> None:
    """Drop the last words that are no terms until at most `most` tokens are left."""
    while sum(map(len, words)) > most and not all(fixed):
        last = len(fixed) - 1 - fixed[::-1].index(False)
        del words[last], fixed[last]


def translate_with_terms(
    model: Any,
    tokenizer: Any,
    sentence: str,
    token_ids: Sequence[int],
    glossary: Glossary,
    **options,
) -> Any:
    """A `JMNatGenerateOutput` of one sentence whose text holds every term; None where the translation does already.

    Args:
        token_ids: of the translation as it came out without a glossary, without special tokens.
        options: of `generate`.
    """
    missing, network, config = glossary.missing(sentence, tokenizer.decode(token_ids)), network_of(model), model.config
    if not missing:
        return None
    source = tokenizer(sentence)["input_ids"]
    words = words_of(tokenizer, token_ids)
    present = [term for term in glossary.found(sentence) if term not in missing]
    texts = [tokenizer.decode(word).strip() for word in words]
    fixed = [bool(text) and any(re.search(whole(text), term) for term in present) for text in texts]
    shorten(words, fixed, config.max_target_length - 1)
    for term, match in missing.items():
        without = tokenizer(sentence[: match.start()] + tokenizer.mask_token + sentence[match.end() :])["input_ids"]
        words, fixed = place_term(network, source, without, words, fixed, ids_of(tokenizer, term))
        shorten(words, fixed, config.max_target_length - 1)
    input_ids, attention_mask = pad_batch([source], config.pad_token_id, model.device)
    options = {name: value for name, value in options.items() if name not in OF_CANDIDATES}
    options |= {"return_dict_in_generate": True, "num_return_sequences": 1}
    for anew in (True, False):  # not the word before a term, if it runs into the term
        canvas: list[int] = []
        for word, stands, before_term in zip(words, fixed, [*fixed[1:], False], strict=True):
            canvas += [config.mask_token_id] * len(word) if anew and before_term and not stands else word
        canvas_ids = torch.tensor([[*canvas, config.eos_token_id]], device=model.device)
        output = model.generate(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=canvas_ids, **options
        )
        if not glossary.missing(sentence, tokenizer.decode(output.sequences[0], skip_special_tokens=True)):
            break
    return output
