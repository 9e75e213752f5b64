"""``etcuda worker m.pte``, and ``llm_worker``, which ExecuTorch's LLM server starts."""

from __future__ import annotations

import io
import os
import pathlib
import sys

import click

from etcuda.errors import EtcudaError
from etcuda.llm.extra import require_llm

_SESSIONS = click.option(
    "--sessions", type=int, default=8, show_default=True, help="most conversations at a time, one of them unnamed"
)


@click.command(short_help="Answer lines of JSON, for ExecuTorch's LLM server.")
@click.argument("program", type=click.Path(path_type=pathlib.Path))
@click.option("--data-path", type=click.Path(path_type=pathlib.Path), help="the weights  [default: m.ptd]")
@click.option("--tokenizer-path", type=click.Path(path_type=pathlib.Path), help="[default: m.tokenizer]")
@_SESSIONS
def command(
    program: pathlib.Path, data_path: pathlib.Path | None, tokenizer_path: pathlib.Path | None, sessions: int
) -> None:
    """Answer requests for PROGRAM, the m.pte that etcuda export wrote: lines of JSON on standard input and output."""
    _serve(program, data_path, tokenizer_path, sessions)


@click.command()
@click.option("--model_path", type=click.Path(path_type=pathlib.Path), required=True, help="the m.pte")
@click.option("--data_path", type=click.Path(path_type=pathlib.Path), help="the weights  [default: m.ptd]")
@click.option("--tokenizer_path", type=click.Path(path_type=pathlib.Path), help="[default: m.tokenizer]")
@_SESSIONS
def llm_worker(
    model_path: pathlib.Path, data_path: pathlib.Path | None, tokenizer_path: pathlib.Path | None, sessions: int
) -> None:
    """As etcuda worker, with the options that ExecuTorch's LLM server passes to a --worker-bin."""
    try:
        _serve(model_path, data_path, tokenizer_path, sessions)
    except EtcudaError as error:
        raise click.ClickException(str(error)) from error


def _serve(
    program: pathlib.Path, data_path: pathlib.Path | None, tokenizer_path: pathlib.Path | None, sessions: int
) -> None:
    require_llm("worker")
    # Standard output is the protocol's alone: what libraries write there goes to standard error.
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from etcuda.llm.language_model import LanguageModel
    from etcuda.llm.program import TextProgram
    from etcuda.llm.tokenizer import folder_of
    from etcuda.llm.worker import Worker, inherited

    folder = folder_of(program) if tokenizer_path is None else tokenizer_path
    folder = folder.parent if folder.is_file() else folder
    model = LanguageModel(TextProgram(program, data_path), folder)
    # A byte that is not UTF-8 is an error of its line, and no end of the worker.
    lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="surrogateescape")
    Worker(model, out, sessions, inherited()).run(lines)
