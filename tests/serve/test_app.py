"""HTTP over an engine, without Ray: what clients of OpenAI's interface send and read."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx2
import openai
import pytest

from etcuda.serve.app import make_app
from etcuda.serve.engine import Engine, EngineOptions
from etcuda.serve.job import Event, Job, Started
from tests.llm.architectures import VOCAB
from tests.serve.bad_requests import BAD, SAID
from tests.serve.conftest import run
from tests.serve.fakes import FakeProgram, expected

Engines = Callable[..., Engine]


def http(app: Any) -> httpx2.AsyncClient:
    # A failure of the server is its answer here, as it is to a client.
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://server")


def client(app: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://server/v1", api_key="none", http_client=http(app), max_retries=0)


def lone(engine: Engine, ids: list[int], count: int) -> str:
    return engine._model.tokenizer.decode(expected(ids, count))


async def drain(stream: Any, pieces: list[str]) -> None:
    async for chunk in stream:
        pieces.append(chunk.choices[0].text)


def test_streams_are_the_whole_answer(engines: Engines) -> None:
    engine = engines(FakeProgram())
    ids = engine.prepare(Job(messages=tuple(SAID)))[0].ids
    given: dict[str, Any] = {"model": "m", "messages": SAID, "max_tokens": 9, "temperature": 0, "n": 2}

    async def work() -> None:
        api = client(make_app(engine, "m"))
        whole = await api.chat.completions.create(**given, extra_body={"ignore_eos": True})
        assert [choice.message.content for choice in whole.choices] == [lone(engine, list(ids), 9)] * 2
        assert [choice.finish_reason for choice in whole.choices] == ["length"] * 2
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(ids), 18)
        stream = await api.chat.completions.create(
            **given, stream=True, stream_options={"include_usage": True}, extra_body={"ignore_eos": True}
        )
        chunks = [chunk async for chunk in stream]
        texts, reasons = ["", ""], ["", ""]
        for chunk in chunks[:-1]:
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] += choice.finish_reason or ""
            assert chunk.usage is None
        assert texts == [choice.message.content for choice in whole.choices]
        assert reasons == ["length"] * 2
        assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant"] * 2
        assert len(chunks) > 8, "pieces come one by one"
        usage = chunks[-1].usage
        assert (chunks[-1].choices, usage.completion_tokens, usage.prompt_tokens) == ([], 18, len(ids))
        # The second request found the prompt of the first in a session.
        assert usage.prompt_tokens_details.cached_tokens == len(ids) - 1
        assert len({chunk.id for chunk in chunks}) == 1

    run(work())


def test_completions(engines: Engines) -> None:
    engine = engines(FakeProgram())

    async def work() -> None:
        api = client(make_app(engine, "m"))
        made = await api.completions.create(
            model="m", prompt=[[5, 6], [7, 8, 9]], n=2, temperature=0, extra_body={"ignore_eos": True}
        )
        # 16 tokens if nothing is said.
        assert [choice.text for choice in made.choices] == [
            lone(engine, ids, 16) for ids in ([5, 6], [5, 6], [7, 8, 9], [7, 8, 9])
        ]
        assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.object) == (5, 64, "text_completion")
        whole = lone(engine, [5, 6], 16)
        stop = whole[5:8]
        stream = await api.completions.create(
            model="m", prompt=[5, 6], temperature=0, stop=[stop, "never"], stream=True, extra_body={"ignore_eos": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole[: whole.index(stop)]
        assert chunks[-1].choices[0].finish_reason == "stop"
        text = await api.completions.create(model="m", prompt="Shall I", max_tokens=2, seed=4, temperature=1.5)
        again = await api.completions.create(model="m", prompt="Shall I", max_tokens=2, seed=4, temperature=1.5)
        assert text.choices[0].text == again.choices[0].text
        assert text.usage.prompt_tokens == len(engine._model.encode("Shall I"))

    run(work())


def test_how_likely_the_tokens_were(engines: Engines) -> None:
    engine = engines(FakeProgram())
    # Logits of the program: 9 for one token, 0 for the others.
    likely, others = -math.log1p((VOCAB - 1) * math.exp(-9)), -9 - math.log1p((VOCAB - 1) * math.exp(-9))

    async def work() -> None:
        api = client(make_app(engine, "m"))
        given: dict[str, Any] = {"model": "m", "messages": SAID, "max_tokens": 12, "logprobs": True, "temperature": 0}
        whole = await api.chat.completions.create(**given, top_logprobs=2, extra_body={"ignore_eos": True})
        told = whole.choices[0].logprobs.content
        assert len(told) == 12
        assert "".join(each.token for each in told if "\ufffd" not in each.token).strip()
        for each in told:
            assert each.logprob == pytest.approx(likely)
            assert [one.logprob for one in each.top_logprobs] == pytest.approx([likely, others])
            assert each.top_logprobs[0].token == each.token
            assert each.bytes == (None if "\ufffd" in each.token else list(each.token.encode()))
        stream = await api.chat.completions.create(**given, stream=True, extra_body={"ignore_eos": True})
        parts = [chunk.choices[0].logprobs async for chunk in stream]
        streamed = [each for part in parts if part is not None for each in part.content]
        assert [(each.token, each.top_logprobs) for each in streamed] == [(each.token, []) for each in told]
        none = await api.chat.completions.create(**{**given, "logprobs": False})
        assert none.choices[0].logprobs is None
        old = (
            await api.completions.create(
                model="m", prompt=[5, 6], temperature=0, max_tokens=4, logprobs=1, extra_body={"ignore_eos": True}
            )
        ).choices[0]
        ids = expected([5, 6], 4)
        texts = [engine._model.tokenizer.text_of(token) for token in ids]
        assert old.logprobs.tokens == texts
        assert old.logprobs.token_logprobs == pytest.approx([likely] * 4)
        assert [list(each) for each in old.logprobs.top_logprobs] == [[text] for text in texts]
        assert old.logprobs.text_offset == [len("".join(texts[:place])) for place in range(4)]

    run(work())


def test_bad_requests(engines: Engines) -> None:
    program = FakeProgram()
    engine = engines(program)

    async def work() -> None:
        api = http(make_app(engine, "m"))
        for bad in BAD:
            for stream in (False, True):
                streams = stream and isinstance(bad.sent, dict)
                body = {"stream": True, **bad.sent} if streams else bad.sent
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                got = await api.post(f"/v1/{bad.path}", content=data)
                error = got.json()["error"]
                assert bad.message in error["message"]
                assert (got.status_code, error["param"], error["code"]) == (bad.status, bad.param, bad.code)
                assert error["type"] == "invalid_request_error"
        for method, path, status in (("GET", "/v2", 404), ("GET", "/v1/completions", 405), ("POST", "/v1/models", 405)):
            got = await api.request(method, path)
            assert got.status_code == status
            assert f"got {method} {path}" in got.json()["error"]["message"]

    run(work())
    assert program.calls == [], "nothing was computed for them"


def test_models_health_and_metrics(engines: Engines) -> None:
    engine = engines(FakeProgram())

    async def work() -> None:
        app = make_app(engine, "org/m")
        api, plain = client(app), http(app)
        assert [each.id for each in (await api.models.list()).data] == ["org/m"]
        assert (await api.models.retrieve("org/m")).owned_by == "etcuda"
        with pytest.raises(openai.NotFoundError, match=r"model: expected 'org/m', which is served, got 'z'"):
            await api.models.retrieve("z")
        assert (await plain.get("/health")).json() == {"status": "ok", "replicas": 1}
        await api.completions.create(model="org/m", prompt=[5, 6, 7], max_tokens=4, extra_body={"ignore_eos": True})
        await plain.post("/v1/completions", json={})
        text = (await plain.get("/metrics")).text
        for line in (
            'etcuda_requests_total{status="200"} 1',
            'etcuda_requests_total{status="400"} 1',
            "etcuda_requests_running 0",
            'etcuda_tokens_total{kind="prompt"} 3',
            'etcuda_tokens_total{kind="generated"} 4',
            "etcuda_time_to_first_token_seconds_count 1",
            "etcuda_decode_tokens_per_second_count 1",
            'etcuda_replica_sessions{replica=""} 1',
        ):
            assert line in text.splitlines()
        engine.close()
        assert (await plain.get("/health")).status_code == 503

    run(work())


def test_a_full_queue_and_a_failure(engines: Engines) -> None:
    class Crashing:
        async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
            if job.count == 1:
                raise OSError("no such device")
            yield Event  # type: ignore[misc]

        async def ready(self) -> int:
            return 0

    engine = engines(FakeProgram(fail_at=4), EngineOptions(active=1, queue=1, sessions=1))

    async def work() -> None:
        api = client(make_app(engine, "m"))
        given: dict[str, Any] = {
            "model": "m",
            "prompt": [5, 6],
            "max_tokens": 8,
            "temperature": 0,
            "extra_body": {"ignore_eos": True},
        }
        with pytest.raises(openai.InternalServerError, match="the program failed: position 4"):
            await api.completions.create(**given)
        stream = await api.completions.create(**given, stream=True)
        pieces: list[str] = []
        with pytest.raises(openai.APIError, match="the program failed: position 4"):
            await drain(stream, pieces)
        assert "".join(pieces) == lone(engine, [5, 6], 2), "what was made before is not lost"
        with pytest.raises(openai.InternalServerError, match="the replica failed: no such device"):
            await client(make_app(Crashing(), "m")).completions.create(**given)

    run(work())


async def call(app: Any, body: dict[str, Any], until: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Calls the application as a server does whose client leaves as soon as ``until`` says so."""
    sent: list[dict[str, Any]] = []
    gone, given = asyncio.Event(), [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if given:
            return given.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if until(sent):
            gone.set()

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    working = asyncio.create_task(app(scope, receive, send))
    while not working.done():
        await asyncio.sleep(0.005)
        if until(sent):
            gone.set()
    await working
    return sent


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(engines: Engines, stream: bool) -> None:
    step = threading.Semaphore(20)
    program = FakeProgram(gate=lambda: step.acquire(timeout=30))
    engine = engines(program)
    body = {"model": "m", "prompt": [5], "max_tokens": 250, "stream": stream, "ignore_eos": True}

    async def work() -> None:
        app = make_app(engine, "m")
        sent = await call(app, body, lambda sent: len(program.calls) > 5)
        assert not any(message.get("more_body") is False for message in sent), "the answer did not end"
        step.release(1000)
        # Another request is answered, and the first one is computed no further than the step that it was in.
        await client(app).completions.create(model="m", prompt=[9], max_tokens=1)
        assert len(program.calls) <= 22
        assert 'etcuda_requests_total{status="499"} 1' in (await http(app).get("/metrics")).text

    run(work())


def test_a_server_that_cancels_twice() -> None:
    closed = asyncio.Event()

    class Slow:
        async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
            try:
                await asyncio.sleep(60)
                yield Started(1)
            finally:
                await asyncio.sleep(0.05)
                closed.set()

        async def ready(self) -> int:
            return 1

    async def work() -> None:
        app = make_app(Slow(), "m")
        given = [{"type": "http.request", "body": b'{"model": "m", "prompt": [5]}', "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not given:
                await asyncio.sleep(60)
            return given.pop()

        async def send(message: Any) -> None:
            pytest.fail(f"nothing is sent to a client that left, but {message}")

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
        asking = asyncio.create_task(app(scope, receive, send))
        for _ in range(2):
            await asyncio.sleep(0.02)
            asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(closed.wait(), 10)
        said = (await http(app).get("/metrics")).text
        assert 'etcuda_requests_total{status="499"} 1' in said
        assert "etcuda_requests_running 0" in said

    run(work())


def test_a_slow_reader_holds_nobody_up(engines: Engines) -> None:
    program = FakeProgram()
    engine = engines(program)
    body = {"model": "m", "prompt": [5], "max_tokens": 60, "stream": True, "ignore_eos": True, "temperature": 0}

    async def work() -> None:
        app = make_app(engine, "m")
        free, got = asyncio.Event(), bytearray()
        given = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def send(message: Any) -> None:
            got.extend(message.get("body", b""))
            await free.wait()

        async def receive() -> dict[str, Any]:
            if given:
                return given.pop()
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
        slow = asyncio.create_task(app(scope, receive, send))
        quick = await client(app).completions.create(
            model="m", prompt=[6], max_tokens=60, temperature=0, extra_body={"ignore_eos": True}
        )
        assert quick.choices[0].text == lone(engine, [6], 60)
        free.set()
        await slow
        chunks = [json.loads(line[6:]) for line in got.decode().splitlines() if line.startswith("data: {")]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == lone(engine, [5], 60)
        assert got.endswith(b"data: [DONE]\n\n")

    run(work())
