"""What HTTP makes of what Ray says of replicas."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from etcuda.serve.job import Event, Failed, Job, Piece
from tests.serve.conftest import run

pytest.importorskip("ray.serve", reason="ray[serve] is not installed")
JOB = Job(("x",))


class Handle:
    """Stands in for Ray's, whose answer is two pieces and then, if there is one, an error."""

    def __init__(self, error: BaseException | None = None, at_once: bool = False) -> None:
        self.error, self.at_once, self.cancelled = error, at_once, False

    def options(self, *, stream: bool) -> Any:
        assert stream
        return self

    @property
    def generate(self) -> Any:
        return self

    def remote(self, job: Job) -> Any:
        assert job is JOB
        if self.error is not None and self.at_once:
            raise self.error
        return self

    async def __aiter__(self) -> AsyncIterator[Event]:
        yield Piece(0, "a")
        yield Piece(0, "b")
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        self.cancelled = True


async def events(handle: Handle, most: int = 9) -> list[Event]:
    from etcuda.serve.deployment import Replicas

    stream, made = Replicas(handle, 5).generate(JOB), []
    async for event in stream:
        made.append(event)
        if len(made) == most:
            break
    await stream.aclose()
    return made


def test_events_pass_and_leaving_cancels() -> None:
    whole, left = Handle(), Handle()
    assert run(events(whole)) == [Piece(0, "a"), Piece(0, "b")]
    assert not whole.cancelled
    assert run(events(left, 1)) == [Piece(0, "a")]
    assert left.cancelled


def test_errors_of_ray_are_answers() -> None:
    from ray.exceptions import ActorDiedError, TaskCancelledError
    from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError

    cases: list[tuple[Handle, int, str]] = [
        (Handle(BackPressureError(5, 5)), 429, "queue_full"),
        (Handle(BackPressureError(5, 5), at_once=True), 429, "queue_full"),
        (Handle(ActorDiedError()), 503, "replica_died"),
        (Handle(ReplicaUnavailableError("a")), 503, "replica_died"),
        (Handle(TaskCancelledError()), 503, "replica_died"),
    ]
    for handle, status, code in cases:
        last = run(events(handle))[-1]
        assert isinstance(last, Failed)
        assert (last.error.status, last.error.code) == (status, code)
        assert "expected" in str(last.error)


def test_errors_travel_between_processes() -> None:
    import pickle

    from etcuda.serve.errors import busy

    error = pickle.loads(pickle.dumps(Failed(busy(3)))).error
    assert error.body() == busy(3).body()
    assert str(error) == error.message
