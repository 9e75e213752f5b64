"""Turns: many answers over one set of weights, a step of each after the other."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable

from etcuda.errors import GenerationError, OptionError
from etcuda.llm.language_model import LanguageModel
from etcuda.llm.sampling import SamplingOptions
from etcuda.llm.text_session import check_request, room
from etcuda.serve.answer import Answer, Prompt, Submission
from etcuda.serve.errors import ApiError, busy, failed, gone
from etcuda.serve.job import Ended, Event, Failed, Job, Started
from etcuda.serve.pool import SessionPool

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """Bounds of one replica.

    Attributes:
        active: most answers that take turns.
        queue: most requests that wait for a turn.
        sessions: most sessions that are kept, ``active`` or more; each takes the caches' memory.

    Raises:
        OptionError: a number is out of its range.
    """

    active: int = 8
    queue: int = 64
    sessions: int = 16

    def __post_init__(self) -> None:
        for name, least in (("active", 1), ("queue", 1), ("sessions", self.active)):
            if getattr(self, name) < least:
                raise OptionError(f"{name}: expected {least} or more, got {getattr(self, name)}.")


class Engine:
    """One thread that calls the program. Functions may be called from any thread.

    Args:
        model: loaded; nobody else uses it.
        options: bounds.
    """

    def __init__(self, model: LanguageModel, options: EngineOptions | None = None) -> None:
        self._model, self._options = model, options or EngineOptions()
        self._pool = SessionPool(model.program, self._options.sessions)
        self._changed = threading.Condition()
        self._waiting: collections.deque[tuple[Submission, Prompt]] = collections.deque()
        self._active: collections.deque[Answer] = collections.deque()
        self._closing = False
        self._deadline: float | None = None
        self.steps = 0
        self._thread = threading.Thread(target=self._run, name="etcuda-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._closing

    def prepare(self, job: Job) -> list[Prompt]:
        """A request in tokens.

        Raises:
            ApiError: it asks for what the program cannot do.
        """
        if job.count > self._options.active:
            raise ApiError(400, f"n: expected at most {self._options.active}, got {job.count}. Ask again.", "n")
        name = "messages" if job.messages else "prompt"
        try:
            if job.messages:
                rendered = self._model.tokenizer.render(job.messages)
                # The template writes the tokens that begin a text itself.
                texts = [self._model.tokenizer.encode(rendered, special=False)]
            else:
                texts = [self._model.encode(each) if isinstance(each, str) else list(each) for each in job.prompts]
            if job.stop and not self._model.has_tokenizer:
                raise GenerationError("stop: expected a program with a tokenizer, got none. Leave stop out.")
        except GenerationError as error:
            raise ApiError(400, str(error), name) from error
        for ids in texts:
            self._check(ids, job, name)
        most = self._model.program.vocab_size - 1
        wrong = [token for token, _ in job.options.logit_bias if token > most]
        if wrong:
            said = f"logit_bias: expected token ids from 0 to {most}, got {wrong[0]}. Leave it out."
            raise ApiError(400, said, "logit_bias")
        made = [dataclasses.replace(job.options, seed=job.options.seed + place) for place in range(job.count)]
        return [self._prompt(job, ids, number * job.count, tuple(made)) for number, ids in enumerate(texts)]

    def _prompt(self, job: Job, ids: list[int], first: int, options: tuple[SamplingOptions, ...]) -> Prompt:
        choices = tuple(range(first, first + job.count))
        return Prompt(tuple(ids), choices, options, job.max_new_tokens, job.stop, job.ignore_eos, job.logprobs)

    def _check(self, ids: list[int], job: Job, name: str) -> None:
        program = self._model.program
        try:
            check_request(program, ids, job.max_new_tokens)
        except GenerationError as error:
            most = room(program, ids)
            much = most >= 1 and job.max_new_tokens is not None and job.max_new_tokens > most
            code = "context_length_exceeded" if much or most < 1 else None
            raise ApiError(400, str(error), "max_tokens" if much else name, code) from error

    def submit(self, prompts: list[Prompt], emit: Callable[[Event], None]) -> Submission:
        """Lets a request wait for its turn.

        Args:
            prompts: of ``prepare``.
            emit: is given the events, in the engine's thread.

        Raises:
            ApiError: the queue is full, or the engine is closing.
        """
        submission = Submission(emit)
        with self._changed:
            if not self.is_alive:
                raise gone(
                    "replica: expected one that takes requests, got one that is ending. Send it again.", "ending"
                )
            waiting = len({id(each) for each, _ in self._waiting})
            # Those that can begin at once do not wait.
            if waiting >= self._options.queue and (waiting or self._room() < len(prompts[0].choices)):
                raise busy(self._options.queue)
            emit(Started(sum(len(prompt.ids) for prompt in prompts)))
            self._waiting += [(submission, prompt) for prompt in prompts]
            self._changed.notify()
        return submission

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """The events of a request. To stop it, close the iterator."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()
        try:
            prompts = await asyncio.to_thread(self.prepare, job)
            submission = self.submit(prompts, lambda event: _put(loop, events, event))
        except ApiError as error:
            yield Failed(error)
            return
        left = job.num_choices
        try:
            while left:
                event = await events.get()
                yield event
                left = 0 if isinstance(event, Failed) else left - isinstance(event, Ended)
        finally:
            submission.cancelled.set()

    async def ready(self) -> int:
        """1 while requests are answered, or 0."""
        return int(self.is_alive)

    def close(self, seconds: float = 0.0) -> None:
        """Takes no more requests, gives those that are there so much time, fails the others, and returns at the end."""
        with self._changed:
            self._closing = True
            self._deadline = time.perf_counter() + seconds
            self._changed.notify()
        self._thread.join()

    def _room(self) -> int:
        return self._options.active - len(self._active)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._active and not self._closing:
                    self._changed.wait()
                self._admit()
            if self._closing and self._is_over():
                return
            if self._active:
                self._turn(self._active.popleft())

    def _is_over(self) -> bool:
        with self._changed:
            if self._deadline is not None and time.perf_counter() >= self._deadline:
                submissions = {id(each): each for each in [submission for submission, _ in self._waiting]}
                submissions |= {id(each.submission): each.submission for each in self._active}
                for submission in submissions.values():
                    self._fail(
                        submission, gone("replica: ended before the answer did. Send the request again.", "ending")
                    )
                self._waiting.clear()
                self._active.clear()
            return not self._waiting and not self._active

    def _admit(self) -> None:
        """Requests begin in their order, all answers of a prompt together."""
        while self._waiting:
            submission, prompt = self._waiting[0]
            if submission.cancelled.is_set():
                self._waiting.popleft()
                continue
            if len(prompt.choices) > self._room():
                return
            self._waiting.popleft()
            chunk = self._model.program.chunk
            leader = Answer(submission, prompt, 0, chunk)
            self._active.append(leader)
            self._active += [
                Answer(submission, prompt, place, chunk, leader) for place in range(1, len(prompt.choices))
            ]

    def _turn(self, answer: Answer) -> None:
        """One step of one answer; behind the others if it is not whole then."""
        if answer.submission.cancelled.is_set():
            self._release(answer)
            return
        try:
            if answer.leader is not None and not answer.follow(self._pool):
                self._active.append(answer)
                return
            if answer.lease is None:
                # A turn by itself: answers that follow copy the session before it has more than the prompt's chunks.
                answer.begin(self._pool)
                self._active.append(answer)
                return
            self.steps += 1
            if answer.step(self._model):
                self._active.append(answer)
                return
            self._release(answer)
            answer.submission.emit(answer.ended(self._model, self.steps, len(self._pool)))
        except Exception as error:  # The thread goes on for the other requests; this one is told.
            _log.exception("an answer failed")
            if answer.lease is not None:
                self._pool.drop(answer.lease)
            self._fail(answer.submission, failed(str(error) or type(error).__name__))

    def _release(self, answer: Answer) -> None:
        if answer.lease is not None:
            self._pool.give(answer.lease)
            answer.lease = None

    def _fail(self, submission: Submission, error: ApiError) -> None:
        if not submission.cancelled.is_set():
            submission.cancelled.set()
            submission.emit(Failed(error))


def _put(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    # A loop that is closed has nobody left who could read.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(events.put_nowait, event)
