"""Drafts: tokens that may follow, guessed cheaply, for a program to verify several at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from etcuda.errors import GenerationError
from etcuda.llm.program import TextProgram
from etcuda.llm.text_session import TokenSession

_LONGEST = 4


class Drafter(Protocol):
    """Guesses what follows."""

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to ``most`` tokens that may follow ``tokens``, which are one or more; none if there is no guess."""


class NgramDraft:
    """What followed the last few tokens where they occurred before (Saxena, "Prompt lookup decoding", 2023).

    The longest match of up to four tokens counts, the latest of several.
    """

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """See ``Drafter``."""
        every = np.asarray(tokens, dtype=np.int64)
        for length in range(min(_LONGEST, len(every) - 1), 0, -1):
            # Places whose match ends in front of the last token.
            starts = np.lib.stride_tricks.sliding_window_view(every[:-1], length)
            found = np.flatnonzero((starts == every[-length:]).all(axis=1))
            if found.size:
                begin = int(found[-1]) + length
                return [int(token) for token in every[begin : begin + most]]
        return []


class ModelDraft:
    """The likeliest tokens of a smaller model.

    Args:
        program: of the small model, with the vocabulary of the one whose answer it guesses.
        vocab_size: of that one.

    Raises:
        GenerationError: the vocabularies differ in size.
    """

    def __init__(self, program: TextProgram, vocab_size: int) -> None:
        if program.vocab_size != vocab_size:
            raise GenerationError(
                f"draft: expected a model with the program's vocabulary of {vocab_size} tokens, got one of "
                f"{program.vocab_size}. Draft with a model of the same family, or with ngram."
            )
        self._program = program
        self._session = TokenSession(program)

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """See ``Drafter``."""
        room = self._program.max_seq_len - len(tokens) + 1
        made: list[int] = []
        while len(made) < min(most, room):
            logits = self._session.prefill([*tokens, *made], lambda: False)
            assert logits is not None
            made.append(int(np.argmax(logits)))
        return made
