"""Raw text to ids and back: one joint byte-pair vocabulary for both languages, with optional Moses tokenisation.

Token ids 0 to 4 are `<s>`, `<pad>`, `</s>`, `<unk>`, `<mask>` (fairseq's order). Pieces include their spaces and
characters outside the vocabulary become bytes, so decoding restores any text exactly, up to its normalisation:
Unicode NFC, runs of white space become one space, and outer white space and invisible characters are removed.

Marks are characters of the private use area that stand for text to be copied: a number, a URL, a word in another
script (see `plain_text.protect`).
"""

import copy
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from weakref import WeakKeyDictionary

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import TokenizersBackend

from .configuration_jmnat import elsewhere
from .plain_text import MARKS, SURROGATES
from .segmenters import END_OF_WORD, SPACE, BytePairSegmenter, SentencePieceSegmenter, moses_tool
from .spelling import text_normalizer

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
MIN_FREQUENCY = 2  # pairs of pieces seen less often than this are not merged
CHARACTERS_PER_PIECE = 1_000_000  # a character rarer than one in this many (or than MIN_FREQUENCY) becomes bytes
MARK_PIECES = (*MARKS, *(f" {mark}" for mark in MARKS))
# Marks, words, numbers and runs of other signs, each with the space before it; any further white space stands alone.
PIECE_PATTERN = r" ?[\ue000-\ue009]| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}\ue000-\ue009]+|\s"
SPACE_MARKS = "\u0120\u2581"  # other tokenizers' signs for a space; the first one counts as a letter
LANGUAGE_CODE = re.compile(">>.*?<<", re.DOTALL)  # of the target, before a source of a multilingual Marian model
# A model may generate any of these; each input line must stay one output line, however a reader splits lines.
LINE_BREAKS = re.compile("[\t\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


class JMNatTokenizer(TokenizersBackend):
    """`tokenizer(source, text_target=target)` gives `input_ids` and `labels`, both ending in `</s>`.

    Options (saved in `tokenizer_config.json`, restored by `from_pretrained`):
        moses_source_lang, moses_target_lang: two-letter languages such as "de" and "en". Text is then tokenised by
            Moses (sacremoses, without escaping) before it is split into pieces, and decoded text is detokenised in
            the target language. None, the default, leaves text as it is, and decoding restores it exactly.
        lowercase: whether the normalizer lower-cases (set by `train_joint_tokenizer`, for information only).
        moses_escape, moses_split_dashes: whether Moses writes `&` as `&amp;` and splits at dashes (`@-@`), as in the
            data of many fairseq models. False by default.
        bpe_merges, bpe_end_of_word_pieces: see `BytePairSegmenter`; for vocabularies of converted fairseq models.
        source_segmenter, target_segmenter: see `SentencePieceSegmenter`; for vocabularies of Marian and M2M100.
        source_start, target_start: first token of every source, and of every target: the language codes of a
            multilingual model.

    Special tokens written out in the text (`</s>`, `<mask>`) are plain text (`split_special_tokens=True`).

    The class has no `__init__` on purpose: Transformers would rebuild a subclass with one from its vocabulary and
    merges alone, without normalizer, pre-tokenizer and decoder.
    """

    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "right"
    _reads_target = False

    @property
    def moses_source_lang(self) -> str | None:
        return self.init_kwargs.get("moses_source_lang")

    @property
    def moses_target_lang(self) -> str | None:
        return self.init_kwargs.get("moses_target_lang")

    @property
    def lowercase(self) -> bool:
        return bool(self.init_kwargs.get("lowercase", False))

    def normalize_text(self, text: str) -> str:
        """The text as decoding restores it: normalised by the normalizer that is saved with the tokenizer."""
        if (segmenter := self._segmenter("target")) is not None:
            return segmenter.normalize(text)
        normalizer = self.backend_tokenizer.normalizer
        if normalizer is None:
            return text
        prepended = len(normalizer.normalize_str("x")) - 1
        return normalizer.normalize_str(text)[prepended:]

    @property
    def has_marks(self) -> bool:
        """Whether the vocabulary has marks; if so, the model expects text to be copied to be marked."""
        return self.backend_tokenizer.token_to_id(MARKS[0]) is not None

    @property
    def known_characters(self) -> frozenset[str]:
        """The characters that have their own piece, except marks."""
        if "characters" not in self._made:
            letters = frozenset(piece for piece in self.get_vocab() if len(piece) == 1)
            self._made["characters"] = letters - {*MARKS}
        return self._made["characters"]

    def is_unknown(self, character: str) -> bool:
        """Whether a character would become bytes. Tested after a full stop, which combining accents do not change."""
        known = self.known_characters
        unknown = self._made.setdefault("unknown", {})
        if character not in known and character not in unknown:
            unknown[character] = not known.issuperset(self.normalize_text(f".{character}")[1:])
        return character not in known and unknown[character]

    def language_code(self, text: str) -> str:
        """The code at the start of a source of a multilingual Marian model, such as `>>eng<<`; "" if there is none."""
        code = LANGUAGE_CODE.match(text)
        return code[0] if code and self.backend_tokenizer.token_to_id(code[0]) is not None else ""

    @property
    def _made(self) -> dict:
        """Cache of calls; not an attribute, because `datasets` compares tokenizers by a hash of their attributes."""
        return MADE_BY_CALLS.setdefault(self, {})

    @property
    def deprecation_warnings(self) -> dict[str, bool]:
        """The warnings that Transformers has given already."""
        return self._made.setdefault("warnings", {})

    @deprecation_warnings.setter
    def deprecation_warnings(self, warnings: dict[str, bool]) -> None:
        self._made["warnings"] = warnings

    def _switch_to_input_mode(self):
        self.__dict__.pop("_reads_target", None)
        self._begin_with("source")

    def _switch_to_target_mode(self):
        self._reads_target = True
        self._begin_with("target")

    def _begin_with(self, side: str) -> None:
        """Let texts begin with the start token of `side`, if either side has one."""
        tokens = {name: self.init_kwargs.get(f"{name}_start") for name in ("source", "target")}
        if any(tokens.values()):
            backend = self.backend_tokenizer
            backend.post_processor = text_template(backend, self.eos_token, tokens[side])

    def _encode_plus(  # type: ignore[override]
        self, text, text_pair=None, is_split_into_words=False, **kwargs
    ):
        try:
            if not is_split_into_words:  # split words are tokenised already
                text = _map_strings(self.split_text, text)
                text_pair = None if text_pair is None else _map_strings(self.split_text, text_pair)
            return super()._encode_plus(text, text_pair=text_pair, is_split_into_words=is_split_into_words, **kwargs)
        except Exception:
            self._switch_to_input_mode()
            raise
        finally:  # the batch's padding and truncation settings would be saved and change the hash
            self.backend_tokenizer.no_padding()
            self.backend_tokenizer.no_truncation()

    def save_pretrained(self, save_directory, *args, **kwargs) -> tuple[str, ...]:
        """As inherited, but names custom code only where that code is saved along with it (see `publishing`)."""
        if self._auto_class is None and "auto_map" in self.init_kwargs:
            self.init_kwargs["auto_map"] = elsewhere(self.init_kwargs["auto_map"])
            if not self.init_kwargs["auto_map"]:
                del self.init_kwargs["auto_map"]
        return super().save_pretrained(save_directory, *args, **kwargs)

    def split_text(self, text: str) -> str:
        """The steps before the vocabulary: Moses tokenisation, segmenters and `bpe_merges`, where they are set.

        Raises:
            ValueError: the text has a lone surrogate.
        """
        if SURROGATES.search(text):
            raise ValueError(f"text {text!r} has a lone surrogate (half of a character): read it as UTF-8")
        language = self.moses_target_lang if self._reads_target else self.moses_source_lang
        if language:
            text = self._moses("tokenizer", language)(text)
        if (segment := self._segmenter("target" if self._reads_target else "source")) is not None:
            if (code := LANGUAGE_CODE.match(text)) is None:
                return segment(text)
            return f"{self.language_code(text) or self.unk_token} {segment(text[code.end() :])}"
        merges = self.init_kwargs.get("bpe_merges")
        if merges:
            if "segmenter" not in self._made:
                end_of_word_pieces = self.init_kwargs.get("bpe_end_of_word_pieces", False)
                self._made["segmenter"] = BytePairSegmenter(merges, end_of_word_pieces)
            text = self._made["segmenter"](normalizers.Lowercase().normalize_str(text) if self.lowercase else text)
        return text

    def _decode(self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=None, **kwargs) -> str:
        text = super()._decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)
        if self.moses_target_lang:
            text = self._moses("detokenizer", self.moses_target_lang)(text)
        return text

    def _segmenter(self, side: str) -> SentencePieceSegmenter | None:
        """The segmenter of the `"source"` or `"target"` side, made at its first use; None if there is none."""
        model = self.init_kwargs.get(f"{side}_segmenter")
        if model and ("segmenter", model) not in self._made:
            self._made["segmenter", model] = SentencePieceSegmenter(model)
        return self._made["segmenter", model] if model else None

    def _moses(self, tool: str, language: str) -> Callable[[str], str]:
        """The Moses tokenizer or detokenizer of a language as a function of one string, made at its first use."""
        if (tool, language) not in self._made:
            options = [self.init_kwargs.get(name, False) for name in ("moses_escape", "moses_split_dashes")]
            self._made[tool, language] = moses_tool(tool, language, *options)
        return self._made[tool, language]


MADE_BY_CALLS: WeakKeyDictionary[JMNatTokenizer, dict] = WeakKeyDictionary()


def show_canvas(tokenizer, ids: Sequence[int]) -> str:
    """A canvas in readable form: its pieces, with ` __` where a token is still to be predicted.

    Symbols of a fairseq dictionary contain no spaces, so they are shown with spaces between them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    of_whole_symbols = backend is not None and isinstance(backend.model, models.WordLevel)
    between = " " if of_whole_symbols and not tokenizer.init_kwargs.get("target_segmenter") else ""
    before = "" if between else " "
    pieces = []
    for token, piece in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if token == tokenizer.mask_token_id:
            pieces.append(f"{before}__")
        elif token == tokenizer.eos_token_id:
            pieces.append(f"{before}</s>")
        elif token != tokenizer.pad_token_id:
            pieces.append(piece)
    return one_line(between.join(pieces).replace(SPACE, " ")).strip()


def one_line(text: str) -> str:
    """The text with a space for each line break and tab."""
    return LINE_BREAKS.sub(" ", text)


def repeatable_tokens(tokenizer) -> list[int]:
    """Ids that may occur twice in a row in any text: single letters, digits, signs, bytes and special tokens.

    All others are words and pieces of words, with two letters or more. When tokens are predicted in parallel, such a
    repetition is far more often an error than not.
    """
    pieces = enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    apart = {*BYTE_TOKENS, *tokenizer.all_special_tokens}
    letters = {i: piece.removesuffix(END_OF_WORD).lstrip(SPACE_MARKS) for i, piece in pieces if piece not in apart}
    words = {i for i, piece in letters.items() if piece.strip() in MARKS or sum(map(str.isalpha, piece)) > 1}
    return [i for i in range(len(tokenizer)) if i not in words]


def set_repeatable_tokens(model, tokenizer) -> None:
    """Set `repeatable_tokens` in a model's generation config, unless it is set, from its tokenizer."""
    generation_config = getattr(model, "generation_config", None)
    if generation_config is not None and getattr(generation_config, "repeatable_tokens", None) is None:
        generation_config.repeatable_tokens = repeatable_tokens(tokenizer)


def _map_strings(function: Callable[[str], str], text):
    """Apply `function` to a string, or to every string in nested lists and tuples."""
    if isinstance(text, str):
        return function(text)
    if isinstance(text, (list, tuple)):
        return type(text)(_map_strings(function, item) for item in text)
    return text  # the caller's own check names what is wrong with it


def train_joint_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 6000,
    lowercase: bool = False,
    moses_source_lang: str | None = None,
    moses_target_lang: str | None = None,
    model_max_length: int = 512,
    unicode_form: str = "NFC",
    marks: bool = False,
) -> JMNatTokenizer:
    """Train one byte-pair vocabulary on the texts of both languages.

    Args:
        texts: lines of both languages, read twice. With Moses, give tokenised lines (see `moses_tool`), because the
            language of a line is not known here.
        vocab_size: number of ids, including special tokens (5), bytes (256) and `marks` (20). A small corpus may
            give fewer.
        lowercase: lower-case everything.
        moses_source_lang, moses_target_lang: both or neither; see `JMNatTokenizer`.
        model_max_length: longest text in tokens, `</s>` included; the tokenizer warns of longer ones.
        marks: whether the vocabulary has marks for text to be copied.
        unicode_form: "NFC", or "NFKC", which also replaces ligatures, full-width letters, superscripts and the like.

    Raises:
        ValueError: no text, a vocabulary too small for its characters, or one Moses language without the other.
    """
    check_moses_pair(moses_source_lang, moses_target_lang)
    clean = text_normalizer(unicode_form, lowercase)
    texts = list(texts) if isinstance(texts, Iterator) else texts
    alphabet, num_characters = _alphabet(map(clean.normalize_str, texts))
    further = (*BYTE_TOKENS, *MARK_PIECES) if marks else BYTE_TOKENS
    smallest = len(SPECIAL_TOKENS) + len(further) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: these texts need at least {smallest} "
            f"({len(SPECIAL_TOKENS)} special tokens, {len(further)} bytes{' and marks' * marks} and {len(alphabet)} "
            "characters)"
        )
    # The trainer reserves memory for the size it is asked for, and each merge needs at least one more character.
    vocab_size = min(vocab_size, smallest + num_characters)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE_PATTERN), "isolated")
    tokenizer.normalizer = normalizers.Sequence([clean, normalizers.Prepend(" ")])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(further),
        min_frequency=MIN_FREQUENCY,
        special_tokens=list(SPECIAL_TOKENS),
        # Counted here because the trainer's own limit breaks ties by hash order, which differs between runs.
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrap_tokenizer(
        _with_pieces(tokenizer, further, clean),
        model_max_length=model_max_length,
        lowercase=lowercase,
        moses_source_lang=moses_source_lang,
        moses_target_lang=moses_target_lang,
    )


def check_moses_pair(source_lang: str | None, target_lang: str | None) -> None:
    """Refuse one Moses language without the other."""
    if (source_lang is None) != (target_lang is None):
        raise ValueError(
            f"moses_source_lang={source_lang!r} and moses_target_lang={target_lang!r}: give both languages or neither"
        )


def wrap_tokenizer(tokenizer: Tokenizer, **settings) -> JMNatTokenizer:
    """A `JMNatTokenizer` that ends every text with `</s>` and takes special tokens in a text for plain text.

    Args:
        settings: options of `JMNatTokenizer`, and special tokens if they have other names than ours.
    """
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    settings = {**names, **settings}
    first = settings.get("source_start")
    tokenizer.post_processor = text_template(tokenizer, settings["eos_token"], first)
    return JMNatTokenizer(
        tokenizer_object=tokenizer, split_special_tokens=True, clean_up_tokenization_spaces=False, **settings
    )


def text_template(tokenizer: Tokenizer, end: str, first: str | None = None) -> processors.TemplateProcessing:
    """The post-processor that puts `first`, if given, before each text and `end` after it."""
    around = [token for token in (first, end) if token]
    begin = [first] if first else []
    return processors.TemplateProcessing(
        single=[*begin, "$A", end],
        pair=[*begin, "$A", end, "$B", end],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in around],
    )


def _alphabet(texts: Iterable[str]) -> tuple[list[str], int]:
    """The characters that get their own piece (always the space), by code point, and the number of all characters."""
    counts = Counter(itertools.chain.from_iterable(texts))
    if not counts:
        raise ValueError("texts is empty: give some text to train a tokenizer on")
    rarest = max(MIN_FREQUENCY, counts.total() // CHARACTERS_PER_PIECE)
    alphabet = sorted({" "} | {character for character, count in counts.items() if count >= rarest})
    return alphabet, counts.total()


def _with_pieces(tokenizer: Tokenizer, pieces: Sequence[str], clean: normalizers.Normalizer) -> Tokenizer:
    """The tokenizer with `pieces` (bytes, and marks if any) added to its vocabulary, normalising with `clean`.

    Bytes represent unknown characters. Pieces that the vocabulary has already keep their ids.
    """
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for piece in pieces:
        vocabulary.setdefault(piece, len(vocabulary))
    state["model"]["byte_fallback"] = True
    state["model"]["merges"] += [[" ", mark] for mark in MARKS if mark in vocabulary]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    # A space before the text makes its first word the same piece as elsewhere; the decoder removes it again.
    tokenizer.normalizer = normalizers.Sequence([clean, normalizers.Prepend(" ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE_PATTERN), "isolated")
    whole = [
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Replace("\ufffd", ""),
    ]  # of bytes that form no character
    tokenizer.decoder = decoders.Sequence([*whole, decoders.Strip(" ", 1, 0)])
    return tokenizer


def renewed(tokenizer: JMNatTokenizer, marks: bool = False) -> JMNatTokenizer:
    """An older tokenizer of `train_joint_tokenizer`, with today's normalisation. Normalised text keeps its ids.

    Args:
        marks: whether to append marks. The model then needs `resize_token_embeddings(len(tokenizer))`, and training on
            marked text.

    Raises:
        ValueError: the tokenizer has another origin, or has marks already.
    """
    backend = tokenizer.backend_tokenizer
    if tokenizer.has_marks or BYTE_TOKENS[0] not in tokenizer.get_vocab():
        raise ValueError("tokenizer must come from train_joint_tokenizer and have no marks yet")
    copied = copy.deepcopy(tokenizer)
    clean = text_normalizer(lowercase=tokenizer.lowercase)
    copied._tokenizer = _with_pieces(backend, (*BYTE_TOKENS, *MARK_PIECES) if marks else BYTE_TOKENS, clean)
    copied._tokenizer.post_processor = backend.post_processor
    return copied
