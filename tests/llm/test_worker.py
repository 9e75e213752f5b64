"""The worker of ExecuTorch's LLM server: the wheel's own client drives it, in a process of its own."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from etcuda import llm
from etcuda.errors import OptionError
from etcuda.llm.worker import Worker
from tests.llm.conftest import Exported

upstream = pytest.importorskip(
    "executorch.examples.llm_server.python.worker_client", reason="the wheel has no LLM server"
)
pytestmark = pytest.mark.slow
Program = Callable[[str], Exported]


@dataclasses.dataclass
class Config:
    """What the server passes to the client for one request."""

    max_new_tokens: int = 12
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: list[str] = dataclasses.field(default_factory=list)
    session_id: str | None = None
    prompt_segments: list[dict[str, Any]] | None = None


def ask(client: Any, prompt: str, config: Config, take: Callable[[str], None] = lambda piece: None) -> tuple[str, Any]:
    """The answer and the figures."""
    pieces: list[str] = []
    figures: list[Any] = []

    def each(piece: str) -> None:
        pieces.append(piece)
        take(piece)

    client.generate(prompt, config, each, figures.append)
    return "".join(pieces), figures[0]


@pytest.fixture
def client(program: Program) -> Iterator[Any]:
    path = program("llama").path
    # As its server starts a --worker-bin.
    start = "import sys; from etcuda.cli.worker import llm_worker; llm_worker(sys.argv[1:])"
    arguments = ["--model_path", str(path), "--tokenizer_path", str(path.with_suffix(".tokenizer")), "--sessions", "3"]
    made = upstream.spawn_worker([sys.executable, "-c", start, *arguments])
    yield made
    made.close()


def test_the_client_of_the_wheel(client: Any, program: Program) -> None:
    model = llm.load(program("llama").path)
    text = "Shall I compare thee to a summer's day?"
    ids = model.tokenizer.encode(text, special=False)
    expected = model.generate(ids, max_new_tokens=12)
    assert (client.max_named_sessions, client.supports_cancel) == (2, True)
    answer, figures = ask(client, text, Config())
    assert answer == expected.text()
    assert (figures.num_prompt_tokens, figures.num_generated_tokens) == (len(ids), 12)
    assert (figures.finish_reason, figures.generated_token_ids) == ("length", expected.tokens)
    # A session that has a name goes on with the tokens that it made.
    named = Config(session_id="a", max_new_tokens=4)
    first, said = ask(client, text, named)
    assert answer.startswith(first)
    named.prompt_segments = [{"text": text}, {"ids": said.generated_token_ids}, {"text": " Thou art"}]
    _, figures = ask(client, "", named)
    assert figures.session_reset_reason == "exact_prefix"
    assert figures.reused_prompt_tokens == len(ids) + 3
    assert figures.prefilled_prompt_tokens + figures.reused_prompt_tokens == figures.num_prompt_tokens
    # A stop string is not said, and the tokens behind it are not for the client.
    stop = answer[5:8]
    stopped, figures = ask(client, text, Config(stop=[stop]))
    assert stopped == answer[: answer.index(stop)]
    assert (figures.finish_reason, figures.generated_token_ids) == ("stop", [])
    # Sessions are bounded; one that is closed leaves its place.
    client.open_session("b")
    with pytest.raises(upstream.WorkerError, match="expected at most 2 sessions, got one more") as refused:
        client.open_session("c")
    assert refused.value.code == "capacity_exhausted"
    client.close_session("a")
    client.open_session("c")
    client.reset_session("c")
    with pytest.raises(upstream.WorkerError, match="expected at most the 64 tokens"):
        ask(client, text * 9, Config())
    assert ask(client, text, Config())[0] == answer, "an error ends its request alone"


def test_cancelling(client: Any) -> None:
    begun = threading.Event()

    def take(_piece: str) -> None:
        if not begun.is_set():
            begun.set()
            assert client.stop()

    answer, figures = ask(client, "Shall I", Config(max_new_tokens=50), take)
    assert begun.is_set()
    assert figures.cancelled
    assert figures.num_generated_tokens < 50
    assert figures.generated_token_ids == []
    whole, figures = ask(client, "Shall I", Config(max_new_tokens=50))
    assert whole.startswith(answer)
    assert not figures.cancelled


def lines(model: llm.LanguageModel, *given: Any, sessions: int = 2) -> list[dict[str, Any]]:
    """What a worker says to these requests."""
    out = io.StringIO()
    worker = Worker(model, out, sessions)
    worker.run(each if isinstance(each, str) else json.dumps(each) for each in given)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_bad_lines(program: Program) -> None:
    model = llm.load(program("llama").path)
    bad = {
        "{": "line: expected JSON, got:",
        "[]": "line: expected a JSON object, got list",
        "[" * 100_000: "line: expected JSON, got: maximum recursion depth",
        '{"prompt": "\udcff"}': "prompt: expected a text of whole characters, got",
        "{}": "request: expected either prompt or prompt_segments, got both or none",
        '{"prompt": 4}': "prompt: expected str, got 4",
        '{"prompt": ""}': "prompt: expected one token or more, got none",
        '{"prompt": "x", "temperature": -1}': "temperature: expected 0 or more, got -1.0",
        '{"prompt": "x", "stop": [4]}': "stop: expected list, got [4]",
        '{"prompt_segments": [{"ids": ["x"]}]}': "prompt_segments: expected objects with text or ids, got",
        '{"prompt_segments": [{"ids": [512]}]}': "prompt: expected token ids from 0 to 511, got 512",
        '{"op": "dance"}': "op: expected open, close or reset, got 'dance'",
        '{"op": "open"}': "session_id: expected a name to open, got none",
    }
    ready, *said = lines(model, *bad)
    assert ready == {"ready": True, "max_sessions": 2, "max_named_sessions": 1, "supports_cancel": False}
    for message, expected in zip(said, bad.values(), strict=True):
        assert expected in message["error"]
    _, refused = lines(model, {"op": "open", "session_id": "a"}, sessions=1)
    assert (refused["code"], refused["session_id"]) == ("unsupported_session", "a")
    with pytest.raises(OptionError, match=r"sessions: expected 1 or more, got 0"):
        Worker(model, io.StringIO(), 0)
