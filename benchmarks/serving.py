"""Many clients against a service, every answer compared with a lone run's, and a replica killed in the middle.

::

    python -m benchmarks.serving m.pte --clients 32 --replicas 2 --seconds 300

Ends with status 1 if an answer was not a lone run's, or failed for another reason than the replica that was killed.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection

from etcuda import llm
from etcuda.serve.engine import EngineOptions
from etcuda.serve.launch import ServeOptions, Service

TEXT = "shall compare thee summer day thou art more lovely temperate rough winds shake"


def prompts(count: int, words: int) -> list[str]:
    """Different texts, half of which begin alike."""
    draw, known = random.Random(0), TEXT.split()
    heads = ["", f"{TEXT} "]
    return [f"{heads[number % 2]}{' '.join(draw.choices(known, k=words))} {number}" for number in range(count)]


class Load:
    """Clients that ask one request after the other.

    Args:
        url: of the service.
        expected: answer of each prompt, of ``tokens`` tokens.
        tokens: of each answer.
        seconds: that they go on.
    """

    def __init__(self, url: str, expected: dict[str, str], tokens: int, seconds: float) -> None:
        self._url, self._expected, self._tokens = url, expected, tokens
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self.counts: collections.Counter[str] = collections.Counter()
        self.firsts: list[float] = []
        self.wrong: list[tuple[str, str, str]] = []

    def client(self, number: int) -> None:
        """One client."""
        import openai

        api = openai.OpenAI(base_url=self._url, api_key="none", max_retries=0, timeout=600)
        draw = random.Random(number)
        while time.monotonic() < self._end:
            prompt = draw.choice(list(self._expected))
            try:
                outcome = self._ask(api, prompt, draw.random() < 0.5)
            except openai.APIError as error:
                outcome = str(error.code or type(error).__name__)
            with self._lock:
                self.counts[outcome] += 1
            if outcome == "queue_full":
                time.sleep(0.5)

    def _ask(self, api: object, prompt: str, stream: bool) -> str:
        begun = time.monotonic()
        given = {"model": "m", "prompt": prompt, "max_tokens": self._tokens, "temperature": 0, "stream": stream}
        made = api.completions.create(**given, extra_body={"ignore_eos": True})  # type: ignore[attr-defined]
        if stream:
            answer = ""
            for chunk in made:
                if not answer:
                    with self._lock:
                        self.firsts.append(time.monotonic() - begun)
                answer += chunk.choices[0].text
        else:
            answer = made.choices[0].text
        if answer == self._expected[prompt]:
            return "right"
        with self._lock:
            self.wrong.append((prompt, answer, self._expected[prompt]))
        return "wrong"


def kill_one(find: Callable[[], Collection[int]]) -> int:
    """Kills a replica's process; returns its number."""
    pid = min(find())
    os.kill(pid, signal.SIGKILL)
    return pid


def replica_processes() -> list[int]:
    """Processes of replicas on this machine."""
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # It ended meanwhile, or is no process.
        if folder.name.isdigit() and title.startswith("ray::") and ":replica" in title:
            found.append(int(folder.name))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--words", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="kill no replica")
    given = parser.parse_args()
    model = llm.load(given.program)
    expected = {}
    for prompt in prompts(given.prompts, given.words):
        expected[prompt] = model.generate(prompt, max_new_tokens=given.tokens, ignore_eos=True).text()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ServeOptions(given.program, name="m", port=port, replicas=given.replicas, engine=EngineOptions())
    # Of other services on this machine.
    others = set(replica_processes())

    def own() -> set[int]:
        return set(replica_processes()) - others

    service = Service(options)
    before = own()
    load = Load(f"{service.url}/v1", expected, given.tokens, given.seconds)
    threads = [threading.Thread(target=load.client, args=(number,)) for number in range(given.clients)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    if not given.keep:
        time.sleep(given.seconds / 2)
        kill_one(own)
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begun
    back = len(own() - before)
    healthy = service.health()["replicas"]
    service.stop()
    load.firsts.sort()
    figures = {
        "seconds": round(seconds, 1),
        "clients": given.clients,
        "replicas": given.replicas,
        "answers": dict(load.counts),
        "tokens_per_second": round(load.counts["right"] * given.tokens / seconds, 1),
        "first_piece_seconds_median": round(load.firsts[len(load.firsts) // 2], 3) if load.firsts else None,
        "replicas_started_again": back,
        "replicas_at_the_end": healthy,
        "wrong": load.wrong[:4],
    }
    print(json.dumps(figures, indent=1))
    allowed = {"right", "queue_full"} | (set() if given.keep else {"replica_died"})
    return int(bool(set(load.counts) - allowed) or not load.counts["right"])


if __name__ == "__main__":
    sys.exit(main())
