"""From a sentence to the passes of JM-NAT, and to the steps of an autoregressive translator.

Needs only `torch` and `transformers`: a folder made for the Hub has the model's code.
"""

import importlib.util
import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

HERE = Path(__file__).resolve().parent
MAX_PASSES, MAX_CANDIDATES = 10, 8
MAX_CHARACTERS = 10_000  # even tokenising a longer text would keep others waiting
END = "</s>"  # how this page shows the end of a sentence, whatever the tokenizer calls it
LOCK = Lock()  # one sentence at a time: two at once would distort each other's times


@dataclass
class Token:
    """One token of a candidate after a pass; `masked` before it; `replaced` is the text that it took the place of."""

    text: str
    prob: float
    masked: bool = False
    replaced: str | None = None


@dataclass
class Candidate:
    """One length: tokens after each pass, `passes[i][t]`, and the mean log-probability of the last ones."""

    length: int
    mean_log_prob: float
    passes: list[list[Token]]


@dataclass
class Translation:
    """Candidates, best first. Times are in seconds: one per pass, and one for the rest (mostly the encoder).

    `consensus`: whether candidates that share words with the others were preferred.
    """

    text: str
    candidates: list[Candidate]
    pass_seconds: list[float]
    other_seconds: float
    consensus: bool = False


@dataclass
class WordByWord:
    """An autoregressive translation: one step per token; `other_seconds` is the time before the first step."""

    text: str
    tokens: list[Token]
    step_seconds: list[float]
    other_seconds: float


def model_name() -> str:
    """MODEL, else the model beside this folder in the repository, else `jmnat-de-en` of the Space's owner."""
    if os.environ.get("MODEL"):
        return os.environ["MODEL"]
    beside = HERE.parent / "de-en"
    if (beside / "config.json").is_file():
        return str(beside)
    owner = os.environ.get("SPACE_AUTHOR_NAME")
    if owner is None:
        raise ValueError("no model is given: set MODEL to a folder or to an id on the Hub")
    return f"{owner}/jmnat-de-en"


def load(name: str):
    """Model and tokenizer of a folder or Hub id; the folder's own code is used where the package is not installed."""
    installed = importlib.util.find_spec("modeling_jmnat") is not None
    if installed:
        importlib.import_module("modeling_jmnat")  # registers the classes
    options = {"trust_remote_code": not installed}
    model = AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32, **options).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), AutoTokenizer.from_pretrained(name, **options)


def check_size(text) -> None:
    """Raise ValueError if the text has more characters than the page reads."""
    if isinstance(text, str) and len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"This text has {len(text)} characters, but the page reads at most {MAX_CHARACTERS}: please split it."
        )


def encode(model, tokenizer, text: str) -> torch.Tensor:
    """Ids (1, S) of one sentence, line breaks as spaces; raises ValueError if it is empty or too long."""
    check_size(text)
    text = " ".join(text.split()) if isinstance(text, str) else ""
    if not text:
        raise ValueError("Please type a German sentence first.")
    ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"]
    longest = model.config.max_position_embeddings
    if ids.shape[1] > longest:
        raise ValueError(
            f"This text has {ids.shape[1]} tokens, but the model reads at most {longest}: please split it."
        )
    return ids.to(model.device)


def sentence_of(tokenizer, text: str):
    """The text as the pipeline reads it: capitals, quotation marks and emoji in a form that the model knows.

    None for a tokenizer of another kind. The code lies beside that of the tokenizer.
    """
    package, _, module = type(tokenizer).__module__.rpartition(".")
    if module != "tokenization_jmnat" or not isinstance(text, str):
        return None
    return importlib.import_module(f"{package}.plain_text").Sentence.read(" ".join(text.split()), tokenizer)


def check_number(name: str, value, largest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value not in range(1, largest + 1):
        raise ValueError(f"{name} must be a whole number from 1 to {largest}, not {value}.")
    return int(value)


@contextmanager
def timed(model):
    """A context that yields a growing list: the seconds of each decoder pass that runs inside."""
    seconds, predict = [], model.predict_tokens

    def predict_and_time(*args, **kwargs):
        start = time.perf_counter()
        result = predict(*args, **kwargs)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        return result

    model.predict_tokens = predict_and_time
    try:
        yield seconds
    finally:
        del model.predict_tokens


def translate(model, tokenizer, text: str, num_passes=4, num_candidates=4, adjacent=None) -> Translation:
    """Translate one sentence and keep the result of every pass; the message of a ValueError is for the page's user.

    Options without a control on the page, and `adjacent` if it is None, are those of the model's folder.
    """
    num_passes = check_number("The number of passes", num_passes, MAX_PASSES)
    num_candidates = check_number("The number of lengths", num_candidates, MAX_CANDIDATES)
    check_size(text)
    sentence = sentence_of(tokenizer, text)
    ids = encode(model, tokenizer, text if sentence is None else sentence.text)
    with LOCK, timed(model) as pass_seconds:
        start = time.perf_counter()
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_iterations=num_passes,
            num_length_candidates=num_candidates,
            num_return_sequences=num_candidates,  # all of them, so none is given up on the way
            remask_adjacent=adjacent,
            output_history=True,
        )
        total = time.perf_counter() - start
    candidates = []
    for index in output.best_candidates[0].tolist():
        length = int(output.candidate_lengths[0, index])
        mean = output.history[-1].log_probs[0, index, :length].mean().item()
        candidates.append(Candidate(length, mean, read_passes(tokenizer, output.history, index, length)))
    text = tokenizer.decode(output.sequences[0], skip_special_tokens=True)
    text = text if sentence is None else sentence.write(text)
    consensus = model.generation_config.consensus_weight > 0
    return Translation(text, candidates, pass_seconds, max(total - sum(pass_seconds), 0.0), consensus)


def pieces(tokenizer, ids: list[int]) -> list[str]:
    """Tokens as in the text, the first token of a word with a space before it."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return [END if token == tokenizer.eos_token else token.replace("▁", " ") for token in tokens]


def read_passes(tokenizer, history, index: int, length: int) -> list[list[Token]]:
    """The tokens of one candidate after each pass."""
    passes: list[list[Token]] = []
    for turn in history:
        canvas = turn.canvas[0, index, :length].tolist()
        texts = pieces(tokenizer, turn.tokens[0, index, :length].tolist())
        probs = turn.log_probs[0, index, :length].exp().tolist()
        tokens = []
        for position, (text, prob) in enumerate(zip(texts, probs, strict=True)):
            before = passes[-1][position].text if passes else text
            masked = canvas[position] == tokenizer.mask_token_id
            tokens.append(Token(text, prob, masked, before if before != text else None))
        passes.append(tokens)
    return passes


class StepClock(BaseStreamer):
    """Records when each token of an autoregressive model arrives; the prompt, put first, ends the encoder's time."""

    def __init__(self):
        self.times = [time.perf_counter()]

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def translate_word_by_word(teacher, tokenizer, text: str) -> WordByWord:
    """Greedy search with an autoregressive model: one decoder step for each token."""
    ids = encode(teacher, tokenizer, text)
    with LOCK, torch.inference_mode():
        clock = StepClock()
        output = teacher.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            streamer=clock,
            num_beams=1,
            do_sample=False,
            early_stopping=False,
            length_penalty=1.0,
            max_new_tokens=min(math.ceil(1.5 * ids.shape[1]) + 10, teacher.config.max_position_embeddings - 2),
            output_scores=True,
            return_dict_in_generate=True,
        )
    probs = teacher.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)[0].exp().tolist()
    new_ids = output.sequences[0, -len(probs) :].tolist()
    texts = pieces(tokenizer, new_ids)
    seconds = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    tokens = [Token(text, prob) for text, prob in zip(texts, probs, strict=True)]
    return WordByWord(tokenizer.decode(new_ids, skip_special_tokens=True), tokens, seconds[1:], seconds[0])
