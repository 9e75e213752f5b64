"""Turns, sessions and ends, over a program that says what it was asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from etcuda.errors import OptionError
from etcuda.llm.sampling import SamplingOptions
from etcuda.serve.engine import Engine, EngineOptions
from etcuda.serve.job import Ended, Event, Failed, Job, Piece, Started
from tests.serve.conftest import run
from tests.serve.fakes import FakeProgram, expected

Engines = Callable[..., Engine]


def greedy(*prompts: list[int], count: int = 1, tokens: int = 8) -> Job:
    return Job(tuple(map(tuple, prompts)), count=count, max_new_tokens=tokens, ignore_eos=True)


async def events(engine: Engine, job: Job) -> list[Event]:
    return [event async for event in engine.generate(job)]


def text(made: list[Event], choice: int = 0) -> str:
    return "".join(event.text for event in made if isinstance(event, Piece) and event.choice == choice)


def decoded(engine: Engine, ids: list[int]) -> str:
    return engine._model.tokenizer.decode(ids)


def end(made: list[Event], choice: int = 0) -> Ended:
    (ended,) = (event for event in made if isinstance(event, Ended) and event.choice == choice)
    return ended


def test_an_answer_is_that_of_a_lone_run(engines: Engines) -> None:
    engine = engines(FakeProgram())
    ids = list(range(10, 60))
    made = run(events(engine, greedy(ids)))
    assert made[0] == Started(50)
    assert text(made) == decoded(engine, expected(ids, 8))
    assert (end(made).reason, end(made).figures.generated_tokens, end(made).figures.reused_tokens) == ("length", 8, 0)
    assert 0 <= end(made).figures.queue_seconds <= end(made).figures.first_token_seconds


def test_a_step_of_each_in_turn(engines: Engines) -> None:
    both = threading.Event()
    program = FakeProgram(gate=lambda: both.wait(30))
    engine = engines(program)
    # A long prompt beside a short one, whose tokens come between its chunks.
    long, short = list(range(100, 196)), [11, 12]

    async def rest(stream: AsyncIterator[Event]) -> list[Event]:
        return [event async for event in stream]

    async def work() -> list[list[Event]]:
        streams = [engine.generate(greedy(ids, tokens=6)) for ids in (long, short)]
        for stream in streams:
            assert isinstance(await anext(stream), Started)
        both.set()
        return await asyncio.gather(*map(rest, streams))

    made = run(work())
    for ids, answer in zip((long, short), made, strict=True):
        assert text(answer) == decoded(engine, expected(ids, 6))
    sessions = [session for session, _, _ in program.calls]
    first, second = sessions[0], next(each for each in sessions if each != sessions[0])
    start = sessions.index(second)
    both_run = sessions[start : start + 11]
    assert both_run == [second, first] * 5 + [second], "neither waits for more than one step of the other"
    assert len(program.threads) == 1


def test_the_chunks_are_those_of_a_lone_run(engines: Engines) -> None:
    for length in (1, 15, 16, 17, 18, 32, 33, 34, 50):
        program = FakeProgram()
        engine = engines(program)
        run(events(engine, greedy(list(range(20, 20 + length)), tokens=1)))
        chunks = [(start, min(16, length - start)) for start in range(0, length, 16)]
        assert [(position, count) for _, position, count in program.calls] == chunks


def test_several_answers_compute_their_prompt_once(engines: Engines) -> None:
    program = FakeProgram()
    engine = engines(program)
    ids = list(range(30, 80))
    made = run(events(engine, greedy(ids, count=3, tokens=4)))
    for choice in range(3):
        assert text(made, choice) == decoded(engine, expected(ids, 4))
    whole = [position for _, position, count in program.calls if count == 16]
    # The last, shorter chunk each computes by itself.
    assert whole == [0, 16, 32]
    assert len([1 for _, position, count in program.calls if (position, count) == (48, 2)]) == 3
    drawn = Job((tuple(ids),), count=3, options=SamplingOptions(temperature=50.0, seed=5), max_new_tokens=6)
    made = run(events(engine, drawn))
    answers = [text(made, choice) for choice in range(3)]
    assert len(set(answers)) == 3
    second = Job((tuple(ids),), options=SamplingOptions(temperature=50.0, seed=6), max_new_tokens=6)
    assert text(run(events(engine, second))) == answers[1], "answer i draws with the seed of the request + i"


def test_a_conversation_that_goes_on_keeps_its_session(engines: Engines) -> None:
    program = FakeProgram()
    engine = engines(program)
    ids = list(range(30, 70))
    run(events(engine, greedy(ids, tokens=5)))
    longer = [*ids, *expected(ids, 5), 99, 98]
    program.calls.clear()
    made = run(events(engine, greedy(longer, tokens=3)))
    assert end(made).figures.reused_tokens == 44
    assert program.calls[0][1:] == (44, 3)
    assert end(made).figures.sessions == 1
    assert text(made) == decoded(engine, expected(longer, 3))
    # Another conversation with the same beginning gets a copy; the first one goes on where it was.
    made = run(events(engine, greedy([*ids[:18], 5, 6], tokens=2)))
    assert (end(made).figures.reused_tokens, end(made).figures.sessions) == (18, 2)
    made = run(events(engine, greedy([*longer, *expected(longer, 3), 4], tokens=2)))
    assert end(made).figures.reused_tokens == 49


def test_sessions_are_bounded_and_the_oldest_goes(engines: Engines) -> None:
    engine = engines(FakeProgram(), EngineOptions(active=1, sessions=2))
    prompts = [[first, *range(100, 120)] for first in (10, 11, 12)]
    for ids in prompts:
        made = run(events(engine, greedy(ids, tokens=2)))
    assert end(made).figures.sessions == 2
    assert end(run(events(engine, greedy(prompts[1], tokens=2)))).figures.reused_tokens == 20
    assert end(run(events(engine, greedy(prompts[0], tokens=2)))).figures.reused_tokens == 0


def test_a_closed_iterator_stops_the_program(engines: Engines) -> None:
    step = threading.Semaphore(20)
    program = FakeProgram(gate=lambda: step.acquire(timeout=30))
    engine = engines(program)

    async def leave() -> None:
        stream = engine.generate(greedy([9, 8], tokens=200))
        async for event in stream:
            if isinstance(event, Piece):
                break
        await stream.aclose()

    run(leave())
    step.release(1000)
    # A second request is answered, and the first one is computed no further than the step that it was in.
    run(events(engine, greedy([7], tokens=1)))
    assert len(program.calls) <= 22
    assert len(engine._active) == 0


def test_a_full_queue_refuses(engines: Engines) -> None:
    called, held = threading.Event(), threading.Event()

    def gate() -> None:
        called.set()
        held.wait(30)

    engine = engines(FakeProgram(gate=gate), EngineOptions(active=1, queue=2, sessions=1))

    async def work() -> tuple[list[Event], list[list[Event]]]:
        tasks = [asyncio.create_task(events(engine, greedy([20], tokens=2)))]
        await asyncio.to_thread(called.wait, 30)
        for number in (1, 2):
            tasks.append(asyncio.create_task(events(engine, greedy([20 + number], tokens=2))))
            while len(engine._waiting) < number:
                await asyncio.sleep(0.005)
        refused = await events(engine, greedy([30]))
        held.set()
        return refused, await asyncio.gather(*tasks)

    refused, made = run(work())
    assert isinstance(refused[0], Failed)
    assert (refused[0].error.status, refused[0].error.code) == (429, "queue_full")
    assert "expected fewer than 2 requests that wait, got as many" in str(refused[0].error)
    assert [end(each).reason for each in made] == ["length"] * 3


def test_a_failure_is_of_its_request_alone(engines: Engines) -> None:
    engine = engines(FakeProgram(fail_at=60))

    async def work() -> list[list[Event]]:
        return await asyncio.gather(
            events(engine, greedy(list(range(10, 65)), tokens=20)), events(engine, greedy([5, 4], tokens=20))
        )

    bad, good = run(work())
    assert isinstance(bad[-1], Failed)
    assert (bad[-1].error.status, str(bad[-1].error)) == (500, "the program failed: position 60")
    assert text(good) == decoded(engine, expected([5, 4], 20))
    assert len(engine._pool) == 1, "a session that failed is not kept"


def test_closing_lets_answers_end_or_says_so(engines: Engines) -> None:
    step = threading.Semaphore(3)
    engine = engines(FakeProgram(gate=lambda: step.acquire(timeout=30)))

    async def work(seconds: float, tokens: int) -> tuple[list[Event], list[Event]]:
        task = asyncio.create_task(events(engine, greedy([5], tokens=tokens)))
        while not engine._pool:
            await asyncio.sleep(0.005)
        closing = asyncio.create_task(asyncio.to_thread(engine.close, seconds))
        while engine.is_alive:
            await asyncio.sleep(0.005)
        refused = await events(engine, greedy([6]))
        step.release(1000)
        await closing
        return refused, await task

    refused, made = run(work(30.0, 8))
    assert isinstance(refused[0], Failed)
    assert (refused[0].error.status, refused[0].error.code) == (503, "ending")
    assert end(made).reason == "length"
    step = threading.Semaphore(3)
    engine = engines(FakeProgram(gate=lambda: step.acquire(timeout=30)))
    _, made = run(work(0.0, 200))
    assert isinstance(made[-1], Failed)
    assert "ended before the answer did" in str(made[-1].error)


def test_bad_options() -> None:
    with pytest.raises(OptionError, match=r"active: expected 1 or more, got 0"):
        EngineOptions(active=0)
    with pytest.raises(OptionError, match=r"queue: expected 1 or more, got 0"):
        EngineOptions(queue=0)
    with pytest.raises(OptionError, match=r"sessions: expected 4 or more, got 3"):
        EngineOptions(active=4, sessions=3)
