"""Joined products get, for every number of rows, what gives them the bits of their parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import Node

from etcuda import Int4CoalescedConfig, Int8CoalescedConfig
from etcuda.errors import PassError
from etcuda.kernels.linear.choose import table
from etcuda.passes.linear.call import JOINED, read_linear
from etcuda.passes.manager import PASSES, run_passes
from tests.exhaustive import diagonal
from tests.passes.linear.quantized_programs import (
    GPU,
    HOST,
    KERNELS,
    MLP,
    calls,
    close,
    constants,
    delegated,
    export,
    lowered,
    make,
    modules,
    quantized,
    runnable,
)

APART = ("fuse_mlp", "fuse_qkv", "split_joined")


class Projections(nn.Module):
    """Products of one input, with very different numbers of rows."""

    def __init__(self, sizes: tuple[int, ...] = (1000, 8, 200), k: int = 64, bias: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(k, n, bias=bias) for n in sizes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


def split(call: Node) -> tuple[Any, ...]:
    """What decides how the sums of a product are split, and so its bits, as far as the configuration does."""
    name = str(call.target).split(".")[1]
    if name.endswith("matmul_reordered"):
        return (name, call.meta["val"].shape[-1], *call.args[-7:])
    if name.endswith("quantized"):
        return (name, *call.args[-6:])
    tokens, ctas, *rest = call.args[-7:]
    return (name, tokens, ctas > 0, *rest)  # type: ignore[operator]


CONFIGS = [
    Int4CoalescedConfig(),
    Int8CoalescedConfig(),
    Int4CoalescedConfig(offset="symmetric", activation_dtype="exact"),
]


@pytest.mark.parametrize(("rows", "config"), diagonal([1, 2, 5, 8, 9, 16, 64, 300], CONFIGS), ids=str)
def test_every_number_of_rows(config: Any, rows: int) -> None:
    model = quantized(make(Projections), config)
    x = torch.randn(rows, 64).to(torch.bfloat16)
    program = export(model, x)
    fused, apart = lowered(program), lowered(program, without=APART)
    one, many = calls(fused, *KERNELS), calls(apart, *KERNELS)
    assert len(many) == 3
    if "matmul" in str(one[0].target):
        assert [split(call) for call in one] == [split(call) for call in many]
        assert len(calls(fused, "reorder_activation")) == 1
    else:
        assert len(one) == 1
        assert {split(call) for call in many} == {split(one[0])}
    assert len(constants(fused)) < len(constants(apart))
    for got, expected in zip(runnable(fused)(x), runnable(apart)(x), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("measured", "bias"), diagonal([True, False], [False, True]))
def test_a_dynamic_number_of_rows(bias: bool, measured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not measured:
        monkeypatch.setattr(table, "load", lambda bits, arch: None)
    model = quantized(make(MLP, bias=bias))
    x = torch.randn(2, 24, 64).to(torch.bfloat16)
    program = export(model, x, dynamic=({0: Dim("batch", min=1, max=4), 1: Dim("length", max=500)},))
    fused, apart = lowered(program), lowered(program, without=APART)
    # One branch after another: the same limits, and in each the same kernels.
    assert [_limits(each) for each in (fused,)] == [_limits(apart)]
    assert sorted(split(call) for call in calls(fused, *KERNELS)) == sorted(
        split(call) for call in calls(apart, *KERNELS)
    )
    assert sum(t.untyped_storage().nbytes() for t in constants(fused).values()) == sum(
        t.untyped_storage().nbytes() for t in constants(apart).values()
    )
    # Rows of a weight are views, and weights are handed to a branch whole.
    for module in modules(fused):
        for node in module.graph.nodes:
            if node.target is torch.ops.higher_order.cond:
                assert all(operand.op == "placeholder" or "int4" not in operand.name for operand in node.args[3])
                assert len(set(node.args[3])) == len(node.args[3])
            assert node.target is not torch.ops.aten.cat.default
    for shape in ((1, 1), (2, 4), (3, 3), (4, 16), (1, 65), (4, 300), (2, 0)):
        x = torch.randn(*shape, 64).to(torch.bfloat16)
        assert torch.equal(runnable(fused)(x), runnable(apart)(x)), shape


def _limits(program: Any) -> list[int]:
    nodes = [node for module in modules(program) for node in module.graph.nodes]
    return sorted(node.args[0].args[1] for node in nodes if node.target is torch.ops.higher_order.cond)


def test_few_rows_alone_stay_joined() -> None:
    model = quantized(make(Projections))
    x = torch.randn(3, 64).to(torch.bfloat16)
    program = lowered(export(model, x, dynamic=({0: Dim("few", min=2, max=4)},)))
    assert len(calls(program, *KERNELS)) == 1
    assert len(modules(program)) == 1


def test_the_host_keeps_them_joined() -> None:
    program = delegated(export(quantized(make(Projections)), torch.randn(40, 64).to(torch.bfloat16)), HOST)
    before = [each.name for each in PASSES].index("route_linear")
    run_passes(program, HOST, PASSES[:before])
    (call,) = [call for node in program.graph.nodes if (call := read_linear(node)) is not None]
    assert call.joined == (1000, 8, 200)


def test_parts_that_kernels_could_not_read_stay_apart(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "etcuda")
    # 20 rows of 2 zero points are 40 bytes; 8 rows are 16.
    model = quantized(make(Projections, sizes=(20, 8, 4)))
    x = torch.randn(2, 64).to(torch.bfloat16)
    program = export(model, x)
    fused = lowered(program)
    assert sorted(call.meta["val"].shape[-1] for call in calls(fused, *KERNELS)) == [12, 20]
    assert "would begin 40 bytes into the joined tensor, and kernels read from multiples of 16" in caplog.text
    for got, expected in zip(runnable(fused)(x), model(x), strict=True):
        assert close(got, expected)


def _marked(parts: tuple[int, ...], rows: int = 20) -> Any:
    model = quantized(make(Projections, sizes=(48,), bias=True))
    x = torch.randn(2, rows // 2, 64).to(torch.bfloat16)
    program = delegated(export(model, x))

    def mark(each: Any) -> None:
        (call,) = [node for node in each.graph.nodes if read_linear(node) is not None]
        call.meta[JOINED] = parts

    return model, x, program, mark


def test_a_joined_product_that_is_used_whole() -> None:
    model, x, program, mark = _marked((16, 32))
    before = [each.name for each in PASSES].index("split_joined")
    run_passes(program, GPU, PASSES[:before])
    mark(program)
    run_passes(program, GPU, PASSES)
    assert [call.meta["val"].shape[-1] for call in calls(program, *KERNELS)] == [16, 32]
    assert close(runnable(program)(x), model(x)[0])


def test_a_joined_product_that_was_changed() -> None:
    _, _, program, mark = _marked((16, 16))
    before = [each.name for each in PASSES].index("split_joined")
    run_passes(program, GPU, PASSES[:before])
    mark(program)
    with pytest.raises(PassError, match=r"expected the parts \(16, 16\) of its weight to make 48 rows, got 32"):
        run_passes(program, GPU, PASSES)


def test_tensor_cores_do_not_take_a_joined_product() -> None:
    program = delegated(export(quantized(make(Projections)), torch.randn(40, 64).to(torch.bfloat16)))
    passes = [each for each in PASSES if each.name != "split_joined"]
    with pytest.raises(PassError, match="run split_joined before this pass"):
        run_passes(program, GPU, passes)
