"""What stands in the place of library calls computes the same, for each target; run by PyTorch, call by call."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.export import Dim, ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from etcuda.options import BackendConfig
from etcuda.partitioner.support import refuse
from etcuda.passes.library.decompose import DECOMPOSITIONS, NEEDED
from etcuda.passes.manager import run_passes
from etcuda.target import TARGETS
from tests.exhaustive import pairs
from tests.partitioner.programs import edge
from tests.passes.library.order_cases import DTYPES, FAMILIES, AllOf, numbers

CONFIGS = {"host": BackendConfig("host"), "sm_90": BackendConfig(TARGETS["sm_90"])}


def rewritten(target: str, function: Any, *inputs: Any, **keywords: Any) -> ExportedProgram:
    """The program after the passes; all of it is claimed before."""
    program = edge(function, *inputs, **keywords)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    refusals = [refusal.reason for node in calls if (refusal := refuse(node, CONFIGS[target])) is not None]
    assert refusals == []
    run_passes(program, CONFIGS[target])
    return program


def run(program: ExportedProgram, *inputs: Any) -> list[torch.Tensor]:
    return list(program.module(check_guards=False)(*inputs))


class Decomposed(TorchDispatchMode):
    """Inside, calls are what the pass puts in their place."""

    def __init__(self, host: bool) -> None:
        super().__init__()
        self.host = host
        self.replaced = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        if func not in DECOMPOSITIONS or not NEEDED.get(func, lambda host, **_: True)(self.host, **given):
            return func(*args, **(kwargs or {}))
        self.replaced += 1
        found = DECOMPOSITIONS[func](self.host, **given)
        # Of the results of embedding_bag only the first is computed.
        return (
            found
            if isinstance(found, torch.Tensor)
            else (*found, *found[:1] * (len(func._schema.returns) - len(found)))
        )


@pytest.mark.parametrize(("dtype", "family", "host"), pairs(DTYPES, list(FAMILIES), [True, False]), ids=str)
def test_computes_what_eager_does(family: str, dtype: torch.dtype, host: bool) -> None:
    model = AllOf(list(FAMILIES[family](dtype)))
    with Decomposed(host) as mode:
        got = model(*model.inputs())
    assert mode.replaced >= len(model.cases) - 2
    model.check(got)


@pytest.mark.parametrize("target", CONFIGS)
def test_one_program_serves_every_length(target: str) -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> Any:
        taken = torch.topk(x, 5)
        return (
            *taken,
            *torch.sort(x, stable=True),
            torch.cumsum(y, 0),
            *torch.cummax(y, 0),
            torch.median(y),
            x.mode()[0],
        )

    inputs = (numbers((2, 1500), torch.float32), numbers((5000,), torch.float64))
    program = rewritten(
        target, model, *inputs, dynamic=[{1: Dim("n", min=5, max=2000)}, {0: Dim("m", min=1, max=9000)}]
    )
    for n, m in ((1500, 5000), (5, 1), (511, 1023), (2000, 9000)):
        x, y = numbers((2, n), torch.float32, n), numbers((m,), torch.float64, m)
        got, expected = run(program, x, y), list(model(x, y))
        got[1], expected[1] = x.gather(1, got[1]), expected[0]
        torch.testing.assert_close(got, expected)


def test_int64_sums_wrap_around_as_torch_does() -> None:
    x = torch.tensor([torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min, -1, 1 << 40])
    index = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    src = torch.tensor([1, 5, -1, (1 << 62) + 3, -7, -(1 << 61), 1 << 22, -(1 << 44)])
    program = rewritten("sm_90", lambda x, i, s: [x.scatter_add(0, i, s)], x, index, src)
    torch.testing.assert_close(run(program, x, index, src), [x.scatter_add(0, index, src)])


def test_16_bit_sums_are_rounded_once() -> None:
    x, index = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1000, dtype=torch.int64)
    src = torch.ones(1000, dtype=torch.bfloat16)
    program = rewritten("host", lambda x, i, s: [x.scatter_add(0, i, s)], x, index, src)
    assert run(program, x, index, src)[0].item() == 1000


@pytest.mark.parametrize("function", [lambda x: x.sort()[0], lambda x: x.cumsum(0), lambda x: x.median()])
def test_a_gpu_wants_a_bound(function: Any) -> None:
    program = edge(function, torch.randn(9), dynamic=[{0: Dim("n", min=1)}])
    refusals = [refuse(node, CONFIGS["sm_90"]) for node in program.graph.nodes if node.op == "call_function"]
    assert any("Dim(..., max=...)" in refusal.reason for refusal in refusals if refusal is not None)


@pytest.mark.parametrize(
    ("function", "inputs", "words"),
    [
        (lambda x: torch.searchsorted(x, 2.5), (torch.arange(4),), "takes a whole number .* got 2.5"),
        (
            lambda x, i: torch.scatter_reduce(x, 0, i, x, "prod"),
            (torch.ones(20000), torch.zeros(20000, dtype=torch.int64)),
            "product on the GPU takes up to 268435456 pairs .* got 400000000",
        ),
        (
            lambda x, b, y: torch.index_put(x, (b,), y, accumulate=True),
            (torch.ones(4), torch.ones(4, dtype=torch.bool), torch.ones(4)),
            r"takes one number for a mask, got values of shape \(4,\)",
        ),
        (
            lambda w, i, o: torch.ops.aten._embedding_bag(w, i, o)[1],
            (torch.ones(4, 2), torch.zeros(3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)),
            "the program uses result 1",
        ),
    ],
)
def test_refusals(function: Any, inputs: tuple[torch.Tensor, ...], words: str) -> None:
    program = edge(function, *inputs)
    reasons = [refuse(node, CONFIGS["sm_90"]) for node in program.graph.nodes if node.op == "call_function"]
    texts = [each.reason for each in reasons if each is not None]
    assert texts
    assert re.search(words, texts[0])
