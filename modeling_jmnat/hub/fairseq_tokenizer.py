"""A tokenizer with the ids of a fairseq dictionary, and optionally with byte-pair codes."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ..segmenters import CONTINUATION, END_OF_WORD, moses_tool
from ..tokenization_jmnat import SPECIAL_TOKENS, JMNatTokenizer, check_moses_pair, wrap_tokenizer
from ..utils.text_files import iterate_lines, read_lines

ESCAPED = ("&apos;", "&quot;", "&amp;")  # how Moses writes ' " &
SPLIT_DASH = "@-@"


def read_dictionary(path: str | Path) -> list[str]:
    """The symbols of a fairseq dictionary in the order of their ids, the five special ones first.

    Raises:
        ValueError: a line is not `symbol count`, or repeats a symbol; the message names the line.
    """
    symbols = dict.fromkeys(SPECIAL_TOKENS)
    for number, line in enumerate(iterate_lines(path), 1):
        symbol, space, count = line.rpartition(" ")
        if not symbol or not space or not count.isdecimal():
            raise ValueError(f"{path}: line {number} must be a symbol and its count, not {line!r}")
        if symbol in symbols:
            raise ValueError(f"{path}: line {number} repeats the symbol {symbol!r}")
        symbols[symbol] = None
    return list(symbols)


def read_joint_dictionary(source_dict: str | Path, target_dict: str | Path) -> list[str]:
    """The joint dictionary; raises ValueError if the two differ, because the model has one embedding matrix."""
    source, target = read_dictionary(source_dict), read_dictionary(target_dict)
    if source == target:
        return source
    if len(source) != len(target):
        difference = f"{len(source)} and {len(target)} symbols"
    else:
        place = next(place for place, pair in enumerate(zip(source, target, strict=True)) if pair[0] != pair[1])
        difference = f"{source[place]!r} and {target[place]!r} as symbol {place}"
    raise ValueError(
        f"{source_dict} and {target_dict} differ ({difference}): only models with a dictionary of both languages "
        "(--joined-dictionary) can be converted"
    )


def read_bpe_codes(path: str | Path) -> list[str]:
    """The merges, such as `"a b"`, in a file of subword-nmt (`#version: 0.2`, `a b`) or fastBPE (`a b count`).

    Raises:
        ValueError: the file is empty, or a line is neither; the message names the line.
    """
    merges = []
    for number, line in enumerate(read_lines(path), 1):
        if number == 1 and line.startswith("#version:"):
            continue
        fields = line.rstrip(" ").split(" ")
        if len(fields) == 3 and fields[2].isdecimal():
            fields.pop()
        if len(fields) != 2 or not all(fields):
            raise ValueError(f"{path}: line {number} must be a merge of byte-pair codes (two pieces), not {line!r}")
        merges.append(" ".join(fields))
    if not merges:
        raise ValueError(f"{path} has no byte-pair codes: give the file of codes with which the data was split")
    return merges


def build_tokenizer(
    symbols: Sequence[str],
    merges: Sequence[str] | None = None,
    moses_source_lang: str | None = None,
    moses_target_lang: str | None = None,
    lowercase: bool = False,
    model_max_length: int = 512,
) -> JMNatTokenizer:
    """A tokenizer whose ids are indices into `symbols`.

    With `merges` it reads text. Without, it reads pieces separated by spaces, as in fairseq's training data
    (`wor@@ d`). Either way, decoding joins the pieces to words. If the symbols include the escapes that Moses writes
    for `'` and for dashes between words, Moses tokenisation writes them here, too.

    Args:
        symbols: the special symbols, then those of the dictionary.
        merges: see `read_bpe_codes`.
        moses_source_lang, moses_target_lang: see `JMNatTokenizer`; both or neither.
        lowercase: the model was trained on lower-cased text.
        model_max_length: longest text in tokens, `</s>` included; the tokenizer warns of longer ones.

    Raises:
        ValueError: one Moses language without the other, or an unknown one.
    """
    check_moses_pair(moses_source_lang, moses_target_lang)
    for language in (moses_source_lang, moses_target_lang):
        if language is not None:
            moses_tool("tokenizer", language)
    end_of_word_pieces = any(symbol.endswith(END_OF_WORD) for symbol in symbols)
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\x1c-\x1f]+"), "removed")  # as Python splits
    tokenizer.decoder = _joining_decoder(end_of_word_pieces)
    return wrap_tokenizer(
        tokenizer,
        model_max_length=model_max_length,
        lowercase=lowercase,
        moses_source_lang=moses_source_lang,
        moses_target_lang=moses_target_lang,
        moses_escape=any(entity in symbol for symbol in symbols for entity in ESCAPED),
        moses_split_dashes=any(symbol.startswith(SPLIT_DASH) for symbol in symbols),
        bpe_merges=None if merges is None else list(merges),
        bpe_end_of_word_pieces=end_of_word_pieces,
    )


def _joining_decoder(end_of_word_pieces: bool) -> decoders.Decoder:
    if end_of_word_pieces:
        steps = [decoders.Fuse(), decoders.Replace(END_OF_WORD, " "), decoders.Strip(" ", 0, 1)]
    else:
        spaces = decoders.WordPiece(prefix="\0", cleanup=False)  # a space before every piece: none begins so
        steps = [spaces, decoders.Fuse(), decoders.Replace(Regex(f"{CONTINUATION}( |$)"), "")]
    return decoders.Sequence(steps)
