"""Gated activations are fused with their reordering for tensor cores, and the program computes the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from etcuda.passes.linear.fuse_reorder import fuse_reorder
from tests.passes.linear.activation_programs import arguments
from tests.passes.linear.quantized_programs import GPU, calls, export, lowered, quantized

K = 256
ACTS = [(F.silu, "silu"), (F.gelu, "gelu_erf"), (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh")]


class Reordered(nn.Module):
    """A gated activation that is reordered; what else is read is a parameter."""

    def __init__(self, act: Any = F.silu, tiled: int = 1, read: bool = False, joined: bool = False) -> None:
        super().__init__()
        self.act, self.tiled, self.read, self.joined = act, tiled, read, joined

    def forward(self, gate: Tensor, up: Tensor) -> Any:
        if self.joined:
            both = torch.cat([gate, up], -1)
            gate, up = both[..., :K], both[..., K:]
        y = self.act(gate) * up
        out = torch.ops.etcuda.reorder_activation(y, 4, "int8", 64, self.tiled, 1)
        return (*out, y) if self.read else out


def inputs(*shape: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(*shape, K).bfloat16(), torch.randn(*shape, K).bfloat16()


def compare(model: nn.Module, *x: Tensor, dynamic: tuple[Any, ...] | None = None) -> ExportedProgram:
    """The program after the pass alone, which keeps its results. (On the way through the Edge dialect, calls of the
    operator that are in a model would fall apart.)"""
    program = export(model, *x, dynamic=dynamic)
    fuse_reorder.run(program, GPU)
    program.graph_module.recompile()
    same(program, model, *x)
    return program


def same(program: ExportedProgram, model: nn.Module, *x: Tensor) -> None:
    for got, wanted in zip(program.module()(*x), model(*x), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(("act", "name"), ACTS, ids=[name for _, name in ACTS])
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 3)], ids=str)
def test_gates(act: Any, name: str, joined: bool, shape: tuple[int, ...]) -> None:
    program = compare(Reordered(act, joined=joined), *inputs(*shape))
    (found,) = (arguments(node) for node in calls(program, "gate_reorder"))
    assert (found["gate_activation"], found["up"] is None) == (name, joined)
    assert (found["activation_dtype"], found["block_m"], found["pdl"]) == ("int8", 64, 1)
    assert not calls(program, "reorder_activation")
    targets = {str(node.target) for node in program.graph.nodes}
    assert not targets & {"aten.silu.default", "aten.gelu.default", "aten.mul.Tensor"}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"tiled": 0}, "the product behind it is not the kernel in CUDA C\\+\\+"),
        ({"read": True}, "output reads .* too"),
        ({"act": F.relu}, "neither factor is silu or gelu of a gate"),
    ],
    ids=["triton", "read", "relu"],
)
def test_what_stays_and_the_log_says_why(given: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "etcuda")
    program = compare(Reordered(**given), *inputs(3))
    assert not calls(program, "gate_reorder")
    assert len(calls(program, "reorder_activation")) == 1
    assert re.search(rf"reorder_activation stays by itself: .*{reason}", caplog.text), caplog.text


def test_two_reorderings_of_one_gate_stay() -> None:
    class Two(Reordered):
        def forward(self, gate: Tensor, up: Tensor) -> Any:
            y = F.silu(gate) * up
            calls = (torch.ops.etcuda.reorder_activation(y, 4, dtype, 16, 1, 0) for dtype in ("int8", "exact"))
            return tuple(part for results in calls for part in results)

    program = compare(Two(), *inputs(3))
    assert len(calls(program, "reorder_activation")) == 2


class MLP(nn.Module):
    """A gated block with tokens enough for tensor cores."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(K, 2 * K, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * K, K, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_block_by_the_repository_s_table(dynamic: bool) -> None:
    torch.manual_seed(3)
    model = quantized(MLP().bfloat16())
    x = torch.randn(1, 64, K).bfloat16()
    shapes = ({1: Dim("rows", min=33, max=64)},) if dynamic else None
    program = lowered(export(model, x, dynamic=shapes))
    products = [arguments(node) for node in calls(program, "int4_matmul_reordered")]
    assert products
    assert all(each["warpgroups"] for each in products)
    # What gate and up read is reordered alone, what down reads with the gate.
    assert (len(calls(program, "reorder_activation")), len(calls(program, "gate_reorder"))) == (1, 1)


def test_sizes_of_the_gate_are_read_elsewhere() -> None:
    class Sizes(Reordered):
        def forward(self, gate: Tensor, up: Tensor) -> Any:
            y = F.silu(gate) * up
            reordered, factor, semaphores = torch.ops.etcuda.reorder_activation(y, 4, "int8", 16, 1, 0)
            return reordered, factor, semaphores, gate.new_ones(y.shape[0], 2)

    gate, up = inputs(5)
    rows = Dim("rows", min=2, max=16)
    program = compare(Sizes(), gate, up, dynamic=({0: rows}, {0: rows}))
    assert len(calls(program, "gate_reorder")) == 1
    for count in (2, 16):
        same(program, Sizes(), *inputs(count))
