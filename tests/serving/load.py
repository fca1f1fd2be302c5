"""Load on a server of this machine: throughput, latency, and whether every answer is the pipeline's own.

    python -m tests.serving.load --model DIR --backend onnx_int8 --output FILE.json

The server is a process of its own at 127.0.0.1; the number of requests is fixed beforehand.
"""

import argparse
import gzip
import http.client
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.pipeline import JMNatTranslationPipeline

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "run_scripts" / "demo_data" / "libreoffice-help" / "test.de.gz"


@contextmanager
def running_server(*options: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A server in a process of its own at a free port, which is told to stop at the end; the port."""
    command = [sys.executable, "-m", "modeling_jmnat.commands", "serve", "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                yield process, int(found[1])
                break
        else:
            raise RuntimeError("".join(lines))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def post(connection: http.client.HTTPConnection, fields: dict) -> tuple[int, dict]:
    """Status and answer of a request to /translate."""
    body = json.dumps(fields, ensure_ascii=False).encode()
    connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def measure_clients(port: int, texts: list[str], num_clients: int) -> tuple[list[str | None], list[float], float]:
    """Each text as a request, by clients that send the next one when they have an answer.

    Returns:
        For each text its answer, None where there was none; the seconds that each request took, and all of them.
    """
    answers: list[str | None] = [None] * len(texts)
    seconds = [0.0] * len(texts)
    numbers = iter(range(len(texts)))
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return connection.close()
            start = time.perf_counter()
            status, answer = post(connection, {"q": texts[number], "source": "de", "target": "en"})
            seconds[number] = time.perf_counter() - start
            answers[number] = answer["translatedText"] if status == 200 else None

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, seconds, time.perf_counter() - start


def figures(name: str, seconds: list[float], total: float, cpu: float, lost: int = 0, other: int = 0) -> dict:
    """A row: `cpu` are the seconds that the translating process had a core, which neighbours hardly change."""
    ordered = sorted(seconds)
    return {
        "name": name,
        "requests": len(seconds),
        "per_second": round(len(seconds) / total, 2),
        "p50_ms": round(1000 * statistics.median(ordered), 1),
        "p99_ms": round(1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 1),
        "cpu_ms": round(1000 * cpu / len(seconds), 1),
        "lost": lost,
        "other_text": other,
    }


def measure_loop(name: str, texts: list[str], translate: Callable[[str], str]) -> tuple[dict, list[str]]:
    seconds, translations = [], []
    cpu = time.process_time()
    for text in texts:
        start = time.perf_counter()
        translations.append(translate(text))
        seconds.append(time.perf_counter() - start)
    return figures(name, seconds, sum(seconds), time.process_time() - cpu), translations


def measure(model: str, backend: str, texts: list[str], clients: list[int], device: str = "auto") -> list[dict]:
    """A row for `generate` and the pipeline in a loop, and for each number of clients at the server."""
    translator, tokenizer = load_translator(model, device, backend=backend)
    pipe = JMNatTranslationPipeline(translator, tokenizer)

    def generate(text: str) -> str:
        inputs = tokenizer([text], return_tensors="pt").to(translator.device)
        return tokenizer.decode(translator.generate(**inputs)[0], skip_special_tokens=True)

    for text in texts[:3]:  # nobody waits for these
        pipe(text), generate(text)
    rows = [measure_loop("generate in a loop", texts, generate)[0]]
    row, expected = measure_loop("pipeline in a loop", texts, lambda text: pipe(text)[0]["translation_text"])
    rows.append(row)
    with running_server("--model", model, "--backend", backend, "--device", device) as (process, port):
        measure_clients(port, texts[:3], 1)
        server = psutil.Process(process.pid)
        for number in clients:
            before = sum(server.cpu_times()[:2])
            answers, seconds, total = measure_clients(port, texts, number)
            cpu = sum(server.cpu_times()[:2]) - before
            lost = sum(answer is None for answer in answers)
            other = sum(answer not in (None, wanted) for answer, wanted in zip(answers, expected, strict=True))
            rows.append(figures(f"server, {number} client{'s' * (number > 1)}", seconds, total, cpu, lost, other))
    return rows


def table(report: dict) -> str:
    """The rows of a report in Markdown."""
    lines = ["| | requests/s | p50 ms | p99 ms | CPU ms/request |", "|---|---|---|---|---|"]
    lines += ["| {name} | {per_second} | {p50_ms} | {p99_ms} | {cpu_ms} |".format(**row) for row in report["rows"]]
    return "\n".join(lines)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "hub_card" / "de-en"))
    parser.add_argument("--backend", default="onnx_int8")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--output")
    arguments = parser.parse_args(argv)
    with gzip.open(TEXT, "rt", encoding="utf-8") as file:
        texts = [line.rstrip("\n") for line, _ in zip(file, range(arguments.requests), strict=False)]
    rows = measure(arguments.model, arguments.backend, texts, arguments.clients, arguments.device)
    options = f"--model {Path(arguments.model).name} --backend {arguments.backend} --requests {len(texts)}"
    report = {
        "command": f"python -m tests.serving.load {options}",
        "backend": arguments.backend,
        "machine": f"{platform.machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads",
        "rows": rows,
    }
    text = json.dumps(report, indent=2)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
