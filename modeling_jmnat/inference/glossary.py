"""Glossaries: target terms that must occur in the translation of every sentence with their source terms.

Where a translation lacks a term, the term replaces the word that depends most on the source term: the one whose
probability falls most when the source term is masked. The word before it, often an article, is predicted again; the
rest is kept. Shapes: L tokens of a translation, W words of it, S source tokens.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ..modeling_jmnat import JMNatForConditionalGeneration
from ..spelling import clean_text
from ..utils.id_batches import pad_batch
from ..utils.text_files import iterate_lines
from .cuda_graphs import StaticShapeJMNat

# Neighbours of the most dependent word are replaced as well if they depend on the term by at least this share as much.
SHARE_OF_DEPENDENCE = 0.8
ROWS_AT_ONCE = 16  # canvases decoded together, each with another word masked
# Options for several candidates of a sentence; a translation with terms has only one.
OF_CANDIDATES = ("num_length_candidates", "num_beams", "num_return_sequences", "reranker", "streamer")


def whole(term: str) -> str:
    """A pattern for `term` without a letter, digit or `_` next to it, with any white space between its words."""
    return r"(?<!\w)" + r"\s+".join(re.escape(word) for word in term.split()) + r"(?!\w)"


class Glossary:
    """The required translations of source terms.

    Source terms are matched as whole words, ignoring case; of overlapping ones, the first and longest counts. Their
    target terms then occur at least once in the translation, spelled as given here.

    Args:
        terms: target terms by source terms.

    Raises:
        ValueError: there are no terms, or one is empty.
    """

    def __init__(self, terms: Mapping[str, str]):
        self.terms = {clean_text(source).casefold(): " ".join(target.split()) for source, target in terms.items()}
        if not self.terms or not all((*self.terms, *self.terms.values())):
            raise ValueError("a glossary needs at least one term, and none may be empty")
        longest_first = sorted(map(clean_text, terms), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(whole, longest_first)), re.IGNORECASE)

    @classmethod
    def read(cls, path: str | Path) -> "Glossary":
        """Read lines of a source term, a tab and a target term; ValueError naming any other line."""
        terms: dict[str, str] = {}
        for number, line in enumerate(iterate_lines(path), start=1):
            columns = [column.strip() for column in line.split("\t")]
            if columns == [""]:
                continue
            if len(columns) != 2 or not all(columns):
                raise ValueError(f"{path}: line {number} must be a source term, a tab and a target term")
            source, target = columns
            if terms.setdefault(source.casefold(), target) != target:
                raise ValueError(
                    f"{path}: line {number} gives {source!r} another target term than an earlier line: keep one"
                )
        if not terms:
            raise ValueError(f"{path}: the glossary is empty: at least one line is needed")
        return cls(terms)

    def found(self, sentence: str) -> dict[str, re.Match]:
        """The target terms required in the translation of a sentence, with the match of their first source term.

        The sentence is cleaned before, so that terms with invisible characters are found; see `match.string`.
        """
        found: dict[str, re.Match] = {}
        for match in self.pattern.finditer(clean_text(sentence)):
            target = self.terms.get(match[0].casefold())
            if target is not None:
                found.setdefault(target, match)
        return found

    def missing(self, sentence: str, translation: str) -> dict[str, re.Match]:
        """The terms of `found` that the translation lacks."""
        terms = self.found(sentence).items()
        return {term: match for term, match in terms if not re.search(whole(term), translation)}

    def check(self, model: Any, tokenizer: Any) -> None:
        """ValueError for a backend without probabilities, or a term that the tokenizer cannot represent."""
        if not isinstance(network_of(model), JMNatForConditionalGeneration):
            raise ValueError("a glossary needs a JM-NAT model and the backend torch or cuda_graphs")
        for term in self.terms.values():
            written = tokenizer.decode(ids_of(tokenizer, term), skip_special_tokens=True).strip()
            if written != term:
                raise ValueError(
                    f"the model cannot write the target term {term!r}, which would become {written!r}: leave it out"
                )


def network_of(model: Any) -> Any:
    return model.model if isinstance(model, StaticShapeJMNat) else model


def ids_of(tokenizer: Any, term: str) -> list[int]:
    return tokenizer(text_target=term, add_special_tokens=False)["input_ids"]


def words_of(tokenizer: Any, ids: Sequence[int]) -> list[list[int]]:
    """The ids of each of the W words; punctuation marks are separate words."""
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
    """Mean log-probability (W,) of the tokens of each word when only that word is masked, given source ids (S,)."""
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
    """Replace the words that depend most on a source term by `term`.

    Args:
        source, without: ids of the source as it is, and with the source term masked.
        fixed: for each word, whether it is a term of the glossary already.

    Returns:
        The new words, and the same flags for them.
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
    """Drop words that are not terms, from the end, until at most `most` tokens are left."""
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
    """Translate a sentence again so that its translation has every term.

    Args:
        token_ids: ids of the translation without a glossary, without special tokens.
        options: options of `generate`.

    Returns:
        A `JMNatGenerateOutput` of one sentence; None if the translation has all terms already.
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
        read = match.string
        without = tokenizer(read[: match.start()] + tokenizer.mask_token + read[match.end() :])["input_ids"]
        words, fixed = place_term(network, source, without, words, fixed, ids_of(tokenizer, term))
        shorten(words, fixed, config.max_target_length - 1)
    input_ids, attention_mask = pad_batch([source], config.pad_token_id, model.device)
    options = {name: value for name, value in options.items() if name not in OF_CANDIDATES}
    options |= {"return_dict_in_generate": True, "num_return_sequences": 1}
    for anew in (True, False):  # the second time, keep the word before a term, if its new tokens joined the term
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
