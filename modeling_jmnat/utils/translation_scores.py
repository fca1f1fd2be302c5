"""Scores of translations with intervals and paired tests, from plain lists, for `jmnat evaluate` and the metric.

Every score is computed from counts that are summed over sentences, so the counts of a system are made once, and
resampling sums them again. BLEU, chrF and TER are sacreBLEU's; intervals and p equal those of its command with the
same seed (`--confidence`, `--paired-bs`).

This file and `bleu` are copied to the metric in hub_card/metrics/nat_translation, so they import nothing else of this
package. Shapes: B sentences, N counts of each.
"""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from .bleu import bleu_metric, bleu_tokenizer, language_without_spaces

METRICS = ("sacrebleu", "chrf", "chrfpp", "ter", "tokenized_bleu", "repeated_tokens_per_sentence", "length_ratio")
RESAMPLES, SEED = 1000, 12345  # as in sacreBLEU
FEWEST_RESAMPLES = 40  # fewer have none beyond 2.5%
# Languages whose words sacreBLEU's TER can split: those with spaces (None, Korean), and two by characters.
TER_LANGUAGES = (None, "zh", "ja", "ko")

# The codes of three letters of languages for which Moses has rules of its own.
LONG_CODES = {
    "cat": "ca", "ces": "cs", "cze": "cs", "deu": "de", "ger": "de", "ell": "el", "gre": "el", "eng": "en",
    "spa": "es", "fin": "fi", "fra": "fr", "fre": "fr", "gle": "ga", "hun": "hu", "isl": "is", "ice": "is",
    "ita": "it", "lit": "lt", "lav": "lv", "lvs": "lv", "nld": "nl", "dut": "nl", "pol": "pl", "por": "pt",
    "ron": "ro", "rum": "ro", "rus": "ru", "slk": "sk", "slo": "sk", "slv": "sl", "swe": "sv", "tam": "ta",
}  # fmt: skip

References = Sequence[str] | Sequence[Sequence[str]]


class Measure(NamedTuple):
    """A score: the metric that reads sums of counts, and the function from B hypotheses to counts (B, N).

    `arguments` are those with which the command `sacrebleu` gives the same score (`tokenized_bleu`: from `words`).
    """

    metric: Any
    counts: Callable[[Sequence[str]], list]
    arguments: str | None = None


class Ratio:
    """The sum of one count over the sum of another, with the methods of a metric of sacreBLEU."""

    def _compute_score_from_stats(self, sums):
        from sacrebleu.metrics.base import Score

        return Score("ratio", float(sums[0] / sums[1]) if sums[1] else 0.0)

    def _aggregate_and_compute(self, counts):
        return self._compute_score_from_stats([sum(column) for column in zip(*counts, strict=True)])

    def get_signature(self):
        from sacrebleu.metrics.base import Signature

        return Signature({"num_refs": None})


def _measure(metric, arguments: str) -> Measure:
    return Measure(metric, functools.partial(metric._extract_corpus_statistics, references=None), arguments)


def _one_each(function: Callable[[Sequence[str]], Sequence[float]], texts: Sequence[str]) -> list:
    return [[value, 1] for value in function(texts)]


class _Counted:
    """A metric that takes counts from `PairedTest` instead of texts."""

    def __init__(self, metric):
        self._metric = metric

    def _extract_corpus_statistics(self, counts, references):
        return counts

    def __getattr__(self, name):
        return getattr(self._metric, name)


class Scorer:
    """Scores systems on one set of references. Counts are cached, so that scoring a system again costs nothing.

    Args:
        references: B references, or B lists of at least one reference.
        target_language: code of the language whose Moses rules split words for `tokenized_bleu` and for repeats. For
            languages without spaces, also recognised by the references' script, sacreBLEU's tokenizer splits them.
        lowercase: ignore case in every score, as the paper does on IWSLT14. TER always does, like TERCOM.
        bleu_tokenize: sacreBLEU's tokenizer. Default: the one for the language.
        metrics: some of `METRICS`. `ter` is left out if sacreBLEU cannot split words (Thai, Lao, Khmer, Burmese,
            Tibetan).
        by_sentence: further scores: functions from hypotheses to a number for each, whose mean is the score.

    Raises:
        ValueError: there are no references or some are not texts; an unknown metric, tokenizer or Moses language.
        ImportError: words are to be split, and sacremoses is not installed.
    """

    def __init__(
        self,
        references: References,
        target_language: str = "en",
        lowercase: bool = False,
        bleu_tokenize: str | None = None,
        metrics: Sequence[str] = METRICS,
        by_sentence: Mapping[str, Callable[[Sequence[str]], Sequence[float]]] | None = None,
    ):
        check_metrics(metrics)
        if not isinstance(target_language, str) or not isinstance(lowercase, bool):
            raise ValueError(f"{target_language=} must be a code such as 'en', and {lowercase=} True or False")
        self.num_sentences = len(references)
        self._streams = reference_streams(references)
        self.language = language_without_spaces(self._streams[0], target_language)
        self.lowercase = lowercase
        self.bleu_tokenizer = bleu_tokenizer(self._streams[0], target_language, bleu_tokenize)
        self.words: Callable[[str], str] | None = None  # puts spaces between words; None if no score needs them
        self.measures = self._measures_of_texts(metrics)
        if not {"tokenized_bleu", "repeated_tokens_per_sentence"}.isdisjoint(metrics):
            if self.language is None:
                split = moses_splitter(target_language)
            else:
                split = bleu_metric(bleu_tokenizer(self._streams[0], target_language)).tokenizer
            self.words = functools.cache(lambda text: split(text.lower() if lowercase else text))
            self.measures |= self._measures_of_words(self.words)
        self.measures = {name: self.measures[name] for name in METRICS if name in metrics and name in self.measures}
        for name, function in (by_sentence or {}).items():
            self.measures[name] = Measure(Ratio(), functools.partial(_one_each, function))
        self._counts: dict[tuple[str, ...], dict[str, list]] = {}

    def _measures_of_texts(self, metrics: Sequence[str]) -> dict[str, Measure]:
        from sacrebleu.metrics import CHRF, TER

        found = {}
        if not {"sacrebleu", "length_ratio"}.isdisjoint(metrics):
            arguments = f"--metrics bleu --tokenize {self.bleu_tokenizer}" + " --lowercase" * self.lowercase
            bleu = _measure(bleu_metric(self.bleu_tokenizer, self.lowercase, references=self._streams), arguments)
            bleu = bleu._replace(counts=functools.lru_cache(1)(bleu.counts))
            found["sacrebleu"] = bleu
            # The command sacrebleu prints it as "ratio": tokens of hypotheses over those of the closest references.
            found["length_ratio"] = Measure(Ratio(), lambda texts: [row[:2] for row in bleu.counts(texts)], arguments)
        for name, order in (("chrf", 0), ("chrfpp", 2)):
            if name in metrics:
                arguments = f"--metrics chrf --chrf-word-order {order}" + " --chrf-lowercase" * self.lowercase
                chrf = CHRF(word_order=order, lowercase=self.lowercase, references=self._streams)
                found[name] = _measure(chrf, arguments)
        if "ter" in metrics and self.language in TER_LANGUAGES:
            asian = self.language in ("zh", "ja")
            ter = TER(normalized=asian, asian_support=asian, references=self._streams)
            found["ter"] = _measure(ter, "--metrics ter" + " --ter-normalized --ter-asian-support" * asian)
        return found

    def _measures_of_words(self, words: Callable[[str], str]) -> dict[str, Measure]:
        streams = [[None if line is None else words(line) for line in stream] for stream in self._streams]
        arguments = "--metrics bleu --tokenize none --force" + " --lowercase" * self.lowercase
        bleu = _measure(bleu_metric("none", self.lowercase, force=True, references=streams), arguments)

        def repeats(texts):
            return [count_repeated_tokens(words(text).split()) for text in texts]

        return {
            "tokenized_bleu": bleu._replace(counts=lambda texts: bleu.counts(list(map(words, texts)))),
            "repeated_tokens_per_sentence": Measure(Ratio(), functools.partial(_one_each, repeats)),
        }

    def counts(self, hypotheses: Sequence[str]) -> dict[str, list]:
        """Counts (B, N) of each measure.

        Raises:
            ValueError: there are not as many hypotheses as references, or some are not texts.
        """
        check_hypotheses(hypotheses, self.num_sentences)
        texts = tuple(hypotheses)
        if texts not in self._counts:
            self._counts[texts] = {name: measure.counts(texts) for name, measure in self.measures.items()}
        return self._counts[texts]

    def scores(self, hypotheses: Sequence[str]) -> dict:
        """Each score by its name, and sacreBLEU's signatures as `NAME_signature`."""
        found = {}
        for name, counts in self.counts(hypotheses).items():
            metric = self.measures[name].metric
            found[name] = metric._aggregate_and_compute(counts).score
            if not isinstance(metric, Ratio):
                found[f"{name}_signature"] = str(metric.get_signature())
        return found

    def intervals(
        self, hypotheses: Sequence[str], resamples: int = RESAMPLES, seed: int = SEED
    ) -> dict[str, tuple[float, float]]:
        """The middle 95% of each score over resamples of the sentences (percentile bootstrap)."""
        check_resampling(resamples, seed)
        return {
            name: middle(resampled(self.measures[name].metric, counts, resamples, seed))
            for name, counts in self.counts(hypotheses).items()
        }

    def compare(
        self, hypotheses: Sequence[str], baseline: Sequence[str], resamples: int = RESAMPLES, seed: int = SEED
    ) -> dict[str, dict]:
        """For each score, that of the `baseline`, the `difference` (hypotheses - baseline), its `interval`, and `p`.

        The interval is the middle 95% of the differences on the same resampled sentences (two-sided). `p` is that of
        `sacrebleu --paired-bs`, about the share of resamples in which the worse system wins (one-sided): p = 0.025
        corresponds to an interval that ends at 0. It is 1 if all counts are equal, where sacreBLEU would report its
        smallest p.
        """
        check_resampling(resamples, seed)
        ours, theirs = self.counts(hypotheses), self.counts(baseline)
        found = {}
        for name, (metric, _, _) in self.measures.items():
            scores = [metric._aggregate_and_compute(counts[name]).score for counts in (ours, theirs)]
            many = (resampled(metric, counts[name], resamples, seed) for counts in (ours, theirs))
            found[name] = {
                "baseline": scores[1],
                "difference": scores[0] - scores[1],
                "interval": middle([one - other for one, other in zip(*many, strict=True)]),
                "p": paired_p(metric, ours[name], theirs[name], resamples, seed),
            }
        return found


def score_translations(
    hypotheses: Sequence[str],
    references: References,
    target_language: str = "en",
    lowercase: bool = False,
    bleu_tokenize: str | None = None,
    *,
    metrics: Sequence[str] = METRICS,
    resamples: int = 0,
    seed: int = SEED,
    baselines: Mapping[str, Sequence[str]] | None = None,
) -> dict:
    """Corpus scores of a system; with resamples also intervals, and with baselines also paired tests.

    Args:
        target_language, lowercase, bleu_tokenize, metrics: see `Scorer`.
        resamples: number of resamples of the sentences, for intervals and tests; 0: none.
        seed: seed of the resamples, at least 1.
        baselines: hypotheses of other systems by name.

    Returns:
        `sacrebleu`, `chrf`, `chrfpp` (chrF++), `ter` and `tokenized_bleu` (in percent), each with its signature
        (`sacrebleu_signature`); `repeated_tokens_per_sentence`: words equal to the word before them, after
        tokenisation; `length_ratio`: tokens over those of the references. `intervals` by score, see
        `Scorer.intervals`; `comparisons` by baseline and score, see `Scorer.compare`.

    Raises:
        ValueError: as `Scorer`; there are no sentences or different numbers of them; baselines without resamples.
    """
    check_hypotheses(hypotheses, 0 if references is None else len(references))
    scorer = Scorer(references, target_language, lowercase, bleu_tokenize, metrics)
    return scored(scorer, hypotheses, resamples, seed, baselines)


def scored(
    scorer: Scorer,
    hypotheses: Sequence[str],
    resamples: int = 0,
    seed: int = SEED,
    baselines: Mapping[str, Sequence[str]] | None = None,
) -> dict:
    """The result of `score_translations`, from a scorer that can be used for several systems."""
    if baselines and not resamples:
        raise ValueError(f"resamples={resamples} must be above 0 to compare with baselines, such as {RESAMPLES}")
    figures = scorer.scores(hypotheses)
    if resamples:
        figures["intervals"] = scorer.intervals(hypotheses, resamples, seed)
    if baselines:
        figures["comparisons"] = {
            name: scorer.compare(hypotheses, texts, resamples, seed) for name, texts in baselines.items()
        }
    return figures


# Resampling ----------------------------------------------------------------------------------------------------------


def resampled(metric, counts: Sequence[Sequence[float]], resamples: int, seed: int) -> list[float]:
    """Scores of B sentences drawn with replacement; a seed draws the same ones for every system."""
    import numpy as np

    generator = np.random.default_rng(seed)
    table = np.asarray(counts, dtype=np.float64)  # (B, N)
    scores = []
    for _ in range(resamples):
        times = np.bincount(generator.integers(len(table), size=len(table)), minlength=len(table))  # (B,)
        scores.append(float(metric._compute_score_from_stats(times @ table).score))
    return scores


def middle(scores: Sequence[float]) -> tuple[float, float]:
    """The bounds of the middle 95% of the scores. Half their distance is what sacreBLEU prints after ±."""
    tail = len(scores) // 40
    ordered = sorted(scores)
    return ordered[tail], ordered[-tail - 1]


def paired_p(metric, ours: list, theirs: list, resamples: int, seed: int) -> float:
    """p of sacreBLEU's paired bootstrap of two systems, from their counts (B, N)."""
    from sacrebleu.significance import PairedTest

    if ours == theirs:
        return 1.0
    counted: Any = {"": _Counted(metric)}
    with _environment("SACREBLEU_SEED", str(seed)):  # the only way to set its seed
        test = PairedTest([("baseline", theirs), ("system", ours)], counted, None, "bs", resamples)
    results: dict[str, Any] = test()[1]
    return float(next(found[1].p_value for name, found in results.items() if name != "System"))


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


# Texts and words -----------------------------------------------------------------------------------------------------


def count_repeated_tokens(tokens: Sequence) -> int:
    """Number of tokens that equal their immediate predecessor (Table 3): "a a a b" has 2."""
    return sum(token == previous for previous, token in zip(tokens, tokens[1:], strict=False))


def moses_splitter(language: str) -> Callable[[str], str]:
    """A function that puts spaces between the words of a text, by the rules of Moses; `&` stays `&`.

    Args:
        language: a code such as `de`, `pt-BR` or `deu_Latn`.
    """
    found = re.fullmatch(r"([A-Za-z]{2,3})([-_]([A-Z][a-z]{3}|[A-Za-z]{2}|\d{3}))*", language)  # scripts and regions
    if not found:
        raise ValueError(f"Moses language {language!r} must be a code such as 'de' or 'en'")
    try:
        from sacremoses import MosesTokenizer
    except ImportError:
        raise ImportError("tokenised BLEU and repeated words need sacremoses: pip install sacremoses") from None
    code = found[1].lower()
    return functools.partial(MosesTokenizer(lang=LONG_CODES.get(code, code)).tokenize, return_str=True, escape=False)


def check_hypotheses(hypotheses: Sequence[str], num_references: int, name: str = "hypotheses") -> None:
    """ValueError unless there are as many texts as references, and at least one."""
    is_list = hypotheses is not None and not isinstance(hypotheses, str | Mapping)
    if not is_list or not len(hypotheses) or len(hypotheses) != num_references:
        count = len(hypotheses) if is_list else f"{hypotheses!r} instead of a list of"
        raise ValueError(f"{count} {name} and {num_references} references: give equally many, at least one")
    for number, text in enumerate(hypotheses):
        check_text(text, f"{name}[{number}]")


def reference_streams(references: References) -> list[list]:
    """The first reference of each sentence, the second of each, and so on; None if a sentence has fewer.

    Raises:
        ValueError: there are no references, or some are neither texts nor lists of at least one text.
    """
    if references is None or isinstance(references, str | Mapping) or not len(references):
        raise ValueError(f"references={references!r} must be a list of at least one text, or of lists of texts")
    rows = [[item] if isinstance(item, str) or item is None else list(item) for item in references]
    for number, row in enumerate(rows):
        if not row:
            raise ValueError(f"references[{number}] is empty: each sentence needs at least one reference")
        for text in row:
            check_text(text, f"references[{number}]")
    return [list(stream) for stream in zip_longest(*rows)]


def check_text(value, name: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r} ({type(value).__name__}) but must be a string ('' if it is empty)")
    if re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{name} is {value!r}, which has half of a character: read the text as UTF-8")


def check_metrics(names: Sequence[str]) -> None:
    """ValueError for an unknown metric, or for none."""
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise ValueError(f"metrics={list(names)} must be at least one of {', '.join(METRICS)}")


def check_resampling(resamples: int, seed: int) -> None:
    """ValueError for too few resamples, or for a seed that sacreBLEU ignores."""
    if resamples < FEWEST_RESAMPLES:
        raise ValueError(f"resamples={resamples} must be at least {FEWEST_RESAMPLES}, or 0 for no intervals")
    if seed < 1:
        raise ValueError(f"seed={seed} must be at least 1: with 0, sacreBLEU draws other sentences in each run")
