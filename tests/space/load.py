"""Odd texts from many clients at once on the page of the Space: same answers as one after the other, flat memory.

    python -m tests.space.load --requests 10000 --clients 16

The page is a process of its own at 127.0.0.1. Meanwhile texts of three million characters are sent: what counts is how
long they take to be refused.
"""

import argparse
import gzip
import http.client
import importlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.helpers.arbitrary import ODD_CHARACTERS, WORDS
from tests.serving.load import TEXT

SPACE = Path(__file__).resolve().parents[2] / "hub_card" / "space"
REQUEST = "/gradio_api/call/translate"
OPTIONS = [2, 2, "words one by one"]  # passes, lengths, re-masking
HUGE = 3_000_000


def odd_texts(count: int, seed: int = 0) -> list[str]:
    """Real lines, whole and broken, with words and characters of many scripts among them."""
    with gzip.open(TEXT, "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    generator, texts = random.Random(seed), []
    for _ in range(count):
        words = generator.choice(lines).split()[: generator.randint(0, 15)]
        for _ in range(generator.choice([0, 0, 1, 3])):
            words.insert(generator.randint(0, len(words)), generator.choice([*WORDS, *ODD_CHARACTERS]))
        texts.append(generator.choice([" ", " ", "\n", "  "]).join(words))
    return texts


@contextmanager
def running_page() -> Iterator[tuple[psutil.Process, int]]:
    """The Space in a process of its own at a free port; the port."""
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=SPACE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"},
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "public link" in line:  # the last one, after Gradio has tried the page
                break
        found = re.search(r"http://127\.0\.0\.1:(\d+)", "".join(lines))
        if not found:
            raise RuntimeError(f"the page has no address: {''.join(lines)}")
        yield psutil.Process(process.pid), int(found[1])
    finally:
        process.terminate()
        process.wait(timeout=60)


def send(port: int, text: str) -> tuple[int, str, http.client.HTTPConnection]:
    """Hand in a request: status, and the event to ask for or why it is refused."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = json.dumps({"data": [text, *OPTIONS]})
    connection.request("POST", REQUEST, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read().decode(), connection


def ask(port: int, text: str) -> tuple[int, str]:
    """Status and HTML of one request."""
    status, answer, connection = send(port, text)
    if status != 200:
        connection.close()
        return status, answer
    connection.request("GET", f"{REQUEST}/{json.loads(answer)['event_id']}")
    events = connection.getresponse().read().decode()
    connection.close()
    found = re.search(r"event: complete\ndata: (.*)", events)
    return 200 if found else 500, json.loads(found[1])[0] if found else events


def without_times(html: str) -> str:
    return re.sub(r"[\d.]+ ms|width:[\d.]+%", "", html)


def ask_from_many(port: int, texts: list[str], clients: int, page: psutil.Process) -> tuple[list, list[int]]:
    """Status and answer for each text; the page's memory in bytes after each tenth of them."""
    answers: list = [None] * len(texts)
    numbers, lock, memory = iter(range(len(texts))), threading.Lock(), []

    def client() -> None:
        while True:
            with lock:
                number = next(numbers, None)
                if number is not None and number % max(1, len(texts) // 10) == 0:
                    memory.append(page.memory_info().rss)
            if number is None:
                return
            answers[number] = ask(port, texts[number])

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, [*memory, page.memory_info().rss]


def refusals(port: int, count: int, done: threading.Event, seconds: list[float]) -> None:
    """Send huge texts while others are translated, and note how long each took to be refused."""
    while len(seconds) < count and not done.is_set():
        start = time.perf_counter()
        status, answer = ask(port, "wortschatz" * (HUGE // 10))
        seconds.append(time.perf_counter() - start)
        assert status == 422, status
        assert f"{HUGE} characters" in answer
        done.wait(0.2)


def measure(requests: int, clients: int, huge: int = 20, repeat_every: int = 0) -> dict:
    """Figures of one load.

    Args:
        repeat_every: texts from this number on are the first ones again, so that expected answers are made once.
    """
    sys.path.insert(0, str(SPACE))
    app = importlib.import_module("app")
    distinct = odd_texts(repeat_every or requests)
    texts = [distinct[number % len(distinct)] for number in range(requests)]
    start = time.perf_counter()
    expected = [without_times(app.answer(text, *OPTIONS)) for text in distinct]
    alone = time.perf_counter() - start
    refused: list[float] = []
    done = threading.Event()
    with running_page() as (page, port):
        ask(port, texts[0])
        other = threading.Thread(target=refusals, args=(port, huge, done, refused))
        other.start()
        start = time.perf_counter()
        answers, memory = ask_from_many(port, texts, clients, page)
        seconds = time.perf_counter() - start
        done.set()
        other.join()
    lost = sum(status != 200 for status, _ in answers)
    differ = sum(
        status == 200 and without_times(html) != expected[number % len(distinct)]
        for number, (status, html) in enumerate(answers)
    )
    return {
        "requests": requests,
        "clients": clients,
        "per_second": round(requests / seconds, 1),
        "per_second_one_after_the_other": round(len(distinct) / alone, 1),
        "lost": lost,
        "other_text": differ,
        "memory_mb": [round(bytes_ / 1e6) for bytes_ in memory],
        "refused": len(refused),
        "refused_ms": [round(1000 * value, 1) for value in (min(refused), max(refused))] if refused else [],
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--distinct", type=int, default=1000, help="Different texts among them.")
    arguments = parser.parse_args(argv)
    figures = measure(arguments.requests, arguments.clients, 100, min(arguments.distinct, arguments.requests))
    print(json.dumps(figures))
    if figures["lost"] or figures["other_text"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
