"""Choose how a model decodes by BLEU on validation text, and save the choice with the model.

For JM-NAT that is the exponent of the length that its candidates' scores are divided by, and what else --grid and
--num_length_candidates name; for an autoregressive model the length penalty of its beam search.
"""

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser
from transformers.utils import logging

from modeling_jmnat.cli import command
from modeling_jmnat.configuration_jmnat import JMNatOptions
from modeling_jmnat.decoding_tuning import EXPONENTS, beam_settings, best_setting, candidate_settings
from modeling_jmnat.evaluation import describe_environment
from modeling_jmnat.onnx_model import GRAPHS_FOLDER
from modeling_jmnat.output_files import atomic_text_file
from modeling_jmnat.reranking import load_reranker
from modeling_jmnat.text_files import read_parallel
from modeling_jmnat.translation import is_jmnat, load_translator, parse_generation_options

DEFAULT_ITERATIONS, DEFAULT_BEAMS = [4, 10], 5


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
    save: bool = field(default=True, metadata={"help": "Write the choice into the model's generation_config.json."})
    output: str | None = field(default=None, metadata={"help": "JSON file for all figures; evaluate.py --tuning."})
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Padded source tokens of a batch, candidates counted. Default: 4096; GPU 32768."},
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu or cuda."})
    dtype: str = field(default="auto", metadata={"help": "auto (as saved), float32, bfloat16 or float16."})

    def __post_init__(self):
        if not self.exponents or min(self.exponents) < 0:
            raise ValueError(f"exponents={self.exponents} must be at least one number, none below 0")


def parse_grid(text: str | None) -> dict[str, list]:
    """Lists of values by option, from JSON."""
    grid = parse_generation_options(text)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid={text!r}: {name} must have a list of values, at least one")
    return grid


def settings_of(arguments: TuningArguments, model, tokenizer, sources, shared: dict):
    """The settings to be compared, each with its translations."""
    grid = parse_grid(arguments.grid)
    common = {"max_batch_tokens": arguments.batch_tokens, "progress": sys.stderr.isatty()}
    if is_jmnat(model):
        one_pass = model.config.decoder_input == "source_copy"
        grid.setdefault("num_iterations", [1] if one_pass else DEFAULT_ITERATIONS)
        saved = model.generation_config.num_length_candidates or JMNatOptions().num_length_candidates
        counts = arguments.num_length_candidates or [saved]
        if arguments.reranker is not None:
            shared = {**shared, "reranker": load_reranker(arguments.reranker, tokenizer, model.device)}
        return candidate_settings(
            model, tokenizer, sources, grid, counts, arguments.exponents, generation=shared, **common
        )
    for name in ("num_length_candidates", "reranker"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name} does not apply to an autoregressive model")
    grid = {"num_beams": [DEFAULT_BEAMS], **grid, "length_penalty": arguments.exponents}
    return beam_settings(model, tokenizer, sources, grid, generation=shared, **common)


def run_tuning(arguments: TuningArguments) -> dict:
    """Everything that goes into the JSON file; one printed line per setting as soon as it is known."""
    from sacrebleu.metrics import BLEU

    if arguments.save and not Path(arguments.model).is_dir():
        raise ValueError(f"model {arguments.model} is not a folder: the choice can only be saved in one, see --save")
    sources, references = read_parallel(arguments.source, arguments.reference)
    model, tokenizer = load_translator(arguments.model, arguments.device, arguments.dtype)
    shared = parse_generation_options(arguments.generation_options)
    metric, rows = BLEU(lowercase=arguments.lowercase), []
    for setting, texts in settings_of(arguments, model, tokenizer, sources, shared):
        rows.append(setting | {"sacrebleu": round(metric.corpus_score(texts, [references]).score, 4)})
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    best = shared | best_setting(rows)
    if arguments.save:
        save_options(Path(arguments.model), model, best)
    return {
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
        "best": best,
    }


def save_options(folder: Path, model, options: dict) -> None:
    """Into the generation configuration of the model, and of its exported graphs where there are any."""
    model.generation_config.update(**options)
    for place in (folder, folder / GRAPHS_FOLDER):
        if place.is_dir():
            model.generation_config.save_pretrained(place)


@command
def main(argv=None):
    (arguments,) = HfArgumentParser(TuningArguments, description=__doc__).parse_args_into_dataclasses(argv)
    logging.disable_progress_bar()
    # Opened before the work, so that a path that cannot be written costs no time.
    with atomic_text_file(arguments.output) if arguments.output else nullcontext() as file:
        report = run_tuning(arguments)
        if file:
            json.dump(report, file, indent=2, ensure_ascii=False, allow_nan=False)
            file.write("\n")
    print(f"best: {json.dumps(report['best'])}")


if __name__ == "__main__":
    main()
