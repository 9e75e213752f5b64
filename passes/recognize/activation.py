"""What a tensor of activations is computed by: an RMSNorm, or a gated activation. Found by structure, whoever wrote it.

A recogniser returns what it found, or in words why the tensor is not that.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.formats.base import DTYPES
from etcuda.passes.graph.meta import tensor_of

aten = torch.ops.aten

_ACTIVATIONS = {
    (aten.silu.default, None): "silu",
    (aten.gelu.default, "none"): "gelu_erf",
    (aten.gelu.default, "tanh"): "gelu_tanh",
}
_RESHAPES = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten.reshape.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.view.default,
    }
)


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
        pair = _operands(self.h, aten.add.Tensor)
        if pair is None or self.h.kwargs.get("alpha", 1) != 1:
            return None
        return pair if all(_alike(tensor_of(each), tensor_of(self.h)) for each in pair) else None


@dataclasses.dataclass(frozen=True)
class Gate:
    """y = activation(gate) * up; without ``up``, ``gate`` holds both side by side."""

    gate: Node
    up: Node | None
    activation: str


def same_rows(node: Node) -> Node:
    """The tensor whose rows ``node`` has, in the same order, in another shape at most."""
    while node.op == "call_function" and node.target in _RESHAPES:
        source = node.args[0]
        assert isinstance(source, Node)
        before, after = tensor_of(source), tensor_of(node)
        if not before.dim() or not after.dim() or not statically_known_true(before.shape[-1] == after.shape[-1]):
            break
        node = source
    return node


def other_readers(y: Node, nodes: list[Node]) -> list[Node]:
    """What reads ``y`` or a view of its rows beside ``nodes``, sizes left out."""
    found, pending = [], [y]
    while pending:
        for user in pending.pop().users:
            if user in nodes or user.target in (aten.sym_size.int, aten.sym_numel.default):
                continue
            if same_rows(user) is y:
                pending.append(user)
            else:
                found.append(user)
    return found


def recognize_norm(y: Node) -> Norm | str:
    """The RMSNorm that computes ``y``."""
    dtype = tensor_of(y).dtype
    inner = _uncast(y) if dtype != torch.float32 else None
    found: Norm | str
    if inner is not None and tensor_of(inner).dtype == torch.float32:
        found = _weighted(inner, cast_first=False)
    else:
        found = _weighted(y, cast_first=dtype != torch.float32)
    if isinstance(found, str):
        return found
    source = _uncast(found.h)
    if source is not None and dtype != torch.float32:
        found = dataclasses.replace(found, h=source)
    h, result = tensor_of(found.h), tensor_of(y)
    if not _alike(h, result):
        return f"the norm's input is {_describe(h)} and its result {_describe(result)}"
    return found


def recognize_gate(y: Node) -> Gate | str:
    """The gated activation that computes ``y``."""
    pair = _operands(y, aten.mul.Tensor)
    if pair is None:
        return f"{_name(y)} is no product of two tensors"
    for factor, up in (pair, pair[::-1]):
        kind = _ACTIVATIONS.get((factor.target, _approximation(factor)))  # type: ignore[arg-type]
        if factor.op != "call_function" or kind is None:
            continue
        gate = factor.args[0]
        assert isinstance(gate, Node)
        if not _alike(tensor_of(gate), tensor_of(up)):
            return f"gate is {_describe(tensor_of(gate))} and up {_describe(tensor_of(up))}"
        both = _halves(gate, up)
        return Gate(gate, up, kind) if both is None else Gate(both, None, kind)
    return f"neither factor is silu or gelu of a gate, but {_name(pair[0])} and {_name(pair[1])}"


def _weighted(node: Node, cast_first: bool) -> Norm | str:
    """weight * norm, or the norm alone; with ``cast_first``, of the norm rounded to the dtype of ``node``."""
    alone = _normed(node, cast_first)
    if not isinstance(alone, str):
        return alone
    pair = _operands(node, aten.mul.Tensor)
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
            kinds = ", ".join(map(str, DTYPES))
            reasons.append(f"the weight {_name(weight)} is {tensor_of(weight).dtype}, expected one of {kinds}")
            continue
        return dataclasses.replace(found, weight=weight, weight_offset=offset)
    rooted = any(factor.target is aten.rsqrt.default for factor in pair)
    return reasons[0] if reasons and not rooted else alone


def _offset_weight(weight: Node) -> tuple[Node, float]:
    """An fp32 weight as the tensor that is stored and the number that is added to it.

    What is computed from a dtype that the operator does not take stays computed.
    """
    offset = 0.0
    summed = _plus_number(weight)
    if summed is not None and tensor_of(summed[0]).dtype == torch.float32:
        weight, offset = summed
    source = _uncast(weight)
    return (weight if source is None or tensor_of(source).dtype not in DTYPES else source), offset


def _normed(node: Node, cast_first: bool) -> Norm | str:
    """h * rsqrt(mean(h^2) + eps) in fp32, rounded if ``cast_first``."""
    if cast_first:
        wide = _uncast(node)
        if wide is None or tensor_of(wide).dtype != torch.float32:
            return f"{_name(node)} is no norm that is rounded to {tensor_of(node).dtype}"
        node = wide
    pair = _operands(node, aten.mul.Tensor)
    if pair is None:
        return f"{_name(node)} is no product of a tensor and a reciprocal root"
    for h, root in (pair, pair[::-1]):
        if root.target is not aten.rsqrt.default:
            continue
        for part in (node, h):
            if tensor_of(part).dtype != torch.float32:
                return f"the norm is computed in {tensor_of(part).dtype}, expected torch.float32"
        eps = _mean_square_plus(root.args[0], h)
        if isinstance(eps, str):
            return eps
        return Norm(h, None, eps, 0.0, cast_first)
    return f"neither factor is a reciprocal root, but {_name(pair[0])} and {_name(pair[1])}"


def _mean_square_plus(node: object, h: Node) -> float | str:
    """eps, if ``node`` is the mean of h^2 over the last dimension plus eps."""
    assert isinstance(node, Node)
    summed = _plus_number(node)
    if summed is None:
        return f"the root is of {_name(node)}, expected a mean plus a number"
    mean, eps = summed
    last = (-1, tensor_of(h).dim() - 1)
    dims = mean.args[1] if len(mean.args) > 1 else None
    if mean.target is not aten.mean.dim or not isinstance(dims, list | tuple) or len(dims) != 1 or dims[0] not in last:
        return f"the root is of {_name(mean)}, expected the mean over the last dimension"
    if not (mean.args[2] if len(mean.args) > 2 else mean.kwargs.get("keepdim", False)):
        return f"{_name(mean)} drops the last dimension, expected that it is kept"
    dtype = mean.kwargs.get("dtype")
    if dtype not in (None, torch.float32):
        return f"{_name(mean)} is computed in {dtype}, expected torch.float32"
    square = mean.args[0]
    assert isinstance(square, Node)
    powered = square.target is aten.pow.Tensor_Scalar and square.args[0] is h and square.args[1] == 2
    multiplied = _operands(square, aten.mul.Tensor) == (h, h)
    if not powered and not multiplied:
        return f"the mean is of {_name(square)}, expected the square of {_name(h)}"
    if not 0 < eps < math.inf:
        return f"{eps} is added to the mean, expected a positive finite number"
    return eps


def _plus_number(node: Node) -> tuple[Node, float] | None:
    """A tensor and the number that is added to it."""
    if node.target not in (aten.add.Tensor, aten.add.Scalar) or node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return None
    for tensor, other in (node.args, node.args[::-1]):
        number = _number(other)
        if number is not None and isinstance(tensor, Node) and _number(tensor) is None:
            return tensor, number
    return None


def _number(value: object) -> float | None:
    """A number, or the one that a scalar tensor is filled with."""
    if isinstance(value, Node) and value.target is aten.full.default and not tensor_of(value).dim():
        value = value.args[1]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _uncast(node: Node) -> Node | None:
    """What ``node`` is in another dtype and in nothing else."""
    if node.target is not aten._to_copy.default:
        return None
    source = node.args[0]
    assert isinstance(source, Node)
    return source if tensor_of(source).device == tensor_of(node).device else None


def _operands(node: Node, op: torch._ops.OpOverload) -> tuple[Node, Node] | None:
    """The two tensors that a call takes."""
    if node.op != "call_function" or node.target is not op:
        return None
    tensors = [arg for arg in node.args if isinstance(arg, Node) and isinstance(arg.meta.get("val"), torch.Tensor)]
    return (tensors[0], tensors[1]) if len(tensors) == 2 else None


def _approximation(node: Node) -> object:
    if node.target is not aten.gelu.default:
        return None
    return node.kwargs.get("approximate", "none")


def _halves(gate: Node, up: Node) -> Node | None:
    """The tensor whose first half along the last dimension is ``gate`` and whose second is ``up``."""
    whole = gate.args[0] if gate.target is aten.slice.Tensor else None
    if not isinstance(whole, Node) or up.target is not aten.slice.Tensor or up.args[0] is not whole:
        return None
    size, last = tensor_of(whole).shape[-1], tensor_of(whole).dim() - 1
    half = tensor_of(gate).shape[-1]
    if size != 2 * half or any(len(part.args) != 4 or part.args[1] not in (-1, last) for part in (gate, up)):
        return None
    end = up.args[3]
    placed = gate.args[2:4] == (0, half) and up.args[2] == half and isinstance(end, int) and end >= size
    return whole if placed else None


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether shape and dtype are equal."""
    sizes = zip(a.shape, b.shape, strict=True) if a.dim() == b.dim() else ()
    return a.dim() == b.dim() and a.dtype == b.dtype and all(statically_known_true(x == y) for x, y in sizes)


def _describe(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _name(node: Node) -> str:
    """The operator, or the kind of node, and the node's name."""
    if node.op == "placeholder":
        return f"{node.name}, an input"
    return f"{node.name} ({node.target})" if node.op == "call_function" else f"{node.name} ({node.op})"
