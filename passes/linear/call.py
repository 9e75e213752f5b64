"""Calls of the quantised operators in a graph, their arguments by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.fx import Node

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.int4 import Int4Format
from etcuda.kernels.formats.int8 import Int8Format
from etcuda.passes.base import NodeError
from etcuda.passes.graph.meta import tensor_of

_ops = torch.ops.etcuda

LINEAR_BITS = {_ops.int4_linear.default: 4, _ops.int8_linear.default: 8}
EMBEDDING_BITS = {_ops.int4_embedding.default: 4, _ops.int8_embedding.default: 8}
PARTS = ("qdata", "scale", "zero", "scale_step", "zero_step")
# Metadata of a joined product: the numbers of rows of the weights that were joined, in order.
JOINED = "etcuda_joined"
# Metadata of a slice: the name of the weight whose rows it is. It is a view, which no kernel writes.
ROWS_OF = "etcuda_rows_of"
_FORMATS: dict[int, type[GroupFormat]] = {4: Int4Format, 8: Int8Format}


@dataclasses.dataclass(frozen=True)
class LinearCall:
    """One call of ``int4_linear`` or ``int8_linear``.

    Attributes:
        node: the call.
        bits: 4 or 8.
        x: activations [..., K].
        stored: the stored tensors in the order of ``PARTS``; ``None`` where the format has none.
        bias: [N], or ``None``.
        group_size: weights of a row that share a scale.
        activation_dtype: "int8" or "exact".
    """

    node: Node
    bits: int
    x: Node
    stored: tuple[Node | None, ...]
    bias: Node | None
    group_size: int
    activation_dtype: str

    def now(self) -> LinearCall:
        """The call as it is now: what it reads may have been replaced since it was read."""
        found = read_linear(self.node)
        assert found is not None
        return found

    @property
    def form(self) -> GroupFormat:
        """Format of the weight."""
        scale, *rest = (None if part is None else tensor_of(part) for part in self.stored[1:])
        assert scale is not None
        return _FORMATS[self.bits].of(self.group_size, scale, *rest)

    @property
    def n(self) -> int:
        """Rows of the weight."""
        return int(tensor_of(self.qdata).shape[0])

    @property
    def k(self) -> int:
        """Columns of the weight."""
        return int(tensor_of(self.qdata).shape[1]) * 8 // self.bits

    @property
    def qdata(self) -> Node:
        """The integers."""
        assert self.stored[0] is not None
        return self.stored[0]

    @property
    def parts(self) -> tuple[int, ...]:
        """Rows of the weights that were joined into this one; N alone if none were.

        Raises:
            NodeError: a pass has changed the weight of a joined product.
        """
        found: tuple[int, ...] = self.node.meta.get(JOINED, (self.n,))
        if sum(found) != self.n:
            raise NodeError(
                self.node, f"expected the parts {found} of its weight to make {self.n} rows, got {sum(found)}"
            )
        return found

    @property
    def operands(self) -> list[Node]:
        """What it takes beside ``x``."""
        return [node for node in (*self.stored, self.bias) if node is not None]


def read_linear(node: Node) -> LinearCall | None:
    """The call at ``node``, or ``None`` if it is another one."""
    if node.op != "call_function" or node.target not in LINEAR_BITS:
        return None
    given = arguments(node)
    stored = tuple(given[part] for part in PARTS)
    bits = LINEAR_BITS[node.target]
    return LinearCall(node, bits, given["x"], stored, given["bias"], given["group_size"], given["activation_dtype"])


def is_everywhere(node: Node) -> bool:
    """Whether all of a graph can read the tensor: it is an input or a weight, or rows of one."""
    return node.op in ("placeholder", "get_attr") or ROWS_OF in node.meta


def arguments(node: Node) -> dict[str, Any]:
    """Every argument of a call of an operator by name, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    found: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        default = node.kwargs.get(argument.name, argument.default_value)
        found[argument.name] = node.args[index] if index < len(node.args) else default
    return found
