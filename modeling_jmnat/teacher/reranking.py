"""Noisy parallel decoding: an autoregressive model scores the candidates of the student (section 4.4).

`generate(..., reranker=model)` takes an autoregressive model that shares the student's vocabulary. A model with
another tokenizer is wrapped in a `TextReranker`, which passes the candidates on as text.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..inference.beam_search import max_source_length
from ..inference.loading import is_multilingual, load_teacher
from ..losses_jmnat import ModelReranker
from ..utils.fingerprints import tokenizer_fingerprint
from ..utils.id_batches import pad_batch


class TextReranker:
    """Scores the student's candidates by a sequence-to-sequence model with another tokenizer.

    Of texts that are too long for the model, it reads the beginning.

    Args:
        model: any autoregressive Transformers seq2seq model.
        tokenizer: the tokenizer of `model`.
        student_tokenizer: reads the token ids that `score` receives.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, student_tokenizer: PreTrainedTokenizerBase
    ):
        self.model = model.eval()
        self.scorer = ModelReranker(self.model, tokenizer.pad_token_id)
        self.tokenizer, self.student_tokenizer = tokenizer, student_tokenizer

    def score(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, candidate_ids: torch.Tensor
    ) -> torch.Tensor:
        """Mean log-probability (N,) of `candidate_ids` (N, T) given `input_ids` (B, S), N = B * C.

        Both hold ids of the student, which are decoded and encoded again, so the mean is over the tokens of `model`.
        The result is on the device of `candidate_ids`.
        """
        sources = self.student_tokenizer.batch_decode(input_ids.tolist(), skip_special_tokens=True)
        candidates = self.student_tokenizer.batch_decode(candidate_ids.tolist(), skip_special_tokens=True)
        pad, device = self.tokenizer.pad_token_id, self.model.device
        cut = {"truncation": True, "max_length": max_source_length(self.model.config)}
        source_ids, source_mask = pad_batch(self.tokenizer(sources, **cut)["input_ids"], pad, device)
        target_ids, _ = pad_batch(self.tokenizer(text_target=candidates, **cut)["input_ids"], pad, device)
        return self.scorer.score(source_ids, source_mask, target_ids).to(candidate_ids.device)


def load_reranker(
    directory: str | Path, student_tokenizer: PreTrainedTokenizerBase, device: torch.device | str = "cpu"
) -> PreTrainedModel | TextReranker:
    """Load a model for `generate(reranker=...)`, wrapped in a `TextReranker` unless it shares the student's tokenizer.

    Args:
        directory: a saved seq2seq model with its tokenizer, or a name on the Hub.
        student_tokenizer: compared by content, not by name.

    Raises:
        ValueError: `load_teacher` refuses the model, for instance because it is a JM-NAT model; or it is multilingual
            and its tokenizer was saved without languages.
    """
    model, tokenizer = load_teacher(directory, device)
    if is_multilingual(tokenizer) and tokenizer.tgt_lang is None:
        raise ValueError(
            f"reranker {directory} is multilingual and would score text as English: set src_lang and tgt_lang of its "
            "tokenizer, save it in a copy of the folder, and give that"
        )
    if tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(student_tokenizer):
        return model
    return TextReranker(model, tokenizer, student_tokenizer)
