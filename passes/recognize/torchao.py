"""Weights that torchao quantised, as export leaves them in a graph: integers, scales, and the operators that use them.

``torchao_uses`` proves that all uses of a weight are products and look-ups, or says why it cannot; in doubt they are
not. Nothing is changed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.graph.program_constants import target_of

aten = torch.ops.aten

_SAME_ROWS = frozenset({aten.reshape.default, aten.view.default})


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight as the graph has it: integers with a scale per block.

    Attributes:
        integers: [N, K].
        scale: of each block.
        zero_point: of each block, or ``None``.
        block: rows and columns of a block.
        least: the least integer.
        most: the greatest.
        dtype: of the values.
    """

    integers: Node
    scale: Node
    zero_point: Node | None
    block: tuple[int, int]
    least: int
    most: int
    dtype: torch.dtype

    @property
    def nodes(self) -> list[Node]:
        """What it is stored as."""
        return [node for node in (self.integers, self.scale, self.zero_point) if node is not None]


@dataclasses.dataclass(frozen=True)
class Use:
    """A product or a look-up with such a weight.

    Attributes:
        node: the node whose value it computes.
        weight: the weight.
        x: activations [..., K], or indices.
        bias: [N], or ``None``.
        activation_dtype: "int8" where activations are quantized, else "exact"; ``None`` for a look-up.
    """

    node: Node
    weight: Weight
    x: Node
    bias: Node | None
    activation_dtype: str | None


def may_hold_torchao(program: ExportedProgram) -> bool:
    """Whether to look for such weights at all."""
    return any("torchao" in str(node.target) or node.target is aten.mm.default for node in program.graph.nodes)


def torchao_uses(program: ExportedProgram, node: Node) -> list[Use] | str:
    """Uses of the weight that ``node`` dequantises; none if it is something else, or in words why they stay."""
    if node.op != "call_function":
        return []
    if _is(node, "dequantize_affine"):
        given = arguments(node)
        if target_of(program, given["input"]) is None:
            return []
        weight = _affine(program, given)
        if isinstance(weight, str):
            return weight
        found = [_use_of(user, node, weight) for user in node.users]
        if any(use is None for use in found):
            others = ", ".join(str(user.target) for user, use in zip(node.users, found, strict=True) if use is None)
            return f"expected products and look-ups to read it, got {others}"
        return [use for use in found if use is not None]
    use = _by_row(program, node) if node.target is aten.mul.Tensor else None
    return [] if use is None else [use]


def _is(node: Node, name: str) -> bool:
    return str(node.target) == f"torchao.{name}.default"


def _affine(program: ExportedProgram, given: dict[str, Any]) -> Weight | str:
    stored = [given[name] for name in ("input", "scale", "zero_point") if given[name] is not None]
    if any(target_of(program, node) is None for node in stored):
        return "its scale or zero point is computed"
    block = tuple(given["block_size"])
    if len(block) != 2 or tensor_of(given["input"]).dim() != 2:
        return f"expected a weight [N, K], got blocks {block}"
    if given["quant_min"] is None or given["quant_max"] is None:
        return "it does not say which integers there are"
    least, most = int(given["quant_min"]), int(given["quant_max"])
    return Weight(given["input"], given["scale"], given["zero_point"], block, least, most, given["output_dtype"])


def _use_of(user: Node, weight_node: Node, weight: Weight) -> Use | None:
    if user.target is aten.embedding.default and user.args[0] is weight_node:
        indices: Any = user.args[1]
        return Use(user, weight, indices, None, None)
    if user.target is not aten.permute.default or list(user.args[1]) not in ([1, 0], [-1, 0], [1, -2]):  # type: ignore[arg-type]
        return None
    if len(user.users) != 1:
        return None
    (product,) = user.users
    if product.kwargs or product.target not in (aten.mm.default, aten.addmm.default) or product.args[-1] is not user:
        return None
    x: Any = product.args[-2]
    bias: Any = product.args[0] if product.target is aten.addmm.default else None
    if x is user or (bias is not None and tensor_of(bias).dim() != 1):
        return None
    return _linear_use(product, weight, x, bias)


def _linear_use(product: Node, weight: Weight, x: Node, bias: Node | None) -> Use:
    k = tensor_of(weight.integers).shape[1]
    source = _before_reshape(x, k)
    exact = _before_quantization(source)
    if exact is None:
        return Use(product, weight, source, bias, "exact")
    return Use(product, weight, _before_reshape(exact, k), bias, "int8")


def _before_reshape(x: Node, k: int) -> Node:
    """The tensor [..., K] that was cut into rows."""
    while x.target in _SAME_ROWS and isinstance(x.args[0], Node) and tensor_of(x.args[0]).shape[-1] == k:
        x = x.args[0]
    return x


def _before_quantization(x: Node) -> Node | None:
    """``y`` of ``dequantize_affine(quantize_affine(y, ...), ...)``."""
    if not _is(x, "dequantize_affine"):
        return None
    inner = arguments(x)["input"]
    if not isinstance(inner, Node) or not _is(inner, "quantize_affine"):
        return None
    found: Node = arguments(inner)["input"]
    return found


def _by_row(program: ExportedProgram, node: Node) -> Use | None:
    """``mul(mm(x, to(permute(w))), reshape(to(scale)))`` with w int8 and a scale per row."""
    product, scale = node.args
    if not isinstance(product, Node) or product.target is not aten.mm.default or len(product.users) != 1:
        return None
    x, other = product.args
    integers = _through(other, (aten._to_copy.default, aten.permute.default))
    scales = _through(scale, (aten._to_copy.default, aten.reshape.default))
    if not isinstance(x, Node) or integers is None or scales is None:
        return None
    if target_of(program, integers) is None or target_of(program, scales) is None:
        return None
    stored, values = tensor_of(integers), tensor_of(scales)
    if stored.dtype != torch.int8 or stored.dim() != 2 or not values.is_floating_point():
        return None
    n, k = stored.shape
    if values.numel() != n or list(tensor_of(product).shape)[-1] != n:
        return None
    weight = Weight(integers, scales, None, (1, int(k)), -128, 127, tensor_of(node).dtype)
    return Use(node, weight, _before_reshape(x, int(k)), None, "exact")


def _through(node: Any, allowed: tuple[Any, ...]) -> Node | None:
    """The placeholder behind operators that are ``allowed``."""
    while isinstance(node, Node) and node.target in allowed:
        node = node.args[0]
    return node if isinstance(node, Node) and node.op == "placeholder" else None
