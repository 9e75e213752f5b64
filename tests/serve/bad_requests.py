"""Requests that are refused, each with what the refusal says."""

from __future__ import annotations

import dataclasses
from typing import Any

SAID = [{"role": "user", "content": "Shall I compare thee to a summer's day?"}]


@dataclasses.dataclass(frozen=True)
class Bad:
    """What is sent, and a part of the message, the field and the code that come back."""

    sent: Any
    message: str
    param: str | None
    code: str | None = None
    status: int = 400
    path: str = "chat/completions"


def chat(message: str, code: str | None = None, param: str | None = None, **fields: Any) -> Bad:
    """A conversation with a field that is wrong: the one that the message begins with."""
    return Bad({"model": "m", "messages": SAID, **fields}, message, param or message.partition(":")[0], code)


def said(message: str, given: Any, param: str | None = None) -> Bad:
    """A conversation of one message that is wrong."""
    return chat(message, param=param, messages=[given])


def text(message: str, code: str | None = None, **fields: Any) -> Bad:
    """A prompt, with a field that is wrong."""
    sent = {"model": "m", "prompt": "Shall I", **fields}
    return Bad(sent, message, message.partition(":")[0], code, path="completions")


UNSERVED, LONG = "unsupported_parameter", "context_length_exceeded"
_ROLES = "system, developer, user, assistant, tool"
_PROMPT = "prompt: expected a text, a list of token ids, or a list of at most 32 of these, got "
BAD = (
    Bad([], "body: expected a JSON object, got list", None),
    Bad(b"{", "body: expected JSON, got 1 bytes that are none", None),
    Bad(b"[" * 100_000, "body: expected JSON, got 100000 bytes that are none: maximum recursion", None),
    Bad({"messages": SAID}, "model: expected the name 'm', got None", "model"),
    Bad({"model": "z"}, "model: expected 'm', which is served, got 'z'", "model", "model_not_found", 404),
    Bad({"model": "m"}, "messages: expected a list of one message or more, got None", "messages"),
    said("messages[0]: expected an object with role and content, got 'x'", "x"),
    said(f"messages[0].role: expected one of {_ROLES}, got 'judge'", {"role": "judge", "content": "?"}),
    said("chat: expected messages that the chat template takes", {"role": "tool", "content": "?"}, "messages"),
    said("prompt: expected a text of whole characters", {"role": "user", "content": "\ud800"}, "messages"),
    said("messages[0].content: expected a text or a list of parts of text, got 4", {"role": "user", "content": 4}),
    said("messages[0].content: expected parts of the type text", {"role": "user", "content": [{"type": "image_url"}]}),
    chat(
        "messages[0].tool_calls: expected none or [], got [{}]",
        UNSERVED,
        messages=[{"role": "assistant", "content": "", "tool_calls": [{}]}],
    ),
    said("messages[0].name: expected a text, got 4", {"role": "user", "content": "?", "name": 4}),
    chat(
        "messages[0].weight: expected no such field, but role, content, name, tool_call_id, got one",
        UNSERVED,
        messages=[{"role": "user", "content": "?", "weight": 0}],
    ),
    chat(
        "max_tokenz: expected no such field, but messages, max_completion_tokens, top_logprobs, model, n, ",
        UNSERVED,
        max_tokenz=4,
    ),
    chat("prompt: expected no such field, but ", UNSERVED, prompt="Shall I"),
    chat("reasoning_effort: expected none or 'none', got 'high'", UNSERVED, reasoning_effort="high"),
    chat("verbosity: expected none, got 'low'", UNSERVED, verbosity="low"),
    chat(
        "stream_options.include_obfuscation: expected none or False, got True",
        UNSERVED,
        stream=True,
        stream_options={"include_obfuscation": True},
    ),
    chat("temperature: expected a number, at least 0, at most 2, got 3", temperature=3),
    chat("temperature: expected a number, at least 0, at most 2, got nan", temperature=float("nan")),
    chat("top_p: expected a number above 0, at most 1, got 0", top_p=0),
    chat("seed: expected a whole number, at least 0", seed=-1),
    chat("n: expected a whole number, at least 1, at most 128, got 0", n=0),
    chat("n: expected at most 8, got 9", n=9),
    chat("stream: expected true or false, got 'yes'", stream="yes"),
    chat("stream_options: expected an object, together with stream, got 4", stream_options=4),
    chat("max_tokens: expected a whole number, at least 1, got True", max_tokens=True),
    chat("max_completion_tokens: expected the number of max_tokens, 4, got 5", max_tokens=4, max_completion_tokens=5),
    chat("max_new_tokens: expected 1 to ", LONG, "max_tokens", max_tokens=300),
    chat("stop: expected a text or a list of at most 4, got ['a', 'b'", stop=list("abcde")),
    chat("stop: expected texts that are not empty, got ['']", stop=[""]),
    chat("presence_penalty: expected a number, at least -2, at most 2, got 3", presence_penalty=3),
    chat("frequency_penalty: expected a number, at least -2, at most 2, got 'x'", frequency_penalty="x"),
    chat("logit_bias: expected an object with token ids for names, got {'a': 1}", logit_bias={"a": 1}),
    chat("logit_bias: expected an object with token ids for names, got [5]", logit_bias=[5]),
    chat("logit_bias.7: expected a number, at least -100, at most 100, got 101", logit_bias={"7": 101}),
    chat("logit_bias: expected token ids from 0 to 511, got 512", logit_bias={"512": 1}),
    chat("logprobs: expected true or false, got 2", logprobs=2),
    chat("top_logprobs: expected a whole number, at least 0, at most 20, got 21", logprobs=True, top_logprobs=21),
    chat("top_logprobs: expected logprobs true with it, got 3", top_logprobs=3),
    chat("tools: expected none or [], got [{}]", UNSERVED, tools=[{}]),
    chat("response_format: expected none or {'type': 'text'}", UNSERVED, response_format={"type": "json_object"}),
    text(_PROMPT + "[]", prompt=[]),
    text(_PROMPT + "[1, 'x']", prompt=[1, "x"]),
    text(_PROMPT + "[[5], []]", prompt=[[5], []]),
    text("prompt: expected token ids from 0 to 511, got 512", prompt=[512]),
    text("prompt: expected at most the 256 tokens that the program's cache holds, got 257", LONG, prompt=[5] * 257),
    text("logprobs: expected a whole number, at least 0, at most 5, got 6", logprobs=6),
    text("max_completion_tokens: expected no such field, but ", UNSERVED, max_completion_tokens=4),
    text("echo: expected none or False, got True", UNSERVED, echo=True),
)
