"""What a replica is asked for, and what it tells while it answers. All of it travels between processes."""

from __future__ import annotations

import dataclasses
from typing import Any

from etcuda.llm.sampling import SamplingOptions
from etcuda.serve.errors import ApiError


@dataclasses.dataclass(frozen=True)
class Job:
    """A request, checked as far as that goes without the program.

    Attributes:
        prompts: texts or token ids, each answered ``count`` times; of a conversation there is none.
        messages: a conversation, each with ``role`` and ``content``; empty for ``prompts``.
        count: answers of each prompt. The choice ``i`` of prompt ``p`` has the number ``p * count + i``.
        options: how tokens are chosen; choice ``i`` draws with ``options.seed + i``.
        max_new_tokens: most tokens of each answer; ``None`` for as many as the cache holds.
        stop: texts that end an answer.
        ignore_eos: go on behind a token that ends the answer.
        logprobs: how many of the likeliest tokens to tell beside each of an answer; ``None`` to tell nothing.
    """

    prompts: tuple[str | tuple[int, ...], ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    count: int = 1
    options: SamplingOptions = dataclasses.field(default_factory=SamplingOptions)
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    @property
    def num_choices(self) -> int:
        """Answers in all."""
        return max(len(self.prompts), 1) * self.count

    def text(self) -> str:
        """The prompt as text of which a longer conversation's begins with this one's; of several, the first's."""
        if self.messages:
            return "".join(f"{message['role']}\x1f{message['content']}\x1e" for message in self.messages)
        first = self.prompts[0]
        return first if isinstance(first, str) else "".join(f"{token} " for token in first)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What an answer took.

    Attributes:
        prompt_tokens: of its prompt.
        reused_tokens: of these, how many a session held already.
        generated_tokens: of the answer.
        queue_seconds: from the request to the first call of the program for it.
        first_token_seconds: from the request to the first token.
        decode_seconds: from the first token to the last.
        steps: chunks and tokens that the replica computed for all requests since it began.
        sessions: that the replica keeps.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    decode_seconds: float = 0.0
    steps: int = 0
    sessions: int = 0


@dataclasses.dataclass(frozen=True)
class Started:
    """The request is taken: it waits for its turn. ``prompt_tokens`` are those of all prompts."""

    prompt_tokens: int


@dataclasses.dataclass(frozen=True)
class Likely:
    """The text of a token, and its log-probability."""

    text: str
    logprob: float


@dataclasses.dataclass(frozen=True)
class Said:
    """A token of an answer, and the likeliest in its place."""

    token: Likely
    top: tuple[Likely, ...]


@dataclasses.dataclass(frozen=True)
class Piece:
    """More text of a choice. ``tokens`` are those since the piece before, if they were asked for."""

    choice: int
    text: str
    tokens: tuple[Said, ...] = ()


@dataclasses.dataclass(frozen=True)
class Ended:
    """A choice is whole; ``reason`` is ``"stop"`` or ``"length"``, ``tokens`` are those without text at its end."""

    choice: int
    reason: str
    figures: Figures
    replica: str = ""
    tokens: tuple[Said, ...] = ()


@dataclasses.dataclass(frozen=True)
class Failed:
    """Nothing more comes."""

    error: ApiError


Event = Started | Piece | Ended | Failed
