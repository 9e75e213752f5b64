"""The service on a cluster of two nodes, a replica on each, by the client of OpenAI."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from etcuda import llm
from tests.llm.conftest import Exported
from tests.serve.processes import replicas, until

openai = pytest.importorskip("openai", reason="openai is not installed")
pytest.importorskip("ray.serve", reason="ray[serve] is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
TEXT = "Shall I compare thee to a summer's day? Thou art more lovely and more temperate"


@pytest.fixture(scope="module")
def path(program: Callable[[str], Exported]) -> pathlib.Path:
    return program("llama").path


@pytest.fixture(scope="module")
def service(path: pathlib.Path) -> Iterator[Any]:
    # Before Ray is imported, which reads it then.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    import tests.serve.slow as slow
    from etcuda.serve.launch import ServeOptions, Service

    # The cluster's processes do not see the tests.
    cloudpickle.register_pickle_by_value(slow)
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ServeOptions(path, name="m", port=port, replicas=2, address=cluster.address, drain_seconds=60)
        made = Service(options, slow.SlowReplica)
        yield made
        made.stop()
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def lone(path: pathlib.Path) -> Callable[[str, int], str]:
    model = llm.load(path)
    return lambda text, count: model.generate(text, max_new_tokens=count, ignore_eos=True).text()


def ask(service: Any, text: str, count: int, **more: Any) -> Any:
    api = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=600)
    more = {"temperature": 0, "extra_body": {"ignore_eos": True}, **more}
    return api.completions.create(model="m", prompt=text, max_tokens=count, **more)


def steps(service: Any) -> dict[str, int]:
    """Steps of each replica, as far as an answer has told."""
    with urllib.request.urlopen(f"{service.url}/metrics") as answer:
        text = answer.read().decode()
    return {name: int(count) for name, count in re.findall(r'steps_total\{replica="(\w+)"\} (\d+)', text)}


def test_streams_choices_and_refusals(service: Any, lone: Callable[[str, int], str]) -> None:
    assert service.health() == {"status": "ok", "replicas": 2}
    assert len(set(replicas().values())) == 2, "a replica on each node"
    # Nobody reads this one before the others are answered.
    unread = ask(service, "So long as men", 20, stream=True)
    whole = ask(service, "Shall I", 12, n=2)
    assert [choice.text for choice in whole.choices] == [lone("Shall I", 12)] * 2
    assert "".join(chunk.choices[0].text for chunk in ask(service, "Shall I", 12, stream=True)) == lone("Shall I", 12)
    assert "".join(chunk.choices[0].text for chunk in unread) == lone("So long as men", 20)
    with pytest.raises(openai.BadRequestError, match=r"prompt: expected at most the 64 tokens") as refused:
        ask(service, TEXT * 3, 4)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match=r"n: expected at most 8, got 9"):
        ask(service, "Shall I", 4, n=9)


def test_a_conversation_finds_its_replica_and_leaving_it_stops_it(service: Any) -> None:
    before = steps(service)
    first = ask(service, TEXT, 1)
    (name,) = [each for each, count in steps(service).items() if count != before.get(each)]
    begun = steps(service)[name]
    stream = ask(service, TEXT, 26, stream=True)
    next(iter(stream))
    stream.close()

    def noticed() -> bool:
        with urllib.request.urlopen(f"{service.url}/metrics") as answer:
            return b'etcuda_requests_total{status="499"} 1' in answer.read()

    until(noticed, "a client that left to be noticed")
    again = ask(service, TEXT, 1)
    stopped = steps(service)[name]
    assert again.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1
    # A token of the first request is two steps at most, 26 would be 27.
    assert begun < stopped < begun + 27
    ask(service, TEXT, 1)
    assert steps(service)[name] <= stopped + 2, "nothing more was computed for the one that left"


def test_a_replica_that_is_killed(service: Any, lone: Callable[[str, int], str]) -> None:
    prompts = [f"{word} I compare thee" for word in ("Shall", "May", "Can", "Will", "Must", "Did")]
    started = threading.Barrier(len(prompts) + 1)

    def listen(prompt: str) -> str | Exception:
        stream = iter(ask(service, prompt, 40, stream=True))
        said = next(stream).choices[0].text
        started.wait(600)
        try:
            return said + "".join(chunk.choices[0].text for chunk in stream)
        except openai.APIError as error:
            return error

    with ThreadPoolExecutor(len(prompts)) as threads:
        listening = [threads.submit(listen, prompt) for prompt in prompts]
        started.wait(600)
        os.kill(min(replicas()), signal.SIGKILL)
        answers = [each.result(600) for each in listening]
    failed = [each for each in answers if isinstance(each, Exception)]
    assert 0 < len(failed) < len(prompts)
    for error in failed:
        assert "replica: expected it to answer to the end, got a replica that ended before" in str(error)
        assert error.code == "replica_died"
    for prompt, answer in zip(prompts, answers, strict=True):
        assert isinstance(answer, Exception) or answer == lone(prompt, 40)
    until(lambda: len(replicas()) == 2 and service.health()["replicas"] == 2, "the replica to be there again")
    for prompt in prompts:
        assert ask(service, prompt, 3).choices[0].text == lone(prompt, 3)


def test_stopping_waits_for_answers(service: Any, lone: Callable[[str, int], str]) -> None:
    stream = iter(ask(service, "Shall I", 40, stream=True))
    said = next(stream).choices[0].text
    stopping = threading.Thread(target=service.stop)
    stopping.start()
    said += "".join(chunk.choices[0].text for chunk in stream)
    stopping.join(600)
    assert not stopping.is_alive()
    assert said == lone("Shall I", 40)
    assert replicas() == {}
