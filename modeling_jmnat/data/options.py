"""The options of the command `prepare`. Importing this module loads neither datasets nor Transformers."""

from dataclasses import dataclass, field, fields

# Options that only a data set of the Hub has.
OF_DATASETS = ("dataset_config", "dataset_revision", "train_split", "validation_split", "test_split")


@dataclass
class PreparationArguments:
    """Turn parallel text into a data set that `jmnat train` reads. Give text files, or a data set of the Hub."""

    output_dir: str = field(metadata={"help": "New folder for the data set, the tokenizer and the counts."})
    train_source: str | None = field(
        default=None,
        metadata={"help": "Training text in the source language, one sentence a line, UTF-8, .gz or plain."},
    )
    train_target: str | None = field(default=None, metadata={"help": "Its translation, line by line."})
    validation_source: str | None = field(
        default=None, metadata={"help": "Held-out text in the source language for evaluation during training."}
    )
    validation_target: str | None = field(default=None, metadata={"help": "Its translation, line by line."})
    test_source: str | None = field(
        default=None, metadata={"help": "Held-out text in the source language for the final score (optional)."}
    )
    test_target: str | None = field(default=None, metadata={"help": "Its translation, line by line."})
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A data set on the Hugging Face Hub, or its local folder, instead of text files."},
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the data set, such as de-en."}
    )
    dataset_revision: str | None = field(
        default=None,
        metadata={"help": "Branch or commit of the data set; refs/convert/parquet if it is defined by a script."},
    )
    train_split: str = field(default="train", metadata={"help": "Name of its training split."})
    validation_split: str = field(default="validation", metadata={"help": "Name of its validation split."})
    test_split: str = field(default="test", metadata={"help": "Name of its test split, which may be missing."})
    source_lang: str | None = field(
        default=None,
        metadata={
            "help": "Source language, such as de: a key or column of --dataset_name, and the language of --moses."
        },
    )
    target_lang: str | None = field(default=None, metadata={"help": "Target language, such as en."})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Use the tokenizer of this folder, or of this model on the Hub, instead of training one. Needed "
            "for further data sets of the same model (distilled text, a teacher's data)."
        },
    )
    vocab_size: int = field(
        default=6000,
        metadata={
            "help": "Size of the joint vocabulary of both languages: 6000 for 30,000 pairs, 32000 for millions. Leave "
            "it out with --tokenizer."
        },
    )
    lowercase: bool = field(default=False, metadata={"help": "Lower-case everything, references included."})
    unicode_form: str = field(
        default="NFC",
        metadata={
            "help": "Unicode form of all text: NFC, or NFKC, which also replaces full-width letters etc. Leave it out "
            "with --tokenizer."
        },
    )
    mark_copied: bool = field(
        default=False,
        metadata={
            "help": "Teach the model to copy: mark numbers, addresses, markup and words in unknown characters that "
            "both sides contain. With --tokenizer, this depends on whether that tokenizer has marks."
        },
    )
    moses: bool = field(
        default=False,
        metadata={"help": "Apply Moses tokenisation before the vocabulary, as in the paper; needs both languages."},
    )
    max_tokens_per_sentence: int = field(
        default=250,
        metadata={"help": "Drop training pairs with more tokens than this on a side (</s> included)."},
    )
    max_model_tokens: int = field(
        default=512,
        metadata={"help": "Longest sentence of the model in tokens; a longer validation or test line is an error."},
    )
    max_length_ratio: float = field(
        default=4.0,
        metadata={
            "help": "Drop training pairs of which one side has more than this many times the tokens of the other "
            "(</s> included); 0 keeps all."
        },
    )
    append_train_of: str | None = field(
        default=None,
        metadata={
            "help": "Append the training pairs of this folder, which an earlier call wrote, for example raw text to "
            "distilled text."
        },
    )
    drop_duplicates: bool = field(
        default=False, metadata={"help": "Keep only the first of several training pairs that are equal on both sides."}
    )
    drop_copies: bool = field(default=False, metadata={"help": "Drop training pairs whose target equals the source."})
    num_proc: int = field(
        default=1, metadata={"help": "Processes that clean and tokenise; the result does not depend on their number."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier preparation in --output_dir."})

    def __post_init__(self):
        if self.num_proc < 1:
            raise ValueError(f"num_proc={self.num_proc} must be at least 1")
        if self.max_tokens_per_sentence < 2:
            raise ValueError(f"max_tokens_per_sentence={self.max_tokens_per_sentence} must be at least 2")
        if self.max_model_tokens < self.max_tokens_per_sentence:
            raise ValueError(
                f"max_model_tokens={self.max_model_tokens} must be at least max_tokens_per_sentence="
                f"{self.max_tokens_per_sentence}"
            )
        if self.max_length_ratio != 0 and not self.max_length_ratio >= 1:
            raise ValueError(f"max_length_ratio={self.max_length_ratio} must be 0 (off) or at least 1")
        if self.moses or self.dataset_name is not None:
            self.languages()
        self.check_dataset()

    def check_dataset(self) -> None:
        """ValueError for options of a data set of the Hub without its name, or for one language on both sides."""
        if self.dataset_name is not None:
            if self.source_lang == self.target_lang:
                raise ValueError(f"source_lang and target_lang are both {self.source_lang!r}: give two languages")
            return
        for item in fields(self):
            if item.name in OF_DATASETS and (value := getattr(self, item.name)) != item.default:
                raise ValueError(f"{item.name}={value} needs dataset_name, the data set that has it")

    def languages(self) -> tuple[str, str]:
        """Source and target language; ValueError unless both are given."""
        if not (self.source_lang and self.target_lang):
            raise ValueError("source_lang and target_lang are both needed with moses and with dataset_name")
        return self.source_lang, self.target_lang
