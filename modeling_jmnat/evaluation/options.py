"""The options of the commands `evaluate` and `tune`. Importing this module loads neither PyTorch nor Transformers."""

import sys
from dataclasses import dataclass, field
from typing import Literal

from ..utils.bleu import check_bleu_tokenizer
from ..utils.command_line import check_counts
from ..utils.translation_scores import FEWEST_RESAMPLES, METRICS, RESAMPLES, SEED, check_metrics, check_resampling

WORD_NOISES = ("drop", "replace")
STATE_NOISES = ("encoder_input", "encoder_output", "decoder_input")
NOISES = WORD_NOISES + STATE_NOISES
EXPONENTS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5)
CONSENSUS_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
# The rules against repeats that each name in `tune --repeat_rules` turns on.
REPEAT_SETTINGS = {
    "none": {"remask_repeats": False, "delete_repeats": False, "collapse_repeats": False},
    "collapse": {"remask_repeats": False, "delete_repeats": False, "collapse_repeats": True},
    "remask": {"remask_repeats": True, "delete_repeats": False, "collapse_repeats": True},
    "delete": {"remask_repeats": True, "delete_repeats": True, "collapse_repeats": True},
}


LANGUAGES_HELP = (
    "Source and target language in the codes of a multilingual autoregressive model, such as deu_Latn eng_Latn (NLLB)."
)
SOURCE_PREFIX_HELP = "Text to put before each source if the model expects one, such as '>>eng<< '."


@dataclass
class EvaluationArguments:
    """What to evaluate, on which text, with which decoding options."""

    model: str = field(
        metadata={"help": "A trained JM-NAT or autoregressive teacher: a folder, or a name on the Hub."}
    )
    source: str | None = field(
        default=None, metadata={"help": "Text to translate, one sentence per line; .gz files are decompressed."}
    )
    reference: str | None = field(
        default=None, metadata={"help": "Reference translations, line by line; .gz files are decompressed."}
    )
    data: str | None = field(
        default=None, metadata={"help": "Folder of `jmnat prepare`, instead of --source and --reference."}
    )
    split: Literal["validation", "test"] | None = field(
        default=None,
        metadata={"help": "Split of --data. Choose options on validation, then score test once. Default: validation."},
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "JSON file for all figures and settings. Translations and references are written to the folder "
            "OUTPUT.translations beside it."
        },
    )
    num_iterations: list[int] | None = field(
        default=None, metadata={"help": "Numbers of decoder passes of a JM-NAT to evaluate. Default: 1 4 10."}
    )
    num_beams: list[int] | None = field(
        default=None,
        metadata={
            "help": "Beam sizes of an autoregressive model to evaluate; 1 is greedy. Default: of --tuning, or 1 5."
        },
    )
    num_length_candidates: int | None = field(
        default=None,
        metadata={"help": "Target lengths that a JM-NAT tries per sentence. Default: as saved with the model."},
    )
    generation_options: str | None = field(
        default=None, metadata={"help": """Further decoding options as JSON, such as '{"early_stop": true}'."""}
    )
    tuning: str | None = field(
        default=None, metadata={"help": "JSON file of `jmnat tune`, to decode with the options that it chose."}
    )
    reranker: str | None = field(
        default=None,
        metadata={"help": "Autoregressive model that chooses among the length candidates of a JM-NAT."},
    )
    metrics: list[str] = field(
        default_factory=lambda: list(METRICS), metadata={"help": "Scores to compute; TER takes the most time."}
    )
    resamples: int = field(
        default=RESAMPLES,
        metadata={"help": "Number of resamples for 95% intervals and paired tests; 0: none."},
    )
    seed: int = field(default=SEED, metadata={"help": "Random seed of the resamples."})
    baseline: list[str] | None = field(
        default=None,
        metadata={
            "help": "Systems to compare with by paired bootstrap: files of translations (or .gz), or JSON files of "
            "`jmnat evaluate`."
        },
    )
    comet_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a COMET model to score with as well; needs unbabel-comet, and you must trust the model."
        },
    )
    languages: list[str] | None = field(default=None, metadata={"help": LANGUAGES_HELP})
    source_prefix: str | None = field(default=None, metadata={"help": SOURCE_PREFIX_HELP})
    target_language: str | None = field(
        default=None,
        metadata={
            "help": "Language of the references, such as de, for Moses tokenisation. Default: that of --data, or en."
        },
    )
    bleu_tokenize: str | None = field(
        default=None,
        metadata={"help": "sacreBLEU's tokenizer. Default: zh, ja-mecab, ko-mecab or char by language, or 13a."},
    )
    lowercase: bool = field(
        default=False, metadata={"help": "Ignore case in all scores, as the paper does on IWSLT14."}
    )
    split_sentences: bool = field(default=False, metadata={"help": "Translate each line sentence by sentence."})
    long_lines: Literal["split", "truncate", "skip", "error"] = field(
        default="split",
        metadata={
            "help": "What to do with a sentence longer than the model can read: split it at clauses and spaces, "
            "truncate it, skip its line (the translation is empty), or error before any work is done."
        },
    )
    noise: str | None = field(
        default=None,
        metadata={
            "help": "Kind of noise, with a row for each of --noise_levels: drop or replace source words, or add "
            "Gaussian noise to encoder_input, encoder_output or decoder_input."
        },
    )
    noise_levels: list[float] = field(
        default_factory=lambda: [0.0, 0.02, 0.04, 0.06, 0.08, 0.1],
        metadata={"help": "Shares of words, or standard deviations relative to the root mean square of the states."},
    )
    latency_sentences: int = field(
        default=0,
        metadata={"help": "Number of sentences to time one at a time (milliseconds: mean, p50, p99); 0: none."},
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Padded source tokens in a batch times candidates. Default: 4096 on a CPU, 32768 on a GPU."},
    )
    translations: str | None = field(
        default=None, metadata={"help": "Folder for the translations, with a file for each row of the table."}
    )
    backend: str = field(
        default="torch",
        metadata={
            "help": "torch; cuda_graphs, faster on a GPU; onnx or onnx_int8, faster on a CPU, for a model exported by "
            "`jmnat export-onnx`."
        },
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu or cuda."})
    dtype: str = field(default="auto", metadata={"help": "auto (as saved), float32, bfloat16 or float16."})

    def __post_init__(self):
        given = [name for name in ("source", "reference", "data") if getattr(self, name) is not None]
        if given not in (["source", "reference"], ["data"]):
            raise ValueError(f"got {', '.join(given) or 'no text'}: give either --source and --reference, or --data")
        if self.split is not None and self.data is None:
            raise ValueError(f"split={self.split} applies only to --data: leave it out with --source and --reference")
        check_counts(self, ["batch_tokens"])
        check_bleu_tokenizer(self.bleu_tokenize)
        check_metrics(self.metrics)
        if self.baseline and not self.resamples:
            raise ValueError(
                f"resamples={self.resamples} must be at least {FEWEST_RESAMPLES} to compare with a baseline"
            )
        if self.resamples:
            check_resampling(self.resamples, self.seed)
        if self.noise is not None and self.noise not in NOISES:
            raise ValueError(f"noise={self.noise!r} is not one of {', '.join(NOISES)}")
        largest = 1.0 if self.noise in WORD_NOISES else sys.float_info.max
        if not self.noise_levels or not all(0 <= level <= largest for level in self.noise_levels):
            raise ValueError(
                f"noise_levels={self.noise_levels} must be at least one number: shares of words from 0 to 1, or "
                "standard deviations of at least 0"
            )
        check_counts(self, ["latency_sentences"], least=0)


@dataclass
class TuningArguments:
    """Which model to tune, on which text, and among which settings."""

    model: str = field(
        metadata={
            "help": "Folder of a trained JM-NAT or autoregressive teacher; with --save False also a name on the Hub."
        }
    )
    source: str = field(metadata={"help": "Validation text, one sentence per line; .gz files are decompressed."})
    reference: str = field(metadata={"help": "Its reference translations, line by line; .gz files are decompressed."})
    exponents: list[float] = field(
        default_factory=lambda: list(EXPONENTS),
        metadata={"help": "Values of length_normalization (JM-NAT) or length_penalty (beam search) to try."},
    )
    consensus_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Values of consensus_weight of a JM-NAT to try. Default: 0 0.5 1 2."},
    )
    num_iterations: list[int] | None = field(
        default=None,
        metadata={"help": "Numbers of decoder passes of a JM-NAT, over which BLEU is averaged. Default: 4 10."},
    )
    num_beams: list[int] | None = field(
        default=None, metadata={"help": "Beam sizes of an autoregressive model to try. Default: 5."}
    )
    num_length_candidates: list[int] | None = field(
        default=None,
        metadata={"help": "Numbers of target lengths of a JM-NAT to try. Default: as saved with the model."},
    )
    grid: str | None = field(
        default=None,
        metadata={
            "help": """Values of further options to try, as JSON, such as '{"remask_adjacent": [true, false]}'."""
        },
    )
    generation_options: str | None = field(
        default=None, metadata={"help": "Options of all settings as JSON, which are saved as well."}
    )
    repeat_rules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rules against repeated words of a JM-NAT to try: none; collapse (collapse_repeats); remask (also "
            "remask_repeats); delete (also delete_repeats). Default: as saved with the model."
        },
    )
    reranker: str | None = field(
        default=None,
        metadata={"help": "Autoregressive model that chooses among the length candidates of a JM-NAT."},
    )
    languages: list[str] | None = field(default=None, metadata={"help": LANGUAGES_HELP})
    source_prefix: str | None = field(default=None, metadata={"help": SOURCE_PREFIX_HELP})
    target_language: str = field(
        default="en", metadata={"help": "Language of the references, which determines sacreBLEU's tokenizer."}
    )
    bleu_tokenize: str | None = field(
        default=None,
        metadata={"help": "sacreBLEU's tokenizer. Default: zh, ja-mecab, ko-mecab or char by language, or 13a."},
    )
    lowercase: bool = field(default=False, metadata={"help": "Ignore case in BLEU."})
    save: bool = field(
        default=True,
        metadata={"help": "Save the best setting in the model's generation_config.json and its exported graphs."},
    )
    output: str | None = field(
        default=None, metadata={"help": "JSON file for all figures, also for `jmnat evaluate --tuning`."}
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Padded source tokens in a batch times candidates. Default: 4096 on a CPU, 32768 on a GPU."},
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu or cuda."})
    dtype: str = field(default="auto", metadata={"help": "auto (as saved), float32, bfloat16 or float16."})

    def __post_init__(self):
        from ..configuration_jmnat import LARGEST_EXPONENT

        for name, values in (("exponents", self.exponents), ("consensus_weights", self.consensus_weights or [0.0])):
            if not values or not all(0 <= value <= LARGEST_EXPONENT for value in values):
                raise ValueError(f"{name}={values} must be at least one number, all in [0, {LARGEST_EXPONENT}]")
        check_counts(self, ("num_iterations", "num_beams", "num_length_candidates", "batch_tokens"))
        check_bleu_tokenizer(self.bleu_tokenize)
        rules = self.repeat_rules
        if rules is not None and not (rules and set(rules) <= set(REPEAT_SETTINGS)):
            raise ValueError(f"repeat_rules={rules} must be at least one of {', '.join(REPEAT_SETTINGS)}")
