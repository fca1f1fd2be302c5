"""Choose how a model decodes by BLEU on validation text, and save the choice with the model.

For JM-NAT that is the exponent of the length that its candidates' scores are divided by, the weight of what they have
in common, and what else --grid and --num_length_candidates name; for an autoregressive model the length penalty of its
beam search.
"""

import json
import sys
import tempfile
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, logging

from ..configuration_jmnat import LARGEST_EXPONENT, JMNatOptions
from ..evaluation.scores import describe_environment
from ..evaluation.tuning import (
    CONSENSUS_WEIGHTS,
    EXPONENTS,
    beam_settings,
    best_setting,
    candidate_settings,
)
from ..inference.loading import is_jmnat, load_translator
from ..inference.onnx_runtime import GRAPHS_FOLDER, translators_in
from ..inference.translation import check_options, parse_generation_options
from ..onnx_export import exporter
from ..teacher.reranking import load_reranker
from ..utils.atomic_files import atomic_file, atomic_text_file
from ..utils.command_line import check_counts, command
from ..utils.text_files import read_parallel

DEFAULT_ITERATIONS, DEFAULT_BEAMS = [4, 10], 5
# Options of decoding that are set here, and what decides on them.
JMNAT_CHOICES = {
    "num_length_candidates": "--num_length_candidates",
    "num_beams": "--num_length_candidates",
    "num_return_sequences": "--num_length_candidates",
    "length_normalization": "--exponents",
    "length_offset": "--exponents",
    "consensus_weight": "--consensus_weights",
}
BEAM_CHOICES = {"length_penalty": "--exponents"}


@dataclass
class TuningArguments:
    """Which model, on which text, among which settings."""

    model: str = field(
        metadata={
            "help": "Folder of a trained model: JM-NAT, or an autoregressive teacher; with --save False also a name "
            "on the Hub."
        }
    )
    source: str = field(metadata={"help": "Validation text, one sentence a line; .gz is read as is."})
    reference: str = field(metadata={"help": "Its reference translations, line by line; .gz is read as is."})
    exponents: list[float] = field(
        default_factory=lambda: list(EXPONENTS),
        metadata={"help": "Values of length_normalization (JM-NAT) or length_penalty (beam search)."},
    )
    consensus_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "JM-NAT: values of consensus_weight, for what the candidates have in common. Default: 0 0.5 1 2."
        },
    )
    num_length_candidates: list[int] | None = field(
        default=None, metadata={"help": "JM-NAT: numbers of target lengths. Default: as saved with the model."}
    )
    grid: str | None = field(
        default=None,
        metadata={
            "help": """Lists of values of further options as JSON, such as '{"remask_adjacent": [true, false]}'. """
            "Default: num_iterations 4 and 10, over which the mean of BLEU counts; beam 5."
        },
    )
    generation_options: str | None = field(
        default=None, metadata={"help": "Options of all settings as JSON; they are saved, too."}
    )
    reranker: str | None = field(
        default=None, metadata={"help": "JM-NAT: tune for candidates that this autoregressive model scores."}
    )
    lowercase: bool = field(default=False, metadata={"help": "Ignore case in BLEU."})
    save: bool = field(
        default=True,
        metadata={"help": "Write the choice into the model's generation_config.json and its exported graphs."},
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for all figures; evaluate.py --tuning."})
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Padded source tokens of a batch, candidates counted. Default: 4096; GPU 32768."},
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu or cuda."})
    dtype: str = field(default="auto", metadata={"help": "auto (as saved), float32, bfloat16 or float16."})

    def __post_init__(self):
        for name, values in (("exponents", self.exponents), ("consensus_weights", self.consensus_weights or [0.0])):
            if not values or not all(0 <= value <= LARGEST_EXPONENT for value in values):
                raise ValueError(f"{name}={values} must be at least one number, all in [0, {LARGEST_EXPONENT}]")
        check_counts(self, ("num_length_candidates", "batch_tokens"))


def parse_grid(text: str | None) -> dict[str, list]:
    """Lists of values by option, from JSON."""
    grid = parse_generation_options(text, "grid")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid={text!r}: {name} must have a list of values, at least one")
    return grid


def check_choices(choices: dict[str, str], grid: Collection[str], shared: Collection[str]) -> None:
    """Refuse options that would be overwritten: those in `choices`, and of the `shared` ones those in the grid."""
    for name, option in choices.items():
        if name in grid or name in shared:
            raise ValueError(f"{name} cannot be given in --grid or --generation_options: {option} decides on it")
    for name in grid:
        if name in shared:
            raise ValueError(f"{name} cannot be given in --generation_options: --grid decides on it")


def check_grid(model, grid: dict[str, list], shared: dict) -> None:
    """Refuse values that decoding could not use before the first of them is tried."""
    for name, values in grid.items():
        for value in values:
            check_options(model, shared | {name: value})


def settings_of(arguments: TuningArguments, model, tokenizer, sources, shared: dict):
    """The settings to be compared, each with its translations."""
    grid = parse_grid(arguments.grid)
    common = {"max_batch_tokens": arguments.batch_tokens, "progress": sys.stderr.isatty()}
    if is_jmnat(model):
        one_pass = model.config.decoder_input == "source_copy"
        grid.setdefault("num_iterations", [1] if one_pass else DEFAULT_ITERATIONS)
        check_choices(JMNAT_CHOICES, grid, shared)
        check_grid(model, grid, shared)
        saved = model.generation_config.num_length_candidates or JMNatOptions().num_length_candidates
        counts = arguments.num_length_candidates or [saved]
        if arguments.reranker is not None:
            shared = {**shared, "reranker": load_reranker(arguments.reranker, tokenizer, model.device)}
        tried = counts, arguments.exponents, arguments.consensus_weights or CONSENSUS_WEIGHTS
        return candidate_settings(model, tokenizer, sources, grid, *tried, generation=shared, **common)
    for name in ("num_length_candidates", "consensus_weights", "reranker"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name} does not apply to an autoregressive model")
    grid.setdefault("num_beams", [DEFAULT_BEAMS])
    check_choices(BEAM_CHOICES, grid, shared)
    check_grid(model, grid, shared)
    grid["length_penalty"] = arguments.exponents
    return beam_settings(model, tokenizer, sources, grid, generation=shared, **common)


def run_tuning(arguments: TuningArguments) -> tuple[dict, PreTrainedModel]:
    """Everything that goes into the JSON file, and the model; one printed line per setting as soon as it is known."""
    from sacrebleu.metrics import BLEU

    if arguments.save:
        check_folders(arguments.model)
    sources, references = read_parallel(arguments.source, arguments.reference)
    model, tokenizer = load_translator(arguments.model, arguments.device, arguments.dtype)
    shared = parse_generation_options(arguments.generation_options)
    metric, rows = BLEU(lowercase=arguments.lowercase), []
    for setting, texts in settings_of(arguments, model, tokenizer, sources, shared):
        rows.append(setting | {"sacrebleu": round(metric.corpus_score(texts, [references]).score, 4)})
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    report = {
        "settings": {
            "model": Path(arguments.model).resolve().name,
            "source": Path(arguments.source).name,
            "sentences": len(sources),
            "lowercase": arguments.lowercase,
            "generation": shared,
            "reranker": Path(arguments.reranker).resolve().name if arguments.reranker else None,
        },
        **describe_environment(model),
        "sacrebleu_signature": str(metric.get_signature()),
        "results": rows,
        "best": shared | best_setting(rows),
    }
    return report, model


def folders_of(model: str) -> list[Path]:
    """Where generation configurations are: with the model, and with its exported graphs where there are any."""
    return [folder for folder in (Path(model), Path(model) / GRAPHS_FOLDER) if folder.is_dir()]


def check_folders(model: str) -> None:
    """Refuse a model with which nothing can be saved, before the work."""
    if not folders_of(model):
        raise ValueError(f"model {model} is not a folder: the choice can only be saved in one, see --save")
    for folder in folders_of(model):
        if translators_in(folder):
            exporter()  # without its packages the graphs' own options could not be written
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(
                f"model {model}: {folder / GENERATION_CONFIG_NAME} cannot be written ({error.strerror}), see --save"
            ) from None


def save_options(folders: list[Path], model: PreTrainedModel, options: dict) -> None:
    """Into the generation configuration in each of the folders, and into the graphs that have these options."""
    model.generation_config.update(**options)
    for folder in folders:
        with atomic_file(folder / GENERATION_CONFIG_NAME) as file:
            model.generation_config.save_pretrained(folder, config_file_name=file.name)
        if translators_in(folder):
            from ..onnx_export.export import write_defaults  # which needs packages of its own

            write_defaults(model, folder)


@command
def main(argv=None):
    (arguments,) = HfArgumentParser(TuningArguments, description=__doc__).parse_args_into_dataclasses(argv)
    logging.disable_progress_bar()
    # Opened before the work, so that a path that cannot be written costs no time.
    with atomic_text_file(arguments.output) if arguments.output else nullcontext() as file:
        report, model = run_tuning(arguments)
        if file:
            json.dump(report, file, indent=2, ensure_ascii=False, allow_nan=False)
            file.write("\n")
    print(f"best: {json.dumps(report['best'])}")
    if arguments.save:  # last: whatever is wrong with the folder, the figures are there
        save_options(folders_of(arguments.model), model, report["best"])
    print(json.dumps({"best": report["best"], "saved": arguments.save, "output": arguments.output}))
