"""Translation of sentences by a teacher that may or may not share the vocabulary of the data."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from ..inference.beam_search import max_source_length
from ..inference.engines import Engine, decode
from ..inference.loading import language_ids
from ..plain_text import Sentence


class TextDecoder:
    """Translates sentences by beam search.

    Args:
        tokenizer: the teacher's tokenizer.
        shares_vocabulary: whether the teacher reads the ids of the data; otherwise it is given the text.
        num_beams, batch_tokens: see `inference.engines.decode`.
        prefix: put before each source that is given as text.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        shares_vocabulary: bool,
        num_beams: int = 5,
        batch_tokens: int | None = None,
        prefix: str = "",
    ):
        self.engine, self.tokenizer, self.shares_vocabulary = engine, tokenizer, shares_vocabulary
        self.num_beams, self.batch_tokens, self.prefix = num_beams, batch_tokens, prefix
        self.languages = language_ids(tokenizer)

    def decode(
        self,
        sources: Sequence[str],
        input_ids: Sequence[Sequence[int]],
        advance: Callable[[int], object] | None = None,
    ) -> list[str | None]:
        """Translate `sources`, whose ids in the data's vocabulary are `input_ids`; None for a source that is too long.

        Args:
            advance: called after each batch with its number of sentences.
        """
        read = [Sentence(source) for source in sources]
        if self.shares_vocabulary and self.tokenizer.has_marks:  # the marks in `input_ids` depend on the reference
            read = [Sentence.read(source, self.tokenizer) for source in sources]
            input_ids = self.tokenizer([sentence.text for sentence in read])["input_ids"]
        elif not self.shares_vocabulary:
            input_ids = self.tokenizer([self.prefix + source for source in sources], verbose=False)["input_ids"]
        limit = max_source_length(self.engine.config)
        fitting = [index for index, ids in enumerate(input_ids) if len(ids) <= limit]
        outputs = decode(
            self.engine, [input_ids[index] for index in fitting], self.num_beams, self.batch_tokens, advance
        )
        texts: list[str | None] = [None] * len(input_ids)
        for index, ids in zip(fitting, outputs, strict=True):
            ids = [token for token in ids if token not in self.languages]
            texts[index] = read[index].write(str(self.tokenizer.decode(ids, skip_special_tokens=True)))
        return texts
