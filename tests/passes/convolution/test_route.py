"""Convolutions routed to the operator that cuDNN computes: numbers, what is fused, and which copies are left."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.nn import functional as F

from etcuda.options import BackendConfig, CompileOptions
from etcuda.passes.graph.calls import arguments
from etcuda.passes.manager import run_passes
from etcuda.target import TARGETS
from tests.partitioner.programs import edge
from tests.passes.convolution.models import LAYERS, TOLERANCE, AllOf, Convolved, Layer
from tests.passes.made_weights import made_weights

aten = torch.ops.aten
H200 = BackendConfig(TARGETS["sm_90"])
PLAIN = {aten.convolution.default, aten._native_batch_norm_legit_no_training.default, aten.relu.default}


def passed(model: Any, *inputs: Tensor, config: BackendConfig = H200, **keywords: Any) -> ExportedProgram:
    program = edge(model, *inputs, **keywords)
    run_passes(program, config)
    return program


def run(program: ExportedProgram, *inputs: Tensor) -> Any:
    with made_weights(program):
        return program.module(check_guards=False)(*inputs)


def calls(program: ExportedProgram, op: Any = None) -> list[Node]:
    wanted = torch.ops.etcuda.convolution.default if op is None else op
    return [node for node in program.graph.nodes if node.target is wanted]


def copies(program: ExportedProgram) -> int:
    return len(calls(program, aten.clone.default))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_numbers_are_kept(dtype: torch.dtype) -> None:
    model = AllOf(LAYERS, dtype)
    inputs = model.inputs
    program = passed(model, *inputs)
    assert len(calls(program)) == len(LAYERS)
    assert not PLAIN & {node.target for node in program.graph.nodes}
    model.check(run(program, *inputs), TOLERANCE[dtype])
    # Nothing is stored that is not used: filters and a bias for each, where there is one.
    weights = [spec.target for spec in program.graph_signature.input_specs if spec.target is not None]
    weights = [name for name in weights if "num_batches_tracked" not in name]
    biases = sum(layer.bias or layer.norm for layer in LAYERS.values())
    assert len(weights) == len(LAYERS) + biases


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_fused(channels_last: bool) -> None:
    layer = Layer(8, 8, 3, padding=1, norm=True, residual=True, relu=True)
    model = Convolved(layer).eval()
    order = torch.channels_last if channels_last else torch.contiguous_format
    x, residual = (torch.randn(1, 8, 6, 5).contiguous(memory_format=order) for _ in range(2))
    program = passed(model, x, residual)
    (call,) = calls(program)
    given = arguments(call)
    assert given["relu"]
    assert given["residual"] is not None
    assert given["bias"] is not None
    assert copies(program) == (0 if channels_last else 3)
    result = run(program, x, residual)
    assert result.is_contiguous(memory_format=order)
    torch.testing.assert_close(result, model(x, residual), rtol=1e-5, atol=1e-5)


class Blocks(nn.Module):
    """Two residual blocks with a pool in front, a join and a mean behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, 1, 1) for _ in range(4))
        self.beside, self.head = nn.Conv2d(8, 8, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = first = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        for one, other in zip(self.convs[::2], self.convs[1::2], strict=True):
            side = self.beside(x) if one is self.convs[0] else x
            x = F.relu(other(F.relu(one(x))) + side)
        joined = torch.cat((F.hardswish(x), first * 0.5), 1)
        return self.head(F.adaptive_avg_pool2d(joined, 1).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dynamic", [False, True])
def test_channels_stay_innermost_from_one_to_the_next(dynamic: bool) -> None:
    model = Blocks().eval()
    x = torch.randn(3, 3, 21, 18)
    sizes = [{0: Dim("n", min=2, max=9), 2: Dim("h", min=8, max=64), 3: Dim("w", min=8, max=64)}] if dynamic else None
    program = passed(model, x, dynamic=sizes)
    assert len(calls(program)) == 6
    assert not calls(program, aten.relu.default)
    assert [arguments(call)["residual"] is not None for call in calls(program)].count(True) == 2
    # Of the image alone, whose pixels get 16 bytes.
    (copy,) = calls(program, aten.clone.default)
    (padded,) = calls(program, aten.constant_pad_nd.default)
    assert copy.args == (padded,)
    assert padded.args[1] == [0, 0, 0, 0, 0, 1]
    assert padded.args[0].op == "placeholder"  # type: ignore[union-attr]
    for size in [(3, 3, 21, 18), *([(2, 3, 9, 31), (1, 3, 8, 8)] if dynamic else [])]:
        x = torch.randn(size)
        torch.testing.assert_close(run(program, x), model(x), rtol=1e-4, atol=1e-5)


class Flattened(nn.Module):
    """Images become rows, which are a view of them only as they were."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 5, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.conv(x))
        return self.head(x.flatten(1)), x.transpose(1, 3) + 1


def test_what_needs_the_old_layout_gets_it() -> None:
    model, x = Flattened().eval(), torch.randn(2, 3, 8, 7)
    program = passed(model, x)
    assert len(calls(program)) == 1
    for got, wanted in zip(run(program, x), model(x), strict=True):
        assert got.is_contiguous()
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """One convolution twice, and sums that are not fused: of another shape, scaled, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = self.conv(x)
        once = self.conv(first) + x[:, :, :1, :1]
        twice = torch.add(self.conv(once), x, alpha=2)
        last = self.conv(twice)
        return last + last, F.relu(first), self.conv(x) + self.conv(x)


def test_what_is_not_fused() -> None:
    model, x = Shared().eval(), torch.randn(2, 4, 6, 6)
    program = passed(model, x)
    assert [arguments(call)["residual"] is not None for call in calls(program)].count(True) == 1
    assert not any(arguments(call)["relu"] for call in calls(program))
    assert len([spec for spec in program.graph_signature.input_specs if spec.target is not None]) == 2
    for got, wanted in zip(run(program, x), model(x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


class Given(nn.Module):
    """A convolution with filters that a caller gives."""

    def forward(self, x: Tensor, filters: Tensor) -> Tensor:
        return F.conv2d(x, filters)


LEFT: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "one dimension": (nn.Conv1d(4, 6, 3), (torch.randn(1, 4, 9),)),
    "three dimensions": (nn.Conv3d(2, 3, 2), (torch.randn(1, 2, 5, 5, 5),)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), (torch.randn(1, 4, 5, 5),)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (torch.randn(1, 4, 7, 7),)),
    "given filters": (Given(), (torch.randn(1, 4, 7, 7), torch.randn(2, 4, 3, 3))),
    "fp64": (nn.Conv2d(4, 4, 3).double(), (torch.randn(1, 4, 7, 7, dtype=torch.float64),)),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_generated(name: str) -> None:
    model, inputs = LEFT[name]
    assert not calls(passed(model, *inputs))


@pytest.mark.parametrize(
    "config",
    [BackendConfig("host"), dataclasses.replace(H200, options=CompileOptions(cudnn=False))],
    ids=["host", "off"],
)
def test_where_nothing_is_routed(config: BackendConfig) -> None:
    program = passed(Blocks().eval(), torch.randn(3, 3, 21, 18), config=config)
    assert not calls(program)
    assert len(calls(program, aten.convolution.default)) == 6


def test_tf32_where_it_is_allowed() -> None:
    config = dataclasses.replace(H200, options=CompileOptions(allow_tf32=True))
    (call,) = calls(passed(nn.Conv2d(4, 4, 3), torch.randn(1, 4, 7, 7), config=config))
    assert arguments(call)["tf32"]
    (call,) = calls(passed(nn.Conv2d(4, 4, 3), torch.randn(1, 4, 7, 7)))
    assert not arguments(call)["tf32"]
