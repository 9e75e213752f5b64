"""One choice of a request while it is made: the prompt a chunk at a time, then token by token."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

from etcuda.llm.language_model import Generation, LanguageModel, TextSession
from etcuda.llm.sampling import SamplingOptions
from etcuda.serve.job import Ended, Event, Figures, Likely, Piece, Said
from etcuda.serve.pool import Lease, SessionPool


@dataclasses.dataclass(eq=False)
class Submission:
    """A request in the engine.

    Attributes:
        emit: takes the events; raises if nobody listens any more.
        submitted: when, of ``time.perf_counter``.
        cancelled: set from any thread.
    """

    emit: Callable[[Event], None]
    submitted: float = dataclasses.field(default_factory=time.perf_counter)
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt that is to be answered ``len(choices)`` times; checked.

    Attributes:
        ids: its tokens.
        choices: numbers of the answers.
        options: of each answer.
        max_new_tokens, stop, ignore_eos, logprobs: as of ``Job``.
    """

    ids: tuple[int, ...]
    choices: tuple[int, ...]
    options: tuple[SamplingOptions, ...]
    max_new_tokens: int | None
    stop: tuple[str, ...]
    ignore_eos: bool
    logprobs: int | None = None


class Answer:
    """Makes one choice, in steps of one chunk of the prompt or one token.

    Args:
        submission: of the request.
        prompt: which.
        place: which of its choices.
        chunk: most tokens of one step of the prompt.
        leader: the answer that computes the prompt's chunks for this one too; ``None`` if this one does.
    """

    def __init__(
        self, submission: Submission, prompt: Prompt, place: int, chunk: int, leader: Answer | None = None
    ) -> None:
        self.submission = submission
        self._prompt, self._place, self._chunk, self.leader = prompt, place, chunk, leader
        self.lease: Lease | None = None
        self._generation: Generation | None = None
        self._steps: Iterator[str] | None = None
        self._reused = 0
        self._done = 0
        self._told = 0
        self._begun = self._first = self._last = 0.0

    def begin(self, pool: SessionPool) -> None:
        """Takes a session."""
        self.lease = pool.take(self._prompt.ids)
        self._done = self._reused = self.lease.session.reusable(self._prompt.ids)
        self._begun = time.perf_counter()

    def follow(self, pool: SessionPool) -> bool:
        """Copies the leader's session as soon as that holds all chunks but the last. False while it does not."""
        leader = self.leader
        if leader is None or leader.lease is None or leader.steps_prompt():
            return False
        self.lease = pool.fork(leader.lease)
        self._reused, self._done, self._begun = leader._reused, leader._done, leader._begun
        self.leader = None
        return True

    def steps_prompt(self) -> bool:
        """Whether more of the prompt is left than the last call for it takes. The chunks are those of a lone run."""
        return len(self._prompt.ids) - 1 - self._done > self._chunk

    def step(self, model: LanguageModel) -> bool:
        """One step. False when the answer is whole.

        Raises:
            GenerationError: the program failed.
        """
        assert self.lease is not None
        if self.steps_prompt():
            self._done += self._chunk
            self.lease.session.advance(self._prompt.ids[: self._done + 1], lambda: False)
            return True
        if self._steps is None:
            prompt = self._prompt
            self._generation = TextSession(model, self.lease.session).generate(
                prompt.ids, prompt.options[self._place], max_new_tokens=prompt.max_new_tokens, stop=prompt.stop,
                ignore_eos=prompt.ignore_eos, logprobs=prompt.logprobs,
            )  # fmt: skip
            self._steps = self._generation.steps()
        assert self._generation is not None
        before = len(self._generation.tokens)
        piece = next(self._steps, None)
        if len(self._generation.tokens) > before:
            self._last = time.perf_counter()
            self._first = self._first or self._last
        if piece:
            self.submission.emit(Piece(self.choice, piece, self._said(model)))
        return piece is not None

    def _said(self, model: LanguageModel) -> tuple[Said, ...]:
        """The tokens that were not told yet, if they were asked for."""
        assert self._generation is not None
        new, self._told = self._generation.logprobs[self._told :], len(self._generation.logprobs)

        def likely(token: int, logprob: float) -> Likely:
            text = model.tokenizer.text_of(token) if model.has_tokenizer else f"{token} "
            return Likely(text, logprob)

        return tuple(Said(likely(one.token, one.logprob), tuple(likely(*each) for each in one.top)) for one in new)

    @property
    def choice(self) -> int:
        """Its number among the choices of the request."""
        return self._prompt.choices[self._place]

    def ended(self, model: LanguageModel, steps: int, sessions: int) -> Ended:
        """The event of the end."""
        assert self._generation is not None
        figures = Figures(
            prompt_tokens=len(self._prompt.ids),
            reused_tokens=self._reused,
            generated_tokens=len(self._generation.tokens),
            queue_seconds=self._begun - self.submission.submitted,
            first_token_seconds=self._first - self.submission.submitted if self._first else 0.0,
            decode_seconds=self._last - self._first,
            steps=steps,
            sessions=sessions,
        )
        return Ended(self.choice, self._generation.report.finish_reason, figures, tokens=self._said(model))
