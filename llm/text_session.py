"""A conversation with a program: its caches, and the tokens in them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from etcuda.errors import GenerationError
from etcuda.llm.kept_tokens import KeptTokens
from etcuda.llm.logprobs import LogprobNotes
from etcuda.llm.program import TextProgram
from etcuda.llm.report import Report
from etcuda.llm.sampling import Allow, Sampler, SamplingOptions, allowed_tokens

_BLOCK = 256


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
        self._kept = kept(program, len(self._tokens))
        # Whose answer is being made.
        self._reader: object = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the caches."""
        return tuple(self._tokens)

    def fork(self) -> TokenSession:
        """A session that has the same tokens in caches of its own."""
        made = TokenSession(self._program, self._session.fork() if self._tokens else None, self._tokens)
        made._kept = dataclasses.replace(self._kept) if self._tokens else kept(self._program, 0)
        return made

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
        self._reader = None
        del self._tokens[start:]
        if start == 0:
            self._kept.clear()
        logits = None
        while start < len(tokens):
            if is_cancelled():
                return None
            some = list(tokens[start : start + self._program.chunk])
            logits = self._program.run(self._session, some, start)
            self._tokens += some
            start += len(some)
            self._kept.note(start, each=len(some) == 1)
        return logits

    def step(self, token: int, options: SamplingOptions, allowed: npt.NDArray[np.bool_] | None = None) -> int:
        """Appends a token; draws what follows on the device, of the tokens [vocab_size] that are allowed."""
        self._reader = None
        drawn = self._program.step(self._session, token, len(self._tokens), options, allowed)
        self._append(token)
        return drawn

    def steps(self, token: int, options: SamplingOptions, count: int, allow: Allow | None = None) -> Iterator[int]:
        """Appends a token, draws what follows on the device, appends that, and so on.

        One after the other: ExecuTorch's binding holds the interpreter's lock while a method runs, so that nothing
        would be done beside it.

        Args:
            token: to append.
            options: how tokens are chosen.
            count: tokens to draw, at most as many as the caches have room for.
            allow: which tokens may be drawn; ``None`` for all.

        Raises:
            GenerationError: the program failed, no token may be drawn, or the session was used by others before the
                end.
        """
        mark: object = None
        drawn: list[int] = []
        for _ in range(count):
            if mark is not None:
                self.check_reader(mark)
            mask = None if allow is None else allowed_tokens(allow, drawn, self._program.vocab_size)
            token = self.step(token, options, mask)
            drawn.append(token)
            mark = self.reader()
            yield token

    def _append(self, token: int) -> None:
        self._tokens.append(token)
        self._kept.note(len(self._tokens), each=True)

    def decode(self, token: int) -> npt.NDArray[np.float32]:
        """Appends a token; returns the logits of what follows."""
        self._reader = None
        logits = self._program.run(self._session, [token], len(self._tokens))
        self._append(token)
        return logits

    def reader(self) -> object:
        """Who has read the last of the session's logits: a mark that holds until the session is used again."""
        self._reader = object()
        return self._reader

    def check_reader(self, mark: object) -> None:
        """Checks that the session was not used since ``reader`` gave this mark.

        Raises:
            GenerationError: it was.
        """
        if self._reader is not mark:
            raise GenerationError(
                "the answer: expected its session to be left alone until it ends, got another prompt or token in "
                "between. Fork the session for that."
            )

    def verify(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Appends two tokens or more, as many as the program verifies; returns the logits [tokens, vocab_size] of what
        follows each."""
        self._reader = None
        logits = self._program.verify(self._session, list(tokens), len(self._tokens))
        for token in tokens:
            self._append(token)
        return logits

    def rollback(self, count: int) -> None:
        """Takes back the last ``count`` tokens: the sequence goes on from those in front of them.

        Nothing is computed or copied. See ``KeptTokens`` for how many tokens that may be.

        Raises:
            GenerationError: the session holds fewer tokens, or its caches have lost what goes on from there.
        """
        self._kept.check(count, len(self._tokens))
        self._reader = None
        del self._tokens[len(self._tokens) - count :]
        if not self._tokens:
            self._kept.clear()

    def reusable(self, tokens: Sequence[int]) -> int:
        """How many tokens of a sequence need not be computed: at least its last one is, for its logits."""
        same = _common(self._tokens, tokens, min(len(self._tokens), len(tokens) - 1))
        return same if same >= self._kept.oldest else 0


def kept(program: TextProgram, length: int) -> KeptTokens:
    """To what a session of ``length`` tokens can be taken back, if all of them are of one call of ``prefill``."""
    made = KeptTokens(program.max_rollback, program.state_slots)
    made.note(length, each=False)
    return made


def _common(one: list[int], other: Sequence[int], most: int) -> int:
    """How many numbers two sequences have in common from the first on, at most ``most``. In blocks, which lists compare
    at once: a chunk of a long prompt asks it of all those before."""
    start = 0
    while start < most and one[start : start + _BLOCK] == list(other[start : start + _BLOCK]):
        start += _BLOCK
    end = min(start + _BLOCK, most)
    return next((place for place in range(start, end) if one[place] != other[place]), max(end, 0))


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
    drawn: Iterator[int] | None = None,
    allow: Allow | None = None,
    notes: LogprobNotes | None = None,
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
        drawn: the tokens, whatever ends them, if they are made otherwise than one a call.
        allow: which tokens may be drawn; ``None`` for all. It counts for tokens that are drawn here.
        notes: is told of each token; then the host draws, which alone sees the logits.

    Raises:
        GenerationError: the program failed.
    """
    start = time.perf_counter()
    report.prompt_tokens, report.reused_tokens = len(prompt), session.reusable(prompt)
    count = room(program, prompt) if max_new_tokens is None else max_new_tokens
    began: float | None = None
    for token in drawn or _drawn(session, program, prompt, options, count, is_cancelled, allow, notes):
        if began is None:
            began = time.perf_counter()
            report.prefill_seconds = began - start
        if token in ends:
            report.finish_reason = "stop"
            return
        if notes is not None:
            notes.keep()
        report.generated_tokens += 1
        report.decode_seconds = time.perf_counter() - began
        yield token
        if report.generated_tokens < count and is_cancelled():
            break
    report.finish_reason = "length" if report.generated_tokens >= count else "cancelled"


def _drawn(
    session: TokenSession,
    program: TextProgram,
    prompt: Sequence[int],
    options: SamplingOptions,
    count: int,
    is_cancelled: Callable[[], bool],
    allow: Allow | None,
    notes: LogprobNotes | None,
) -> Iterator[int]:
    """The tokens of an answer, whatever ends it; none if it was cancelled before the first."""
    if program.has_step and notes is None and not options.needs_host:
        if session.advance(prompt, is_cancelled):
            yield from session.steps(prompt[-1], options, count, allow)
        return
    logits = session.prefill(prompt, is_cancelled)
    if logits is None:
        return
    sampler = Sampler(options, prompt, allow)
    for left in range(count, 0, -1):
        token = sampler.choose(logits)
        if notes is not None:
            notes.hear(token, logits)
        mark = session.reader()
        yield token
        if left > 1:
            session.check_reader(mark)
            logits = session.decode(token)
