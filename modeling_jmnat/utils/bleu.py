"""sacreBLEU with a tokenizer that suits the target language.

Its default, 13a, splits at spaces and punctuation: a Chinese sentence would be a single word, so that even a good
translation would score 0.
"""

import functools
import logging
import re
from collections.abc import Sequence
from itertools import islice

logger = logging.getLogger(__name__)

BLEU_TOKENIZERS = (
    *("13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"),
    *("spm", "flores101", "flores200", "spBLEU-1K"),
)
DEFAULT_TOKENIZER = "13a"
OF_LANGUAGE = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"} | dict.fromkeys(("th", "lo", "km", "my", "bo"), "char")
LONG_CODES = {"zho": "zh", "cmn": "zh", "yue": "zh", "jpn": "ja", "kor": "ko"} | {
    "tha": "th", "lao": "lo", "khm": "km", "mya": "my", "bod": "bo", "dzo": "bo", "dz": "bo",
}  # fmt: skip
# For each language: its letters, and the least share of all letters that they have in a text.
SCRIPTS = (
    ("ja", "[\u3040-\u30ff]", 0.1),
    ("zh", "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]", 0.3),
    ("ko", "[\u1100-\u11ff\uac00-\ud7af]", 0.3),
    ("th", "[\u0e00-\u0e7f]", 0.3),
    ("lo", "[\u0e80-\u0eff]", 0.3),
    ("bo", "[\u0f00-\u0fff]", 0.3),
    ("my", "[\u1000-\u109f]", 0.3),
    ("km", "[\u1780-\u17ff]", 0.3),
)
SAMPLE = 1000  # lines whose script decides on the language


def language_without_spaces(references: Sequence[str], language: str | None = None) -> str | None:
    """The two-letter code of a language that 13a cannot split; None for any other.

    Args:
        references: text in the language, whose script decides if `language` does not.
        language: a code such as `zh`, `zh-CN` or `zho_Hans`.
    """
    code = re.split("[-_]", (language or "").lower())[0]
    code = LONG_CODES.get(code, code)
    if code in OF_LANGUAGE:
        return code
    text = "".join(islice(references, SAMPLE))
    letters = sum(map(str.isalpha, text))
    return next((name for name, script, share in SCRIPTS if len(re.findall(script, text)) > share * letters), None)


def bleu_tokenizer(references: Sequence[str], language: str | None = None, chosen: str | None = None) -> str:
    """sacreBLEU's name of the tokenizer for a language, see `language_without_spaces`; `chosen` overrides it."""
    if chosen is not None:
        check_bleu_tokenizer(chosen)
        return chosen
    code = language_without_spaces(references, language)
    return DEFAULT_TOKENIZER if code is None else installed_tokenizer(OF_LANGUAGE[code])


@functools.cache
def installed_tokenizer(name: str) -> str:
    """`name`, or `char` if it needs a package that is missing, with a single warning."""
    try:
        bleu_metric(name)
    except ValueError as error:
        logger.warning("%s; until then BLEU is computed on characters (tokenizer char)", error)
        return "char"
    return name


def check_bleu_tokenizer(name: str | None) -> None:
    """ValueError unless this is a tokenizer of sacreBLEU, or None (chosen by the language)."""
    if name is not None and name not in BLEU_TOKENIZERS:
        raise ValueError(f"bleu_tokenize={name!r} is not one of {', '.join(BLEU_TOKENIZERS)}")


def bleu_metric(tokenizer: str, lowercase: bool = False, force: bool = False, **options):
    """`sacrebleu.metrics.BLEU` with its `options`; ValueError if a package for this tokenizer is missing."""
    from sacrebleu.metrics import BLEU

    try:
        return BLEU(lowercase=lowercase, tokenize=tokenizer, force=force, **options)
    except RuntimeError as error:
        install = re.search(r"pip install (\S+)", str(error))
        if install is None:
            raise
        raise ValueError(
            f"sacreBLEU's tokenizer {tokenizer} needs a package that is missing: pip install '{install[1]}'"
        ) from None


def corpus_bleu(
    hypotheses: Sequence[str], references: Sequence[str], language: str | None = None, chosen: str | None = None
) -> float:
    """sacreBLEU (0 to 100) with the tokenizer of `bleu_tokenizer`."""
    metric = bleu_metric(bleu_tokenizer(references, language, chosen))
    return metric.corpus_score(hypotheses, [references]).score
