"""Translate a test set with one or several settings and score it, for the command `evaluate`."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import starmap
from pathlib import Path

import torch

from ..inference.lines import LineReader, describe_long_lines
from ..inference.loading import is_jmnat, load_translator, prefixed, tell_languages
from ..inference.translation import check_options, parse_generation_options
from ..teacher.reranking import load_reranker
from ..utils.atomic_files import write_json
from ..utils.bleu import DEFAULT_TOKENIZER, bleu_metric
from ..utils.text_files import read_parallel, write_lines
from ..utils.translation_scores import Scorer
from .comet import comet_scores
from .noise import disturbed
from .options import STATE_NOISES, EvaluationArguments
from .scores import describe_environment, evaluate_model
from .stored import REFERENCE, read_baselines, row_name, store_texts, stored_folder

logger = logging.getLogger(__name__)
DEFAULT_ITERATIONS = [1, 4, 10]
DEFAULT_BEAMS = [1, 5]
DEFAULT_SPLIT = "validation"
# Names of the scores as printed, and their numbers of decimal places.
TITLES = {
    "sacrebleu": ("sacreBLEU", 2),
    "chrf": ("chrF", 2),
    "chrfpp": ("chrF++", 2),
    "ter": ("TER", 2),
    "tokenized_bleu": ("tokenised BLEU", 2),
    "repeated_tokens_per_sentence": ("repeated words", 3),
    "length_ratio": ("length ratio", 3),
    "comet": ("COMET", 4),
}


def decoding_settings(arguments: EvaluationArguments, model) -> tuple[list[dict], dict]:
    """The options that differ from row to row, and those that all rows share."""
    jmnat = is_jmnat(model)
    varied, other = ("num_iterations", "num_beams") if jmnat else ("num_beams", "num_iterations")
    if getattr(arguments, other) is not None:
        kind = "JM-NAT" if jmnat else "an autoregressive model"
        raise ValueError(f"--{other} does not apply to {kind}: use --{varied}")
    defaults = DEFAULT_ITERATIONS if jmnat else DEFAULT_BEAMS
    if jmnat and model.config.decoder_input == "source_copy":
        defaults = [1]  # the basic NAT has no masks to refine
    tuned, given = tuned_options(arguments.tuning), parse_generation_options(arguments.generation_options)
    if varied in given:
        raise ValueError(f"{varied} cannot be given in --generation_options: use --{varied}")
    if (chosen := tuned.pop(varied, None)) is not None:
        defaults = [chosen]
    values = getattr(arguments, varied) or defaults
    shared = tuned | given
    if arguments.num_length_candidates is not None:
        if not jmnat:
            raise ValueError("--num_length_candidates does not apply to an autoregressive model: use --num_beams")
        shared["num_length_candidates"] = arguments.num_length_candidates
    return [{varied: value} for value in values], shared


def tuned_options(path: str | None) -> dict:
    """The options in a file of `jmnat tune`; none for None."""
    if path is None:
        return {}
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8"))["best"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"tuning={path} is not a file that `jmnat tune --output` wrote") from None


def texts_of(arguments: EvaluationArguments) -> tuple[list[str], list[str], str]:
    """Sources, references, and the language of the references."""
    if arguments.data is None:
        return *read_parallel(arguments.source, arguments.reference), arguments.target_language or "en"
    from ..data.preparation import prepared_language, prepared_text  # which needs the package datasets

    texts = prepared_text(arguments.data, arguments.split or DEFAULT_SPLIT)
    return *texts, arguments.target_language or prepared_language(arguments.data) or "en"


def scorer_of(arguments: EvaluationArguments, sources: list[str], references: list[str], language: str) -> Scorer:
    """The scorer of all rows; missing packages or models are reported before any translating."""
    by_sentence = {}
    if arguments.comet_model is not None:
        use_gpu = arguments.device != "cpu" and torch.cuda.is_available()
        by_sentence["comet"] = comet_scores(arguments.comet_model, sources, references, use_gpu)
    bleu_metric(arguments.bleu_tokenize or DEFAULT_TOKENIZER)
    tokenizer = arguments.bleu_tokenize
    return Scorer(references, language, arguments.lowercase, tokenizer, arguments.metrics, by_sentence)


def described_settings(arguments: EvaluationArguments, model, generation: dict, sentences: int, language: str) -> dict:
    """The settings in the JSON file, which name files and folders without their paths."""

    def name(path: str | None) -> str | None:
        return None if path is None else Path(path).resolve().name

    prepared = None if arguments.data is None else f"{name(arguments.data)}, {arguments.split or DEFAULT_SPLIT}"
    return {
        "model": name(arguments.model),
        "model_type": model.config.model_type,
        "backend": arguments.backend,
        "source": prepared or Path(arguments.source).name,
        "reference": prepared or Path(arguments.reference).name,
        "sentences": sentences,
        "lowercase": arguments.lowercase,
        "target_language": language,
        "bleu_tokenize": arguments.bleu_tokenize,
        "batch_tokens": arguments.batch_tokens,
        "languages": arguments.languages,
        "source_prefix": arguments.source_prefix,
        "split_sentences": arguments.split_sentences,
        "long_lines": arguments.long_lines,
        "noise": arguments.noise,
        "generation": generation,
        "reranker": name(arguments.reranker),
        "resamples": arguments.resamples,
        "seed": arguments.seed,
        "comet_model": name(arguments.comet_model),
    }


def run_evaluation(arguments: EvaluationArguments) -> dict:
    """Returns the content of the JSON file; prints a line per row, and per baseline, as soon as it is known.

    The file is written even if an interruption or an error ends the run early, with the rows that were done.
    """
    sources, references, language = texts_of(arguments)
    baselines = read_baselines(arguments.baseline or [], references)
    scorer = scorer_of(arguments, sources, references, language)
    if arguments.backend != "torch" and arguments.noise in STATE_NOISES:
        raise ValueError(f"noise={arguments.noise} needs backend=torch: other backends do not give access to states")
    model, tokenizer = load_translator(arguments.model, arguments.device, arguments.dtype, arguments.backend)
    tell_languages(arguments.model, model, tokenizer, arguments.languages, arguments.source_prefix)
    varied, shared = decoding_settings(arguments, model)
    for setting in varied:
        check_options(model, shared | setting)
    if arguments.long_lines == "error":
        reader = LineReader(model, tokenizer, arguments.split_sentences, arguments.long_lines)
        reader.check(list(prefixed(arguments.source_prefix, sources)))
    report = {
        "settings": described_settings(arguments, model, shared, len(sources), language),
        **describe_environment(model),
        "sacrebleu_arguments": {name: measure.arguments for name, measure in scorer.measures.items()},
        "results": [],
    }
    if arguments.reranker is not None:
        if not is_jmnat(model):
            raise ValueError("--reranker does not apply to an autoregressive model: leave it out")
        shared = {**shared, "reranker": load_reranker(arguments.reranker, tokenizer, model.device)}
    stored = stored_folder(arguments.output)
    rows = evaluated(arguments, model, tokenizer, sources, references, varied, shared, scorer, baselines)
    try:
        for figures, texts in rows:
            name = row_name(figures)
            if stored is not None:
                if not report["results"]:
                    store_texts(stored, REFERENCE, references, scorer.words)
                figures["translations"] = store_texts(stored, name, texts, scorer.words)
            report["results"].append(figures)
            print(*describe_row(figures), sep="\n", flush=True)
            if (count := figures["long_lines"]) and len(report["results"]) == 1:
                print(describe_long_lines(count, model, arguments.long_lines), file=sys.stderr)
            if arguments.translations:
                write_lines(Path(arguments.translations) / f"{name}.txt", texts)
    finally:
        if arguments.output and report["results"]:
            write_json(arguments.output, report)
    if not any(row.get("sacrebleu", 1) for row in report["results"]):
        logger.warning(
            "sacreBLEU is 0 in every row: check the languages of the text, and that --bleu_tokenize suits the target"
        )
    return report


def evaluated(
    arguments: EvaluationArguments, model, tokenizer, sources, references, varied, shared, scorer, baselines
) -> Iterator[tuple[dict, list[str]]]:
    """Figures (including the noise level) and translations of each row."""
    for level in arguments.noise_levels if arguments.noise else [None]:
        at_level = {} if level is None else {"noise_level": level}
        with nullcontext(sources) if level is None else disturbed(model, sources, arguments.noise, level) as lines:
            rows = evaluate_model(
                model,
                tokenizer,
                list(prefixed(arguments.source_prefix, lines)),
                references,
                varied,
                original=sources,
                generation=shared,
                scorer=scorer,
                resamples=arguments.resamples,
                seed=arguments.seed,
                baselines=baselines,
                batch_tokens=arguments.batch_tokens,
                latency_sentences=arguments.latency_sentences,
                split_sentences=arguments.split_sentences,
                long_lines=arguments.long_lines,
                progress=sys.stderr.isatty(),
            )
            for figures, texts in rows:
                yield at_level | figures, texts


def describe_row(figures: dict) -> list[str]:
    """A row as text: the setting, scores with their intervals, and the speed; below it a line per baseline."""
    setting = row_name(figures, " ", ", ").replace("noise_level", "noise")
    intervals = figures.get("intervals", {})
    scores = []
    for name, (title, digits) in TITLES.items():
        if name in figures:
            low, high = intervals.get(name, (0, 0))
            margin = f" ± {(high - low) / 2:.{digits}f}" if name in intervals else ""
            scores.append(f"{title} {figures[name]:.{digits}f}{margin}")
    line = f"{setting}: {', '.join(scores)}; {figures['sentences_per_second']:.1f} sentences/s"
    if "latency_ms" in figures:
        line += f", {figures['latency_ms']['mean']:.1f} ms per sentence at batch 1"
    return [line, *(f"  {line}" for line in starmap(describe_comparison, figures.get("comparisons", {}).items()))]


def describe_comparison(baseline: str, found: dict[str, dict]) -> str:
    """The differences from a baseline, each with its interval and p."""
    differences = []
    for name, (title, digits) in TITLES.items():
        if name in found:
            low, high = (f"{bound:+.{digits}f}" for bound in found[name]["interval"])
            difference = f"{found[name]['difference']:+.{digits}f} [{low}, {high}]"
            differences.append(f"{title} {difference} p {found[name]['p']:.3f}")
    return f"against {baseline}: {', '.join(differences)}"
