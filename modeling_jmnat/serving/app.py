"""The routes of the server: those of LibreTranslate, and `/metrics`."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..documents.html import read_html
from ..documents.placeholders import GuardedText
from .batching import Batcher, BatchTranslator, Job, QueueFull
from .libretranslate import (
    TranslationRequest,
    answer,
    bad_request,
    check_fields,
    describe_languages,
    frontend_settings,
    read_fields,
)
from .metrics import Metrics

RETRY_SECONDS = 1


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Args:
        max_characters: characters in all texts of a request together; an empty text counts as one.
        max_body_bytes: bytes in the body of a request.
        max_waiting: requests that may wait at the same time.
        wait_seconds: how long a batch waits for more requests.
        body_seconds: how long the server waits for the whole body of a request.
    """

    max_characters: int
    max_body_bytes: int
    max_waiting: int
    wait_seconds: float
    body_seconds: float = 30.0


class TranslationServer:
    """Answers requests with the translations of a `Batcher`.

    Args:
        languages: source and target language of the model.
    """

    def __init__(self, translator: BatchTranslator, languages: Sequence[str], limits: Limits):
        self.languages, self.limits = languages, limits
        self.metrics = Metrics(lambda: self.batcher.waiting.qsize())
        self.batcher = Batcher(translator, limits.max_waiting, limits.wait_seconds, self.metrics.observe_batch)

    def app(self) -> Starlette:
        """The ASGI application; its shutdown waits for what the batcher has accepted."""

        @contextlib.asynccontextmanager
        async def lifespan(app):
            yield
            await asyncio.to_thread(self.batcher.close)

        settings = frontend_settings(self.languages, self.limits.max_characters)
        return Starlette(
            routes=[
                Route("/translate", self.translate, methods=["POST"]),
                Route("/languages", _constant(describe_languages(self.languages))),
                Route("/frontend/settings", _constant(settings)),
                Route("/health", self.health),
                Route("/metrics", self.show_metrics),
            ],
            exception_handlers={HTTPException: _show_refusal, Exception: _show_defect},
            lifespan=lifespan,
        )

    async def translate(self, request: Request) -> Response:
        start = time.perf_counter()
        status = 500
        try:
            body_seconds = self.limits.body_seconds
            fields = await asyncio.wait_for(read_fields(request, self.limits.max_body_bytes), body_seconds)
            checked = check_fields(fields, self.languages, self.limits.max_characters)
            translations = await _while_connected(request, self._translations(checked))
            status = 200
            return JSONResponse(answer(checked, translations, self.languages[0]))
        except HTTPException as error:
            status = error.status_code
            raise
        except asyncio.TimeoutError:
            status = 408
            sentence = f"the request has not arrived within {body_seconds:g} seconds"
            raise HTTPException(status, sentence, {"Connection": "close"}) from None
        except ClientDisconnect:
            status = 400
            raise bad_request("it is incomplete") from None  # nobody reads the answer
        finally:
            self.metrics.requests.labels(status).inc()
            self.metrics.seconds.observe(time.perf_counter() - start)

    async def _translations(self, request: TranslationRequest) -> list[list[str]]:
        """For each text, its translations, best first; only one for HTML, whose placeholders are guarded."""
        if not request.is_html:
            return await self._wait_for(Job(request.texts, 1 + request.num_alternatives))
        documents = [read_html(text) for text in request.texts]
        guarded = [GuardedText(text) for document in documents for text in document.texts]
        found = await self._wait_for(Job([each.read for each in guarded]))
        rest = iter([each.write(of_text[0]) for each, of_text in zip(guarded, found, strict=True)])
        return [[document.write(next(rest) for _ in document.texts)] for document in documents]

    async def _wait_for(self, job: Job) -> list[list[str]]:
        try:
            future = self.batcher.submit(job)
        except QueueFull:
            sentence = f"{self.limits.max_waiting} requests are waiting already: try again in {RETRY_SECONDS} s"
            raise HTTPException(503, sentence, {"Retry-After": str(RETRY_SECONDS)}) from None
        return await asyncio.wrap_future(future)

    async def health(self, request: Request) -> Response:
        alive = self.batcher.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.page(), headers={"content-type": Metrics.content_type})


async def _while_connected(request: Request, work: Coroutine) -> Any:
    """The result of `work`, which is cancelled if the client hangs up; the body of the request must have been read."""
    tasks = work_done, hung_up = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not work_done.done():
            raise ClientDisconnect
        return work_done.result()
    finally:
        for task in tasks:
            task.cancel()


def _constant(value: Any) -> Callable:
    async def respond(request: Request) -> Response:
        return JSONResponse(value)

    return respond


async def _show_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _show_defect(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "Cannot translate text: the server's log says why"}, 500)
