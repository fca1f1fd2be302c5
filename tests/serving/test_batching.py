"""Jobs of several requests share batches: each gets the pipeline's own answer, and none affects another."""

import asyncio
import json
import threading

import pytest

from modeling_jmnat.pipeline import JMNatTranslationPipeline
from modeling_jmnat.serving.batching import Batcher, BatchTranslator, Job, QueueFull
from tests.helpers.teacher_samples import random_lines
from tests.helpers.translation_samples import tiny_student, tiny_tokenizer

TEXTS = ["\n ".join(random_lines(3, seed=seed)) for seed in range(12)]


@pytest.fixture(scope="module")
def pipe():
    tokenizer = tiny_tokenizer()
    return JMNatTranslationPipeline(tiny_student(tokenizer), tokenizer, device="cpu", num_length_candidates=3)


@pytest.fixture
def translator(pipe):
    return BatchTranslator(pipe, 2_000)


def started(translator, max_waiting=100, wait_seconds=0.0):
    """A batcher that waits for the event, and the numbers of jobs in its batches."""
    gate, batches = threading.Event(), []

    def observe(jobs):
        batches.append(len(jobs))
        gate.wait(30)

    return Batcher(translator, max_waiting, wait_seconds, observe), gate, batches


@pytest.mark.parametrize("max_batch_tokens", [1, 100, 2_000])
def test_answers_are_those_of_the_pipeline_whatever_shares_their_batch(pipe, max_batch_tokens):
    batcher, gate, batches = started(BatchTranslator(pipe, max_batch_tokens))
    jobs = [Job(TEXTS[index : index + 1 + index % 3], 1 + index % 4) for index in range(9)]
    futures = [batcher.submit(job) for job in jobs]
    gate.set()
    batcher.close()
    assert sum(batches) == len(jobs)
    assert (len(batches) == len(jobs)) == (max_batch_tokens == 1)
    assert not batcher.thread.is_alive()
    for job, future in zip(jobs, futures, strict=True):
        for text, found in zip(job.texts, future.result(0), strict=True):
            records = pipe(text, num_return_sequences=min(3, job.num_translations))
            assert found == list(dict.fromkeys(record["translation_text"] for record in records))


def test_a_batch_takes_waiting_requests_and_those_that_arrive_soon(translator):
    batcher, gate, batches = started(translator, wait_seconds=1.0)
    first = batcher.submit(Job([TEXTS[0]]))
    second = batcher.submit(Job([TEXTS[1]]))
    gate.set()
    batcher.close()
    assert first.done()
    assert second.done()
    assert batches == [2]


def test_a_failing_request_does_not_affect_others(pipe, monkeypatch):
    translator = BatchTranslator(pipe, 2_000)
    translate = translator.translate

    def breaking(jobs):
        if any(job.texts == ["broken"] for job in jobs):
            raise RuntimeError("it broke")
        return translate(jobs)

    monkeypatch.setattr(translator, "translate", breaking)
    batcher, gate, batches = started(translator, wait_seconds=0.2)
    texts = [[TEXTS[0]], ["\ud800"], ["broken"], [TEXTS[1], "", "7"]]
    futures = [batcher.submit(Job(each)) for each in texts]
    gate.set()
    batcher.close()
    assert futures[0].result(0) == [[pipe(TEXTS[0])[0]["translation_text"]]]
    assert isinstance(futures[1].exception(0), ValueError)
    assert str(futures[2].exception(0)) == "it broke"
    assert futures[3].result(0) == [[pipe(TEXTS[1])[0]["translation_text"]], [""], ["7"]]
    assert batches == [3]


def test_requests_beyond_the_queue_are_refused(translator):
    batcher, gate, batches = started(translator, max_waiting=2)
    futures = [batcher.submit(Job([TEXTS[0]]))]
    while not batches:
        pass
    futures += [batcher.submit(Job([TEXTS[0]])) for _ in range(2)]
    with pytest.raises(QueueFull):
        batcher.submit(Job([TEXTS[0]]))
    gate.set()
    batcher.close()
    assert len({future.result(0)[0][0] for future in futures}) == 1


def test_a_cancelled_request_is_not_translated(translator):
    batcher, gate, batches = started(translator)
    batcher.submit(Job([TEXTS[0]]))
    while not batches:
        pass
    given_up, wanted = batcher.submit(Job([TEXTS[1]])), batcher.submit(Job([TEXTS[2]]))
    assert given_up.cancel()
    gate.set()
    batcher.close()
    assert wanted.done()
    assert batches == [1, 1]


def test_a_body_that_does_not_arrive_is_not_waited_for(translator):
    """The rest of a body is as long in coming as the client likes; the other requests are answered."""
    pytest.importorskip("starlette")
    app = pytest.importorskip("modeling_jmnat.serving.app")
    server = app.TranslationServer(translator, ("de", "en"), app.Limits(1000, 10_000, 10, 0.0, body_seconds=0.1))
    scope = {"type": "http", "method": "POST", "path": "/translate", "query_string": b"", "root_path": ""}
    scope |= {"headers": [(b"content-type", b"application/json"), (b"content-length", b"70")]}
    body = json.dumps({"q": TEXTS[0], "source": "de", "target": "en"}).encode()

    async def client(messages) -> list[dict]:
        answers = []

        async def receive():
            return messages.pop(0) if messages else await asyncio.Event().wait()

        async def send(message):
            answers.append(message)

        await server.app()(dict(scope), receive, send)
        return answers

    async def both():
        begun = {"type": "http.request", "body": body[:9], "more_body": True}
        return await asyncio.gather(client([begun]), client([{"type": "http.request", "body": body}]))

    late, whole = asyncio.run(both())
    server.batcher.close()
    assert whole[0]["status"] == 200
    assert late[0]["status"] == 408
    assert json.loads(late[1]["body"]) == {"error": "the request has not arrived within 0.1 seconds"}


def test_what_nobody_waits_for_is_not_translated(translator):
    """Of two clients, the second one hangs up while the text of the first one is translated."""
    pytest.importorskip("starlette")
    app = pytest.importorskip("modeling_jmnat.serving.app")
    server = app.TranslationServer(translator, ("de", "en"), app.Limits(1000, 10_000, 10, 0.0))
    server.batcher, gate, batches = started(translator)
    scope = {"type": "http", "method": "POST", "path": "/translate", "query_string": b"", "root_path": ""}
    scope |= {"headers": [(b"content-type", b"application/json")]}
    statuses = []

    async def client(text, stays):
        body = json.dumps({"q": text, "source": "de", "target": "en"}).encode()
        messages = [{"type": "http.request", "body": body}] + [{"type": "http.disconnect"}] * (not stays)

        async def receive():
            return messages.pop(0) if messages else await asyncio.Event().wait()

        async def send(message):
            statuses.append(message.get("status"))

        await server.app()(dict(scope), receive, send)

    async def both():
        first = asyncio.ensure_future(client(TEXTS[0], stays=True))
        while not batches:
            await asyncio.sleep(0.01)
        await client(TEXTS[1], stays=False)
        gate.set()
        await first

    asyncio.run(both())
    server.batcher.close()
    assert batches == [1]
    assert [status for status in statuses if status] == [400, 200]
