"""An RMSNorm, found by its formula, whatever library wrote it.

``recognize_norm`` proves that a tensor is one, down to the dtype of every step, or says in words why it is not; in
doubt it is not. Nothing is changed.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch.fx import Node

from etcuda.kernels.formats.base import DTYPES
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.recognize.terms import alike, describe, name_of, number, operands, plus_number, uncast

aten = torch.ops.aten
_POWERS = (aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor)


@dataclasses.dataclass(frozen=True)
class Norm:
    """y = the RMSNorm of h, as ``etcuda::rms_norm_quantize`` takes it.

    Attributes:
        h: input of the norm, in the shape and dtype of y.
        weight: [K], or ``None``.
        eps: added to the mean of the squares.
        weight_offset: added to the weight, in fp32.
        cast_first: whether the norm is rounded before it is multiplied by the weight.
    """

    h: Node
    weight: Node | None
    eps: float
    weight_offset: float
    cast_first: bool

    @property
    def addends(self) -> tuple[Node, Node] | None:
        """What h is the sum of, if both have its shape and dtype."""
        pair = operands(self.h, aten.add.Tensor)
        if pair is None or self.h.kwargs.get("alpha", 1) != 1:
            return None
        return pair if all(alike(tensor_of(each), tensor_of(self.h)) for each in pair) else None


def recognize_norm(y: Node) -> Norm | str:
    """The RMSNorm that computes ``y``, or why there is none."""
    dtype = tensor_of(y).dtype
    inner = uncast(y) if dtype != torch.float32 else None
    found: Norm | str
    if inner is not None and tensor_of(inner).dtype == torch.float32:
        found = _weighted(inner, cast_first=False)
    else:
        found = _weighted(y, cast_first=dtype != torch.float32)
    if isinstance(found, str):
        return found
    source = uncast(found.h)
    if source is not None and dtype != torch.float32:
        found = dataclasses.replace(found, h=source)
    h, result = tensor_of(found.h), tensor_of(y)
    if not alike(h, result):
        return f"the norm's input is {describe(h)} and its result {describe(result)}"
    return found


def _weighted(node: Node, cast_first: bool) -> Norm | str:
    """weight * norm, or the norm alone; with ``cast_first``, of the norm rounded to the dtype of ``node``."""
    alone = _normed(node, cast_first)
    if not isinstance(alone, str):
        return alone
    pair = operands(node, aten.mul.Tensor)
    if pair is None:
        return alone
    reasons = []
    for normed, weight in (pair, pair[::-1]):
        if tensor_of(weight).dim() != 1 or tensor_of(weight).shape[0] != tensor_of(node).shape[-1]:
            continue
        found = _normed(normed, cast_first)
        if isinstance(found, str):
            reasons.append(found)
            continue
        offset = 0.0
        if tensor_of(weight).dtype == torch.float32:
            weight, offset = _offset_weight(weight)
        if tensor_of(weight).dtype not in DTYPES:
            known = ", ".join(map(str, DTYPES))
            reasons.append(f"the weight {name_of(weight)} is {tensor_of(weight).dtype}, expected one of {known}")
            continue
        return dataclasses.replace(found, weight=weight, weight_offset=offset)
    rooted = any(_under_root(factor) is not None for factor in pair)
    return reasons[0] if reasons and not rooted else alone


def _offset_weight(weight: Node) -> tuple[Node, float]:
    """An fp32 weight as the tensor that is stored and the number that is added to it.

    What is computed from a dtype that the operator does not take stays computed.
    """
    offset = 0.0
    summed = plus_number(weight)
    if summed is not None and tensor_of(summed[0]).dtype == torch.float32:
        weight, offset = summed
    source = uncast(weight)
    return (weight if source is None or tensor_of(source).dtype not in DTYPES else source), offset


def _normed(node: Node, cast_first: bool) -> Norm | str:
    """h * rsqrt(mean(h^2) + eps) in fp32, rounded if ``cast_first``."""
    if cast_first:
        wide = uncast(node)
        if wide is None or tensor_of(wide).dtype != torch.float32:
            return f"{name_of(node)} is no norm that is rounded to {tensor_of(node).dtype}"
        node = wide
    pair = operands(node, aten.mul.Tensor)
    if pair is None:
        return f"{name_of(node)} is no product of a tensor and a reciprocal root"
    for h, root in (pair, pair[::-1]):
        mean = _under_root(root)
        if mean is None:
            continue
        for part in (node, h):
            if tensor_of(part).dtype != torch.float32:
                return f"the norm is computed in {tensor_of(part).dtype}, expected torch.float32"
        eps = _mean_square_plus(mean, h)
        if isinstance(eps, str):
            return eps
        return Norm(h, None, eps, 0.0, cast_first)
    return f"neither factor is a reciprocal root, but {name_of(pair[0])} and {name_of(pair[1])}"


def _under_root(node: Node) -> Node | None:
    """What ``node`` is the reciprocal root of: by ``rsqrt``, or as the power -0.5, as Gemma 3n and 4 have it."""
    is_power = node.target in _POWERS and number(node.args[1]) == -0.5
    if node.target is not aten.rsqrt.default and not is_power:
        return None
    inner = node.args[0]
    assert isinstance(inner, Node)
    return inner


def _mean_square_plus(node: Node, h: Node) -> float | str:
    """eps, if ``node`` is the mean of h^2 over the last dimension plus eps."""
    summed = plus_number(node)
    if summed is None:
        return f"the root is of {name_of(node)}, expected a mean plus a number"
    mean, eps = summed
    last = (-1, tensor_of(h).dim() - 1)
    dims = mean.args[1] if len(mean.args) > 1 else None
    if mean.target is not aten.mean.dim or not isinstance(dims, list | tuple) or len(dims) != 1 or dims[0] not in last:
        return f"the root is of {name_of(mean)}, expected the mean over the last dimension"
    if not (mean.args[2] if len(mean.args) > 2 else mean.kwargs.get("keepdim", False)):
        return f"{name_of(mean)} drops the last dimension, expected that it is kept"
    dtype = mean.kwargs.get("dtype")
    if dtype not in (None, torch.float32):
        return f"{name_of(mean)} is computed in {dtype}, expected torch.float32"
    square = mean.args[0]
    assert isinstance(square, Node)
    powered = square.target is aten.pow.Tensor_Scalar and square.args[0] is h and square.args[1] == 2
    multiplied = operands(square, aten.mul.Tensor) == (h, h)
    if not powered and not multiplied:
        return f"the mean is of {name_of(square)}, expected the square of {name_of(h)}"
    if not 0 < eps < math.inf:
        return f"{eps} is added to the mean, expected a positive finite number"
    return eps
