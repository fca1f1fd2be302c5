"""The options of the command `distill`. Importing this module loads neither PyTorch nor Transformers."""

from dataclasses import dataclass, field

from ..utils.command_line import check_counts

SENTENCES_PER_SHARD = 4096
DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass
class DistillationArguments:
    """Translate the training split of prepared data with a teacher into plain parallel text."""

    teacher: str = field(
        metadata={
            "help": "Folder of a teacher (`jmnat train-teacher`), or any seq2seq model of the Hub such as an opus-mt."
        }
    )
    data: str = field(metadata={"help": "Folder written by `jmnat prepare`. Only its training split is translated."})
    output_dir: str = field(
        metadata={"help": "Folder for the text. Repeat the command to resume after an interruption."}
    )
    teacher_languages: list[str] | None = field(
        default=None,
        metadata={
            "help": "Source and target language in the codes of a multilingual teacher, such as deu_Latn eng_Latn "
            "(NLLB), de en (M2M100) or de_DE en_XX (mBART)."
        },
    )
    teacher_prefix: str | None = field(
        default=None,
        metadata={
            "help": "Text to put before each source if the teacher expects one, such as 'translate German to "
            "English: ' (T5), '<2en> ' (MADLAD-400) or '>>eng<< ' (opus-mt with several target languages)."
        },
    )
    num_beams: int = field(default=5, metadata={"help": "Beam size; 5 as in the paper, 1 is greedy and fastest."})
    shards: int | None = field(
        default=None,
        metadata={
            "help": "Number of parts, which are saved one by one, at most one per sentence. Default: one per "
            f"{SENTENCES_PER_SHARD} sentences."
        },
    )
    backend: str = field(
        default="auto",
        metadata={
            "help": "ctranslate2 (faster on a CPU), transformers, or auto: ctranslate2 on a CPU if it is installed."
        },
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Padded source tokens times beams in a batch. Default: 131072 on a GPU, 16384 on a CPU."},
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Number type of the teacher: float32, float16, bfloat16, or auto: float16 on a GPU, else float32."
        },
    )
    device: str = field(default="auto", metadata={"help": "auto (the GPU if there is one), cpu or cuda."})
    max_length_ratio: float | None = field(
        default=3.0,
        metadata={
            "help": "Leave out pairs of which one side has more than this many times the tokens of the other; 0 keeps "
            "all."
        },
    )
    append_raw: bool = field(
        default=False, metadata={"help": "Append the original pairs to the distilled ones (twice the data)."}
    )
    source_lang: str | None = field(
        default=None,
        metadata={"help": "Ending of the source file. Default: the --source_lang of `jmnat prepare`, or src."},
    )
    target_lang: str | None = field(
        default=None,
        metadata={"help": "Ending of the target file. Default: the --target_lang of `jmnat prepare`, or tgt."},
    )

    def __post_init__(self):
        check_counts(self, ("num_beams", "shards", "batch_tokens"))
        if self.max_length_ratio is not None and self.max_length_ratio != 0 and not self.max_length_ratio >= 1:
            raise ValueError(f"max_length_ratio={self.max_length_ratio} must be 0 (off) or at least 1")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}")
