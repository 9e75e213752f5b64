"""Convolutions that no kernel takes, in terms of those that one does."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.inline_function import Rewrite, rewrite_calls

aten = torch.ops.aten

# More taps than this would make a kernel too long to compile; the template takes them, slowly.
_UNROLLED_TAPS = 64


@dataclasses.dataclass(frozen=True)
class _Conv:
    """The numbers of one convolution, a list entry per spatial dimension."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    @classmethod
    def of(cls, node: Node) -> _Conv:
        dims = node.args[1].meta["val"].dim() - 2  # type: ignore[union-attr]
        stride, padding, dilation, transposed, output_padding, groups = node.args[3:]
        lists: list[Any] = [stride, padding, dilation, output_padding]
        full = [list(each) * (dims if len(each) == 1 else 1) for each in lists]
        return cls(full[0], full[1], full[2], bool(transposed), full[3], int(groups))  # type: ignore[arg-type]


@graph_pass(requires=("lower_edge_ops", "view_copy_to_view"))
def decompose_conv(program: ExportedProgram, config: BackendConfig) -> int:
    """Rewrites convolutions, for every target where marked so, else for the GPU alone.

    - transposed (every target): zeros between the elements, then a plain convolution with the flipped weight
      (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016);
    - depthwise: a sum over the taps of slices times weights, which becomes one generated kernel;
    - dilated: the taps side by side, times the weight as a matrix;
    - one spatial dimension: two, the first of size one.

    Before: ``convolution(x, w, dilation=[2, 2])``. After: ``view(bmm(view(w), view(stack(slices of pad(x)))))``.
    """

    def choose(node: Node) -> tuple[Rewrite, tuple[Node, ...]] | None:
        if node.target is not aten.convolution.default:
            return None
        rewrite = _choose(node, config.is_host)
        tensors = tuple(arg for arg in node.args[:3] if isinstance(arg, Node))
        return None if rewrite is None else (rewrite, tensors)

    return sum(rewrite_calls(module.graph, choose) for module in graph_modules(program))


def _choose(node: Node, is_host: bool) -> Rewrite | None:
    conv = _Conv.of(node)
    _, weight_channels, *kernel = node.args[1].meta["val"].shape  # type: ignore[union-attr]
    if conv.transposed:
        return functools.partial(transposed, conv)
    if is_host:
        return None
    if conv.groups > 1 and weight_channels == 1 and math.prod(kernel) <= _UNROLLED_TAPS:
        return functools.partial(depthwise, conv)
    if any(dilation != 1 for dilation in conv.dilation):
        return functools.partial(by_taps, conv)
    if len(kernel) == 1:
        return functools.partial(with_two_dimensions, conv)
    return None


def transposed(conv: _Conv, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x`` (N, C_in, *S), ``weight`` (C_in, C_out / groups, *K)."""
    kernel = weight.shape[2:]
    dims = range(len(kernel))
    for dim, stride in enumerate(conv.stride, start=2):
        if stride > 1:
            size = x.shape[dim]
            spaced = x.unsqueeze(dim + 1)
            tail = [0, 0] * (x.dim() - 1 - dim)
            spaced = aten.constant_pad_nd.default(spaced, [*tail, 0, stride - 1])
            x = spaced.flatten(dim, dim + 1).narrow(dim, 0, (size - 1) * stride + 1)
    pads: list[int] = []
    for dim in reversed(dims):
        around = conv.dilation[dim] * (kernel[dim] - 1) - conv.padding[dim]
        pads += [around, around + conv.output_padding[dim]]
    if any(pads):
        x = aten.constant_pad_nd.default(x, pads)
    grouped = weight.reshape(conv.groups, -1, *weight.shape[1:]).transpose(1, 2)
    flipped = grouped.flatten(0, 1).flip([dim + 2 for dim in dims])
    ones, zeros = [1] * len(kernel), [0] * len(kernel)
    return _convolution(x, flipped, bias, _Conv(ones, zeros, conv.dilation, False, zeros, conv.groups))


def depthwise(conv: _Conv, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x`` (N, C, *S), ``weight`` (C * multiplier, 1, *K); sums in fp32, or in fp64 for fp64."""
    kernel = list(weight.shape[2:])
    multiplier = weight.shape[0] // conv.groups
    if multiplier > 1:
        x = x.unsqueeze(2).expand(-1, -1, multiplier, *x.shape[2:]).flatten(1, 2)
    ones = [1] * len(kernel)
    dtype = torch.promote_types(x.dtype, torch.float32)
    total: torch.Tensor | None = None
    factors = weight.flatten(1).to(dtype)
    for tap, part in enumerate(_slices(conv, x, kernel)):
        factor = factors[:, tap].reshape(-1, *ones)
        product = part.to(dtype) * factor
        total = product if total is None else total + product
    if total is None:
        raise ValueError(f"a convolution's kernel has at least one tap, got a weight of shape {tuple(weight.shape)}")
    if bias is not None:
        total = total + bias.reshape(-1, *ones).to(dtype)
    return total.to(x.dtype)


def by_taps(conv: _Conv, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x`` (N, C, *S), ``weight`` (O, C / groups, *K): one matrix product per image and group."""
    kernel = list(weight.shape[2:])
    batch, groups = x.shape[0], conv.groups
    columns = torch.stack(_slices(conv, x, kernel), dim=2)
    spatial = columns.shape[3:]
    length = math.prod(spatial)
    columns = columns.reshape(batch * groups, -1, length)
    rows = weight.reshape(1, groups, weight.shape[0] // groups, -1).expand(batch, -1, -1, -1).flatten(0, 1)
    result = torch.bmm(rows, columns).reshape(batch, weight.shape[0], *spatial)
    return result if bias is None else result + bias.reshape(-1, *[1] * len(kernel))


def with_two_dimensions(
    conv: _Conv, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``x`` (N, C, L), ``weight`` (O, C / groups, K)."""
    flat = _Conv([1, *conv.stride], [0, *conv.padding], [1, *conv.dilation], False, [0, 0], conv.groups)
    result = _convolution(x.unsqueeze(2), weight.unsqueeze(2), bias, flat)
    return result.squeeze(2)


def _convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, conv: _Conv) -> torch.Tensor:
    result: torch.Tensor = aten.convolution.default(x, weight, bias, *dataclasses.astuple(conv))
    return result


def _slices(conv: _Conv, x: torch.Tensor, kernel: list[int]) -> list[torch.Tensor]:
    """For each tap of the kernel, the elements of ``x`` that it is multiplied with, in the shape of the result."""
    results = []
    for dim, length in enumerate(kernel):
        reach = conv.dilation[dim] * (length - 1) + 1
        results.append((x.shape[dim + 2] + 2 * conv.padding[dim] - reach) // conv.stride[dim] + 1)
    if any(conv.padding):
        x = aten.constant_pad_nd.default(x, [p for padding in reversed(conv.padding) for p in (padding, padding)])
    found = []
    for taps in itertools.product(*(range(length) for length in kernel)):
        part = x
        for dim, tap in enumerate(taps):
            first, step = tap * conv.dilation[dim], conv.stride[dim]
            last = first + (results[dim] - 1) * step + 1
            part = aten.slice.Tensor(part, dim + 2, first, last, step)
        found.append(part)
    return found
