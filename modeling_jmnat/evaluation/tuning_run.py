"""Compare decoding settings on validation text and save the best one, for the command `tune`."""

import logging
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from ..configuration_jmnat import JMNatOptions
from ..inference.lines import LineReader
from ..inference.loading import is_jmnat, load_translator, prefixed, tell_languages
from ..inference.onnx_runtime import GRAPHS_FOLDER, translators_in
from ..inference.translation import check_options, parse_generation_options
from ..onnx_export import exporter
from ..teacher.reranking import load_reranker
from ..utils.atomic_files import atomic_file
from ..utils.bleu import bleu_metric, bleu_tokenizer
from ..utils.text_files import read_parallel
from .options import CONSENSUS_WEIGHTS, REPEAT_SETTINGS, TuningArguments
from .scores import describe_environment
from .tuning import beam_settings, best_setting, candidate_settings

logger = logging.getLogger(__name__)
DEFAULT_ITERATIONS, DEFAULT_BEAMS = [4, 10], 5
# Decoding options that are set here, and the argument that decides each.
JMNAT_CHOICES = {
    "num_length_candidates": "--num_length_candidates",
    "num_beams": "--num_length_candidates",
    "num_return_sequences": "--num_length_candidates",
    "length_normalization": "--exponents",
    "length_offset": "--exponents",
    "consensus_weight": "--consensus_weights",
}
BEAM_CHOICES = {"length_penalty": "--exponents"}


def parse_grid(text: str | None) -> dict[str, list]:
    """Lists of values by option, from JSON; raises ValueError for anything else."""
    grid = parse_generation_options(text, "grid")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid={text!r}: {name} must have a list of at least one value")
    return grid


def check_choices(choices: dict[str, str], grid: Collection[str], shared: Collection[str]) -> None:
    """Refuse options that would be overwritten: those in `choices`, and `shared` ones that are in the grid as well."""
    for name, option in choices.items():
        if name in grid or name in shared:
            raise ValueError(f"{name} cannot be given in --grid or --generation_options: {option} sets it")
    for name in grid:
        if name in shared:
            raise ValueError(f"{name} cannot be given in --generation_options: --grid sets it")


def check_grid(model, grid: dict[str, list], shared: dict) -> None:
    """Refuse invalid values before the first of them is tried."""
    for name, values in grid.items():
        for value in values:
            check_options(model, shared | {name: value})


def settings_of(arguments: TuningArguments, model, tokenizer, sources, shared: dict):
    """The settings to compare, each with its translations."""
    grid = parse_grid(arguments.grid)
    for name in ("num_iterations", "num_beams"):
        values = getattr(arguments, name)
        if values is not None and name in grid:
            raise ValueError(f"{name} is given twice, by --{name} and in --grid: give it once")
        if values is not None:
            grid[name] = values
    common = {"max_batch_tokens": arguments.batch_tokens, "progress": sys.stderr.isatty()}
    if is_jmnat(model):
        if arguments.num_beams is not None:
            raise ValueError("--num_beams does not apply to JM-NAT: use --num_iterations and --num_length_candidates")
        one_pass = model.config.decoder_input == "source_copy"
        grid.setdefault("num_iterations", [1] if one_pass else DEFAULT_ITERATIONS)
        rules = [REPEAT_SETTINGS[name] for name in arguments.repeat_rules or ()] or [{}]
        choices = dict.fromkeys(rules[0], "--repeat_rules") | JMNAT_CHOICES
        check_choices(choices, grid, shared)
        check_grid(model, grid, shared)
        saved = model.generation_config.num_length_candidates or JMNatOptions().num_length_candidates
        counts = arguments.num_length_candidates or [saved]
        if arguments.reranker is not None:
            shared = {**shared, "reranker": load_reranker(arguments.reranker, tokenizer, model.device)}
        tried = counts, arguments.exponents, arguments.consensus_weights or CONSENSUS_WEIGHTS
        return candidate_settings(model, tokenizer, sources, grid, *tried, generation=shared, rules=rules, **common)
    for name in ("num_iterations", "num_length_candidates", "consensus_weights", "repeat_rules", "reranker"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name} does not apply to an autoregressive model: leave it out")
    grid.setdefault("num_beams", [DEFAULT_BEAMS])
    check_choices(BEAM_CHOICES, grid, shared)
    check_grid(model, grid, shared)
    grid["length_penalty"] = arguments.exponents
    return beam_settings(model, tokenizer, sources, grid, generation=shared, **common)


def run_tuning(arguments: TuningArguments) -> tuple[dict, PreTrainedModel]:
    """Returns the content of the JSON file, and the model; prints a line per setting as soon as it is known."""
    if arguments.save:
        check_folders(arguments.model)
    sources, references = read_parallel(arguments.source, arguments.reference)
    model, tokenizer = load_translator(arguments.model, arguments.device, arguments.dtype)
    tell_languages(arguments.model, model, tokenizer, arguments.languages, arguments.source_prefix)
    sources = list(prefixed(arguments.source_prefix, sources))
    LineReader(model, tokenizer).check(sources)  # too long ones are refused before the work
    shared = parse_generation_options(arguments.generation_options)
    tokenizer_of_bleu = bleu_tokenizer(references, arguments.target_language, arguments.bleu_tokenize)
    metric, rows = bleu_metric(tokenizer_of_bleu, arguments.lowercase), []
    for setting, texts in settings_of(arguments, model, tokenizer, sources, shared):
        rows.append(setting | {"sacrebleu": round(metric.corpus_score(texts, [references]).score, 4)})
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    report = {
        "settings": {
            "model": Path(arguments.model).resolve().name,
            "source": Path(arguments.source).name,
            "sentences": len(sources),
            "languages": arguments.languages,
            "source_prefix": arguments.source_prefix,
            "lowercase": arguments.lowercase,
            "bleu_tokenize": tokenizer_of_bleu,
            "generation": shared,
            "reranker": Path(arguments.reranker).resolve().name if arguments.reranker else None,
        },
        **describe_environment(model),
        "sacrebleu_signature": str(metric.get_signature()),
        "results": rows,
        "best": shared | best_setting(rows),
    }
    warn_of_equal_scores(rows)
    return report, model


def warn_of_equal_scores(rows: list[dict]) -> None:
    """Warn if BLEU is the same for all settings, in which case the first one is chosen without a reason."""
    scores = {row["sacrebleu"] for row in rows}
    if len(scores) == 1 and (len(rows) > 1 or 0.0 in scores):
        logger.warning(
            "sacreBLEU is %s with every setting, so it cannot choose one: give more text, or set --bleu_tokenize to "
            "sacreBLEU's tokenizer for the language",
            *scores,
        )


def folders_of(model: str) -> list[Path]:
    """The folders with generation configurations: the model's, and that of its exported graphs if there are any."""
    return [folder for folder in (Path(model), Path(model) / GRAPHS_FOLDER) if folder.is_dir()]


def check_folders(model: str) -> None:
    """Refuse, before the work, a model whose settings cannot be saved."""
    if not folders_of(model):
        raise ValueError(f"model {model} is not a folder, so settings cannot be saved in it: give --save False")
    for folder in folders_of(model):
        if (file := folder / GENERATION_CONFIG_NAME).is_symlink():  # as in the Hub's cache
            raise ValueError(
                f"model {model}: {file} is a link to {file.readlink()}, which would be changed: replace it by a copy, "
                "or give --save False"
            )
        if translators_in(folder):
            exporter()  # fails if the packages for updating the graphs' options are missing
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(
                f"model {model}: {folder / GENERATION_CONFIG_NAME} cannot be written ({error.strerror}): give --save "
                "False"
            ) from None


def save_options(folders: list[Path], model: PreTrainedModel, options: dict) -> None:
    """Save options in the generation configurations of the folders, and in the graphs that have these options."""
    model.generation_config.update(**options)
    for folder in folders:
        with atomic_file(folder / GENERATION_CONFIG_NAME) as file:
            model.generation_config.save_pretrained(folder, config_file_name=file.name)
        if translators_in(folder):
            from ..onnx_export.export import write_defaults  # needs the package onnx

            write_defaults(model, folder)
