"""Random numbers in programs for the host: those of ``etcuda.random``, call after call, method after method."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower

import etcuda.runtime
from etcuda import CudaPartitioner, random, save_program
from tests.backend.random_cases import OPTIONS, SEED, AllDraws, check, inputs, programs

runtime = pytest.importorskip("executorch.runtime")
assert etcuda.runtime.is_registered()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    methods = programs(AllDraws())
    partitioners = {name: [CudaPartitioner("host", options=OPTIONS)] for name in methods}
    path = tmp_path_factory.mktemp("random") / "random.pte"
    lowered = to_edge_transform_and_lower(dict(methods), partitioner=partitioners)
    calls = [node for node in lowered.exported_program("partitions").graph.nodes if "call_delegate" in node.name]
    assert len(calls) == 2
    save_program(lowered.to_executorch(), path)
    return path


def load(program: pathlib.Path) -> dict[str, Any]:
    loaded = runtime.Runtime.get().load_program(program)
    return {name: loaded.load_method(name) for name in ("draws", "partitions", "reseed")}


def test_every_call_draws_what_follows_from_the_seed(program: pathlib.Path) -> None:
    methods = load(program)
    state = random.make_state(SEED)
    for rows in (5, 64, 1, 5):
        state = check(methods["draws"].execute(inputs(rows)), state, rows)
    # Loaded anew, the program begins anew.
    check(load(program)["draws"].execute(inputs(5)), random.make_state(SEED), 5)


def test_methods_and_partitions_share_the_generator(program: pathlib.Path) -> None:
    methods = load(program)
    (old,) = methods["reseed"].execute((random.make_state(3),))
    assert old.tolist() == [SEED, 0]
    state = random.make_state(3)
    for _ in range(2):
        first, count, second = methods["partitions"].execute((torch.zeros(3),))
        assert torch.equal(first, random.uniform(state, [3]))
        assert int(count) == int((first > 0.5).sum())
        torch.testing.assert_close(second, count + random.normal(state, [3], draw=1), rtol=1e-6, atol=1e-6)
        state = state + torch.tensor([0, 2])
    state = check(methods["draws"].execute(inputs(2)), state, 2)
    (old,) = methods["reseed"].execute((random.make_state(SEED),))
    assert torch.equal(old, state)
    check(methods["draws"].execute(inputs(5)), random.make_state(SEED), 5)
