"""Noisy parallel decoding: an autoregressive model scores the candidates that the student made (section 4.4).

`generate(..., reranker=model)` takes an autoregressive model of the student's own vocabulary as it is. A model with
another tokenizer is wrapped: `TextReranker` passes the candidates on as text.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from .teacher import load_teacher_tokenizer, pad_batch, tokenizer_digest

# Vocabulary logits held at once, in elements: the rows beyond it are scored in further pieces.
MAX_LOGITS = 2**27


@torch.no_grad()
def mean_log_probs(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    candidate_ids: torch.Tensor,
    pad_token_id: int,
) -> torch.Tensor:
    """Mean log-probability that an autoregressive `model` gives each candidate, `</s>` included.

    Args:
        input_ids, attention_mask: (B, S); encoded once per sentence.
        candidate_ids: (N, T) with N = B * C, the C candidates of a sentence in consecutive rows; padded right.
        pad_token_id: marks padding in `candidate_ids`.

    Returns:
        (N,) float32. A candidate without tokens scores -inf.

    Raises:
        ValueError: N is not a multiple of B.
    """
    num_candidates, remainder = divmod(len(candidate_ids), len(input_ids))
    if remainder or not num_candidates:
        raise ValueError(
            f"candidate_ids has {len(candidate_ids)} rows: a multiple of the {len(input_ids)} of input_ids is needed"
        )
    encoder_states = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    labels = candidate_ids.masked_fill(candidate_ids == pad_token_id, -100)
    start = model.generation_config.decoder_start_token_id
    if start is None:
        start = model.config.decoder_start_token_id
    decoder_input_ids = torch.cat([torch.full_like(candidate_ids[:, :1], start), candidate_ids[:, :-1]], dim=1)
    sentence_of_row = torch.arange(len(candidate_ids), device=candidate_ids.device) // num_candidates
    rows_at_once = max(1, MAX_LOGITS // (candidate_ids.shape[1] * model.config.vocab_size))
    scores = []
    for rows in torch.arange(len(candidate_ids), device=candidate_ids.device).split(rows_at_once):
        logits = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_states[sentence_of_row[rows]]),
            attention_mask=attention_mask[sentence_of_row[rows]],
            decoder_input_ids=decoder_input_ids[rows],
            decoder_attention_mask=torch.ones_like(decoder_input_ids[rows]),
            use_cache=False,
        ).logits  # (rows, T, V)
        log_probs = -F.cross_entropy(logits.float().transpose(1, 2), labels[rows], reduction="none")  # (rows, T)
        counts = (labels[rows] != -100).sum(dim=1)
        means = log_probs.sum(dim=1) / counts.clamp(min=1)
        scores.append(means.masked_fill(counts == 0, float("-inf")))
    return torch.cat(scores)


class TextReranker:
    """Scores the student's candidates with a seq2seq model that has a tokenizer of its own.

    Args:
        model: any autoregressive Transformers seq2seq model.
        tokenizer: the tokenizer of `model`.
        student_tokenizer: reads the token ids that `score` receives.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, student_tokenizer: PreTrainedTokenizerBase
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.student_tokenizer = student_tokenizer

    def to(self, device: torch.device | str) -> "TextReranker":
        self.model.to(device)
        return self

    def score(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, candidate_ids: torch.Tensor
    ) -> torch.Tensor:
        """Mean log-probability (N,) of `candidate_ids` (N, T) given `input_ids` (B, S), N = B * C.

        Both are the student's ids; they are decoded to text and encoded again, so the length in the mean is counted in
        the scoring model's tokens. The result lies on the device of `candidate_ids`.
        """
        sources = self.student_tokenizer.batch_decode(input_ids.tolist(), skip_special_tokens=True)
        candidates = self.student_tokenizer.batch_decode(candidate_ids.tolist(), skip_special_tokens=True)
        pad, device = self.tokenizer.pad_token_id, self.model.device
        source_ids, source_mask = pad_batch(self.tokenizer(sources)["input_ids"], pad, device)
        target_ids, _ = pad_batch(self.tokenizer(text_target=candidates)["input_ids"], pad, device)
        scores = mean_log_probs(self.model, source_ids, source_mask, target_ids, pad)
        return scores.to(candidate_ids.device)


def load_reranker(
    directory: str | Path, student_tokenizer: PreTrainedTokenizerBase, device: torch.device | str = "cpu"
) -> PreTrainedModel | TextReranker:
    """What `generate(reranker=...)` takes: the model itself when it shares the student's tokenizer, else a wrapper.

    Args:
        directory: a saved seq2seq model with its tokenizer, or a name on the Hub.
        student_tokenizer: compared by content, not by name.
    """
    tokenizer = load_teacher_tokenizer(directory)
    model = AutoModelForSeq2SeqLM.from_pretrained(directory).to(device).eval()
    if tokenizer_digest(tokenizer) == tokenizer_digest(student_tokenizer):
        return model
    return TextReranker(model, tokenizer, student_tokenizer)
