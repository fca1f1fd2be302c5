"""The options of the benchmark commands. Importing this module loads neither PyTorch nor Transformers."""

from dataclasses import dataclass, field

SIZES = {
    "small": {"d_model": 256, "ffn": 1024, "layers": 5, "heads": 4, "vocab_size": 10_000},
    "base": {"d_model": 512, "ffn": 2048, "layers": 6, "heads": 8, "vocab_size": 32_000},
}
TRAINING_SIZES = {"tiny": {"d_model": 128, "ffn": 512, "layers": 3, "heads": 4, "vocab_size": 6_000}, **SIZES}


@dataclass
class BenchmarkArguments:
    """What to measure, and how long."""

    output: str = field(
        metadata={
            "help": "Folder for measurements.json, rows.json, environment.json, three tables (.md) and the picture. "
            "A run that was stopped goes on when it is started again with the same arguments."
        }
    )
    student: str | None = field(default=None, metadata={"help": "Folder of a trained JM-NAT model."})
    teacher: str | None = field(
        default=None, metadata={"help": "Folder of the autoregressive model, with the same tokenizer."}
    )
    deep_teacher: str | None = field(
        default=None,
        metadata={"help": "Folder of another autoregressive model, with a deep encoder and a shallow decoder."},
    )
    source: str | None = field(default=None, metadata={"help": "Text to translate, one sentence a line; .gz works."})
    reference: str | None = field(default=None, metadata={"help": "Its translation, for BLEU beside the times."})
    random_weights: str | None = field(
        default=None,
        metadata={
            "help": "small or base: untrained models of that size at 25 tokens; no BLEU, nothing adaptive or pruned."
        },
    )
    passes: list[int] = field(default_factory=lambda: [1, 4, 10], metadata={"help": "Decoder passes k to measure."})
    candidates: list[int] = field(default_factory=lambda: [1, 4], metadata={"help": "Length candidates C to measure."})
    only: str | None = field(
        default=None, metadata={"help": "Regular expression: measure only systems whose title has a match."}
    )
    sentences: int = field(default=100, metadata={"help": "Sentences for latency, spread over the test set."})
    rounds: int = field(default=5, metadata={"help": "How often each sentence is timed on each system."})
    batch_size: int = field(default=32, metadata={"help": "Sentences of a batch for throughput."})
    batch_lines: int | None = field(
        default=None,
        metadata={"help": "Lines for throughput, from the first on; BLEU is of all lines. Default: all."},
    )
    batch_rounds: int = field(default=3, metadata={"help": "How often each batch is timed on each system."})
    batch_sizes: list[int] = field(
        default_factory=list,
        metadata={"help": "Other sizes of batches, timed once each: the best of them is reported. Default: none."},
    )
    threads: int = field(
        default=1,
        metadata={"help": "Threads of every engine; in CTranslate2, workers of one thread each that share a batch."},
    )


@dataclass
class GPUBenchmarkArguments:
    """What to measure, and how long."""

    output: str = field(metadata={"help": "Folder for rows.json, environment.json and table.md."})
    student: str | None = field(default=None, metadata={"help": "Folder of a trained JM-NAT model."})
    teacher: str | None = field(
        default=None, metadata={"help": "Folder of the autoregressive model, with the same tokenizer."}
    )
    source: str | None = field(default=None, metadata={"help": "Text to translate, one sentence a line; .gz works."})
    reference: str | None = field(default=None, metadata={"help": "Its translation, for BLEU beside the times."})
    random_weights: str | None = field(
        default=None, metadata={"help": "small or base: untrained models of that size at 25 tokens, no BLEU."}
    )
    passes: list[int] = field(default_factory=lambda: [1, 4, 10], metadata={"help": "Decoder passes k to measure."})
    candidates: list[int] = field(default_factory=lambda: [1, 4], metadata={"help": "Length candidates C to measure."})
    dtypes: list[str] = field(
        default_factory=lambda: ["float32", "float16"],
        metadata={"help": "float32 (products in TF32), float16, bfloat16; CTranslate2 always runs in float16."},
    )
    sentences: int = field(default=8, metadata={"help": "Sentences for latency, spread over the test set."})
    rounds: int = field(default=5, metadata={"help": "How often each sentence is timed on each system, at most."})
    batch_sizes: list[int] = field(
        default_factory=lambda: [32, 256], metadata={"help": "Sentences of a batch for throughput."}
    )
    batches: int | None = field(
        default=None,
        metadata={"help": "Batches of each size for throughput, without BLEU. Default: the whole test set."},
    )
    lines: int | None = field(
        default=None, metadata={"help": "Lines for throughput and BLEU. Default: all; random weights: 512."}
    )
    time_budget: float = field(default=1.5, metadata={"help": "Minutes after which no further round begins."})
    device: str = field(default="cuda", metadata={"help": "cuda, or cpu to try the command out."})


@dataclass
class TrainingBenchmarkArguments:
    """What to measure, and how long."""

    output: str = field(metadata={"help": "Folder for training.json, training_environment.json and training.md."})
    sizes: list[str] = field(default_factory=lambda: ["tiny"], metadata={"help": f"Of {', '.join(TRAINING_SIZES)}."})
    device: str = field(default="auto", metadata={"help": "auto, cpu or cuda."})
    dtypes: list[str] = field(
        default_factory=lambda: ["float32"],
        metadata={"help": "float32 (on a GPU with products in TF32) and bfloat16 (by autocast)."},
    )
    compile: bool = field(default=False, metadata={"help": "Measure each setting with torch.compile as well."})
    max_tokens: int = field(default=2000, metadata={"help": "Tokens of a batch; a GPU needs 16,000 and more."})
    length: int = field(default=25, metadata={"help": "Tokens of each source and target."})
    rounds: int = field(default=20, metadata={"help": "Steps of each model that are timed, at most."})
    time_budget: float = field(
        default=0.5, metadata={"help": "Minutes of a setting after which no further step is timed."}
    )
    threads: int = field(default=1, metadata={"help": "CPU threads."})
