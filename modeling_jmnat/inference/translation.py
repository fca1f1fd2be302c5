"""Translate lines of text in batches with a token budget, in order and with bounded memory.

Works for JM-NAT and for autoregressive models of Transformers, so that teacher and student are measured alike.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from ..configuration_jmnat import OPTION_NAMES, is_count, is_number
from ..generation_jmnat import substitute
from ..plain_text import Sentence
from ..tokenization_jmnat import one_line, show_canvas
from ..utils.id_batches import length_sorted_batches, pad_batch
from ..utils.json_files import parse_json
from .beam_search import max_target_length
from .glossary import Glossary, translate_with_terms
from .lines import Line, LineReader
from .loading import Translator, is_jmnat, language_ids

# Options of beam search that are integers, with their least value.
COUNTS = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "max_length": 2,
    "max_new_tokens": 1,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
}
AUTOREGRESSIVE_OPTIONS = (
    "num_beams",
    "length_penalty",
    "early_stopping",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "repetition_penalty",
)
WINDOW_LINES = 4096
ARGUMENTS = ("reranker", "streamer")  # arguments of `generate` that are not options
# The budget counts source tokens. A batch whose targets need more than this multiple of it is decoded in parts.
LONGER_TARGETS = 2


@dataclass
class Translation:
    """One translated line.

    Args:
        source: the line as it was read.
        candidates: `num_return_sequences` pairs of text and score, best first. The score is the sum of
            log-probabilities / (length + length_offset)**length_normalization plus the weighted consensus. Beam search
            scores by the sum / length**length_penalty, and only if `num_return_sequences` is given; otherwise, and in
            greedy search, the score is None.
        token_ids: ids of the best candidate, without special tokens.
        num_passes: decoder passes. This and the next four are None for autoregressive models.
        candidate_lengths: the target lengths that were tried, `</s>` included, most probable first.
        lengths: the target lengths of `candidates`, without deleted or collapsed repeats.
        candidate_indices: for each of `candidates`, the index of its length in `candidate_lengths`.
        canvases: with `output_history=True`, the decoder's input in each pass, as text.
        candidate_ids: ids of all `candidates`, with special tokens, without padding.
        too_long: whether the line had a sentence longer than the model can read, which was cut or skipped.

    For lines with several sentences, see `Line.join`.
    """

    source: str
    candidates: list[tuple[str, float | None]]
    token_ids: list[int] = field(default_factory=list)
    num_passes: int | None = None
    candidate_lengths: list[int] | None = None
    lengths: list[int] | None = None
    candidate_indices: list[int] | None = None
    canvases: list[str] | None = None
    candidate_ids: list[list[int]] = field(default_factory=list)
    too_long: bool = False

    @property
    def text(self) -> str:
        return self.candidates[0][0]


def parse_generation_options(text: str | None, argument: str = "generation_options") -> dict:
    """Parse options of `generate` given as a JSON object on the command line; None means no options.

    Raises:
        ValueError: the text is not a JSON object, or an option is unknown.
    """
    if text is None:
        return {}
    options = parse_json(argument, text)
    if not isinstance(options, dict):
        raise ValueError(f"""{argument}={text!r} must be a JSON object such as {{"early_stop": true}}""")
    known = dict.fromkeys((*OPTION_NAMES, *AUTOREGRESSIVE_OPTIONS))
    for name in options:
        if name not in known:
            raise ValueError(f"generation option {name!r} is unknown ({substitute(name, known)})")
    return options


def check_options(model: Translator, generation: dict) -> None:
    """Refuse options that the model cannot use, before any work is done.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    if is_jmnat(model):
        of_model = {name: value for name, value in generation.items() if name not in ARGUMENTS}
        resolve: Any = model._resolve_generation_options
        resolve(None, of_model)
        return
    for name, value in generation.items():
        if value is None:
            continue
        if name in COUNTS and not is_count(value, COUNTS[name]):
            raise ValueError(f"{name}={value!r} must be a whole number of at least {COUNTS[name]}")
        if name in ("length_penalty", "repetition_penalty") and not is_number(value):
            raise ValueError(f"{name}={value!r} must be a number")
        if name in OPTION_NAMES and name not in (*AUTOREGRESSIVE_OPTIONS, "num_return_sequences"):
            raise ValueError(f"{name} does not apply to an autoregressive model")


def default_batch_tokens(device: torch.device) -> int:
    """Default source tokens in a batch. They fill a GPU; on a CPU, logits take 0.1 GB with a vocabulary of 6,000."""
    return 32_768 if device.type == "cuda" else 4_096


def candidates_per_sentence(model: Translator, generation: dict) -> int:
    """Decoder rows per sentence: length candidates, or beams for an autoregressive model."""
    names = ("num_length_candidates", "num_beams") if is_jmnat(model) else ("num_beams",)
    given = [generation.get(name) for name in names] + [getattr(model.generation_config, names[0], None)]
    return next((value for value in given if value is not None), 1)


def translate_lines(
    model: Translator,
    tokenizer: PreTrainedTokenizerBase,
    lines: Iterable[str],
    *,
    max_batch_tokens: int | None = None,
    window_lines: int = WINDOW_LINES,
    progress: bool = False,
    total: int | None = None,
    split_sentences: bool = False,
    long_lines: str = "error",
    glossary: Glossary | None = None,
    **generation,
) -> Iterator[Translation]:
    """Yield the translation of each line, in order, while `lines` is still being read.

    `window_lines` lines at a time are sorted by length and translated in batches with sentences * candidates * longest
    source <= `max_batch_tokens`, so memory does not grow with the number of lines. The translation of a blank line is
    empty.

    Args:
        max_batch_tokens: padded source tokens of a batch times candidates. Default: 4,096 on a CPU and 32,768 on a
            GPU.
        progress: whether to show a progress bar on standard error; `total` is the number of lines, if known.
        split_sentences: whether to translate lines sentence by sentence.
        long_lines: what to do with a sentence that is longer than the model can read: "split" at the ends of clauses
            and at spaces, "truncate", "skip" (the line's translation is empty) or "error".
        glossary: terms that translations must contain; a sentence that is translated again has one candidate.
        generation: options of `model.generate`, such as `num_iterations=4, num_length_candidates=4`.

    Raises:
        ValueError: a line is not Unicode or, with `long_lines="error"`, longer than the model allows (the message
            gives its number), a number is below 1, or `generate` does not accept an option.
    """
    for name, value in (("max_batch_tokens", max_batch_tokens), ("window_lines", window_lines)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    check_options(model, generation)
    if glossary is not None:
        glossary.check(model, tokenizer)
    budget = max_batch_tokens or default_batch_tokens(model.device)
    reader = LineReader(model, tokenizer, split_sentences, long_lines, glossary)
    lines = iter(lines)
    first_number = 1
    with tqdm(total=total, desc="translating", unit=" lines", disable=not progress) as bar:
        while window := list(itertools.islice(lines, window_lines)):
            read = reader.read(window, first_number)
            in_order = iter(_translate_pieces(model, tokenizer, read, budget, generation, bar.update, glossary))
            for text, line in zip(window, read, strict=True):
                fields = line.join(list(itertools.islice(in_order, len(line.pieces))))
                yield Translation(source=text, too_long=line.too_long, **fields)
            first_number += len(window)


def _translate_pieces(
    model: Translator,
    tokenizer: PreTrainedTokenizerBase,
    lines: list[Line],
    budget: int,
    generation: dict,
    advance: Callable[[int], object],
    glossary: Glossary | None,
) -> list[dict]:
    """The fields of `Translation` for each piece of each line; `advance` is called with the number of lines done."""
    pieces = [
        (number, *piece) for number, line in enumerate(lines) for piece in zip(line.ids, line.sentences, strict=True)
    ]
    results: list[dict] = [
        {"candidates": _untranslated(model, one_line(sentence.translation or ""), generation)}
        for _, _, sentence in pieces
    ]
    translatable = [index for index, (_, ids, _) in enumerate(pieces) if ids]
    missing = Counter(pieces[index][0] for index in translatable)  # pieces of each line still to translate
    advance(len(lines) - len(missing))
    lengths = [len(pieces[index][1]) for index in translatable]
    for batch in length_sorted_batches(lengths, budget, candidates_per_sentence(model, generation)):
        indices = [translatable[position] for position in batch]
        outputs = _generate(model, tokenizer, [pieces[index][1] for index in indices], budget, generation)
        for index, fields in zip(indices, outputs, strict=True):
            sentence = pieces[index][2]
            if glossary is not None:
                fields |= _with_terms(model, tokenizer, sentence.text, fields, glossary, generation)
            results[index] = fields | _written(sentence, fields)
        missing.subtract(pieces[index][0] for index in indices)
        advance(sum(missing[number] == 0 for number in {pieces[index][0] for index in indices}))
    return results


def _written(sentence: Sentence, fields: dict) -> dict:
    """The text fields of a translation, turned from the model's output into text for the sentence."""
    candidates = [(one_line(sentence.write(text)), score) for text, score in fields["candidates"]]
    if "canvases" not in fields:
        return {"candidates": candidates}
    canvases = [one_line(sentence.write(canvas, is_draft=True)) for canvas in fields["canvases"]]
    return {"candidates": candidates, "canvases": canvases}


def _untranslated(model: Translator, text: str, generation: dict) -> list[tuple[str, float | None]]:
    saved = model.generation_config.num_return_sequences if is_jmnat(model) else None
    return [(text, 0.0)] * (generation.get("num_return_sequences") or saved or 1)


def _generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, sources: list[list[int]], budget: int, generation: dict
) -> list[dict]:
    """Translate one batch of ids into the fields of `Translation`, a dict per sentence."""
    input_ids, attention_mask = pad_batch(sources, tokenizer.pad_token_id, model.device)
    options = {**generation, "return_dict_in_generate": True}
    if not is_jmnat(model):
        options = {**_autoregressive_options(model, input_ids.shape[1], generation), **options}
    if not is_jmnat(model) or len(sources) == 1:  # cannot be decoded in parts
        output = model.generate(input_ids=input_ids, attention_mask=attention_mask, **options)
        return _read_output(tokenizer, output, len(sources))
    # Targets may be much longer than sources, so the predicted lengths decide how many sentences to decode together.
    candidates = candidates_per_sentence(model, generation)
    with torch.inference_mode():
        encoder_outputs = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
    length_logits = encoder_outputs.length_logits
    longest = length_logits.topk(min(candidates, length_logits.shape[1]), dim=1).indices.amax(dim=1).tolist()
    results: list[dict] = [{}] * len(sources)
    for piece in length_sorted_batches(longest, LONGER_TARGETS * budget, candidates):
        rows = torch.tensor(piece, device=model.device)
        output = model.generate(
            input_ids=input_ids[rows],
            attention_mask=attention_mask[rows],
            encoder_outputs=_select_rows(encoder_outputs, rows),
            **options,
        )
        for index, fields in zip(piece, _read_output(tokenizer, output, len(piece)), strict=True):
            results[index] = fields
    return results


def _with_terms(model: Any, tokenizer, sentence: str, fields: dict, glossary: Glossary, generation: dict) -> dict:
    """Fields of another translation with the terms of the glossary, if they are missing."""
    output = translate_with_terms(model, tokenizer, sentence, fields["token_ids"], glossary, **generation)
    if output is None:
        return {}
    return _read_output(tokenizer, output, 1)[0] | {"num_passes": fields["num_passes"] + int(output.num_passes[0])}


def _select_rows(encoder_outputs: ModelOutput, rows: torch.Tensor) -> ModelOutput:
    """The encoder's output for the sentences `rows`, in that order."""
    return type(encoder_outputs)(
        **{
            name: value[rows] if torch.is_tensor(value) else tuple(layer[rows] for layer in value)
            for name, value in encoder_outputs.items()
        }
    )


def _autoregressive_options(model: Translator, source_length: int, generation: dict) -> dict[str, Any]:
    """Search without sampling, for at most 1.5 times the tokens of the longest source, plus 10."""
    limit = max_target_length(model.config, source_length)
    options: dict[str, Any] = {"max_length": limit + 1, "do_sample": False}  # including the start token
    if candidates_per_sentence(model, generation) == 1:  # Transformers warns of saved options of beam search
        options.update(early_stopping=False, length_penalty=1.0)
    elif generation.get("num_return_sequences") is not None:  # slow: it copies the scores of all tokens in each step
        options.update(output_scores=True)
    return options


def _read_output(tokenizer: PreTrainedTokenizerBase, output: Any, num_sentences: int) -> list[dict]:
    """The fields of `Translation` from the output of `generate`, a dict per sentence."""
    returned = len(output.sequences) // num_sentences
    special = {*tokenizer.all_special_ids, *language_ids(tokenizer)}
    ids = [[token for token in row if token != tokenizer.pad_token_id] for row in output.sequences.tolist()]
    sequences = [[token for token in row if token not in special] for row in ids]
    texts = tokenizer.batch_decode(sequences)
    scores = output.get("sequences_scores")
    scores = [None] * len(texts) if scores is None else scores.tolist()
    candidates = list(zip(texts, scores, strict=True))
    results = []
    for index in range(num_sentences):
        first, end = index * returned, (index + 1) * returned
        result = {"candidates": candidates[first:end], "candidate_ids": ids[first:end]}
        results.append(result | {"token_ids": sequences[first]})
    if output.get("lengths") is not None:
        for result, lengths in zip(results, output.lengths.view(num_sentences, returned).tolist(), strict=True):
            result["lengths"] = lengths
    for name, called in (
        ("num_passes", "num_passes"),
        ("candidate_lengths", "candidate_lengths"),
        ("best_candidates", "candidate_indices"),
    ):
        if output.get(name) is not None:
            for result, value in zip(results, output[name].tolist(), strict=True):
                result[called] = value
    if output.get("history") is not None:
        for index, result in enumerate(results):
            best = int(output.best_candidates[index, 0])
            passes = output.history[: int(output.num_passes[index])]  # later ones are of other sentences
            result["canvases"] = [show_canvas(tokenizer, turn.canvas[index, best].tolist()) for turn in passes]
    return results
