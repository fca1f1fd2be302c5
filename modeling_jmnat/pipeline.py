"""Text in, text out: the Transformers pipeline for JM-NAT, replacing the translation pipeline that version 5 removed.

This file is saved along with a model, so that it works where this package is not installed.
"""

import os
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.base import ChunkPipeline
from transformers.pipelines.pt_utils import KeyDataset

from .plain_text import Sentence
from .tokenization_jmnat import one_line, set_repeatable_tokens, show_canvas

# Saved as `config.custom_pipelines`, by which `pipeline("translation", model=..., trust_remote_code=True)` finds it.
CUSTOM_PIPELINES = {
    "translation": {
        "impl": "pipeline.JMNatTranslationPipeline",
        "pt": ["AutoModelForSeq2SeqLM"],
        "type": "text",
    }
}
# A line without such a sign before its end cannot hold several sentences.
MAY_END = re.compile(r"""[.!?…؟۔।]["'”’“»«›‹)\]]*\s|[。！？]""")
LAST_SIGNS = re.compile(r"(?<!\W)\W+$")  # matches only at the start of a run of signs, for speed
OTHER_SPACES = re.compile(r"[^\S \t\r\n]")  # among them line breaks of Unicode, which end no line
LINE = re.compile(r"[^\r\n]*(?:\r\n|[\r\n])|[^\r\n]+")


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words after which sentencex ends a sentence too early, spelled as inside a sentence: `Sat` is a day, `sat` is not.
LAST_WORD = re.compile(r"([^\W\d_][\w.]*)\.\s*$")
FIRST_WORD = re.compile(r"\W*(\w+)")
ORDINAL = re.compile(r"(?:^|(\w+)\s+(?:\d{1,3}\.\s+(?:und|oder|bis)\s+)?|\W)\d{1,3}\.\s*$")  # "die 5. und 6."
LIST_NUMBER = re.compile(r"\s*\d{1,3}\.\s*")
DATE_WORDS = {
    "de": words("Jan Feb Mär Mrz Apr Jun Jul Aug Sep Sept Okt Nov Dez Mo Di Mi Do Fr Sa So"),
    "en": words("Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Mon Tue Tues Wed Thu Thur Thurs Fri Sat Sun"),
}
TITLES = {  # always followed by a name or a number
    "de": words(
        "Dr Prof Dipl Ing Hr Hrn Frl Fam Fa Hl Nr Stv Stellv ca bzw bspw bsp z.B d.h i.d.R u.a m.E o.g s.o v.a z.T "
        "vgl sog geb evtl ggf insb Inh Hd z.Hd Kfm Kffr Hrsg Übers Bearb"
    ),
    "en": words(
        "Dr Prof Mr Mrs Ms Messrs Mt Ft St Gen Col Capt Lt Sgt Maj Rev Hon Gov Sen Rep Pres approx cf e.g i.e resp vs"
    ),
}
BEFORE_OTHERS = {  # the sentence continues before a number or a small letter; in German before most other words too
    "de": words(
        "Abb Abs Abt Anm Art Aufl Bd Hbf Jh Kap Mill Mio Mrd Tsd abzgl allg amerik ausschl bes bzgl ders dt ebd ehem "
        "einschl engl entspr exkl frz gem ges gest griech inkl ital jew lat lt max min mind russ span urspr wg zw zzgl"
    ),
    "en": words(
        "Art Ch Ed Eq Fig No Nos Pt Ref Sec Tel Vol avg ch ed eq est excl fig figs incl lb lbs max min misc nos oz p "
        "para pp pt sec tel temp vol"
    ),
}
# German: words before an ordinal number, and words that begin a sentence rather than follow an ordinal.
BEFORE_ORDINALS = words(
    "ab alle am auf beim bis das dein deine dem den der des die dieser diesem diesen dieses ein eine einem einen "
    "einer eines ihr ihre ihrem ihren ihrer im ins jede jedem jeden jeder jedes kein keine mein meine meinem meinen "
    "meiner seit sein seine seinem seinen seiner unser unsere unserem unseren vom zum zur"
)
BEGINNINGS = words(
    "Aber Als Am An Auch Auf Bei Beim Bis Da Dann Danach Das Dem Den Der Des Deshalb Die Dies Diese Dieser Dieses "
    "Doch Dort Du Ein Eine Einen Einer Er Es Für Heute Hier Ich Ihr Ihre Im In Ja Jetzt Kein Keine Man Mein Meine Mit "
    "Nach Nein Nicht Nun Ob Sein Seine Seit So Sie Um Und Unser Viele Vom Von Vor Wann Warum Was Wenn Wer Wie Wir Wo "
    "Zu Zum Zur"
)
# What to do with a text, or a sentence of it, that is longer than the model can read.
LONG_LINES = ("split", "truncate", "skip", "error")
# Longer texts are cut before tokenisation, which would take seconds for millions of characters.
CHARACTERS_PER_TOKEN = 32
CLAUSE_END = re.compile(r"[,;:)](?=\s)|[、，；：]|\s[-–—](?=\s)")
SPACE = re.compile(r"(?=\s)")


class JMNatTranslationPipeline(ChunkPipeline):
    """`pipe(text)` returns `[{"translation_text": ...}]`, `pipe([text, ...])` a list of such records.

    A generator or a column of a data set is translated lazily: the result is an iterator with a list of records per
    text, as from the generating pipelines of Transformers. `pipe(list(column))` returns a list of records. With
    `num_return_sequences` above 1, every text gets a list of that many records, best first.

    A text is split into lines and sentences, which are translated in batches with those of other texts and joined
    by their original white space, because a model trained on sentences translates several at once badly.

    Args (when the pipeline is made, or in a call):
        batch_size: number of sentences to translate together (1).
        split_sentences: False translates each text as one sentence. Default: `split_sentences` of the model's
            configuration (True).
        long_lines: what to do with a sentence that is longer than the model can read: "split" at the ends of clauses
            and at spaces (the default), "truncate", "skip" (the translation of its text is empty) or "error".
        truncation: True is the same as `long_lines="truncate"`, as in other pipelines.
        src_lang: two-letter language whose abbreviations do not end a sentence. Default: `source_language` of the
            model's configuration.
        return_history: add `history` to the records: the decoder's input in each pass, with ` __` for a masked token,
            and finally the translation.
        streamer: as for `generate`, for one text at a time; it ends after the last sentence of the text.
        any option of `generate`: `num_iterations`, `num_length_candidates`, `num_return_sequences`, ...

    Raises:
        ValueError: an input that is not a text, a sentence longer than the model allows with `long_lines="error"`, an
            option that `generate` refuses, or a model other than JM-NAT.
        ImportError: a text may have several sentences and sentencex is not installed.
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
                "Transformers has had no translation pipeline since version 5: use that model's generate"
            )
        if device is None and not isinstance(model, torch.nn.Module):
            device = model.device  # exported graphs stay where they are
        super().__init__(model, *args, device=device, **kwargs)  # type: ignore[misc]
        set_repeatable_tokens(model, self.tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "call_count": 0}  # use must not change the hash by which `datasets` finds results again

    def _sanitize_parameters(
        self,
        split_sentences=None,
        src_lang=None,
        return_history=None,
        return_scores=None,
        long_lines=None,
        truncation=None,
        **generation,
    ):
        if not isinstance(src_lang, (str, type(None))):
            raise ValueError(f"src_lang={src_lang!r} must be a two-letter language such as 'de'")
        flags = {"split_sentences": split_sentences, "return_history": return_history, "return_scores": return_scores}
        for name, value in flags.items():
            if not isinstance(value, bool | None):
                raise ValueError(f"{name}={value!r} must be True or False")
        if truncation not in (None, False, "do_not_truncate"):
            if long_lines not in (None, "truncate"):
                raise ValueError(f"truncation={truncation!r} contradicts long_lines={long_lines!r}: give only one")
            long_lines = "truncate"
        if long_lines is not None:
            check_long_lines(long_lines)
        splitting = {"split_sentences": split_sentences, "src_lang": src_lang, "long_lines": long_lines}
        if return_history is not None:
            generation["output_history"] = return_history
        writing = {} if return_scores is None else {"return_scores": return_scores}
        return {name: value for name, value in splitting.items() if value is not None}, generation, writing

    def __call__(self, inputs: Any, *args, **kwargs):
        if isinstance(inputs, (list, tuple)):
            results = super().__call__(list(inputs), *args, **kwargs) if inputs else []
            return [records[0] for records in results] if all(len(records) == 1 for records in results) else results
        as_they_are = (str, bytes, Mapping, types.GeneratorType, torch.utils.data.Dataset)  # `preprocess` refuses some
        if isinstance(inputs, KeyDataset) or (isinstance(inputs, Sequence) and not isinstance(inputs, as_they_are)):
            inputs = torch.utils.data.Subset(inputs, range(len(inputs)))  # type: ignore[arg-type]
        elif isinstance(inputs, Iterable) and not (isinstance(inputs, as_they_are) or hasattr(inputs, "columns")):
            inputs = (text for text in inputs)
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(  # type: ignore[override]
        self,
        text: str,
        split_sentences: bool | None = None,
        src_lang: str | None = None,
        long_lines: str = "split",
    ) -> Iterator[dict]:
        """The pieces of a text, each with its ids and its outer white space."""
        check_text(text)
        config = self.model.config
        if split_sentences is None:
            split_sentences = getattr(config, "split_sentences", True)
        language = src_lang or getattr(config, "source_language", None) or "en"
        pieces = sentences_of(text, language) if split_sentences else [text]
        parts = [part for piece in pieces for part in self.read(piece, long_lines)]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts):
            whole = [part for part in self.read("", long_lines) if part is not None]
        for number, part in enumerate(whole, start=1):
            yield {**part, "is_last": number == len(whole)}

    def read(self, piece: str, long_lines: str) -> Iterator[dict | None]:
        """`input_ids` and `attention_mask` (1, S) and white space of a piece, or of its parts if it is too long.

        None stands for a sentence to be skipped.
        """
        longest = self.model.config.max_position_embeddings
        stripped = piece.strip()
        sentence = Sentence.read(stripped[: CHARACTERS_PER_TOKEN * longest], self.tokenizer)
        ids = self.encode(sentence.text)
        if len(ids) > longest or len(stripped) > CHARACTERS_PER_TOKEN * longest:
            if long_lines == "error":
                raise ValueError(
                    f"the sentence beginning {stripped[:40]!r} has {len(ids)} tokens: the model allows at most "
                    f'{longest}; give long_lines="split" or truncation=True'
                )
            if long_lines == "skip":
                yield None
                return
            if long_lines == "split":
                for part in cut_long(piece, lambda part: self.fits(part, longest)):
                    yield from self.read(part, "truncate")
                return
            ids = truncate(ids, longest)
        before, after = piece.split(stripped, 1) if stripped else (piece, "")
        yield {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
            "space": {"before": before, "after": after, "sentence": sentence},
        }

    def encode(self, sentence: str) -> list[int]:
        return self.tokenizer(sentence, verbose=False)["input_ids"]

    def fits(self, text: str, longest: int) -> bool:
        if len(text) > CHARACTERS_PER_TOKEN * longest:
            return False
        return len(self.encode(Sentence.read(text.strip(), self.tokenizer).text)) <= longest

    def _forward(self, model_inputs: dict, **generation) -> Any:  # type: ignore[override]
        """Translate one piece, or a batch of pieces, in which the loader has turned other values into lists."""
        spaces, is_last = model_inputs["space"], model_inputs["is_last"]
        batched = isinstance(is_last, list)
        if hasattr(streamer := generation.get("streamer"), "put"):  # `generate` refuses anything else
            generation["streamer"] = SentenceStreamer(streamer, is_last, spaces)
        output = self.model.generate(
            input_ids=model_inputs["input_ids"],
            attention_mask=model_inputs["attention_mask"],
            **{**generation, "return_dict_in_generate": True},
        )
        results = self.read_output(output, spaces if batched else [spaces])
        return {"is_last": is_last, "result": results if batched else results[0]}

    def read_output(self, output, spaces: list[dict]) -> list[dict]:
        """For each piece, its `num_return_sequences` texts and scores, and their canvases by pass if recorded."""
        texts = self.tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
        texts = [one_line(text) for text in texts]
        scores = output.sequences_scores.tolist()
        ranks = len(texts) // len(spaces)
        results = []
        for index, space in enumerate(spaces):
            sentence = space["sentence"]
            rows = slice(index * ranks, (index + 1) * ranks)
            of_piece = [sentence.write(text) for text in texts[rows]]
            result = {**space, "texts": of_piece, "scores": scores[rows], "history": None}
            if output.history is not None:
                passes = output.history[: int(output.num_passes[index])]
                result["history"] = [
                    [
                        sentence.write(show_canvas(self.tokenizer, turn.canvas[index, best].tolist()), is_draft=True)
                        for turn in passes
                    ]
                    for best in output.best_candidates[index].tolist()
                ]
            results.append(result)
        return results

    def postprocess(self, model_outputs: list[dict], return_scores: bool = False) -> list[dict]:  # type: ignore[override]
        """Join the pieces of one text into a record for each of its `num_return_sequences` translations."""
        pieces = [output["result"] for output in model_outputs]
        records = []
        for rank in range(len(pieces[0]["texts"])):
            record: dict[str, Any] = {"translation_text": join(pieces, [piece["texts"][rank] for piece in pieces])}
            if pieces[0]["history"] is not None:
                canvases = [[*piece["history"][rank], piece["texts"][rank]] for piece in pieces]
                record["history"] = join_passes(pieces, canvases)
            if return_scores:  # pieces that need no model have no score
                scores = [piece["scores"][rank] for piece in pieces if piece["sentence"].translation is None]
                record["score"] = sum(scores) / len(scores) if scores else 0.0
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
    """Wraps the `streamer` of a text for one of its sentences, or for a batch, which `generate` refuses.

    It ends with the last sentence, and shows nothing for a blank piece.
    """

    def __init__(self, streamer, is_last: bool | list[bool], spaces: dict | list[dict]):
        blank = isinstance(spaces, dict) and spaces["sentence"].translation is not None
        self.skip_prompt = getattr(streamer, "skip_prompt", False)
        self.put = (lambda value: None) if blank else streamer.put
        if hasattr(streamer, "put_draft"):
            self.put_draft = (lambda value: None) if blank else streamer.put_draft
        self.end = streamer.end if is_last else (lambda: None)


def join(pieces: list[dict], texts: list[str]) -> str:
    """Join the texts of consecutive pieces by the white space of the source."""
    return "".join(piece["before"] + text + piece["after"] for piece, text in zip(pieces, texts, strict=True))


def join_passes(pieces: list[dict], canvases: list[list[str]]) -> list[str]:
    """Join the canvases of consecutive pieces pass by pass.

    Args:
        canvases: for each piece, its canvas in each pass and finally its translation, which is repeated if the piece
            stopped before others.
    """
    return [
        join(pieces, [of_piece[min(turn, len(of_piece) - 1)] for of_piece in canvases])
        for turn in range(max(map(len, canvases)))
    ]


def sentences_of(text: str, language: str) -> list[str]:
    """Cut a text after each line and each sentence; joined, the pieces give the text again.

    A piece of white space is added to the piece before. Lines that cannot hold several sentences need no library.
    """
    pieces: list[str] = []
    for line in LINE.findall(text):
        several = MAY_END.search(LAST_SIGNS.sub("", line).lstrip())
        for piece in split_line(line, language) if several else [line]:
            if pieces and not piece.strip():
                pieces[-1] += piece
            else:
                pieces.append(piece)
    return pieces or [text]


def split_line(line: str, language: str) -> list[str]:
    """Cut a line after each sentence by the rules of sentencex, unless `sentence_goes_on`."""
    try:
        import sentencex
    except ImportError:
        raise ImportError(
            "splitting a text into sentences needs sentencex: pip install sentencex, "
            "or give split_sentences=False to translate each text as one sentence"
        ) from None
    # Version 1.0 counts bytes in some places, and fails at a wide space after a letter and a full stop (`z. B.`).
    sentences: list[str] = []
    position = 0
    for sentence in sentencex.segment(language, OTHER_SPACES.sub(" ", line)):
        piece = line[position : position + len(sentence)]
        if sentences and sentence_goes_on(sentences[-1], piece, language):
            sentences[-1] += piece
        else:
            sentences.append(piece)
        position += len(sentence)
    return sentences


def sentence_goes_on(before: str, after: str, language: str) -> bool:
    """Whether two pieces are one sentence, after an ordinal or abbreviation of German or English.

    "am 3. Okt.", "der 2. Weltkrieg", "die Fa. Meier", "approx. 5"; but "Er wurde 3. Dann ging er." is two sentences.
    """
    if before.endswith("."):  # no white space after it, as in `Dipl.-Ing.`
        return True
    following = FIRST_WORD.match(after)
    if language not in DATE_WORDS or following is None:
        return False
    word = following[1]
    if LIST_NUMBER.fullmatch(before):
        return True
    german, is_date_word = language == "de", word in DATE_WORDS[language]
    if german and (ordinal := ORDINAL.search(before)):
        belongs = (ordinal[1] or "").lower() in BEFORE_ORDINALS and word not in BEGINNINGS
        return belongs or is_date_word or word[0].islower()
    if (last := LAST_WORD.search(before)) is None:
        return False
    forms = {last[1], last[1][0].lower() + last[1][1:]}
    goes_on = word[0].isdigit() or word[0].islower()
    if not forms.isdisjoint(DATE_WORDS[language]):
        return goes_on or is_date_word
    if not forms.isdisjoint(BEFORE_OTHERS[language]):
        return goes_on or (german and word not in BEGINNINGS)
    return not forms.isdisjoint(TITLES[language])


def check_text(text: object, name: str = "a text to translate") -> str:
    """Return the text if it is valid.

    Raises:
        ValueError: it is not a string, or has a lone surrogate, which Unicode text may not have.
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a string, not {type(text).__name__}: {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has a lone surrogate at character {error.start + 1} ({text[error.start]!r}), which no Unicode "
            "text may have: read the text again as UTF-8, or replace it"
        ) from None
    return text


def check_long_lines(value: object) -> None:
    """ValueError for anything but one of `LONG_LINES`."""
    if value not in LONG_LINES:
        raise ValueError(f"long_lines={value!r} is not one of {', '.join(LONG_LINES)}")


def truncate(ids: list[int], longest: int) -> list[int]:
    """The first `longest` ids of a sentence, of which the last is its `</s>`."""
    return ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]


def cut_long(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Halve a text, and its halves, until each piece fits; joined, the pieces give the text again.

    It is cut as near to its middle as possible: at the end of a clause or else at white space, if there is one in its
    middle half, else in the middle.
    """
    if len(text) < 2 or fits(text):
        return [text]
    middle = len(text) // 2
    for pattern in (CLAUSE_END, SPACE):
        places = (found.end() for found in pattern.finditer(text, middle - middle // 2, middle + middle // 2))
        if at := min(places, key=lambda place: abs(place - middle), default=0):
            middle = at
            break
    return cut_long(text[:middle], fits) + cut_long(text[middle:], fits)
