"""bf16 and fp16 weights of one input are joined, and products of few tokens go to our kernels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from executorch.exir.backend.compile_spec_schema import CompileSpec
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from etcuda.backend import preprocess
from etcuda.kernels.dense.choose import table
from etcuda.options import COMPILE_SPEC_KEY
from etcuda.passes.dense import route_dense as route
from etcuda.passes.dense.fuse_dense import fuse_dense
from etcuda.passes.dense.route_dense import route_dense
from etcuda.passes.manager import PASSES, run_passes
from tests.passes.linear.quantized_programs import (
    GPU,
    HOST,
    calls,
    close,
    constants,
    delegated,
    export,
    lowered,
    make,
    runnable,
)

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table in the repository changes."""
    monkeypatch.setattr(table, "load", lambda arch: None)


class Layer(nn.Module):
    """A layer of a decoder without attention, and a head."""

    def __init__(self, dim: int = 64, hidden: int = 96, bias: bool = False, act: Any = F.silu) -> None:
        super().__init__()
        sizes = {"q": (dim, dim), "k": (dim, 32), "v": (dim, 32), "o": (dim, dim)}
        self.proj = nn.ModuleDict({name: nn.Linear(*size, bias=bias) for name, size in sizes.items()})
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down, self.head = nn.Linear(hidden, dim, bias=False), nn.Linear(dim, 40, bias=False)
        self.before, self.between = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = (self.proj[name](y) for name in ("q", "k", "v"))
        h = x + self.proj["o"](q * torch.cat([k, v], -1))
        y = self.between(h)
        out: Tensor = self.head(h + self.down(self.act(self.gate(y)) * self.up(y)))
        return out


def inputs(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def products(program: ExportedProgram) -> list[Any]:
    return [n for n in program.graph.nodes if n.target in (aten.mm.default, aten.addmm.default)]


@pytest.mark.parametrize(("bias", "dtype"), [(False, torch.bfloat16), (True, torch.float16)])
def test_one_token_of_a_layer(bias: bool, dtype: torch.dtype) -> None:
    model = make(Layer, dtype, bias=bias)
    x = inputs(1, 1, 64, dtype=dtype)
    wanted = model(x)
    program = lowered(export(copy.deepcopy(model), x))
    assert not products(program)
    found = calls(program, "dense_matvec")
    shapes = {tuple(node.args[1].meta["val"].shape): node.args[3] for node in found}
    assert shapes == {(128, 64): "none", (64, 64): "none", (192, 64): "silu", (64, 96): "none", (40, 64): "none"}
    assert len(found) == 5
    assert [node.args[2] is not None for node in found] == [bias, bias, False, False, False]
    # tokens, and an early launch.
    assert all((node.args[4], node.args[-1]) == (1, 1) for node in found)
    first, second = calls(program, "rms_norm")
    assert (first.args[1], first.args[6], second.args[6]) == (None, False, True)
    assert second.args[1] is not None
    assert (first.args[-1], second.args[-1]) == (1, 1)
    assert not any(node.target is aten.rsqrt.default for node in program.graph.nodes)
    assert not {"proj.q.weight", "gate.weight", "up.weight"} & set(constants(program))
    assert close(runnable(program)(x), wanted)


def test_many_tokens_read_rows_of_the_same_weights() -> None:
    model = make(Layer)
    x = inputs(1, 5, 64)
    wanted = model(x)
    program = lowered(export(copy.deepcopy(model), x, dynamic=({1: Dim("n", max=100)},)))
    one = lowered(export(copy.deepcopy(model), inputs(1, 1, 64)))
    assert not calls(program, "dense_matvec", "rms_norm")
    assert len(products(program)) == 8
    assert set(constants(program)) == set(constants(one))
    run = runnable(program)
    assert torch.equal(run(x), wanted)
    assert close(run(inputs(1, 37, 64)), model(inputs(1, 37, 64)))


@pytest.mark.parametrize(("most", "taken"), [(4, True), (5, False)])
def test_the_most_tokens_decide(most: int, taken: bool) -> None:
    model = make(Layer)
    x = inputs(1, 3, 64)
    program = lowered(export(copy.deepcopy(model), x, dynamic=({1: Dim("n", max=most)},)))
    assert bool(calls(program, "dense_matvec")) == taken
    assert all(node.args[4] == 4 for node in calls(program, "dense_matvec"))
    assert close(runnable(program)(x), model(x))


def test_a_gate_may_be_left_out_of_its_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the table says that the library is faster than the kernel with an activation, and slower without."""
    monkeypatch.setattr(route, "most_tokens", lambda problem, device: 0 if problem.gated else 4)
    model = make(Layer)
    x = inputs(2, 1, 64)
    program = lowered(export(copy.deepcopy(model), x))
    found = calls(program, "dense_matvec")
    assert [node.args[3] for node in found] == ["none"] * 5
    assert (192, 64) in [tuple(node.args[1].meta["val"].shape) for node in found]
    assert not products(program)
    assert close(runnable(program)(x), model(x))


def test_a_program_of_many_tokens_alone_is_left_as_it_is() -> None:
    model = make(Layer)
    program = lowered(export(model, inputs(1, 9, 64)))
    assert {"gate.weight", "up.weight"} <= set(constants(program))
    assert len(products(program)) == 8
    # Beside another method it has that one's weights.
    spec = CompileSpec(COMPILE_SPEC_KEY, GPU.to_bytes())
    edge = delegated(export(model, inputs(1, 9, 64)))
    alone, beside = (preprocess._prepare("forward", edge, [spec], {}, None, several) for several in (False, True))
    assert "gate.weight" in constants(alone.program)
    assert "gate.weight" not in constants(beside.program)
    assert len(products(beside.program)) == 8


def test_the_host_keeps_its_products() -> None:
    model = make(Layer)
    program = lowered(export(model, inputs(1, 1, 64)), HOST)
    assert len(products(program)) == 8
    assert not calls(program)


def test_norms_that_stay(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = make(Layer, dim=40)
    model.proj["k"], model.proj["v"] = (
        make(nn.Linear, in_features=40, out_features=size, bias=False) for size in (16, 24)
    )
    x = inputs(1, 1, 40)
    program = lowered(export(copy.deepcopy(model), x))
    assert len(calls(program, "dense_matvec")) == 5
    assert not calls(program, "rms_norm")
    assert "stays as it is: K is a multiple of 32, got 40" in caplog.text
    assert close(runnable(program)(x), model(x))


class Shared(nn.Module):
    """A weight that two calls read, one that is state, one whose rows are odd, and a gate that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.odd = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False), nn.Linear(32, 31)
        self.register_buffer("state", torch.zeros(32, 32))
        self.gate, self.up = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.state.add_(1.0)
        gate = F.silu(self.gate(x))
        y = self.a(x), self.a(x + 1), self.b(x), self.odd(x), x @ self.state.t()
        return *y, gate * self.up(x), gate


def test_what_stays_apart(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = make(Shared)
    x = inputs(1, 32)
    program = lowered(export(copy.deepcopy(model), x))
    wanted = copy.deepcopy(model)(x)
    kept = set(constants(program))
    assert {"a.weight", "odd.weight", "odd.bias"} <= kept
    assert not {"b.weight", "gate.weight", "up.weight"} & kept
    assert "p_odd_weight has 31 rows, and the next one would not begin at a multiple of 16 bytes" in caplog.text
    assert "p_a_weight is used elsewhere too and would be stored twice" in caplog.text
    found = calls(program, "dense_matvec")
    assert {node.args[3] for node in found} == {"none"}
    # What the program writes is no weight.
    assert len(products(program)) == 1
    # A delegate's results are in the order in which they are computed.
    got = [each for each in runnable(program)(x) if each.dim() == 2]
    assert all(any(one.shape == each.shape and close(one, each) for one in got) for each in wanted)


def test_passes_of_their_own_change_nothing_else() -> None:
    assert [each.name for each in PASSES if each.name.endswith("dense")] == ["fuse_dense", "route_dense"]
    program = delegated(export(make(nn.Linear, torch.float32, in_features=32, out_features=8), torch.randn(1, 32)))
    run_passes(program, GPU)
    assert (fuse_dense.run(program, GPU), route_dense.run(program, GPU)) == (0, 0)
    assert len(products(program)) == 1
