"""Text in, text out: the pipeline of Transformers for JM-NAT, in the place of its former translation pipeline.

The file is one of those that a saved model carries along, so that it works where this package is not installed.
"""

import os
import re
import types
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.base import ChunkPipeline

from .tokenization_jmnat import MARKS, clean_text, set_repeatable_tokens, show_canvas

# As `config.custom_pipelines` holds it: `pipeline("translation", model=..., trust_remote_code=True)` finds the class.
CUSTOM_PIPELINES = {
    "translation": {
        "impl": "pipeline.JMNatTranslationPipeline",
        "pt": ["AutoModelForSeq2SeqLM"],
        "type": "text",
    }
}
# A line without such a sign before others cannot hold several sentences.
MAY_END = re.compile(r"""[.!?…؟۔।]["'”’“»«›‹)\]]*\s|[。！？]""")
LAST_SIGNS = re.compile(r"(?<!\W)\W+$")  # tried once in a run of signs, not at each of them
WIDE_SPACES = re.compile(r"[^\S\x00-\x7f]")

ADDRESS_END = r"""[^\s<>"'“”«».,:;!?)\]}…]"""
FILE_TYPES = (
    "bak|c|cfg|conf|cpp|css|csv|deb|dll|docx?|exe|gif|gz|h|html?|ini|jpe?g|js|json|log|md|mp[34]|od[pst]|pdf|png|pptx?|"
    "py|rpm|sh|so|svg|tar|toml|tsv|txt|xlsx?|xml|ya?ml|zip|com|de|io|net|org"
)
NAMES = re.compile(r"\b[A-Z]\w{2,}\b")
NUMBER = r"\d+(?:[.,:/'’-]\d+)*"
# What a translation copies, the most special first. `protect` adds words with characters that have no piece.
COPIED = re.compile(
    "|".join(
        (
            rf"""(?:(?:https?|ftps?|file|git|ssh)://|mailto:)[^\s<>"]*{ADDRESS_END}|www\.[^\s<>"]*{ADDRESS_END}""",
            r"[\w.+-]*\w@\w[\w-]*(?:\.\w[\w-]*)+",  # e-mail
            r"</?[A-Za-z][^<>]*>|&(?:#\d+|#x[0-9A-Fa-f]+|[A-Za-z]\w*);",  # markup
            # Placeholders of shells, templates, C and Python.
            r"\$\{[^{}\s]*\}|\$\([A-Za-z_]\w*\)|\$[A-Za-z_]\w*\$?|%[A-Za-z_]\w+%|@[A-Z_][A-Z0-9_]*@|\[\[[^\[\]]*\]\]",
            r"\{\{[^{}]*\}\}|\{[\w.:!,%]*\}|%\([A-Za-z_]\w*\)[-+ 0#]?\d*[a-z]|%\d+(?![\w$])",
            r"%(?:\d+\$)?[-+0#]*\d*(?:\.\d+)?(?:hh?|ll?|z)?[diouxXeEfgGcsp@](?!\w)",
            # Paths, options, identifiers, names of files and sites.
            r"(?<![\w/~.])(?:~|\.{1,2})?(?:/[\w.+@-]*\w)+/?|\b[A-Za-z]:\\[^\s\"<>|]*[\w\\]|(?<![\w-])--[A-Za-z][\w-]*\w",
            rf"\b[\w-]+(?:\.[\w-]+)*\.(?:{FILE_TYPES})\b",
            r"\b(?:[a-z]\w*?(?:_[a-z0-9]+)+|[A-Z]\w*?(?:_[A-Z0-9]+)+)\b",
            r"\b[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\b|\b0x[0-9A-Fa-f]+\b",
            # Amounts of money, telephone numbers, dates and times, numbers: a short ordinal ("3. Mai") is a word.
            rf"(?<![\w.,])[€$£¥][ \xa0\u202f]?{NUMBER}",
            r"(?<![\w.,])[+-]?\d{1,3}(?:[ \xa0\u2009\u202f]\d{3})+(?!\d)(?:[.,]\d+)?(?:[ \xa0\u202f]?[€$£¥](?!\w))?",
            rf"(?<![\w.,])[+-]?{NUMBER}[ \xa0\u202f]?[€$£¥](?!\w)|(?<![\w.,])\+\d{{1,3}}(?:[ /-]?(?:\(\d+\)|\d+))+",
            r"\b\d{4}-\d\d-\d\dT[\d:.]*\d(?:Z|[+-]\d\d:?\d\d)?|(?<!\w)[A-Z]{1,5}-?\d[\w-]*(?:\.\d+)*",
            r"(?<![\w.,])[v+-]?\d+(?:[.,:/'’-]\d+)+|(?:(?<![\w)\]])[+-])?(?<![^\W\d_])(?:\d{3,}|\d{1,2}(?!\d|\.\s))",
        )
    )
)


class JMNatTranslationPipeline(ChunkPipeline):
    """`pipe(text)` gives `[{"translation_text": ...}]`, `pipe([text, ...])` a list of such records.

    A generator or a column of a data set is read as it is translated: an iterator comes back, with a list of records
    for each text. Where `num_return_sequences` is above 1 every text gets a list of that many records, best first.

    A text is split into lines and sentences, which are translated in batches with those of other texts and joined
    again by the white space that stood between them: a model trained on sentences translates several at once badly.

    Args (at the beginning or with each call):
        batch_size: sentences that are translated together (1).
        split_sentences: False translates each text as one sentence (True).
        src_lang: two-letter language whose abbreviations do not end a sentence; by default `source_language` of the
            model's configuration.
        return_history: records also hold `history`: what the decoder read in each pass, ` __` for a masked token, and
            at the end the translation.
        streamer: as for `generate`, for one text at a time; it ends after the last sentence of the text.
        any option of `generate`: `num_iterations`, `num_length_candidates`, `num_return_sequences`, ...

    Raises:
        ValueError: an input that is no text, a sentence longer than the model allows, an option that `generate`
            refuses, or a model that is no JM-NAT.
        ImportError: a text may hold several sentences and sentencex is not installed.
    """

    model: Any
    tokenizer: Any
    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _pipeline_calls_generate = False

    def __init__(self, model, *args, device=None, **kwargs):
        if getattr(model.config, "model_type", None) != "jmnat":
            raise ValueError(
                f"this pipeline translates with JM-NAT, not with a {model.config.model_type} model, for which "
                "Transformers has had no translation pipeline since version 5: use its generate"
            )
        if device is None and not isinstance(model, torch.nn.Module):
            device = model.device  # exported graphs stay where they are
        super().__init__(model, *args, device=device, **kwargs)  # type: ignore[misc]
        set_repeatable_tokens(model, self.tokenizer)

    def _sanitize_parameters(self, split_sentences=None, src_lang=None, return_history=None, **generation):
        if not isinstance(src_lang, (str, type(None))):
            raise ValueError(f"src_lang={src_lang!r} must be a two-letter language such as 'de'")
        splitting = {"split_sentences": split_sentences, "src_lang": src_lang}
        if return_history is not None:
            generation["output_history"] = return_history
        return {name: value for name, value in splitting.items() if value is not None}, generation, {}

    def __call__(self, inputs: str | Iterable[str], *args, **kwargs):
        if isinstance(inputs, (list, tuple)):
            results = super().__call__(list(inputs), *args, **kwargs) if inputs else []
            return [records[0] for records in results] if all(len(records) == 1 for records in results) else results
        as_they_are = (str, bytes, dict, types.GeneratorType, torch.utils.data.Dataset)  # `preprocess` refuses some
        if isinstance(inputs, Iterable) and not isinstance(inputs, as_they_are):
            inputs = (text for text in inputs)
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(  # type: ignore[override]
        self, text: str, split_sentences: bool = True, src_lang: str | None = None
    ) -> Iterator[dict]:
        """The pieces of a text, each with its ids and the white space around it."""
        if not isinstance(text, str):
            raise ValueError(f"a text to translate must be a string, not {type(text).__name__}: {text!r}")
        language = src_lang or getattr(self.model.config, "source_language", None) or "en"
        pieces = sentences_of(text, language) if split_sentences else [text]
        for number, piece in enumerate(pieces, start=1):
            sentence = piece.strip()
            before, after = piece.split(sentence, 1) if sentence else (piece, "")
            marked, items = protect(self.tokenizer, sentence)
            as_it_is = sentence if is_copied(marked, items) else None if clean_text(sentence) else ""
            yield {
                **self.encode(marked),
                "space": {"before": before, "after": after, "as_it_is": as_it_is, "items": items},
                "is_last": number == len(pieces),
            }

    def encode(self, sentence: str) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (1, S)."""
        encoded = self.tokenizer(sentence, return_tensors="pt", verbose=False)
        length, longest = encoded["input_ids"].shape[1], self.model.config.max_position_embeddings
        if length > longest:
            raise ValueError(
                f"the sentence beginning {sentence[:40]!r} has {length} tokens: the model allows at most {longest}"
            )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _forward(self, model_inputs: dict, **generation) -> Any:  # type: ignore[override]
        """Translate one piece, or a batch of them where the loader has made lists of what is no tensor."""
        spaces, is_last = model_inputs["space"], model_inputs["is_last"]
        batched = isinstance(is_last, list)
        if generation.get("streamer") is not None:
            generation["streamer"] = SentenceStreamer(generation["streamer"], is_last, spaces)
        output = self.model.generate(
            input_ids=model_inputs["input_ids"],
            attention_mask=model_inputs["attention_mask"],
            **{**generation, "return_dict_in_generate": True},
        )
        results = self.read_output(output, spaces if batched else [spaces])
        return {"is_last": is_last, "result": results if batched else results[0]}

    def read_output(self, output, spaces: list[dict]) -> list[dict]:
        """For each piece its `num_return_sequences` texts, and their canvases by pass if the history is there."""
        texts = self.tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
        ranks = len(texts) // len(spaces)
        results = []
        for index, space in enumerate(spaces):
            as_it_is, items = space["as_it_is"], space["items"]
            of_piece = [restore(text, items) for text in texts[index * ranks : (index + 1) * ranks]]
            if as_it_is is not None:
                of_piece = [as_it_is] * ranks
            result = {**space, "texts": of_piece, "history": None}
            if output.history is not None:
                passes = output.history[: int(output.num_passes[index])]
                result["history"] = [
                    [
                        restore(show_canvas(self.tokenizer, turn.canvas[index, best].tolist()), items)
                        if as_it_is is None
                        else as_it_is
                        for turn in passes
                    ]
                    for best in output.best_candidates[index].tolist()
                ]
            results.append(result)
        return results

    def postprocess(self, model_outputs: list[dict]) -> list[dict]:  # type: ignore[override]
        """Join the pieces of one text: a record for each of the `num_return_sequences` translations."""
        pieces = [output["result"] for output in model_outputs]
        records = []
        for rank in range(len(pieces[0]["texts"])):
            record: dict[str, Any] = {"translation_text": join(pieces, [piece["texts"][rank] for piece in pieces])}
            if pieces[0]["history"] is not None:
                # A sentence that stopped before others is shown as it came out.
                canvases = [[*piece["history"][rank], piece["texts"][rank]] for piece in pieces]
                record["history"] = [
                    join(pieces, [of_piece[min(turn, len(of_piece) - 1)] for of_piece in canvases])
                    for turn in range(max(map(len, canvases)))
                ]
            records.append(record)
        return records

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save model, tokenizer and this file: `pipeline("translation", model=save_directory, ...)` loads them."""
        os.makedirs(save_directory, exist_ok=True)
        self.model.config.custom_pipelines = CUSTOM_PIPELINES
        custom_object_save(self, save_directory)
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory, **kwargs)


class SentenceStreamer:
    """The `streamer` of a text for one of its sentences, or for a batch, which `generate` refuses.

    It ends with the last sentence; a blank piece has nothing to show.
    """

    def __init__(self, streamer, is_last: bool | list[bool], spaces: dict | list[dict]):
        blank = isinstance(spaces, dict) and spaces["blank"]
        self.skip_prompt = getattr(streamer, "skip_prompt", False)
        self.put = (lambda value: None) if blank else streamer.put
        if hasattr(streamer, "put_draft"):
            self.put_draft = (lambda value: None) if blank else streamer.put_draft
        self.end = streamer.end if is_last else (lambda: None)


def join(pieces: list[dict], texts: list[str]) -> str:
    """The texts of consecutive pieces, with the white space that stood around them in the source."""
    return "".join(piece["before"] + text + piece["after"] for piece, text in zip(pieces, texts, strict=True))


def sentences_of(text: str, language: str) -> list[str]:
    """Cut a text after each line and each sentence; joined, the pieces are the text again.

    White space alone goes with the piece before it. A text of one line that plainly is one sentence needs no library.
    """
    pieces: list[str] = []
    for line in text.splitlines(keepends=True):
        several = MAY_END.search(LAST_SIGNS.sub("", line).lstrip())
        for piece in split_line(line, language) if several else [line]:
            if pieces and not piece.strip():
                pieces[-1] += piece
            else:
                pieces.append(piece)
    return pieces or [text]


def split_line(line: str, language: str) -> list[str]:
    """Cut a line after each sentence by the rules of sentencex."""
    try:
        import sentencex
    except ImportError:
        raise ImportError(
            "splitting a text into sentences needs sentencex: pip install sentencex, "
            "or give split_sentences=False to translate each text as one sentence"
        ) from None
    # Version 1.0 counts bytes at some places and stops at a wide space after a letter and a full stop (`z. B.`).
    sentences, position = [], 0
    for sentence in sentencex.segment(language, WIDE_SPACES.sub(" ", line)):
        sentences.append(line[position : position + len(sentence)])
        position += len(sentence)
    return sentences


# What is to be copied ------------------------------------------------------------------------------------------------


def find_copied(text: str, known_characters: frozenset[str]) -> list[tuple[int, int]]:
    """Spans of the text that are to be copied, in order.

    Those of `COPIED`, and words that hold characters without a piece of their own, which would be predicted byte by
    byte; several such words in a row are one span.
    """
    spans = [match.span() for match in COPIED.finditer(text)]
    taken = {position for span in spans for position in range(*span)}
    kinds = "".join(
        "-" if position in taken else _kind(character, known_characters) for position, character in enumerate(text)
    )
    spans += [match.span() for match in re.finditer("w*u(?:i?[uw])*(?: u(?:i?[uw])*)*", kinds)]
    return sorted(spans)


def _kind(character: str, known_characters: frozenset[str]) -> str:
    """u: unknown, i: invisible, w: of a word, a space, or - for another sign."""
    if character not in known_characters and not character.isspace():
        # Behind a flag, to which invisible tags belong.
        return "u" if clean_text(f"\U0001f3f4{character}") != "\U0001f3f4" else "i"
    return " " if character.isspace() else "w" if character.isalnum() else "-"


def protect(tokenizer, text: str, first: int = 0, items: Sequence[str] | None = None) -> tuple[str, list[str]]:
    """Put marks in the place of what is to be copied: numbers, addresses, markup, words in unknown characters.

    Args:
        first: number of the first mark; items that stand twice share one, and at most ten are marked.
        items: mark these wherever they stand, instead of looking for some: the other side of a training pair.

    Returns:
        The text with marks, and what they stand for: `restore` puts it back into a translation. Where the vocabulary
        has no marks, the text as it is and nothing.
    """
    if not getattr(tokenizer, "has_marks", False):
        return text, []
    if items is None:
        spans = find_copied(text, tokenizer.known_characters)
        items = list(dict.fromkeys(text[begin:end] for begin, end in spans))[: len(MARKS)]
    else:
        longest_first = "|".join(map(re.escape, sorted(items, key=len, reverse=True)))
        found = re.finditer(rf"(?<![^\W_])(?:{longest_first})(?!\d)", text) if items else ()
        spans = [match.span() for match in found]
    marks = {item: MARKS[(first + number) % len(MARKS)] for number, item in enumerate(items)}
    pieces, position = [], 0
    for begin, end in spans:
        pieces += [text[position:begin], marks.get(text[begin:end], text[begin:end])]
        position = end
    return "".join([*pieces, text[position:]]), list(items)


def protect_pair(tokenizer, source: str, target: str) -> tuple[str, str]:
    """Source and target of a training pair with marks for what stands in both.

    One pair in eight also has its names marked, so that marks are learned in every place of a sentence. Which one, and
    the first mark, depends on the source alone: every mark is trained as often as the others.
    """
    if not getattr(tokenizer, "has_marks", False):
        return source, target
    drawn = zlib.crc32(source.encode())
    items = protect(tokenizer, source)[1]
    if drawn % 8 == 0:
        items += [name for name in NAMES.findall(source) if name not in items]
    items = [item for item in items if protect(tokenizer, target, items=[item])[0] != target][: len(MARKS)]
    first = drawn // 8
    return protect(tokenizer, source, first, items)[0], protect(tokenizer, target, first, items)[0]


def restore(text: str, items: Sequence[str]) -> str:
    """A translation with `items` in the place of their marks; marks that stand for nothing are dropped."""
    replacements = dict(zip(MARKS, items, strict=False))
    return re.sub(f"[{''.join(MARKS)}]", lambda match: replacements.get(match[0], ""), text)


def is_copied(marked: str, items: Sequence[str]) -> bool:
    """Whether a text with marks holds no letter besides, so that its translation is the text itself."""
    return bool(items) and not any(map(str.isalpha, marked))
