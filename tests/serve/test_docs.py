"""docs/serving.md: its Python runs against a server, and its commands have these options."""

from __future__ import annotations

import pathlib
import re
import shlex
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from etcuda.cli.serve import command as serve
from etcuda.cli.worker import command as worker
from etcuda.serve.app import make_app
from etcuda.serve.engine import Engine
from tests.serve.fakes import FakeProgram

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text()


def test_the_client(engines: Callable[..., Engine], capsys: pytest.CaptureFixture[str]) -> None:
    import uvicorn

    engine = engines(FakeProgram())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(engine, "m"), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.02)
        blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
        assert len(blocks) == 1
        names: dict[str, Any] = {}
        exec(blocks[0].replace("127.0.0.1:8000", f"127.0.0.1:{port}"), names)
        assert names["chunk"].usage.total_tokens > 20
        assert len(capsys.readouterr().out) > 40
    finally:
        server.should_exit = True
        thread.join()


def test_the_commands() -> None:
    lines = [line.strip() for line in PAGE.splitlines() if re.match(r" {4}etcuda (serve|worker) ", line)]
    assert len(lines) >= 2
    for line in lines:
        name, *arguments = shlex.split(line)[1:]
        {"serve": serve, "worker": worker}[name].make_context(name, arguments)
    options = {text for each in serve.params for text in each.opts if text.startswith("--")}
    table = PAGE.split("| option |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(--[\w-]+)`", table)) == options


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.util

    from etcuda.cli import main

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    assert main(["serve", "m.pte"]) == 2
    expected = "serve: expected the packages ray, starlette, uvicorn, got none of the name ray. "
    assert expected + "Run: pip install 'etcuda[llm,serve]'" in capsys.readouterr().err


def test_a_missing_program(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    from etcuda.cli import main

    assert main(["serve", str(tmp_path / "m.pte")]) == 2
    assert "m.pte: expected a program, got no such file. Make one with etcuda export" in capsys.readouterr().err
    assert main(["serve", "m.pte", "--active", "0"]) == 2
    assert "active: expected 1 or more, got 0" in capsys.readouterr().err
