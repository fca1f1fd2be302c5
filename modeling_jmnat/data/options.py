"""The options of the command `prepare`. Importing this module loads neither datasets nor Transformers."""

from dataclasses import dataclass, field


@dataclass
class PreparationArguments:
    """Turn parallel text into a data set that `train_jmnat.py` reads. Give text files, or a data set of the Hub."""

    output_dir: str = field(metadata={"help": "New folder for the data set, the tokenizer and the counts."})
    train_source: str | None = field(
        default=None,
        metadata={"help": "Training text in the source language, one sentence a line, UTF-8, .gz or plain."},
    )
    train_target: str | None = field(
        default=None, metadata={"help": "Its translation: line 7 translates line 7 of --train_source."}
    )
    validation_source: str | None = field(
        default=None, metadata={"help": "Held-out text that is scored during training, source language."}
    )
    validation_target: str | None = field(default=None, metadata={"help": "Its translation."})
    test_source: str | None = field(default=None, metadata={"help": "Held-out text for the final score (optional)."})
    test_target: str | None = field(default=None, metadata={"help": "Its translation."})
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Instead of files: a data set on the Hugging Face Hub, or a local folder of one."},
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the data set, such as de-en."}
    )
    dataset_revision: str | None = field(
        default=None,
        metadata={"help": "Branch or commit of the data set; refs/convert/parquet where it is written as a script."},
    )
    train_split: str = field(default="train", metadata={"help": "Name of its training split."})
    validation_split: str = field(default="validation", metadata={"help": "Name of its validation split."})
    test_split: str = field(default="test", metadata={"help": "Name of its test split; left out if there is none."})
    source_lang: str | None = field(
        default=None,
        metadata={
            "help": "Source language, such as de: the key or column of --dataset_name, and the language of --moses."
        },
    )
    target_lang: str | None = field(default=None, metadata={"help": "Target language, such as en."})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Use the tokenizer of this folder, or of this model on the Hub, instead of training one: needed "
            "for every further data set of one model (distilled text, a teacher's data)."
        },
    )
    vocab_size: int = field(
        default=6000,
        metadata={
            "help": "Size of the joint vocabulary of both languages: 6000 for 30,000 pairs, 32000 for millions."
        },
    )
    lowercase: bool = field(default=False, metadata={"help": "Lower-case everything, references included."})
    unicode_form: str = field(
        default="NFC",
        metadata={"help": "Unicode form of all text: NFC, or NFKC, which also makes full-width letters plain ones."},
    )
    mark_copied: bool = field(
        default=False,
        metadata={
            "help": "Teach the model to copy: numbers, addresses, markup and words in unknown characters that stand "
            "on both sides are marked. A tokenizer given by --tokenizer decides itself, by whether it has marks."
        },
    )
    moses: bool = field(
        default=False,
        metadata={"help": "Apply Moses tokenisation before the vocabulary, as the paper; needs the two languages."},
    )
    max_tokens_per_sentence: int = field(
        default=250,
        metadata={"help": "Training pairs with more tokens than this on a side are dropped (the end mark counts)."},
    )
    max_model_tokens: int = field(
        default=512,
        metadata={"help": "The longest sentence the model can take. A longer validation or test line is an error."},
    )
    max_length_ratio: float = field(
        default=4.0,
        metadata={
            "help": "Training pairs are dropped if one side has more than this many times the tokens of the other "
            "(end mark included); 0 keeps all."
        },
    )
    append_train_of: str | None = field(
        default=None,
        metadata={
            "help": "Append the training pairs of this folder, which an earlier call wrote: distilled text and raw "
            "text together."
        },
    )
    drop_duplicates: bool = field(
        default=False, metadata={"help": "Keep only the first of training pairs that are equal on both sides."}
    )
    drop_copies: bool = field(
        default=False, metadata={"help": "Drop training pairs whose target is the source, unchanged."}
    )
    num_proc: int = field(
        default=1, metadata={"help": "Processes that clean and tokenise; the result is the same with any number."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what an earlier run left in --output_dir."})

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

    def languages(self) -> tuple[str, str]:
        """Source and target language, where both are needed."""
        if not (self.source_lang and self.target_lang):
            raise ValueError("source_lang and target_lang are both needed with moses and with dataset_name")
        return self.source_lang, self.target_lang
