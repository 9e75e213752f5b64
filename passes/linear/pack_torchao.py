"""Weights that torchao quantised are packed into our layouts, so that users need not know our types."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.errors import WeightFormatError
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.passes.graph.program_constants import forget_unused, insert_constant, made_of, target_of, value_of
from etcuda.passes.linear.call import PARTS, arguments

log = logging.getLogger(__name__)

aten = torch.ops.aten

_SAME_ROWS = frozenset({aten.reshape.default, aten.view.default})


@dataclasses.dataclass(frozen=True)
class _Weight:
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
class _Use:
    """A product or a look-up with such a weight.

    Attributes:
        node: what the packed operator replaces.
        weight: the weight.
        x: activations [..., K], or indices.
        bias: [N], or ``None``.
        activation_dtype: "int8" where activations were rounded, "exact", or "" of a look-up.
    """

    node: Node
    weight: _Weight
    x: Node
    bias: Node | None
    activation_dtype: str


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "view_copy_to_view"))
def pack_torchao(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces products and look-ups with weights of torchao's subclasses that export has taken apart.

    Before: ``mm(x, permute(dequantize_affine(w, [1, 32], scale, zero), [1, 0]))``, or for int8 by row
    ``mul(mm(x, to(permute(w, [1, 0]))), scale)``. After: ``int4_linear(x, packed, ...)`` on the same integers.
    Activations that were rounded per token are rounded per block of 32. What cannot be packed is left alone; the log
    says why.
    """
    if not any("torchao" in str(n.target) or n.target is aten.mm.default for n in program.graph.nodes):
        return 0
    packed: dict[tuple[Any, ...], dict[str, Node]] = {}
    stored: dict[Node, None] = {}
    for node in list(program.graph.nodes):
        for use in _uses(program, node):
            weight = use.weight
            key = (*weight.nodes, weight.block, weight.least, weight.most)
            if key not in packed:
                try:
                    packed[key] = _pack(program, weight)
                except WeightFormatError as error:
                    log.info("%s is left as it is: %s", use.node.name, error)
                    continue
            _replace(use, packed[key])
            stored |= dict.fromkeys(weight.nodes)
    if packed:
        program.graph.eliminate_dead_code()
        forget_unused(program, list(stored))
        refresh_meta(program.graph)
    return len(packed)


def _uses(program: ExportedProgram, node: Node) -> list[_Use]:
    """Uses of the weight that ``node`` takes apart; none if it is something else or cannot be packed."""
    if node.op != "call_function":
        return []
    if str(node.target) == "torchao.dequantize_affine.default":
        given = arguments(node)
        integers = given["input"]
        if target_of(program, integers) is None:
            return []
        weight, reason = _affine(program, given)
        if weight is None:
            log.info("%s is left as it is: %s", node.name, reason)
            return []
        found = [_use_of(user, node, weight) for user in node.users]
        if any(use is None for use in found):
            others = ", ".join(str(user.target) for user, use in zip(node.users, found, strict=True) if use is None)
            log.info("%s is left as it is: expected products and look-ups to read it, got %s", node.name, others)
            return []
        return [use for use in found if use is not None]
    if node.target is aten.mul.Tensor:
        use = _by_row(program, node)
        return [] if use is None else [use]
    return []


def _affine(program: ExportedProgram, given: dict[str, Any]) -> tuple[_Weight | None, str]:
    stored = [given[name] for name in ("input", "scale", "zero_point") if given[name] is not None]
    if any(target_of(program, node) is None for node in stored):
        return None, "its scale or zero point is computed"
    block = tuple(given["block_size"])
    if len(block) != 2 or tensor_of(given["input"]).dim() != 2:
        return None, f"expected a weight [N, K], got blocks {block}"
    if given["quant_min"] is None or given["quant_max"] is None:
        return None, "it does not say which integers there are"
    least, most = int(given["quant_min"]), int(given["quant_max"])
    return _Weight(
        given["input"], given["scale"], given["zero_point"], block, least, most, given["output_dtype"]
    ), ""  # fmt: skip


def _use_of(user: Node, weight_node: Node, weight: _Weight) -> _Use | None:
    if user.target is aten.embedding.default and user.args[0] is weight_node:
        indices: Any = user.args[1]
        return _Use(user, weight, indices, None, "")
    if user.target is not aten.permute.default or list(user.args[1]) not in ([1, 0], [-1, 0], [1, -2]):  # type: ignore[arg-type]
        return None
    if len(user.users) != 1:
        return None
    (product,) = user.users
    if product.kwargs or product.target not in (aten.mm.default, aten.addmm.default) or product.args[-1] is not user:
        return None
    x: Any = product.args[-2]
    bias: Any = product.args[0] if product.target is aten.addmm.default else None
    if bias is not None and tensor_of(bias).dim() != 1:
        return None
    if x is user:
        return None
    return _linear_use(product, weight, x, bias)


def _linear_use(product: Node, weight: _Weight, x: Node, bias: Node | None) -> _Use:
    k = tensor_of(weight.integers).shape[1]
    source = _before_reshape(x, k)
    rounded = _before_rounding(source)
    if rounded is None:
        return _Use(product, weight, source, bias, "exact")
    return _Use(product, weight, _before_reshape(rounded, k), bias, "int8")


def _before_reshape(x: Node, k: int) -> Node:
    """The tensor [..., K] that was cut into rows."""
    while x.target in _SAME_ROWS and isinstance(x.args[0], Node) and tensor_of(x.args[0]).shape[-1] == k:
        x = x.args[0]
    return x


def _before_rounding(x: Node) -> Node | None:
    """``y`` of ``dequantize_affine(quantize_affine(y, ...), ...)``."""
    if str(x.target) != "torchao.dequantize_affine.default":
        return None
    inner = arguments(x)["input"]
    if not isinstance(inner, Node) or str(inner.target) != "torchao.quantize_affine.default":
        return None
    found: Node = arguments(inner)["input"]
    return found


def _by_row(program: ExportedProgram, node: Node) -> _Use | None:
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
    weight = _Weight(integers, scales, None, (1, int(k)), -128, 127, tensor_of(node).dtype)
    return _Use(node, weight, _before_reshape(x, int(k)), None, "exact")


def _through(node: Any, allowed: tuple[Any, ...]) -> Node | None:
    """The placeholder behind operators that are ``allowed``."""
    while isinstance(node, Node) and node.target in allowed:
        node = node.args[0]
    return node if isinstance(node, Node) and node.op == "placeholder" else None


def _pack(program: ExportedProgram, weight: _Weight) -> dict[str, Node]:
    """The stored tensors of our layout as weights of the program, by name.

    Raises:
        WeightFormatError: no layout of ours holds it.
    """
    # Here, for it brings torchao with it.
    from etcuda.kernels.weights.convert import Affine, from_affine

    targets = [target_of(program, node) for node in weight.nodes]
    name = str(targets[0])
    values = [value_of(program, str(target)) for target in targets]
    n, k = values[0].shape
    blocks = (n // weight.block[0], k // weight.block[1])
    scale = values[1].reshape(blocks)
    zero = values[2].reshape(blocks) if weight.zero_point is not None else None
    made: dict[str, Any] = {}

    def stored() -> dict[str, Tensor]:
        if not made:
            affine = Affine(
                (n, k), lambda a, b: values[0][a:b], weight.least, weight.most, scale, zero, None, weight.dtype
            )
            made.update(from_affine(affine, name).components)
        return made

    # Which parts there are is known once it is packed, which another method may have done.
    parts = {}
    for part in PARTS:
        kind = (part, weight.block, weight.least, weight.most)
        found = made_of(values, kind, lambda part=part: stored().get(part, torch.empty(0)))  # type: ignore[misc]
        if found.numel():
            parts[part] = insert_constant(program, weight.integers, f"{name}_packed_{part}", found)
    return parts


def _replace(use: _Use, stored: dict[str, Node]) -> None:
    parts = [stored.get(part) for part in PARTS]
    n = tensor_of(stored["qdata"]).shape[0]
    k = tensor_of(use.weight.integers).shape[1]
    bits = 4 if tensor_of(stored["qdata"]).dtype == torch.uint8 else 8
    group_size = k // int(tensor_of(stored["scale"]).shape[1])
    node = use.node
    if not use.activation_dtype:
        op: Any = getattr(torch.ops.etcuda, f"int{bits}_embedding").default
        made = insert_call(node, op, (use.x, *parts, group_size, use.weight.dtype))
    else:
        op = getattr(torch.ops.etcuda, f"int{bits}_linear").default
        made = insert_call(node, op, (use.x, *parts, use.bias, group_size, use.activation_dtype))
        if tensor_of(made).dim() != tensor_of(node).dim():
            made = insert_call(node, aten.reshape.default, (made, [-1, n]))
    log.info("%s: packed as int%d, groups of %d", node.name, bits, group_size)
    node.replace_all_uses_with(made)
