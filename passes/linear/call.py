"""Calls of the quantised operators in a graph: what their arguments are, and which format their weight has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch.fx import Node

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.kernels.formats.base import BLOCK, GroupFormat
from etcuda.kernels.formats.registry import WeightFormat, by_op, formats
from etcuda.passes.base import NodeError
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.meta import tensor_of

# The tensors that a weight is stored as, in the order in which the operators take them.
STORED = ("qdata", "scale", "zero", "scale_step", "zero_step")
# Metadata of a joined product: the numbers of rows of the weights that were joined, in order.
JOINED = "etcuda_joined"
# Metadata of a slice, or of a view: the name of the weight whose rows it is. It is a view, which no kernel writes.
ROWS_OF = "etcuda_rows_of"


def format_of_integers(dtype: torch.dtype) -> WeightFormat:
    """The format that stores its integers in a dtype."""
    (found,) = (each for each in formats() if each.format_type(BLOCK).components(1, BLOCK)["qdata"][1] == dtype)
    return found


@dataclasses.dataclass(frozen=True)
class LinearCall:
    """One product of activations and a quantised weight.

    Attributes:
        node: the call.
        weight_format: the record of the weight's format.
        x: activations [..., K].
        stored: the stored tensors in the order of ``STORED``; ``None`` where the format has none.
        bias: [N], or ``None``.
        group_size: weights of a row that share a scale.
        activation_dtype: "int8" or "exact".
    """

    node: Node
    weight_format: WeightFormat
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

    def on(self, tensors: Mapping[Node, Node]) -> LinearCall:
        """The call on other tensors: for each of its own the one in ``tensors``."""
        x, bias, *stored = (None if each is None else tensors[each] for each in (self.x, self.bias, *self.stored))
        assert x is not None
        return dataclasses.replace(self, x=x, bias=bias, stored=tuple(stored))

    @property
    def format(self) -> GroupFormat:
        """How scales and offsets of the weight are stored."""
        scale, *rest = (None if tensor is None else tensor_of(tensor) for tensor in self.stored[1:])
        assert scale is not None
        return self.weight_format.format_type.of(self.group_size, scale, *rest)

    @property
    def n(self) -> int:
        """Rows of the weight."""
        return int(tensor_of(self.qdata).shape[0])

    @property
    def k(self) -> int:
        """Columns of the weight."""
        return int(tensor_of(self.qdata).shape[1]) * 8 // self.weight_format.bits

    @property
    def qdata(self) -> Node:
        """The integers."""
        assert self.stored[0] is not None
        return self.stored[0]

    @property
    def joined(self) -> tuple[int, ...]:
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
        """The tensors that it takes beside ``x``."""
        return [node for node in (*self.stored, self.bias) if node is not None]

    @property
    def weight(self) -> tuple[object, ...]:
        """The arguments of the operators that say the weight: stored tensors, bias, group size."""
        return (*self.stored, self.bias, self.group_size)


def read_linear(node: Node) -> LinearCall | None:
    """The call at ``node`` if it is a linear layer that no kernel was chosen for, else ``None``."""
    found = _format_of(node, "linear")
    return None if found is None else _read(node, found, arguments(node)["activation_dtype"])


def read_matvec(node: Node) -> LinearCall | None:
    """The call at ``node`` if it is one of integer dot products that quantize activations themselves, else ``None``."""
    found = _format_of(node, "matvec")
    return None if found is None else _read(node, found, "int8")


def format_of_embedding(node: Node) -> WeightFormat | None:
    """The weight's format if ``node`` is a look-up of rows, else ``None``."""
    return _format_of(node, "embedding")


def is_everywhere(node: Node) -> bool:
    """Whether all of a graph can read the tensor: it is an input or a weight, or rows of one."""
    return node.op in ("placeholder", "get_attr") or ROWS_OF in node.meta


def whole_of(node: Node) -> Node:
    """The weight that ``node`` is rows of, or ``node`` itself."""
    whole = node.args[0] if ROWS_OF in node.meta else node
    assert isinstance(whole, Node)
    return whole


def _read(node: Node, weight_format: WeightFormat, activation_dtype: str) -> LinearCall:
    given = arguments(node)
    stored = tuple(given[name] for name in STORED)
    return LinearCall(node, weight_format, given["x"], stored, given["bias"], given["group_size"], activation_dtype)


def _format_of(node: Node, what: str) -> WeightFormat | None:
    """The format whose operator of that name ``node`` calls."""
    found = by_op(node.target)
    return found if found is not None and str(node.target) == f"etcuda.{found.name}_{what}.default" else None
