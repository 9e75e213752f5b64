"""Requests of OpenAI's interface, from JSON to a ``Job``."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

from etcuda.llm.sampling import SamplingOptions
from etcuda.serve.errors import ApiError
from etcuda.serve.fields import Fields, refuse
from etcuda.serve.job import Job

# A template may know fewer; which, only the replica can tell.
ROLES = ("system", "developer", "user", "assistant", "tool")
# What would change the answer and is not computed.
_UNSERVED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "best_of": (1,),
    "echo": (False,),
    "audio": (),
    "prediction": (),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}
# What is computed, or asked for by its name above.
_SERVED = (
    "model", "n", "temperature", "top_p", "seed", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "logit_bias", "stop", "max_tokens",
    "stream", "logprobs", "stream_options", "ignore_eos",
)  # fmt: skip
# What says nothing about the answer: who asks, and what OpenAI would keep.
_NO_MATTER = (
    "user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
)  # fmt: skip
_OF_CHAT, _OF_PROMPTS = ("messages", "max_completion_tokens", "top_logprobs"), ("prompt",)
# Of a message: what the chat template is given, what else clients send back of an answer, and what they may not.
_PASSED = ("name", "tool_call_id")
_SAID = ("role", "content", *_PASSED)
_UNSERVED_SAID: dict[str, tuple[Any, ...]] = {
    "tool_calls": ([],),
    "function_call": (),
    "refusal": ("",),
    "audio": (),
    "annotations": ([],),
}
_MOST_STOPS, _MOST_PROMPTS, _DEFAULT_TOKENS = 4, 32, 16
# As of OpenAI.
_MOST_LIKELY, _MOST_LIKELY_OF_PROMPTS = 20, 5


@dataclasses.dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        is_chat: a conversation is to be answered, and not a prompt continued.
        job: what is to be computed.
        stream: pieces as they are made.
        include_usage: a stream ends with the numbers of tokens.
    """

    is_chat: bool
    job: Job
    stream: bool = False
    include_usage: bool = False


def parse(body: Any, model: str, is_chat: bool) -> Request:
    """Reads the JSON of a request.

    Args:
        body: what the client sent.
        model: the name of what is served.
        is_chat: as of ``Request``.

    Raises:
        ApiError: something is wrong, or asks for what is not served; another model has the status 404.
    """
    if not isinstance(body, Mapping):
        raise ApiError(400, f"body: expected a JSON object, got {type(body).__name__}. Send one.")
    fields = Fields(body)
    _check_model(fields, model)
    for name, allowed in _UNSERVED.items():
        fields.only(name, *allowed)
    fields.known((*(_OF_CHAT if is_chat else _OF_PROMPTS), *_SERVED), (*_NO_MATTER, *_UNSERVED))
    stream = fields.flag("stream")
    count = fields.integer("n", 1, 128) or 1
    temperature = fields.number("temperature", 1.0, 0.0, 2.0)
    top_p = fields.number("top_p", 1.0, 0.0, 1.0)
    if top_p == 0:
        raise refuse("top_p", "a number above 0, at most 1", top_p)
    seed = fields.integer("seed", 0, 2**63 - 1 - 128)
    options = SamplingOptions(
        temperature=temperature,
        top_p=top_p,
        top_k=fields.integer("top_k", 0) or 0,
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 1e-3, 1e3),
        seed=secrets.randbits(62) if seed is None else seed,
        presence_penalty=fields.number("presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        logit_bias=_logit_bias(fields),
    )
    job = Job(
        prompts=() if is_chat else _prompts(fields),
        messages=_messages(fields) if is_chat else (),
        count=count,
        options=options,
        max_new_tokens=_max_tokens(fields, is_chat),
        stop=fields.texts("stop", _MOST_STOPS),
        ignore_eos=fields.flag("ignore_eos"),
        logprobs=_logprobs(fields, is_chat),
    )
    return Request(is_chat, job, stream, _include_usage(fields, stream))


def _check_model(fields: Fields, model: str) -> None:
    wanted = fields.get("model")
    if not isinstance(wanted, str):
        raise refuse("model", f"the name {model!r}", wanted)
    if wanted != model:
        raise ApiError(
            404, f"model: expected {model!r}, which is served, got {wanted!r}. Ask for it.", "model", "model_not_found"
        )


def _max_tokens(fields: Fields, is_chat: bool) -> int | None:
    old, new = fields.integer("max_tokens", 1), fields.integer("max_completion_tokens", 1) if is_chat else None
    if old is not None and new is not None and old != new:
        raise refuse("max_completion_tokens", f"the number of max_tokens, {old}", new)
    given = new if old is None else old
    return _DEFAULT_TOKENS if given is None and not is_chat else given


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    given = fields.get("logit_bias")
    if given is None:
        return ()
    if not isinstance(given, Mapping) or not all(_is_id(token) for token in given):
        raise refuse("logit_bias", "an object with token ids for names", given)
    values = Fields(given, "logit_bias.")
    return tuple((int(token), values.number(token, 0.0, -100.0, 100.0)) for token in given)


def _is_id(name: Any) -> bool:
    return isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < 10


def _logprobs(fields: Fields, is_chat: bool) -> int | None:
    """How many of the likeliest tokens to tell; a conversation's field is a flag, a prompt's the number itself."""
    if not is_chat:
        return fields.integer("logprobs", 0, _MOST_LIKELY_OF_PROMPTS)
    top = fields.integer("top_logprobs", 0, _MOST_LIKELY)
    if fields.flag("logprobs"):
        return top or 0
    if top is not None:
        raise refuse("top_logprobs", "logprobs true with it", top)
    return None


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, Mapping):
        raise refuse("stream_options", "an object, together with stream", options)
    inside = Fields(options, "stream_options.")
    inside.only("include_obfuscation", False)
    inside.known(("include_usage",), ("include_obfuscation",))
    return inside.flag("include_usage")


def _messages(fields: Fields) -> tuple[dict[str, Any], ...]:
    given = fields.get("messages")
    if not isinstance(given, list) or not given:
        raise refuse("messages", "a list of one message or more", given)
    return tuple(_message(number, each) for number, each in enumerate(given))


def _message(number: int, given: Any) -> dict[str, Any]:
    name = f"messages[{number}]"
    if not isinstance(given, Mapping):
        raise refuse(name, "an object with role and content", given)
    role = given.get("role")
    if role not in ROLES:
        raise refuse(f"{name}.role", f"one of {', '.join(ROLES)}", role)
    fields = Fields(given, f"{name}.")
    for unserved, allowed in _UNSERVED_SAID.items():
        fields.only(unserved, *allowed)
    fields.known(_SAID, _UNSERVED_SAID)
    more = {each: fields.get(each) for each in _PASSED if fields.get(each) is not None}
    for each, value in more.items():
        if not isinstance(value, str):
            raise refuse(f"{name}.{each}", "a text", value)
    return {"role": role, "content": _content(f"{name}.content", given.get("content")), **more}


def _content(name: str, given: Any) -> str:
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not given:
        raise refuse(name, "a text or a list of parts of text", given)
    for part in given:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise refuse(name, "parts of the type text alone", part)
    return "".join(part["text"] for part in given)


def _prompts(fields: Fields) -> tuple[str | tuple[int, ...], ...]:
    given = fields.get("prompt")
    expected = f"a text, a list of token ids, or a list of at most {_MOST_PROMPTS} of these"
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list) or not given:
        raise refuse("prompt", expected, given)
    if _are_ids(given):
        return (tuple(given),)
    if len(given) > _MOST_PROMPTS or not all(isinstance(each, str) or _are_ids(each) for each in given):
        raise refuse("prompt", expected, given)
    return tuple(each if isinstance(each, str) else tuple(each) for each in given)


def _are_ids(given: Any) -> bool:
    whole = isinstance(given, list) and bool(given)
    return whole and all(isinstance(each, int) and not isinstance(each, bool) for each in given)
