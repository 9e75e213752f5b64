"""What the tests of serving share."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.conftest import locked
from tests.llm.conftest import checkpoint, program, train_tokenizer
from tests.serve.fakes import FakeProgram, fake_model

__all__ = ["checkpoint", "program"]  # Fixtures.


@pytest.fixture(scope="session")
def tokenizer_folder(shared_dir: pathlib.Path) -> pathlib.Path:
    """With a tokenizer and a chat template."""
    folder = shared_dir / "serve-tokenizer"
    with locked(folder):
        if not folder.exists():
            made = folder.with_suffix(".new")
            made.mkdir()
            train_tokenizer(made)
            made.rename(folder)
    return folder


@pytest.fixture
def engines(tokenizer_folder: pathlib.Path) -> Iterator[Callable[..., Any]]:
    """``engines(program, options)`` is an engine that is closed at the end."""
    from etcuda.serve.engine import Engine, EngineOptions

    made = []

    def make(program: FakeProgram, options: EngineOptions | None = None) -> Engine:
        made.append(Engine(fake_model(program, tokenizer_folder), options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine; one that hangs fails."""

    async def bounded() -> Any:
        return await asyncio.wait_for(work, 60)

    return asyncio.run(bounded())
