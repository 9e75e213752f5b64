"""The worker of ExecuTorch's LLM server: one JSON object a line, requests in and pieces of text out.

Its messages are those of ``executorch.examples.llm_server`` in ExecuTorch 1.5, whose ``WorkerClient`` is the other end.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from etcuda.errors import GenerationError, OptionError
from etcuda.llm.language_model import Generation, LanguageModel, TextSession
from etcuda.llm.sampling import SamplingOptions
from etcuda.llm.text_session import TokenSession, check_request, room

# The descriptor of the pipe by which requests are cancelled, and the bytes of a request's number in it.
_CONTROL_FD = "EXECUTORCH_LLM_WORKER_CONTROL_FD"
_FRAME = 8


class WorkerRefusal(GenerationError):
    """A request that the worker refuses for a reason that the protocol has a code for."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclasses.dataclass
class _Named:
    """A conversation that the client gave a name."""

    tokens: TokenSession
    failed: bool = False


class Cancellation:
    """Numbers of requests that are to end, from a pipe that a thread reads.

    Args:
        descriptor: of the pipe.
    """

    def __init__(self, descriptor: int) -> None:
        self._pipe = os.fdopen(descriptor, "rb", buffering=0)
        self._lock = threading.Lock()
        self._numbers: set[int] = set()
        self._running: tuple[int, Generation] | None = None
        threading.Thread(target=self._read, name="etcuda-cancel", daemon=True).start()

    def begin(self, number: int, generation: Generation) -> None:
        """A request is computed from now on; it may have been cancelled before."""
        with self._lock:
            self._running = number, generation
            # Numbers grow: those before belong to requests that have ended.
            self._numbers = {each for each in self._numbers if each >= number}
            if number in self._numbers:
                generation.cancel()

    def end(self) -> None:
        """It is computed no more."""
        with self._lock:
            self._running = None

    def _read(self) -> None:
        frame = b""
        while part := self._pipe.read(_FRAME - len(frame)):
            frame += part
            if len(frame) < _FRAME:
                continue
            number, frame = int.from_bytes(frame, "little"), b""
            with self._lock:
                self._numbers.add(number)
                if self._running is not None and self._running[0] == number:
                    self._running[1].cancel()


def inherited() -> Cancellation | None:
    """Of the pipe that the client left open for this process, if it did."""
    descriptor = os.environ.get(_CONTROL_FD)
    return None if descriptor is None else Cancellation(int(descriptor))


class Worker:
    """Answers requests one after the other, in sessions over one set of weights.

    Args:
        model: loaded.
        out: takes the lines.
        sessions: most conversations at a time, one of them without a name.
        cancellation: of requests, if there is a pipe for it.

    Raises:
        OptionError: there is to be no session.
    """

    def __init__(
        self, model: LanguageModel, out: TextIO, sessions: int = 8, cancellation: Cancellation | None = None
    ) -> None:
        if sessions < 1:
            raise OptionError(f"sessions: expected 1 or more, got {sessions}.")
        self._model, self._out, self._cancellation = model, out, cancellation
        self._most = sessions - 1
        self._named: dict[str, _Named] = {}

    def run(self, lines: Iterable[str]) -> None:
        """Says that it is ready, and answers until there are no more lines."""
        cancels = self._cancellation is not None
        self._say(ready=True, max_sessions=self._most + 1, max_named_sessions=self._most, supports_cancel=cancels)
        for line in lines:
            if line.strip():
                self._answer(line)

    def _answer(self, line: str) -> None:
        name: dict[str, str] = {}
        try:
            request = _object(line)
            if request.get("session_id"):
                name = {"session_id": str(request["session_id"])}
            self._operate(request)
        except GenerationError as error:
            code = {"code": error.code, **name} if isinstance(error, WorkerRefusal) else {}
            self._say(error=str(error), **code)

    def _operate(self, request: Mapping[str, Any]) -> None:
        operation = request.get("op")
        name = _field(request, "session_id", str, "")
        if operation is None:
            self._generate(request, name)
            return
        if operation not in ("open", "close", "reset"):
            raise GenerationError(f"op: expected open, close or reset, got {operation!r}. Leave it out to generate.")
        if not name:
            raise GenerationError(f"session_id: expected a name to {operation}, got none. Send one.")
        if operation == "open":
            self._open(name)
            self._say(opened=True, session_id=name)
        elif operation == "close":
            self._named.pop(name, None)
            self._say(closed=True, session_id=name)
        else:
            if name in self._named:
                self._named[name] = self._new()
            self._say(reset=True, session_id=name)

    def _open(self, name: str) -> _Named:
        if name not in self._named:
            if self._most == 0:
                raise WorkerRefusal(
                    "session_id: expected none, got one, and this worker keeps no session. Start it with --sessions 2.",
                    "unsupported_session",
                )
            if len(self._named) >= self._most:
                raise WorkerRefusal(
                    f"session_id: expected at most {self._most} sessions, got one more. Close one, or start the worker "
                    "with more --sessions.",
                    "capacity_exhausted",
                )
            self._named[name] = self._new()
        return self._named[name]

    def _new(self) -> _Named:
        return _Named(TokenSession(self._model.program))

    def _generate(self, request: Mapping[str, Any], name: str) -> None:
        ids = self._prompt(request)
        program = self._model.program
        check_request(program, ids, None)
        session = self._open(name) if name else self._new()
        if session.failed:
            session.tokens = TokenSession(program)
        reason = "dirty" if session.failed else _reason(session.tokens.tokens, ids)
        wanted = _field(request, "max_new_tokens", int, -1)
        most = room(program, ids) if wanted <= 0 else min(wanted, room(program, ids))
        options = SamplingOptions(
            temperature=_field(request, "temperature", float, 0.0),
            top_p=_field(request, "top_p", float, 1.0),
            top_k=_field(request, "top_k", int, 0),
            seed=_field(request, "seed", int, 0),
        )
        stop = tuple(_field(request, "stop", list, []))
        made = TextSession(self._model, session.tokens).generate(ids, options, max_new_tokens=most, stop=stop)
        session.failed = True
        self._stream(made, _field(request, "cancel_request_id", int, 0))
        session.failed = False
        self._say(**_done(self._model, made, stop, reason))

    def _stream(self, made: Generation, number: int) -> None:
        if self._cancellation is not None and number:
            self._cancellation.begin(number, made)
        try:
            for piece in made:
                self._say(token=piece)
        finally:
            if self._cancellation is not None:
                self._cancellation.end()

    def _prompt(self, request: Mapping[str, Any]) -> list[int]:
        """Token ids of a prompt, which is rendered already: nothing is set around it."""
        if ("prompt" in request) == ("prompt_segments" in request):
            raise GenerationError("request: expected either prompt or prompt_segments, got both or none. Send one.")
        if "prompt" in request:
            return self._model.tokenizer.encode(_field(request, "prompt", str, ""), special=False)
        ids: list[int] = []
        for segment in _field(request, "prompt_segments", list, []):
            match segment:
                case {"ids": [*some]} if all(type(each) is int for each in some):
                    ids += some
                case {"text": str(text)}:
                    ids += self._model.tokenizer.encode(text, special=False)
                case _:
                    raise GenerationError(f"prompt_segments: expected objects with text or ids, got {segment!r}.")
        return ids

    def _say(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def _done(model: LanguageModel, made: Generation, stop: Sequence[str], reason: str) -> dict[str, Any]:
    """The message that ends an answer."""
    report = made.report
    cancelled = report.finish_reason == "cancelled"
    message = {
        "done": True,
        "prompt_tokens": report.prompt_tokens,
        "completion_tokens": len(made.tokens),
        "finish_reason": "stop" if cancelled else report.finish_reason,
        "reused_prompt_tokens": report.reused_tokens,
        "prefilled_prompt_tokens": report.prompt_tokens - report.reused_tokens,
        "session_reset_reason": reason,
        "prefill_ms": 1e3 * report.prefill_seconds,
        "decode_ms": 1e3 * report.decode_seconds,
        "total_ms": 1e3 * (report.prefill_seconds + report.decode_seconds),
        "prefill_tok_s": report.prompt_rate,
        "decode_tok_s": report.decode_rate,
        "cancelled": cancelled,
    }
    trimmed = bool(stop) and any(each in model.tokenizer.decode(made.tokens) for each in stop)
    # Tokens whose text the client has not seen are not its to send again.
    return message if trimmed or cancelled else message | {"generated_token_ids": made.tokens}


def _reason(held: Sequence[int], ids: Sequence[int]) -> str:
    """What a session holds, compared with a prompt, in the protocol's words."""
    if not held:
        return "new"
    if list(ids[: len(held)]) != list(held):
        return "mismatch"
    return "equal" if len(held) == len(ids) else "exact_prefix"


def _object(line: str) -> Mapping[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise GenerationError(f"line: expected JSON, got: {error}. Send one object a line.") from error
    if not isinstance(request, dict):
        raise GenerationError(f"line: expected a JSON object, got {type(request).__name__}. Send one object a line.")
    return request


def _field(request: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = request.get(name)
    if value is None:
        return default
    if kind is float and type(value) is int:
        return float(value)
    wrong = type(value) is not kind
    if wrong or (name == "stop" and not all(isinstance(each, str) for each in value)):
        raise GenerationError(f"{name}: expected {kind.__name__}, got {value!r}. Correct it, or leave it out.")
    return value
