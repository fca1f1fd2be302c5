# ruff: noqa: F401  (`evaluate` reads the imports to check for libraries and to copy files)
"""The metric `nat_translation` of the library `evaluate`, on top of `translation_scores`.

This file, `translation_scores` and `bleu` form the folder hub_card/metrics/nat_translation, which does not need this
package. `evaluate` copies only the files that this one imports, and takes a comment after an import for an address.
"""

import datasets
import evaluate
import sacrebleu
import sacremoses

from .bleu import BLEU_TOKENIZERS
from .translation_scores import METRICS, SEED, check_hypotheses, reference_streams, score_translations

DESCRIPTION = """
Scores of non-autoregressive translation: sacreBLEU, chrF, chrF++, TER, tokenised BLEU as in the papers, repeated
words, and the length ratio; optionally with bootstrap intervals and paired tests.
"""
INPUTS = """
Args:
    predictions (list of str): translations, detokenised.
    references (list of str, or list of lists of str): one or several references for each prediction.
    target_language (str): language whose Moses rules split words for tokenised BLEU and repeats. Defaults to "en".
        Languages without spaces, also recognised by the script of the references, use sacreBLEU's tokenizer.
    lowercase (bool): ignore case in every score; TER always does. Defaults to False.
    bleu_tokenize (str): sacreBLEU's tokenizer. Defaults to the one for the language, 13a for most.
    metrics (list of str): which scores to compute, by their names below. Defaults to all.
    resamples (int): number of resamples of the sentences for 95% intervals, such as 1000. Defaults to 0, none.
    seed (int): seed of the resamples. Defaults to 12345, as in sacreBLEU.
    baselines (dict of lists of str): predictions of other systems by name, for paired tests; they need resamples.

Returns:
    sacrebleu, chrf, chrfpp, tokenized_bleu: 0 to 100, higher is better; ter: edits in percent, lower is better.
    sacrebleu_signature, ...: sacreBLEU's signature of each of these.
    repeated_tokens_per_sentence: words that equal the word before them.
    length_ratio: tokens of the predictions over those of the references.
    intervals: with resamples, the bounds of the middle 95% of each score.
    comparisons: with baselines, for each of them and each score `baseline`, `difference`, its `interval`, and `p`.

Examples:
    >>> metric = evaluate.load("hub_card/metrics/nat_translation")
    >>> found = metric.compute(predictions=["the the cat sat on"], references=["the cat sat down"], metrics=[
    ...     "ter", "repeated_tokens_per_sentence", "length_ratio"])
    >>> found["ter"], found["repeated_tokens_per_sentence"], found["length_ratio"]
    (50.0, 1.0, 1.25)
"""
CITATION = """
@inproceedings{guo-etal-2020-jointly,
    title = "Jointly Masked Sequence-to-Sequence Model for Non-Autoregressive Neural Machine Translation",
    author = "Guo, Junliang and Xu, Linli and Chen, Enhong",
    booktitle = "Proceedings of the 58th Annual Meeting of the Association for Computational Linguistics",
    year = "2020",
    pages = "376--385",
    url = "https://aclanthology.org/2020.acl-main.36",
}
@inproceedings{post-2018-call,
    title = "A Call for Clarity in Reporting {BLEU} Scores",
    author = "Post, Matt",
    booktitle = "Proceedings of the Third Conference on Machine Translation: Research Papers",
    year = "2018",
    pages = "186--191",
    url = "https://aclanthology.org/W18-6319",
}
"""


class NatTranslation(evaluate.Metric):
    __doc__ = DESCRIPTION + INPUTS

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": references})
                for references in (datasets.Sequence(text), text)
            ],
            reference_urls=["https://aclanthology.org/2020.acl-main.36", "https://github.com/mjpost/sacrebleu"],
        )

    def compute(self, *, predictions=None, references=None, **options):
        """Score the predictions given here, or those added before."""
        if predictions is None and references is None and not len(self):
            raise ValueError("there are no predictions: give predictions and references, or add some before")
        return super().compute(predictions=predictions, references=references, **options)

    def add_batch(self, *, predictions=None, references=None):
        """Add predictions and their references for `compute`."""
        check_hypotheses(predictions, 0 if references is None else len(references), "predictions")
        reference_streams(references)
        # All as lists, because `evaluate` would take lists for texts if both are mixed.
        lists = [[item] if isinstance(item, str) else list(item) for item in references]
        super().add_batch(predictions=predictions, references=lists)

    def add(self, *, prediction=None, reference=None):
        """Add a prediction and its reference, or a list of references, for `compute`."""
        self.add_batch(predictions=[prediction], references=[reference])

    def _compute(self, predictions, references, target_language="en", lowercase=False, bleu_tokenize=None, **options):
        return score_translations(predictions, references, target_language, lowercase, bleu_tokenize, **options)
