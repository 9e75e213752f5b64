"""A program whose next token is a function of the last one and its position, and what it was asked for."""

from __future__ import annotations

import dataclasses
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from etcuda.errors import GenerationError
from etcuda.llm.language_model import LanguageModel
from tests.llm.architectures import VOCAB


def next_token(token: int, position: int) -> int:
    """No special token, and another one for each last token and position."""
    return 7 + (token * 31 + position * 17) % (VOCAB - 7)


def expected(ids: list[int], count: int) -> list[int]:
    """The greedy answer."""
    made = list(ids)
    for _ in range(count):
        made.append(next_token(made[-1], len(made) - 1))
    return made[len(ids) :]


@dataclasses.dataclass
class FakeProgram:
    """Stands in for ``TextProgram``: refuses a position that its session has not reached.

    Attributes:
        calls: position and number of tokens of each call, and which session it was in.
        gate: called before each call.
    """

    max_seq_len: int = 256
    chunk: int = 16
    vocab_size: int = VOCAB
    eos_ids: frozenset[int] = frozenset((2,))
    max_rollback: int | None = None
    state_slots: int = 0
    has_step: bool = False
    load_seconds: float = 0.0
    tokenizer_files: dict[str, str] = dataclasses.field(default_factory=dict)
    calls: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    gate: Callable[[], None] = lambda: None
    fail_at: int | None = None
    threads: set[int] = dataclasses.field(default_factory=set)

    def limit(self, tokens: float) -> float:
        return 0.0

    def run(self, session: Any, tokens: list[int], position: int) -> npt.NDArray[np.float32]:
        self.gate()
        self.threads.add(threading.get_ident())
        assert 1 <= len(tokens) <= self.chunk
        self.calls.append((id(session), position, len(tokens)))
        if self.fail_at is not None and position + len(tokens) > self.fail_at:
            raise GenerationError(f"the program failed: position {self.fail_at}")
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        logits[next_token(tokens[-1], position + len(tokens) - 1)] = 9.0
        return logits


def fake_model(program: FakeProgram, tokenizer: pathlib.Path) -> LanguageModel:
    """A model over a fake program."""
    return LanguageModel(program, tokenizer)  # type: ignore[arg-type]
