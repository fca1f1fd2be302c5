"""Lines of text to sentences and pieces that a model can read, and their translations back to lines."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..pipeline import (
    CHARACTERS_PER_TOKEN,
    check_long_lines,
    check_text,
    cut_long,
    join,
    join_passes,
    sentences_of,
    truncate,
)
from ..plain_text import Sentence
from ..tokenization_jmnat import one_line
from .beam_search import max_source_length
from .glossary import Glossary
from .loading import Translator

CHECKED_AT_ONCE = 4096  # lines


@dataclass
class Line:
    """A line in pieces that the model can read.

    Args:
        pieces: for each piece, the white space around it (`before`, `after`, as `pipeline.join` takes them).
        ids: the ids of each piece, ending in `</s>`; empty for a piece that needs no model.
        sentences: each piece as the model reads it.
        too_long: whether a sentence was longer than the model can read.
    """

    pieces: list[dict[str, str]] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    sentences: list[Sentence] = field(default_factory=list)
    too_long: bool = False

    def add(self, text: str, sentence: Sentence, ids: list[int]) -> None:
        """Add a piece of the line with its sentence and ids (only `</s>` for a blank piece)."""
        core = text.strip()
        before, after = text.split(core, 1) if core else (text, "")
        self.pieces.append({"before": before, "after": after})
        self.sentences.append(sentence)
        self.ids.append(ids if sentence.translation is None and len(ids) > 1 else [])

    def join(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """Join the results of the pieces into the fields of `Translation` for the line; blank pieces have no `ids`.

        The score is the mean of the pieces' scores, and the number of passes their maximum. The lengths of a line with
        several pieces are None.
        """
        if len(results) == 1:
            return results[0]
        candidates, candidate_ids = [], []
        for rank in range(min(len(result["candidates"]) for result in results)):  # a glossary may leave one
            texts, scores = zip(*(result["candidates"][rank] for result in results), strict=True)
            known = [score for score, ids in zip(scores, self.ids, strict=True) if ids and score is not None]
            score = sum(known) / len(known) if known else None
            candidates.append((self._text(list(texts)), score))
            ids = [result["candidate_ids"][rank] for result in results if "candidate_ids" in result]
            candidate_ids.append([token for of_piece in ids for token in of_piece])
        fields: dict[str, Any] = {"candidates": candidates, "candidate_ids": candidate_ids}
        fields["token_ids"] = [token for result in results for token in result.get("token_ids", [])]
        passes = [result["num_passes"] for result in results if result.get("num_passes") is not None]
        fields["num_passes"] = max(passes, default=None)
        if any("canvases" in result for result in results):
            canvases = [[*result.get("canvases", []), result["candidates"][0][0]] for result in results]
            fields["canvases"] = [one_line(text).strip() for text in join_passes(self.pieces, canvases)[:-1]]
        return fields

    def _text(self, texts: list[str]) -> str:
        return one_line(join(self.pieces, texts)).strip()


class LineReader:
    """Turns lines into ids.

    Args:
        split_sentences: whether to split lines into sentences, with the abbreviations of `source_language` in the
            model's configuration.
        long_lines: what to do with a sentence that is longer than the model can read, one of `LONG_LINES`.
        glossary: its terms are left to the model, even where they look like text to copy.

    Raises:
        ValueError: `long_lines` is not one of `LONG_LINES`.
    """

    def __init__(
        self,
        model: Translator,
        tokenizer: PreTrainedTokenizerBase,
        split_sentences: bool = False,
        long_lines: str = "error",
        glossary: Glossary | None = None,
    ):
        check_long_lines(long_lines)
        self.tokenizer, self.long_lines, self.glossary = tokenizer, long_lines, glossary
        self.language = (getattr(model.config, "source_language", None) or "en") if split_sentences else None
        self.longest = max_source_length(model.config)
        self.most_characters = CHARACTERS_PER_TOKEN * self.longest

    def read(self, texts: list[str], first_number: int = 1) -> list[Line]:
        """Each text as a line in pieces.

        Args:
            first_number: number of the first text, for error messages.

        Raises:
            ValueError: a text is not Unicode or, with `long_lines="error"`, too long for the model.
        """
        for number, text in enumerate(texts, first_number):
            check_text(text, f"line {number}")
        sentences = [sentences_of(text, self.language) if self.language else [text] for text in texts]
        read = [self._read(sentence) for of_line in sentences for sentence in of_line]
        encoded = iter(zip(read, self._encode(read), strict=True))
        return [self._line(of_line, encoded, number) for number, of_line in enumerate(sentences, first_number)]

    def check(self, lines: Iterable[str]) -> None:
        """Read all lines only for the errors of `read`, before any work is done."""
        window: list[str] = []
        number = 1
        for line in lines:
            window.append(line)
            if len(window) == CHECKED_AT_ONCE:
                self.read(window, number)
                number, window = number + len(window), []
        self.read(window, number)

    def _read(self, text: str) -> Sentence:
        """A piece of a line as the model reads it; of a huge piece only the start, which is too long already."""
        return Sentence.read(text.strip()[: self.most_characters], self.tokenizer, self.glossary)

    def _encode(self, sentences: list[Sentence]) -> list[list[int]]:
        if not sentences:
            return []
        return self.tokenizer([sentence.text for sentence in sentences], verbose=False)["input_ids"]

    def _fits(self, text: str) -> bool:
        return len(text) <= self.most_characters and len(self._encode([self._read(text)])[0]) <= self.longest

    def _line(self, texts: list[str], encoded: Iterator[tuple[Sentence, list[int]]], number: int) -> Line:
        line = Line()
        for text, (sentence, ids) in zip(texts, encoded, strict=False):  # takes as many as there are texts
            if len(ids) <= self.longest and len(text.strip()) <= self.most_characters:
                line.add(text, sentence, ids)
                continue
            line.too_long = True
            if self.long_lines == "error":
                what = "" if len(texts) == 1 else "a sentence of "
                raise ValueError(
                    f"line {number} has {what}{self._length(text, ids)}: the model allows at most {self.longest}; "
                    "split it into sentences, or choose long_lines=split"
                )
            if self.long_lines == "truncate":
                line.add(text, sentence, truncate(ids, self.longest))
            elif self.long_lines == "split":
                parts = cut_long(text, self._fits)
                read = [self._read(part) for part in parts]
                for part, sentence_of_part, ids_of_part in zip(parts, read, self._encode(read), strict=True):
                    line.add(part, sentence_of_part, truncate(ids_of_part, self.longest))
        if line.too_long and self.long_lines == "skip":
            line = Line(too_long=True)
            line.add("", Sentence("", translation=""), [])
        return line

    def _length(self, text: str, ids: list[int]) -> str:
        return f"{len(ids)} tokens" if len(text) <= self.most_characters else f"{len(text)} characters"


def describe_long_lines(count: int, model: Translator, long_lines: str) -> str:
    """A one-line warning."""
    done = {"split": "split at clauses and spaces", "truncate": "truncated", "skip": "skipped"}[long_lines]
    lines = "1 line has a sentence" if count == 1 else f"{count} lines have a sentence"
    return f"warning: {lines} longer than the {max_source_length(model.config)} tokens that the model can read: {done}"
