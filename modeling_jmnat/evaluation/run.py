"""A test set translated with one or several settings and scored, for the command `evaluate`."""

import json
import logging
import sys
from contextlib import nullcontext
from pathlib import Path

from ..inference.lines import LineReader, describe_long_lines
from ..inference.loading import is_jmnat, load_translator, set_languages
from ..inference.translation import check_options, parse_generation_options
from ..teacher.reranking import load_reranker
from ..utils.atomic_files import write_json
from ..utils.bleu import DEFAULT_TOKENIZER, bleu_metric
from ..utils.text_files import read_parallel, write_lines
from .noise import disturbed
from .options import STATE_NOISES, EvaluationArguments
from .scores import describe_environment, evaluate_model

logger = logging.getLogger(__name__)
DEFAULT_ITERATIONS = [1, 4, 10]
DEFAULT_BEAMS = [1, 5]


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
    values = getattr(arguments, varied) or defaults
    tuned, given = tuned_options(arguments.tuning), parse_generation_options(arguments.generation_options)
    if varied in given:
        raise ValueError(f"generation_options: {varied} is chosen by --{varied}")
    tuned.pop(varied, None)
    shared = tuned | given
    if arguments.num_length_candidates is not None:
        if not jmnat:
            raise ValueError("--num_length_candidates does not apply to an autoregressive model: use --num_beams")
        shared["num_length_candidates"] = arguments.num_length_candidates
    return [{varied: value} for value in values], shared


def tuned_options(path: str | None) -> dict:
    """What tune_decoding.py chose; none for None."""
    if path is None:
        return {}
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8"))["best"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"tuning={path} is not a file of tune_decoding.py") from None


def run_evaluation(arguments: EvaluationArguments) -> dict:
    """Everything that goes into the JSON file; one printed line per row as soon as it is known.

    The file is written even where an interruption or an error ends it early, with the rows that were done.
    """
    sources, references = read_parallel(arguments.source, arguments.reference)
    bleu_metric(arguments.bleu_tokenize or DEFAULT_TOKENIZER)  # whether it is there must be known before the work
    if arguments.backend != "torch" and arguments.noise in STATE_NOISES:
        raise ValueError(f"noise={arguments.noise} needs backend=torch: other backends show no states")
    model, tokenizer = load_translator(arguments.model, arguments.device, arguments.dtype, arguments.backend)
    if arguments.languages is not None:
        set_languages(model, tokenizer, arguments.languages)
    sources = [(arguments.source_prefix or "") + source for source in sources]
    varied, shared = decoding_settings(arguments, model)
    for setting in varied:
        check_options(model, shared | setting)
    if arguments.long_lines == "error":
        LineReader(model, tokenizer, arguments.split_sentences, arguments.long_lines).check(sources)
    report = {
        "settings": {
            "model": Path(arguments.model).resolve().name,
            "model_type": model.config.model_type,
            "backend": arguments.backend,
            "source": Path(arguments.source).name,
            "reference": Path(arguments.reference).name,
            "sentences": len(sources),
            "lowercase": arguments.lowercase,
            "target_language": arguments.target_language,
            "bleu_tokenize": arguments.bleu_tokenize,
            "batch_tokens": arguments.batch_tokens,
            "split_sentences": arguments.split_sentences,
            "long_lines": arguments.long_lines,
            "noise": arguments.noise,
            "generation": shared,
            "reranker": Path(arguments.reranker).resolve().name if arguments.reranker else None,
        },
        **describe_environment(model),
        "results": [],
    }
    if arguments.reranker is not None:
        if not is_jmnat(model):
            raise ValueError("--reranker does not apply to an autoregressive model: its beam search chooses already")
        shared = {**shared, "reranker": load_reranker(arguments.reranker, tokenizer, model.device)}
    try:
        for at_level, setting, figures, texts in evaluated(
            arguments, model, tokenizer, sources, references, varied, shared
        ):
            report["results"].append(at_level | figures)
            print(describe_row(report["results"][-1]), flush=True)
            if (count := figures["long_lines"]) and len(report["results"]) == 1:
                print(describe_long_lines(count, model, arguments.long_lines), file=sys.stderr)
            if arguments.translations:
                name = "-".join(f"{key}-{value}" for key, value in (at_level | setting).items())
                write_lines(Path(arguments.translations) / f"{name}.txt", texts)
    finally:
        if arguments.output and report["results"]:
            write_json(arguments.output, report)
    if not any(row["sacrebleu"] for row in report["results"]):
        logger.warning("sacreBLEU is 0 in every row: is the text the model's, and --bleu_tokenize the language's?")
    return report


def evaluated(arguments: EvaluationArguments, model, tokenizer, sources, references, varied, shared):
    """Noise level, setting, figures and translations of each row."""
    for level in arguments.noise_levels if arguments.noise else [None]:
        with nullcontext(sources) if level is None else disturbed(model, sources, arguments.noise, level) as lines:
            rows = evaluate_model(
                model,
                tokenizer,
                lines,
                references,
                varied,
                generation=shared,
                target_language=arguments.target_language,
                lowercase=arguments.lowercase,
                bleu_tokenize=arguments.bleu_tokenize,
                batch_tokens=arguments.batch_tokens,
                latency_sentences=arguments.latency_sentences,
                split_sentences=arguments.split_sentences,
                long_lines=arguments.long_lines,
                progress=sys.stderr.isatty(),
            )
            for setting, (figures, texts) in zip(varied, rows, strict=True):
                yield {} if level is None else {"noise_level": level}, setting, figures, texts


def describe_row(figures: dict) -> str:
    """One row for a person: the setting, the scores, and the speed."""
    setting = next(f"{name} {figures[name]}" for name in ("num_iterations", "num_beams") if name in figures)
    if "noise_level" in figures:
        setting = f"noise {figures['noise_level']:g}, {setting}"
    line = (
        f"{setting}: sacreBLEU {figures['sacrebleu']:.2f}, chrF {figures['chrf']:.2f}, "
        f"tokenised BLEU {figures['tokenized_bleu']:.2f}, "
        f"{figures['repeated_tokens_per_sentence']:.2f} repeated words and "
        f"{figures['sentences_per_second']:.1f} sentences/s"
    )
    if "latency_ms" in figures:
        line += f", {figures['latency_ms']['mean']:.1f} ms per sentence at batch 1"
    return line
