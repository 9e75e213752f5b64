"""Products with weights as they are, bf16 or fp16: ``mm(x, permute(w))``, as a linear layer is decomposed.

In doubt it is none. Nothing is changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import torch
from torch.fx import Node

from etcuda.kernels.dense.problem import DTYPES
from etcuda.passes.graph.calls import SIZE_OPS
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.recognize.gate import Gate, recognize_gate
from etcuda.passes.recognize.rows import same_rows

aten = torch.ops.aten

_RESHAPES = (aten.reshape.default, aten.view.default)


@dataclasses.dataclass(frozen=True)
class DenseCall:
    """One product x @ weight.T + bias.

    Attributes:
        node: the call of ``mm`` or ``addmm``.
        x: activations [M, K].
        transposed: the weight's transpose [K, N], a view.
        weight: [N, K], dense.
        bias: [N], or ``None``.
    """

    node: Node
    x: Node
    transposed: Node
    weight: Node
    bias: Node | None

    @property
    def source(self) -> Node:
        """The tensor whose rows ``x`` has."""
        return same_rows(self.x)

    @property
    def n(self) -> int:
        """Rows of the weight."""
        return int(tensor_of(self.weight).shape[0])

    @property
    def k(self) -> int:
        """Columns of the weight."""
        return int(tensor_of(self.weight).shape[1])

    @property
    def num_tokens(self) -> int | torch.SymInt:
        """M."""
        return tensor_of(self.x).shape[0]


@dataclasses.dataclass(frozen=True)
class GatedPair:
    """activation(gate(x)) * up(x), which nothing else reads a part of.

    Attributes:
        y: the product.
        gate: whose result is activated.
        up: the other one; of as many rows.
        activation: as of ``Gate``.
    """

    y: Node
    gate: DenseCall
    up: DenseCall
    activation: str


def recognize_dense(node: Node, dtypes: Collection[torch.dtype] = DTYPES) -> DenseCall | None:
    """The product at ``node`` with a weight of one of these dtypes, or ``None``."""
    if node.op != "call_function" or node.kwargs or node.target not in (aten.mm.default, aten.addmm.default):
        return None
    *biases, x, transposed = node.args
    if not isinstance(x, Node) or not isinstance(transposed, Node) or transposed.target is not aten.permute.default:
        return None
    weight, dims = transposed.args[:2]
    if not isinstance(weight, Node) or list(dims) not in ([1, 0], [-1, 0], [1, -2], [-1, -2]):  # type: ignore[arg-type]
        return None
    value = tensor_of(weight)
    if value.dtype not in dtypes or not value.is_contiguous() or not all(isinstance(n, int) for n in value.shape):
        return None
    bias = biases[0] if biases else None
    if isinstance(bias, Node) and (list(tensor_of(bias).shape) != [value.shape[0]] or tensor_of(bias).stride(0) != 1):
        return None
    return DenseCall(node, x, transposed, weight, bias if isinstance(bias, Node) else None)


def recognize_gated_pair(y: Node, calls: Mapping[Node, DenseCall]) -> GatedPair | None:
    """The two products of one input that a gated activation is computed from, or ``None``.

    Args:
        y: what may be a gated activation.
        calls: products by their nodes.
    """
    if y.op != "call_function" or y.target is not aten.mul.Tensor:
        return None
    found = recognize_gate(y)
    if not isinstance(found, Gate) or found.up is None:
        return None
    gate, up = (calls.get(_product_of(each)) for each in (found.gate, found.up))
    if gate is None or up is None or gate is up or gate.source is not up.source or gate.n != up.n:
        return None
    if (gate.bias is None) != (up.bias is None):
        return None
    between = {y, found.gate, found.up, *(node for node in y.all_input_nodes)}
    for node in (gate.node, up.node, *between - {y}):
        if any(user not in between and user.target not in SIZE_OPS for user in node.users):
            return None
    return GatedPair(y, gate, up, found.activation)


def _product_of(node: Node) -> Node:
    """The product [M, N] that a tensor [..., N] is a reshape of, or itself."""
    if node.target in _RESHAPES and isinstance(node.args[0], Node):
        source = node.args[0]
        if tensor_of(source).dim() == 2 and tensor_of(source).shape[-1] == tensor_of(node).shape[-1]:
            return source
    return node
