"""HTTP: an ASGI application over whatever answers jobs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from etcuda.serve.errors import ApiError, failed, gone
from etcuda.serve.job import Ended, Event, Failed, Job
from etcuda.serve.metrics import Metrics
from etcuda.serve.request import Request as Asked
from etcuda.serve.request import parse
from etcuda.serve.response import Writer

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_GONE = 499  # As nginx notes a client that did not wait.
_MOST_BYTES = 32 * 2**20


class Backend(Protocol):
    """What answers jobs: an ``Engine``, or replicas of it."""

    def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """The events of a job. Closing the iterator stops the job."""

    async def ready(self) -> int:
        """How many replicas answer."""


def make_app(backend: Backend, model: str) -> Starlette:
    """The application.

    Args:
        backend: what answers.
        model: the name that clients ask for.
    """
    metrics, began = Metrics(), int(time.time())
    card = {"id": model, "object": "model", "created": began, "owned_by": "etcuda"}

    async def chat(request: Request) -> Any:
        return await _answer(backend, metrics, request, model, True)

    async def complete(request: Request) -> Any:
        return await _answer(backend, metrics, request, model, False)

    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name == model:
            return JSONResponse(card)
        message = f"model: expected {model!r}, which is served, got {name!r}. Ask for it."
        return _refused(ApiError(404, message, "model", "model_not_found"))

    async def health(_request: Request) -> Response:
        replicas = await backend.ready()
        if replicas:
            return JSONResponse({"status": "ok", "replicas": replicas})
        return _refused(gone("replicas: expected one that answers, got none. Ask again.", "no_replica"))

    async def figures(_request: Request) -> Response:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/health", health),
            Route("/metrics", figures),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _crashed},
    )


async def _answer(backend: Backend, metrics: Metrics, request: Request, model: str, is_chat: bool) -> Any:
    try:
        asked = parse(await _json(request), model, is_chat)
    except ApiError as error:
        metrics.began()
        metrics.answered(error.status)
        return _refused(error)
    except ClientDisconnect:
        metrics.began()
        metrics.answered(_GONE)
        return Response(status_code=_GONE)
    return _Reply(backend, metrics, asked, model)


async def _json(request: Request) -> Any:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > _MOST_BYTES:
            raise ApiError(413, f"body: expected at most {_MOST_BYTES} bytes, got more. Send less.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"body: expected JSON, got {len(data)} bytes that are none: {error}.") from error


class _Reply:
    """Answers one request; stops when the client is gone."""

    def __init__(self, backend: Backend, metrics: Metrics, asked: Asked, model: str) -> None:
        self._backend, self._metrics, self._asked = backend, metrics, asked
        self._writer = Writer(asked, model)
        self._status = _GONE

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        self._metrics.began()
        answering = asyncio.ensure_future(self._run(scope, receive, send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Cancelled too if the server cancels this: the events' iterator is closed before this returns.
            for task in (answering, leaving):
                task.cancel()
            try:
                # Ray cancels a second time now and then, which ends this wait and not the tasks.
                await asyncio.wait({answering, leaving})
            finally:
                self._metrics.answered(self._status)
        if not answering.cancelled():
            answering.result()

    async def _run(self, scope: Any, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(_Events(self._backend, self._asked.job, self._metrics)) as events:
            if self._asked.stream:
                await self._stream(events, scope, receive, send)
            else:
                await self._whole(events, scope, receive, send)

    async def _whole(self, events: _Events, scope: Any, receive: Receive, send: Send) -> None:
        try:
            async for event in events:
                self._writer.take(event)
        except ApiError as error:
            await _refused(error)(scope, receive, send)
            self._status = error.status
            return
        await JSONResponse(self._writer.whole())(scope, receive, send)
        self._status = 200

    async def _stream(self, events: _Events, scope: Any, receive: Receive, send: Send) -> None:
        # What is wrong with a request is known at its first event: until then the status can still be another.
        first = await anext(events)
        if isinstance(first, Failed):
            await _refused(first.error)(scope, receive, send)
            self._status = first.error.status
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        status = 200
        event: Event = first
        while True:
            for data in self._writer.stream(event):
                await send({"type": "http.response.body", "body": data, "more_body": True})
            if isinstance(event, Failed):
                status = event.error.status
            following = await anext(events, None)
            if following is None:
                break
            event = following
        data = b"".join(self._writer.end())
        await send({"type": "http.response.body", "body": data, "more_body": False})
        self._status = status


class _Events:
    """A job's events; whatever else goes wrong is one of them."""

    def __init__(self, backend: Backend, job: Job, metrics: Metrics) -> None:
        self._events, self._metrics, self._over = backend.generate(job), metrics, False

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            self._over = True
            raise
        except ApiError as error:
            event = Failed(error)
        except Exception as error:  # The client is told; the server goes on.
            event = Failed(failed(f"the replica failed: {error}"))
        self._over = isinstance(event, Failed)
        if isinstance(event, Ended):
            self._metrics.ended(event)
        return event

    async def aclose(self) -> None:
        """Stops the job."""
        await self._events.aclose()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refused(error: ApiError) -> Response:
    headers = {"retry-after": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _http_error(request: Request, error: Any) -> Response:
    expected = "POST /v1/chat/completions, POST /v1/completions, GET /v1/models, GET /health or GET /metrics"
    got = f"{request.method} {request.url.path}"
    return _refused(ApiError(error.status_code, f"request: expected {expected}, got {got}. Correct the address."))


async def _crashed(_request: Request, error: Exception) -> Response:
    return _refused(failed(f"the server failed: {error}"))
