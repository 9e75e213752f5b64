"""How many replicas, and on what."""

from __future__ import annotations

import pathlib
import socket

import pytest

from etcuda.errors import GenerationError, OptionError
from etcuda.serve import launch
from etcuda.serve.launch import ServeOptions

PROGRAM = pathlib.Path("m.pte")


def resources(cluster: dict[str, float], replicas: int | None = None, gpus: float | None = None) -> tuple[int, float]:
    return launch._resources(cluster, ServeOptions(PROGRAM, replicas=replicas, gpus=gpus), PROGRAM)


def test_a_replica_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_for_gpus in (True, False):
        monkeypatch.setattr(launch, "_is_for_gpus", lambda program, answer=is_for_gpus: answer)
        assert resources({"CPU": 8.0}) == (1, 0.0)
        assert resources({"CPU": 8.0, "GPU": 4.0}) == ((4, 1.0) if is_for_gpus else (1, 0.0))
    assert resources({"CPU": 8.0, "GPU": 2.0}, gpus=0.5) == (4, 0.5)
    assert resources({"CPU": 8.0, "GPU": 2.0}, replicas=1, gpus=2) == (1, 2)


def test_too_little() -> None:
    with pytest.raises(OptionError, match=r"expected at least 3 CPUs in the cluster for 3 replicas, got 2"):
        resources({"CPU": 2.0}, replicas=3)
    with pytest.raises(OptionError, match=r"expected at least 2 GPUs in the cluster for 2 replicas, got 1"):
        resources({"CPU": 2.0, "GPU": 1.0}, replicas=2, gpus=1)
    with pytest.raises(OptionError, match=r"expected one replica or more and 0 GPUs or more of each, got 0 and 0"):
        resources({"CPU": 2.0}, replicas=0)


def test_nobody_answers() -> None:
    service = object.__new__(launch.Service)
    service.url = "http://0.0.0.0:9"
    with pytest.raises(GenerationError, match=r"serve: expected http://127.0.0.1:9/health to answer, got: .*refused"):
        service.health()


def test_why_a_replica_does_not_start() -> None:
    said = "Deploying failed: ...\nTraceback\netcuda.errors.GenerationError: m.pte: expected a program, got none.\n"
    assert launch._reason(RuntimeError(said), "") == "m.pte: expected a program, got none."
    # As of Ray 2.60, where the application's error tells no more than that a deployment failed.
    assert launch._reason(RuntimeError("Deploying failed"), said) == "m.pte: expected a program, got none."
    assert launch._reason(RuntimeError("no reason of ours"), "") == "no reason of ours"


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OptionError, match=rf"is free, got 127\.0\.0\.1:{port}: .*in use\. Pass another --port"):
            launch._check_port("127.0.0.1", port)
    launch._check_port("127.0.0.1", port)
    with pytest.raises(OptionError, match=r"got 203\.0\.113\.9:80: "):
        launch._check_port("203.0.113.9", 80)
