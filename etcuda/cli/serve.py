"""``etcuda serve m.pte``."""

from __future__ import annotations

import pathlib
import signal
import threading
from typing import Any

import click

from etcuda.llm.extra import require_llm
from etcuda.serve.extra import require_serve


@click.command(short_help="Answer clients of OpenAI's interface.")
@click.argument("program", type=click.Path(path_type=pathlib.Path))
@click.option("--data-path", type=click.Path(path_type=pathlib.Path), help="the weights  [default: m.ptd]")
@click.option("--name", help="of the model, as clients ask for it  [default: the file's, without .pte]")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen at; 0.0.0.0 for all")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="to listen at")
@click.option("--replicas", type=int, help="copies of the program  [default: one a GPU]")
@click.option("--gpus", type=float, help="of each replica  [default: 1, or 0 if there is none]")
@click.option("--address", help="of a Ray cluster that runs, such as auto  [default: start one here]")
@click.option("--active", type=int, default=8, show_default=True, help="answers that take turns in a replica")
@click.option("--queue", type=int, default=64, show_default=True, help="requests that may wait; more are refused")
@click.option("--sessions", type=int, default=16, show_default=True, help="conversations that a replica keeps")
@click.option("--drain-seconds", type=float, default=30.0, show_default=True, help="that answers have at the end")
def command(active: int, queue: int, sessions: int, **given: Any) -> None:
    """Serve PROGRAM, the m.pte that etcuda export wrote, until it is interrupted."""
    require_llm("serve")
    require_serve("serve")
    from etcuda.serve.engine import EngineOptions
    from etcuda.serve.launch import ServeOptions, Service

    ended = threading.Event()
    service = Service(ServeOptions(**given, engine=EngineOptions(active, queue, sessions)))
    # After Ray, which has handlers of its own.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    click.echo(f"{service.name}: {service.url}/v1, replicas: {service.health()['replicas']}")
    ended.wait()
    click.echo("ending", err=True)
    service.stop()
