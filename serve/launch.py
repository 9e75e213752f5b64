"""Starts the service and stops it."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import socket
import urllib.request
from typing import Any

from etcuda.errors import GenerationError, OptionError
from etcuda.llm.extra import require_llm
from etcuda.serve.engine import EngineOptions
from etcuda.serve.extra import require_serve

_APPLICATION = "etcuda"


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes:
        program: the ``.pte``.
        data_path: its weights; ``None`` for the ``.ptd`` beside it.
        name: that clients ask for; ``None`` for the file's without ``.pte``.
        host: address to listen at.
        port: to listen at.
        replicas: how many; ``None`` for one a GPU of the cluster, or one if it has none.
        gpus: of each replica; ``None`` for one if the cluster has any and the program is for GPUs.
        address: of a Ray cluster that runs, such as ``"auto"``; ``None`` to start one on this machine.
        engine: bounds of each replica.
        drain_seconds: that answers have to end when the service stops.
    """

    program: pathlib.Path
    data_path: pathlib.Path | None = None
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int | None = None
    gpus: float | None = None
    address: str | None = None
    engine: EngineOptions = dataclasses.field(default_factory=EngineOptions)
    drain_seconds: float = 30.0


class Service:
    """A service that runs.

    Args:
        options: how.
        replica_class: a subclass of ``etcuda.serve.deployment.Replica``; ``None`` for that itself.

    Raises:
        OptionError: a package is missing, the port is taken, or the cluster has too few CPUs or GPUs.
        GenerationError: the program is not there, or a replica cannot load it.
    """

    def __init__(self, options: ServeOptions, replica_class: Any = None) -> None:
        require_llm("serve")
        require_serve("serve")
        program = options.program.absolute()
        if not program.is_file():
            raise GenerationError(f"{program}: expected a program, got no such file. Make one with etcuda export.")
        self.name = options.name or program.stem
        self.url = f"http://{options.host}:{options.port}"
        # Ray sends figures of its use to its makers otherwise; processes that it starts inherit this.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray
        from ray import serve

        self._own = options.address is None
        if self._own:
            _check_port(options.host, options.port)
        more: dict[str, Any] = {"object_store_memory": 128 * 2**20, "include_dashboard": False} if self._own else {}
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.WARNING, **more)
        try:
            replicas, gpus = _resources(ray.cluster_resources(), options, program)
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
            serve.start(proxy_location="HeadOnly", http_options={"host": options.host, "port": options.port})
            self._run(options, program, replicas, gpus, replica_class)
        except BaseException:
            self.stop()
            raise

    def _run(
        self, options: ServeOptions, program: pathlib.Path, replicas: int, gpus: float, replica_class: Any
    ) -> None:
        from ray import serve

        from etcuda.serve.deployment import Deployed, Replica, application

        data_path = None if options.data_path is None else options.data_path.absolute()
        what = Deployed(program, data_path, self.name, replicas, gpus, options.engine, options.drain_seconds)
        try:
            serve.run(application(what, replica_class or Replica), name=_APPLICATION, route_prefix="/")
        except RuntimeError as error:
            deployments = serve.status().applications[_APPLICATION].deployments.values()
            reason = _reason(error, "\n".join(each.message for each in deployments))
            raise GenerationError(f"serve: expected replicas that load {program}, got: {reason}") from error

    def health(self) -> dict[str, Any]:
        """What ``/health`` says.

        Raises:
            GenerationError: it cannot be asked, or no replica answers.
        """
        host = self.url.replace("//0.0.0.0:", "//127.0.0.1:")
        try:
            with urllib.request.urlopen(f"{host}/health", timeout=60) as answer:
                said: dict[str, Any] = json.load(answer)
        except OSError as error:
            raise GenerationError(
                f"serve: expected {host}/health to answer, got: {error}. A cluster that serves already does so at the "
                "address that it was started with."
            ) from error
        return said

    def stop(self) -> None:
        """Takes no more requests, waits for the answers as long as ``drain_seconds``, and ends."""
        import ray
        from ray import serve

        if not ray.is_initialized():
            return
        if _APPLICATION in serve.status().applications:
            serve.delete(_APPLICATION)
        if self._own:
            serve.shutdown()
        ray.shutdown()


def _resources(cluster: dict[str, float], options: ServeOptions, program: pathlib.Path) -> tuple[int, float]:
    """Number of replicas, and GPUs of each."""
    there = cluster.get("GPU", 0.0)
    gpus = options.gpus
    if gpus is None:
        gpus = 1.0 if there and _is_for_gpus(program) else 0.0
    replicas = options.replicas
    if replicas is None:
        replicas = max(int(there / gpus), 1) if gpus else 1
    if replicas < 1 or gpus < 0:
        raise OptionError(f"serve: expected one replica or more and 0 GPUs or more of each, got {replicas} and {gpus}.")
    for what, needed in (("CPU", float(replicas)), ("GPU", replicas * gpus)):
        if needed > cluster.get(what, 0.0):
            raise OptionError(
                f"serve: expected at least {needed:g} {what}s in the cluster for {replicas} replicas, got "
                f"{cluster.get(what, 0.0):g}. Ask for fewer --replicas, or add nodes."
            )
    return replicas, gpus


def _is_for_gpus(program: pathlib.Path) -> bool:
    from etcuda.backend.inspect import inspect_program

    info = inspect_program(program.read_bytes())
    images = [image for method in info.methods for each in method.delegates for image in each.images]
    return any(image.target != "host" for image in images)


def _check_port(host: str, port: int) -> None:
    """Checks that nobody listens there, which Ray would say in a traceback.

    Raises:
        OptionError: it cannot be listened at.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
    except OSError as error:
        raise OptionError(
            f"serve: expected an address of this machine that is free, got {host}:{port}: {error.strerror or error}. "
            "Pass another --port or --host."
        ) from error


def _reason(error: BaseException, told: str) -> str:
    """The last line that a constructor raised, of what Ray passes on and of what it tells of the deployments."""
    lines = [line.strip() for line in f"{error}\n{told}".splitlines()]
    ours = [line for line in lines if line.startswith("etcuda.errors.")]
    return ours[-1].partition(": ")[2] if ours else str(error)
