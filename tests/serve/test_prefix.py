"""Which replica a conversation goes to."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from etcuda.serve.job import Job
from etcuda.serve.prefix import PrefixTable, prefix_keys


def test_keys_of_a_longer_conversation_begin_with_its_own() -> None:
    said = ({"role": "user", "content": "x" * 150},)
    longer = (*said, {"role": "assistant", "content": "y" * 80}, {"role": "user", "content": "z"})
    short, long = prefix_keys(Job(messages=said).text()), prefix_keys(Job(messages=longer).text())
    assert (len(short), len(long)) == (2, 3)
    assert long[:2] == short
    assert prefix_keys("x" * 63) == ()
    assert prefix_keys("x" * 64) != prefix_keys("y" * 64)
    # A block has the key of all that is before it.
    assert prefix_keys("x" * 64 + "z" * 64)[1] != prefix_keys("y" * 64 + "z" * 64)[1]
    assert Job(prompts=((5, 66),)).text() == "5 66 "


def test_the_longest_prefix_of_a_replica_that_is_there() -> None:
    table, keys = PrefixTable(), prefix_keys("".join(map(chr, range(100, 740))))
    assert len(keys) == 10
    table.note(keys[:9], "a")
    table.note(keys[:6], "b")
    assert table.find(keys, {"a", "b"}) == "a"
    assert table.find(keys, {"b"}) == "b"
    assert table.find(keys, {"c"}) is None
    assert table.find((), {"a"}) is None
    # What many conversations begin with binds none of them.
    assert table.find((*keys[:6], *prefix_keys("?" * 640)), {"a", "b"}) is None


def test_the_oldest_prefixes_go() -> None:
    table = PrefixTable(3)
    for name in "abcd":
        table.note([name.encode()], name)
        table.note([b"a"], "a")
    assert len(table) == 3
    assert [table.find([name.encode()], set("abcd")) for name in "abcd"] == ["a", None, "c", "d"]


def test_ranks_for_ray() -> None:
    pytest.importorskip("ray.serve", reason="ray[serve] is not installed")
    from etcuda.serve.router import PrefixRouter

    router: Any = object.__new__(PrefixRouter)
    router.initialize_state()
    there = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in ("a", "b", "c")]

    def ranks(text: str) -> list[list[str]]:
        asked = SimpleNamespace(args=[Job((text,))], routing_context=SimpleNamespace(should_backoff=False))
        made = asyncio.run(router.choose_replicas(there, asked))
        assert asked.routing_context.should_backoff
        return [[each.replica_id.unique_id for each in rank] for rank in made]

    assert ranks("x" * 200) == [["a", "b", "c"]]
    router.on_request_routed(SimpleNamespace(args=[Job(("x" * 200,))]), there[1].replica_id, None)
    assert ranks("x" * 210) == [["b"], ["a", "c"]]
    assert ranks("y" * 200) == [["a", "b", "c"]]
