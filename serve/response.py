"""Answers of OpenAI's interface: JSON objects, and events of a stream."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from etcuda.serve.errors import ApiError
from etcuda.serve.job import Ended, Event, Failed, Likely, Piece, Said, Started
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


class _Logprobs:
    """The field ``logprobs`` of one choice's tokens, whole or a part at a time.

    Args:
        is_chat: as of ``Request``.
    """

    def __init__(self, is_chat: bool) -> None:
        self._is_chat, self._offset = is_chat, 0

    def to_json(self, tokens: Sequence[Said]) -> dict[str, Any]:
        """As clients read it; offsets go on from call to call."""
        if self._is_chat:
            content = [{**_likely(each.token), "top_logprobs": [_likely(one) for one in each.top]} for each in tokens]
            return {"content": content, "refusal": None}
        offsets = []
        for each in tokens:
            offsets.append(self._offset)
            self._offset += len(each.token.text)
        # OpenAI tells the chosen one in any case.
        top = [{one.text: _finite(one.logprob) for one in (*each.top, each.token)} for each in tokens]
        return {
            "tokens": [each.token.text for each in tokens],
            "token_logprobs": [_finite(each.token.logprob) for each in tokens],
            "top_logprobs": top,
            "text_offset": offsets,
        }


def _likely(token: Likely) -> dict[str, Any]:
    # A part of a character has bytes that its text does not tell.
    raw = None if "\ufffd" in token.text else list(token.text.encode())
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": raw}


def _finite(logprob: float) -> float:
    # What OpenAI writes for a probability of 0, for which JSON has no logarithm.
    return max(logprob, -9999.0)


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
        self._texts: list[list[str]] = [[] for _ in range(request.job.num_choices)]
        self._reasons = [""] * request.job.num_choices
        self._tokens: list[list[Said]] = [[] for _ in self._texts]
        self._logprobs = [_Logprobs(request.is_chat) for _ in self._texts]

    def take(self, event: Event) -> None:
        """Adds an event to the whole answer.

        Raises:
            ApiError: the event says that the request failed.
        """
        self._usage.add(event, self._request.job.count)
        match event:
            case Piece(choice, text, tokens):
                self._texts[choice].append(text)
                self._tokens[choice] += tokens
            case Ended(choice, reason):
                self._reasons[choice] = reason
                self._tokens[choice] += event.tokens
            case Failed(error):
                raise error

    def whole(self) -> dict[str, Any]:
        """The answer, when all events were taken."""
        choices = []
        for index, (pieces, reason) in enumerate(zip(self._texts, self._reasons, strict=True)):
            text = "".join(pieces)
            said = {"message": {"role": "assistant", "content": text}} if self._request.is_chat else {"text": text}
            logprobs = self._told(index, self._tokens[index])
            choices.append({"index": index, **said, "logprobs": logprobs, "finish_reason": reason})
        return {**self._head, "object": self._kind, "choices": choices, "usage": self._usage.to_json()}

    def stream(self, event: Event) -> Iterator[bytes]:
        """What an event adds to a stream."""
        is_chat = self._request.is_chat
        self._usage.add(event, self._request.job.count)
        match event:
            case Started() if is_chat:
                for index in range(len(self._texts)):
                    yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}})
            case Piece(choice, text, tokens):
                yield self._chunk(choice, {"delta": {"content": text}} if is_chat else {"text": text}, tokens=tokens)
            case Ended(choice, reason):
                yield self._chunk(choice, {"delta": {}} if is_chat else {"text": ""}, reason, event.tokens)
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

    def _told(self, index: int, tokens: Sequence[Said]) -> dict[str, Any] | None:
        return None if self._request.job.logprobs is None else self._logprobs[index].to_json(tokens)

    def _chunk(self, index: int, said: dict[str, Any], reason: str | None = None, tokens: Sequence[Said] = ()) -> bytes:
        logprobs = self._told(index, tokens) if tokens else None
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._request.include_usage else {}
        return sse({**self._stream_head(), "choices": [choice], **usage})

    def _stream_head(self) -> dict[str, Any]:
        return {**self._head, "object": f"{self._kind}.chunk" if self._request.is_chat else self._kind}
