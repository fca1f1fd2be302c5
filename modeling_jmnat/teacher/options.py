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
            "help": "For a multilingual teacher: its codes of source and target language, such as deu_Latn eng_Latn "
            "(NLLB), de en (M2M100) or de_DE en_XX (mBART)."
        },
    )
    teacher_prefix: str | None = field(
        default=None,
        metadata={
            "help": "Text before each source, where the teacher wants one, such as 'translate German to English: ' "
            "(T5), '<2en> ' (MADLAD-400) or '>>eng<< ' (opus-mt of several target languages)."
        },
    )
    num_beams: int = field(default=5, metadata={"help": "Beam size; 5 as in the paper, 1 is greedy and fastest."})
    shards: int | None = field(
        default=None,
        metadata={
            "help": "Parts that are saved one by one, at most one for each sentence; by default one for "
            f"{SENTENCES_PER_SHARD} sentences."
        },
    )
    backend: str = field(
        default="auto",
        metadata={
            "help": "ctranslate2 (faster on a CPU), transformers, or auto: the former on a CPU where installed."
        },
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Padded source tokens times beams in a batch; by default 131072 on a GPU, 16384 on a CPU."},
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Number type of the teacher: float32, float16 or bfloat16; auto is float16 on a GPU, else float32."
        },
    )
    device: str = field(default="auto", metadata={"help": "auto (the GPU if there is one), cpu or cuda."})
    max_length_ratio: float | None = field(
        default=3.0,
        metadata={
            "help": "Leave out pairs with a side of more than this many times the tokens of the other; 0 keeps all."
        },
    )
    append_raw: bool = field(
        default=False, metadata={"help": "Append the original pairs behind the distilled ones (twice the data)."}
    )
    source_lang: str | None = field(
        default=None,
        metadata={"help": "Ending of the source file; by default the --source_lang of `jmnat prepare`, or src."},
    )
    target_lang: str | None = field(
        default=None,
        metadata={"help": "Ending of the target file; by default the --target_lang of `jmnat prepare`, or tgt."},
    )

    def __post_init__(self):
        check_counts(self, ("num_beams", "shards", "batch_tokens"))
        if self.max_length_ratio is not None and self.max_length_ratio != 0 and not self.max_length_ratio >= 1:
            raise ValueError(f"max_length_ratio={self.max_length_ratio} must be 0 (off) or at least 1")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}")
