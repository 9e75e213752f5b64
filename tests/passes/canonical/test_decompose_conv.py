"""Convolutions in other terms, against eager in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from etcuda.errors import PassError
from etcuda.options import BackendConfig, CompileOptions
from etcuda.passes.manager import PASSES, run_passes
from etcuda.target import TARGETS
from tests.exhaustive import alternate
from tests.partitioner.programs import edge

aten = torch.ops.aten
H200 = BackendConfig(TARGETS["sm_90"], CompileOptions(cudnn=False))

CASES = {
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=1, stride=2), (2, 4, 11, 9)),
    "dilated, groups": (nn.Conv2d(4, 6, (3, 2), dilation=(1, 3), groups=2, bias=False), (3, 4, 9, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 7, 5)),
    "depthwise, strided, dilated": (nn.Conv2d(3, 3, 3, groups=3, padding=2, stride=2, dilation=2), (2, 3, 9, 8)),
    "depthwise, multiplier": (nn.Conv2d(4, 8, 3, groups=4, bias=False), (2, 4, 7, 7)),
    "depthwise, 1d": (nn.Conv1d(4, 4, 4, groups=4, padding=3), (2, 4, 11)),
    "1d": (nn.Conv1d(4, 6, 3, padding=1, stride=2), (2, 4, 11)),
    "1d, groups": (nn.Conv1d(4, 6, 3, groups=2), (1, 4, 11)),
    "dilated 3d": (nn.Conv3d(4, 6, 2, dilation=2, groups=2), (1, 4, 5, 6, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 6)),
    "transposed, groups": (nn.ConvTranspose2d(4, 6, (2, 3), stride=(3, 1), groups=2, bias=False), (2, 4, 5, 6)),
    "transposed, cropped": (nn.ConvTranspose2d(2, 3, 2, padding=2), (1, 2, 9, 9)),
    "transposed, 1d, dilated": (nn.ConvTranspose1d(4, 6, 3, stride=3, dilation=2, padding=5), (2, 4, 5)),
    "transposed, 3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 3, 4, 5)),
    "transposed, depthwise": (nn.ConvTranspose2d(4, 4, 3, groups=4, stride=2), (2, 4, 5, 5)),
}
LEFT = {
    "plain": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 9)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 9, 9)),
    "3d": (nn.Conv3d(2, 3, 2), (1, 2, 5, 5, 5)),
    "depthwise, large": (nn.Conv2d(2, 2, 9, groups=2), (1, 2, 12, 12)),
}


def rewritten(conv: nn.Module, x: torch.Tensor, config: BackendConfig, dynamic: bool) -> ExportedProgram:
    shapes = [{0: Dim("n", min=2, max=9), 2: Dim("h", min=5, max=40)}] if dynamic else None
    program = edge(conv, x, dynamic=shapes)
    run_passes(program, config)
    return program


def convolutions(program: ExportedProgram) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if node.target is aten.convolution.default]


@pytest.mark.parametrize(("name", "dynamic"), alternate(list(CASES), [False, True]))
def test_the_numbers_are_kept(name: str, dynamic: bool) -> None:
    conv, shape = CASES[name]
    conv = conv.double().requires_grad_(False)
    if dynamic:
        shape = (max(shape[0], 3), shape[1], max(shape[2], 9), *shape[3:])
    x = torch.randn(shape, dtype=torch.float64)
    program = rewritten(conv, x, H200, dynamic)
    for each in convolutions(program):
        _, weight, _, _, _, dilation, transposed, _, _ = each.args
        assert not transposed
        assert set(dilation) == {1}  # type: ignore[arg-type]
        assert weight.meta["val"].dim() >= 4  # type: ignore[union-attr]
    sizes = [shape] if not dynamic else [shape, (shape[0] + 1, shape[1], shape[2] + 3, *shape[3:])]
    for size in sizes:
        x = torch.randn(size, dtype=torch.float64)
        torch.testing.assert_close(program.module(check_guards=False)(x), conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LEFT)
def test_what_the_template_takes_is_left(name: str) -> None:
    conv, shape = LEFT[name]
    x = torch.randn(shape)
    program = rewritten(conv.float(), x, H200, False)
    (left,) = convolutions(program)
    assert left.args[3:] == convolutions_of_edge(conv, x)


def convolutions_of_edge(conv: nn.Module, x: torch.Tensor) -> tuple[object, ...]:
    program = edge(conv, x)
    node = next(node for node in program.graph.nodes if "convolution" in str(node.target))
    return tuple(node.args[3:])


def test_the_host_needs_the_transposed_rewrite_alone() -> None:
    host = BackendConfig("host")
    for name, (conv, shape) in CASES.items():
        x = torch.randn(shape)
        program = rewritten(conv.float(), x, host, False)
        assert len(convolutions(program)) == 1, name
        torch.testing.assert_close(program.module(check_guards=False)(x), conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["depthwise", "dilated"])
def test_half_precision_is_as_good_as_eager(name: str, dtype: torch.dtype) -> None:
    conv, shape = CASES[name]
    x = torch.randn(shape, dtype=dtype)
    exact = conv.to(dtype).double()(x.double())
    conv = conv.to(dtype).requires_grad_(False)
    program = rewritten(conv, x, H200, False)
    error = (program.module(check_guards=False)(x).double() - exact).abs().max()
    assert error <= 1.5 * (conv(x).double() - exact).abs().max() + torch.finfo(dtype).eps


def test_channels_last_outputs_stay_channels_last() -> None:
    conv = nn.Conv2d(4, 4, 3, groups=4).requires_grad_(False)
    x = torch.randn(2, 4, 7, 7).to(memory_format=torch.channels_last)
    program = rewritten(conv, x, H200, False)
    result = program.module(check_guards=False)(x)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, conv(x))


def test_a_rewrite_to_another_shape_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from etcuda.passes.canonical import decompose_conv

    monkeypatch.setattr(decompose_conv, "with_two_dimensions", lambda conv, x, *_: x)
    with pytest.raises(PassError, match=r"'decompose_conv' failed at node .*expected a rewrite to \(2, 6, 9\)"):
        run_passes(edge(nn.Conv1d(4, 6, 3), torch.randn(2, 4, 11)), H200, PASSES)
