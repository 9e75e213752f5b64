"""A conversation with a program: its caches, and the tokens in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from etcuda.errors import GenerationError
from etcuda.llm.program import TextProgram
from etcuda.llm.report import Report
from etcuda.llm.sampling import Sampler, SamplingOptions


class TokenSession:
    """Caches of one sequence of tokens. May be used from one thread at a time.

    Args:
        program: loaded.
    """

    def __init__(self, program: TextProgram, session: Any = None, tokens: Sequence[int] = ()) -> None:
        from etcuda.runtime import Session

        self._program = program
        self._session = Session() if session is None else session
        self._tokens = list(tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the caches."""
        return tuple(self._tokens)

    def fork(self) -> TokenSession:
        """A session that has the same tokens in caches of its own."""
        copy = self._session.fork() if self._tokens else None
        return TokenSession(self._program, copy, self._tokens)

    def prefill(self, tokens: Sequence[int], is_cancelled: Callable[[], bool]) -> npt.NDArray[np.float32] | None:
        """Makes ``tokens`` the session's sequence; what it begins with and the caches hold is not computed again.

        Returns:
            Logits of what follows, or ``None`` if it was cancelled; then the caches hold the first of the tokens.

        Raises:
            GenerationError: the program failed.
        """
        return self._extend(tokens, self.reusable(tokens), is_cancelled)

    def advance(self, tokens: Sequence[int], is_cancelled: Callable[[], bool]) -> bool:
        """Makes all of ``tokens`` but the last the session's sequence. False if it was cancelled before the end."""
        head = tokens[:-1]
        self._extend(head, self.reusable(tokens), is_cancelled)
        return len(self._tokens) == len(head)

    def _extend(
        self, tokens: Sequence[int], start: int, is_cancelled: Callable[[], bool]
    ) -> npt.NDArray[np.float32] | None:
        """Computes ``tokens`` from ``start`` on; the caches hold those before."""
        del self._tokens[start:]
        logits = None
        while start < len(tokens):
            if is_cancelled():
                return None
            some = list(tokens[start : start + self._program.chunk])
            logits = self._program.run(self._session, some, start)
            self._tokens += some
            start += len(some)
        return logits

    def step(self, token: int, options: SamplingOptions) -> int:
        """Appends a token; draws what follows on the device."""
        drawn = self._program.step(self._session, token, len(self._tokens), options)
        self._tokens.append(token)
        return drawn

    def decode(self, token: int) -> npt.NDArray[np.float32]:
        """Appends a token; returns the logits of what follows."""
        logits = self._program.run(self._session, [token], len(self._tokens))
        self._tokens.append(token)
        return logits

    def reusable(self, tokens: Sequence[int]) -> int:
        """How many tokens of a sequence need not be computed: at least its last one is, for its logits."""
        same = 0
        most = min(len(self._tokens), len(tokens) - 1)
        while same < most and self._tokens[same] == tokens[same]:
            same += 1
        limit = self._program.max_rollback
        # A ring has overwritten the keys of older tokens; from the first one on it can be filled anew.
        return same if limit is None or len(self._tokens) - same <= limit else 0


def room(program: TextProgram, prompt: Sequence[int]) -> int:
    """Most tokens of an answer: the last one need not be in the cache."""
    return program.max_seq_len - len(prompt) + 1


def check_request(program: TextProgram, prompt: Sequence[int], max_new_tokens: int | None) -> None:
    """Checks what is asked of a program.

    Raises:
        GenerationError: there are no tokens, too many for the cache, ones that are not in the vocabulary, or more are
            asked for than the cache holds.
    """
    most, vocab = program.max_seq_len, program.vocab_size
    if not prompt:
        raise GenerationError("prompt: expected one token or more, got none. Pass a text that is not empty.")
    if len(prompt) > most:
        raise GenerationError(
            f"prompt: expected at most the {most} tokens that the program's cache holds, got {len(prompt)}. "
            f"Shorten it, or export with --max-seq-len {len(prompt)} or more."
        )
    wrong = [token for token in prompt if not 0 <= token < vocab]
    if wrong:
        raise GenerationError(
            f"prompt: expected token ids from 0 to {vocab - 1}, got {wrong[0]}. The tokenizer is of another model."
        )
    if max_new_tokens is not None and not 1 <= max_new_tokens <= room(program, prompt):
        raise GenerationError(
            f"max_new_tokens: expected 1 to {room(program, prompt)} after a prompt of {len(prompt)} tokens in a cache "
            f"of {most}, got {max_new_tokens}. Ask for fewer, or export with a longer --max-seq-len."
        )


def generate_tokens(
    session: TokenSession,
    program: TextProgram,
    prompt: Sequence[int],
    options: SamplingOptions,
    max_new_tokens: int | None,
    ends: frozenset[int],
    report: Report,
    is_cancelled: Callable[[], bool],
) -> Iterator[int]:
    """Tokens that follow a prompt, one by one; why it ended is in ``report.finish_reason``.

    Args:
        session: whose sequence becomes the prompt and the answer.
        program: of the session.
        prompt: all of it, what the session holds too; checked.
        options: how tokens are chosen.
        max_new_tokens: most tokens; ``None`` for as many as the cache holds.
        ends: tokens that end the answer; they are not given.
        report: is filled in.
        is_cancelled: whether to end.

    Raises:
        GenerationError: the program failed.
    """
    start = time.perf_counter()
    report.prompt_tokens, report.reused_tokens = len(prompt), session.reusable(prompt)
    begun = _begin(session, program, prompt, options, is_cancelled)
    if begun is None:
        report.finish_reason = "cancelled"
        return
    token, follow = begun
    report.prefill_seconds = time.perf_counter() - start
    began = time.perf_counter()
    count = room(program, prompt) if max_new_tokens is None else max_new_tokens
    while True:
        if token in ends:
            report.finish_reason = "stop"
            return
        report.generated_tokens += 1
        report.decode_seconds = time.perf_counter() - began
        yield token
        if report.generated_tokens >= count:
            report.finish_reason = "length"
            return
        if is_cancelled():
            report.finish_reason = "cancelled"
            return
        token = follow(token)


def _begin(
    session: TokenSession,
    program: TextProgram,
    prompt: Sequence[int],
    options: SamplingOptions,
    is_cancelled: Callable[[], bool],
) -> tuple[int, Callable[[int], int]] | None:
    """The first token of an answer, and what gives the token that follows one; ``None`` if it was cancelled."""
    if program.has_step and options.repetition_penalty == 1:
        if not session.advance(prompt, is_cancelled):
            return None
        return session.step(prompt[-1], options), lambda token: session.step(token, options)
    logits = session.prefill(prompt, is_cancelled)
    if logits is None:
        return None
    sampler = Sampler(options, prompt)
    return sampler.choose(logits), lambda token: sampler.choose(session.decode(token))
