"""The options of the commands `evaluate` and `tune`. Importing this module loads neither PyTorch nor Transformers."""

import sys
from dataclasses import dataclass, field
from typing import Literal

from ..utils.bleu import check_bleu_tokenizer
from ..utils.command_line import check_counts
from ..utils.translation_scores import METRICS, RESAMPLES, SEED, check_metrics, check_resampling

WORD_NOISES = ("drop", "replace")
STATE_NOISES = ("encoder_input", "encoder_output", "decoder_input")
NOISES = WORD_NOISES + STATE_NOISES
EXPONENTS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5)
CONSENSUS_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
# What `tune --repeat_rules` names: which rules against repeats are on.
REPEAT_SETTINGS = {
    "none": {"remask_repeats": False, "delete_repeats": False, "collapse_repeats": False},
    "collapse": {"remask_repeats": False, "delete_repeats": False, "collapse_repeats": True},
    "remask": {"remask_repeats": True, "delete_repeats": False, "collapse_repeats": True},
    "delete": {"remask_repeats": True, "delete_repeats": True, "collapse_repeats": True},
}


@dataclass
class EvaluationArguments:
    """What to evaluate, on which text, with which decoding options."""

    model: str = field(
        metadata={"help": "A trained model: JM-NAT, or an autoregressive teacher. A folder, or a name on the Hub."}
    )
    source: str | None = field(
        default=None, metadata={"help": "Text to translate, one sentence a line; .gz is read as is."}
    )
    reference: str | None = field(
        default=None, metadata={"help": "Reference translations, line by line; .gz is read as is."}
    )
    data: str | None = field(
        default=None, metadata={"help": "In place of --source and --reference: a folder of prepare_data.py."}
    )
    split: Literal["validation", "test"] | None = field(
        default=None,
        metadata={
            "help": "Which text of --data. Choose options on validation, then score test once. Default: validation."
        },
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "JSON file for all figures and settings. Beside it a folder, OUTPUT.translations, takes "
            "translations and references."
        },
    )
    num_iterations: list[int] | None = field(
        default=None, metadata={"help": "JM-NAT: numbers of decoder passes to evaluate. Default: 1 4 10."}
    )
    num_beams: list[int] | None = field(
        default=None, metadata={"help": "Autoregressive models: beam sizes to evaluate, 1 is greedy. Default: 1 5."}
    )
    num_length_candidates: int | None = field(
        default=None, metadata={"help": "JM-NAT: target lengths tried per sentence. Default: as saved with the model."}
    )
    generation_options: str | None = field(
        default=None, metadata={"help": """Further decoding options as JSON, such as '{"early_stop": true}'."""}
    )
    tuning: str | None = field(
        default=None, metadata={"help": "JSON file of tune_decoding.py: decode with the options that it found best."}
    )
    reranker: str | None = field(
        default=None,
        metadata={"help": "JM-NAT: let this autoregressive model choose among the length candidates."},
    )
    metrics: list[str] = field(
        default_factory=lambda: list(METRICS), metadata={"help": "Scores to compute; TER takes the most time."}
    )
    resamples: int = field(
        default=RESAMPLES,
        metadata={"help": "Resamples of the sentences for 95% intervals and paired tests; 0 leaves them out."},
    )
    seed: int = field(default=SEED, metadata={"help": "Random seed of the resamples."})
    baseline: list[str] | None = field(
        default=None,
        metadata={
            "help": "Compare with these systems by paired bootstrap: files of translations (.gz as well), or JSON "
            "files that evaluate.py has written."
        },
    )
    comet_model: str | None = field(
        default=None,
        metadata={"help": "Also score with the COMET model in this folder (trust it), by the package unbabel-comet."},
    )
    languages: list[str] | None = field(
        default=None,
        metadata={
            "help": "A multilingual autoregressive model: its codes of source and target language, such as deu_Latn "
            "eng_Latn (NLLB)."
        },
    )
    source_prefix: str | None = field(
        default=None, metadata={"help": "Text before each source, where the model wants one, such as '>>eng<< '."}
    )
    target_language: str | None = field(
        default=None,
        metadata={
            "help": "Two-letter language of the references, for Moses tokenisation. Default: that of --data, else en."
        },
    )
    bleu_tokenize: str | None = field(
        default=None,
        metadata={"help": "sacreBLEU's tokenizer. Default: zh, ja-mecab, ko-mecab or char by language; else 13a."},
    )
    lowercase: bool = field(default=False, metadata={"help": "Ignore case in all scores, as the paper on IWSLT14."})
    split_sentences: bool = field(default=False, metadata={"help": "Translate each line sentence by sentence."})
    long_lines: Literal["split", "truncate", "skip", "error"] = field(
        default="split",
        metadata={
            "help": "What to do with a sentence longer than the model can read: split it at clauses and spaces, "
            "truncate it, skip its line (the translation is empty), or error before any work is done. The lines are "
            "counted."
        },
    )
    noise: str | None = field(
        default=None,
        metadata={
            "help": "Disturb the translation, a row for each of --noise_levels: drop or replace words of the source, "
            "or add normal noise to encoder_input, encoder_output or decoder_input."
        },
    )
    noise_levels: list[float] = field(
        default_factory=lambda: [0.0, 0.02, 0.04, 0.06, 0.08, 0.1],
        metadata={"help": "Shares of the words, or standard deviations relative to the size of the states."},
    )
    latency_sentences: int = field(
        default=0, metadata={"help": "Also time this many sentences one at a time (milliseconds: mean, p50, p99)."}
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Padded source tokens of a batch, candidates counted. Default: 4096; GPU 32768."},
    )
    translations: str | None = field(
        default=None, metadata={"help": "Folder for the translations themselves, one file per row of the table."}
    )
    backend: str = field(
        default="torch",
        metadata={
            "help": "torch; cuda_graphs, faster on a GPU; onnx or onnx_int8, faster on a CPU, for a model that "
            "export_onnx.py has written."
        },
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu or cuda."})
    dtype: str = field(default="auto", metadata={"help": "auto (as saved), float32, bfloat16 or float16."})

    def __post_init__(self):
        given = [name for name in ("source", "reference", "data") if getattr(self, name) is not None]
        if given not in (["source", "reference"], ["data"]):
            raise ValueError(
                f"given are {', '.join(given) or 'no texts'}: either --source and --reference are needed, or --data"
            )
        if self.split is not None and self.data is None:
            raise ValueError(f"split={self.split} is a part of --data: leave it out with --source and --reference")
        check_counts(self, ["batch_tokens"])
        check_bleu_tokenizer(self.bleu_tokenize)
        check_metrics(self.metrics)
        if self.resamples or self.baseline:
            check_resampling(self.resamples, self.seed)
        if self.noise is not None and self.noise not in NOISES:
            raise ValueError(f"noise={self.noise!r} is not one of {', '.join(NOISES)}")
        largest = 1.0 if self.noise in WORD_NOISES else sys.float_info.max
        if not self.noise_levels or not all(0 <= level <= largest for level in self.noise_levels):
            raise ValueError(
                f"noise_levels={self.noise_levels} must hold at least one level, shares of words from 0 to 1, "
                "standard deviations of at least 0"
            )
        if self.latency_sentences < 0:
            raise ValueError(f"latency_sentences={self.latency_sentences} must be at least 0")


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
    num_iterations: list[int] | None = field(
        default=None,
        metadata={"help": "JM-NAT: numbers of decoder passes, over which the mean of BLEU counts. Default: 4 10."},
    )
    num_beams: list[int] | None = field(
        default=None, metadata={"help": "Autoregressive models: beam sizes, of which the best is chosen. Default: 5."}
    )
    num_length_candidates: list[int] | None = field(
        default=None, metadata={"help": "JM-NAT: numbers of target lengths. Default: as saved with the model."}
    )
    grid: str | None = field(
        default=None,
        metadata={
            "help": """Lists of values of further options as JSON, such as '{"remask_adjacent": [true, false]}'."""
        },
    )
    generation_options: str | None = field(
        default=None, metadata={"help": "Options of all settings as JSON; they are saved, too."}
    )
    repeat_rules: list[str] | None = field(
        default=None,
        metadata={
            "help": "JM-NAT: rules against repeated words to compare. none; collapse: collapse_repeats; remask: also "
            "remask_repeats; delete: also delete_repeats. Default: as saved with the model."
        },
    )
    reranker: str | None = field(
        default=None, metadata={"help": "JM-NAT: tune for candidates that this autoregressive model scores."}
    )
    target_language: str = field(
        default="en", metadata={"help": "Language of the references, which chooses sacreBLEU's tokenizer."}
    )
    bleu_tokenize: str | None = field(
        default=None,
        metadata={"help": "sacreBLEU's tokenizer. Default: zh, ja-mecab, ko-mecab or char by language; else 13a."},
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
        from ..configuration_jmnat import LARGEST_EXPONENT

        for name, values in (("exponents", self.exponents), ("consensus_weights", self.consensus_weights or [0.0])):
            if not values or not all(0 <= value <= LARGEST_EXPONENT for value in values):
                raise ValueError(f"{name}={values} must be at least one number, all in [0, {LARGEST_EXPONENT}]")
        check_counts(self, ("num_iterations", "num_beams", "num_length_candidates", "batch_tokens"))
        check_bleu_tokenizer(self.bleu_tokenize)
        rules = self.repeat_rules
        if rules is not None and not (rules and set(rules) <= set(REPEAT_SETTINGS)):
            raise ValueError(f"repeat_rules={rules} must be at least one of {', '.join(REPEAT_SETTINGS)}")
