"""What Ray Serve runs: replicas of the program, and the HTTP server before them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException

from etcuda.serve.engine import EngineOptions
from etcuda.serve.errors import busy, gone
from etcuda.serve.job import Ended, Event, Failed, Job

REPLICA, HTTP = "replica", "http"


class Replica:
    """A program and its sessions, on the GPU that Ray gave this process.

    Args:
        program: path of the ``.pte``, on each node.
        data_path: of its weights; ``None`` for the ``.ptd`` beside it.
        options: bounds.
    """

    def __init__(self, program: str, data_path: str | None, options: EngineOptions) -> None:
        # Not imported by the process that serves HTTP.
        from etcuda.llm.language_model import load
        from etcuda.serve.engine import Engine

        self._engine = Engine(load(program, data_path), options)
        self._name = serve.get_replica_context().replica_id.unique_id

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """The events of a job. Ray cancels this when the caller does."""
        async with contextlib.aclosing(self._engine.generate(job)) as events:
            async for event in events:
                yield dataclasses.replace(event, replica=self._name) if isinstance(event, Ended) else event

    async def check_health(self) -> None:
        """Asked by Ray, which replaces a replica that raises."""
        if not self._engine.is_alive:
            raise RuntimeError("engine: expected a thread that runs, got one that has ended.")

    def __del__(self) -> None:
        # Ray has waited for the answers by now.
        if hasattr(self, "_engine"):
            self._engine.close()


class Replicas:
    """Answers jobs by the replicas of a deployment.

    Args:
        handle: of the deployment.
        queue: requests that may wait; more are refused.
    """

    def __init__(self, handle: Any, queue: int) -> None:
        self._handle, self._queue = handle.options(stream=True), queue

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """As of ``Backend``."""
        answer, whole = None, False
        try:
            answer = self._handle.generate.remote(job)
            async for event in answer:
                yield event
            whole = True
        except BackPressureError:
            yield Failed(busy(self._queue))
        except (RayError, RayServeException) as error:
            yield Failed(
                gone(
                    "replica: expected it to answer to the end, got a replica that ended before "
                    f"({type(error).__name__}). Send the request again; others may have its place by now.",
                    "replica_died",
                )
            )
        finally:
            if answer is not None and not whole:
                answer.cancel()

    async def ready(self) -> int:
        """As of ``Backend``."""
        return await asyncio.to_thread(_running, serve.get_replica_context().app_name)


def _running(name: str) -> int:
    deployment = serve.status().applications[name].deployments[REPLICA]
    return sum(count for state, count in deployment.replica_states.items() if state == "RUNNING")


class Http:
    """The HTTP server.

    Args:
        replicas: handle of the deployment.
        model: the name that clients ask for.
        queue: as of ``Replicas``.
    """

    def __init__(self, replicas: Any, model: str, queue: int) -> None:
        self._backend, self._model = Replicas(replicas, queue), model

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Ray after the constructor."""
        from etcuda.serve.app import make_app

        return make_app(self._backend, self._model)


@dataclasses.dataclass(frozen=True)
class Deployed:
    """What is deployed.

    Attributes:
        program: path of the ``.pte``, on each node.
        data_path: of its weights; ``None`` for the ``.ptd`` beside it.
        model: the name that clients ask for.
        replicas: how many.
        gpus: of each replica; a part of one shares it.
        engine: bounds of each replica.
        drain_seconds: that answers have to end when the service is stopped.
    """

    program: pathlib.Path
    data_path: pathlib.Path | None
    model: str
    replicas: int
    gpus: float
    engine: EngineOptions
    drain_seconds: float


def application(what: Deployed, replica_class: type[Replica] = Replica) -> Any:
    """The application of Ray Serve; the replicas may be of a class of one's own."""
    bounds = what.engine
    data_path = None if what.data_path is None else str(what.data_path)
    replica = serve.deployment(
        replica_class,
        name=REPLICA,
        num_replicas=what.replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": what.gpus},
        # One that has this many takes no more, and another one does.
        max_ongoing_requests=bounds.active,
        max_queued_requests=bounds.queue,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=what.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
        request_router_config=RequestRouterConfig(request_router_class="etcuda.serve.router.PrefixRouter"),
    ).bind(str(what.program), data_path, bounds)
    http = serve.deployment(
        serve.ingress()(Http),
        name=HTTP,
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=what.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config={"enable_access_log": False},
    )
    return http.bind(replica, what.model, bounds.queue)
