"""Answers of OpenAI's interface: JSON objects, and events of a stream."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etcuda.serve.errors import ApiError
from etcuda.serve.job import Ended, Event, Failed, Piece, Started
from etcuda.serve.request import Request

DONE = b"data: [DONE]\n\n"


def sse(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@dataclasses.dataclass
class Usage:
    """Numbers of tokens of a request."""

    prompt: int = 0
    reused: int = 0
    generated: int = 0

    def add(self, event: Event, count: int) -> None:
        """Takes an event into account; a prompt counts once for its ``count`` answers."""
        if isinstance(event, Started):
            self.prompt = event.prompt_tokens
        elif isinstance(event, Ended):
            self.generated += event.figures.generated_tokens
            self.reused += event.figures.reused_tokens if event.choice % count == 0 else 0

    def to_json(self) -> dict[str, Any]:
        """As clients read it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.reused},
        }


class Writer:
    """Makes the JSON of one answer from its events.

    Args:
        request: that is answered.
        model: the name of what is served.
    """

    def __init__(self, request: Request, model: str) -> None:
        self._request, self._usage = request, Usage()
        prefix, self._kind = ("chatcmpl", "chat.completion") if request.is_chat else ("cmpl", "text_completion")
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._texts = [""] * request.job.num_choices
        self._reasons = [""] * request.job.num_choices

    def take(self, event: Event) -> None:
        """Adds an event to the whole answer.

        Raises:
            ApiError: the event says that the request failed.
        """
        self._usage.add(event, self._request.job.count)
        match event:
            case Piece(choice, text):
                self._texts[choice] += text
            case Ended(choice, reason):
                self._reasons[choice] = reason
            case Failed(error):
                raise error

    def whole(self) -> dict[str, Any]:
        """The answer, when all events were taken."""
        choices = []
        for index, (text, reason) in enumerate(zip(self._texts, self._reasons, strict=True)):
            said = {"message": {"role": "assistant", "content": text}} if self._request.is_chat else {"text": text}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": reason})
        return {**self._head, "object": self._kind, "choices": choices, "usage": self._usage.to_json()}

    def stream(self, event: Event) -> Iterator[bytes]:
        """What an event adds to a stream."""
        is_chat = self._request.is_chat
        self._usage.add(event, self._request.job.count)
        match event:
            case Started() if is_chat:
                for index in range(len(self._texts)):
                    yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}})
            case Piece(choice, text):
                yield self._chunk(choice, {"delta": {"content": text}} if is_chat else {"text": text})
            case Ended(choice, reason):
                yield self._chunk(choice, {"delta": {}} if is_chat else {"text": ""}, reason)
            case Failed(error):
                yield self.failure(error)

    def end(self) -> Iterator[bytes]:
        """What ends a stream."""
        if self._request.include_usage:
            yield sse({**self._stream_head(), "choices": [], "usage": self._usage.to_json()})
        yield DONE

    def failure(self, error: ApiError) -> bytes:
        """An error after a stream began, when its status is sent already."""
        return sse(error.body())

    def _chunk(self, index: int, said: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self._request.include_usage else {}
        return sse({**self._stream_head(), "choices": [choice], **usage})

    def _stream_head(self) -> dict[str, Any]:
        return {**self._head, "object": f"{self._kind}.chunk" if self._request.is_chat else self._kind}
