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
            "Repeat the command to resume a run that was stopped."
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
    source: str | None = field(
        default=None, metadata={"help": "Text to translate, one sentence per line; .gz files are decompressed."}
    )
    reference: str | None = field(default=None, metadata={"help": "Its reference translation, for BLEU."})
    random_weights: str | None = field(
        default=None,
        metadata={"help": "small or base: time untrained models of that size at 25 tokens, without BLEU and pruning."},
    )
    passes: list[int] = field(default_factory=lambda: [1, 4, 10], metadata={"help": "Decoder passes k to measure."})
    candidates: list[int] = field(default_factory=lambda: [1, 4], metadata={"help": "Length candidates C to measure."})
    only: str | None = field(
        default=None, metadata={"help": "Regular expression: measure only systems whose title has a match."}
    )
    sentences: int = field(default=100, metadata={"help": "Sentences for latency, spread over the test set."})
    rounds: int = field(default=5, metadata={"help": "Number of times that each system translates each sentence."})
    batch_size: int = field(default=32, metadata={"help": "Sentences in a batch for throughput."})
    batch_lines: int | None = field(
        default=None,
        metadata={"help": "Number of lines for throughput, from the first; BLEU uses all lines. Default: all."},
    )
    batch_rounds: int = field(default=3, metadata={"help": "Number of times that each system translates each batch."})
    batch_sizes: list[int] = field(
        default_factory=list,
        metadata={"help": "Other batch sizes to time once, of which the best is reported. Default: none."},
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
    source: str | None = field(
        default=None, metadata={"help": "Text to translate, one sentence per line; .gz files are decompressed."}
    )
    reference: str | None = field(default=None, metadata={"help": "Its reference translation, for BLEU."})
    random_weights: str | None = field(
        default=None,
        metadata={"help": "small or base: time untrained models of that size at 25 tokens, without BLEU."},
    )
    passes: list[int] = field(default_factory=lambda: [1, 4, 10], metadata={"help": "Decoder passes k to measure."})
    candidates: list[int] = field(default_factory=lambda: [1, 4], metadata={"help": "Length candidates C to measure."})
    dtypes: list[str] = field(
        default_factory=lambda: ["float32", "float16"],
        metadata={"help": "Number types: float32 (with TF32), float16, bfloat16; CTranslate2 always uses float16."},
    )
    sentences: int = field(default=8, metadata={"help": "Sentences for latency, spread over the test set."})
    rounds: int = field(default=5, metadata={"help": "Most times that each system translates each sentence."})
    batch_sizes: list[int] = field(
        default_factory=lambda: [32, 256], metadata={"help": "Sentences in a batch for throughput."}
    )
    batches: int | None = field(
        default=None,
        metadata={
            "help": "Number of batches of each size for throughput, without BLEU. Default: all of the test set."
        },
    )
    lines: int | None = field(
        default=None,
        metadata={"help": "Number of lines for throughput and BLEU. Default: all, or 512 with random weights."},
    )
    time_budget: float = field(default=1.5, metadata={"help": "Minutes after which no further round starts."})
    device: str = field(default="cuda", metadata={"help": "cuda, or cpu to try out the command."})


@dataclass
class TrainingBenchmarkArguments:
    """What to measure, and how long."""

    output: str = field(metadata={"help": "Folder for training.json, training_environment.json and training.md."})
    sizes: list[str] = field(
        default_factory=lambda: ["tiny"], metadata={"help": f"Sizes of models: {', '.join(TRAINING_SIZES)}."}
    )
    device: str = field(default="auto", metadata={"help": "auto (the GPU if there is one), cpu or cuda."})
    dtypes: list[str] = field(
        default_factory=lambda: ["float32"],
        metadata={"help": "Number types: float32 (with TF32 on a GPU) and bfloat16 (by autocast)."},
    )
    compile: bool = field(default=False, metadata={"help": "Also measure each setting with torch.compile."})
    max_tokens: int = field(default=2000, metadata={"help": "Tokens in a batch; a GPU needs at least 16,000."})
    length: int = field(default=25, metadata={"help": "Tokens in each source and target."})
    rounds: int = field(default=20, metadata={"help": "Most steps of each model to time."})
    time_budget: float = field(
        default=0.5, metadata={"help": "Minutes for each setting, after which no further step is timed."}
    )
    threads: int = field(default=1, metadata={"help": "CPU threads."})
