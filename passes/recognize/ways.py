"""Ways to compute products, one for each range of numbers of tokens: a nest of ``cond``, read as a list.

In doubt it is none, and the reason is said in words. Nothing is changed.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from etcuda.kernels.formats.registry import by_op
from etcuda.passes.graph.calls import SIZE_OPS, arguments
from etcuda.passes.graph.meta import tensor_of
from etcuda.torch_private import expression

aten = torch.ops.aten
_ops = torch.ops.etcuda

COND = torch.ops.higher_order.cond
RESHAPES = (aten.reshape.default, aten.view.default)
# Kernels that compute what products read, and their arguments that are activations [..., K].
_PREPARE = {
    _ops.quantize_activation.default: ("x",),
    _ops.reorder_activation.default: ("x",),
    _ops.gate_quantize.default: ("gate", "up"),
    _ops.gate_reorder.default: ("gate", "up"),
}


@dataclasses.dataclass(frozen=True)
class Way:
    """The kernels for a range of numbers of tokens, which begins where the way before ends.

    Attributes:
        most: the greatest number; ``None`` for any.
        module: the branch.
        operands: for each input of the branch, the number of the outermost ``cond``'s operand.
        kernels: calls in the branch that are kernels, and everything that is computed from their results.
        activations: what kernels read as activations [..., K]; none of it is computed by a kernel of the branch.
        products: the kernels whose results, up to their shapes, the branch returns.
    """

    most: int | None
    module: GraphModule
    operands: Mapping[Node, int]
    kernels: frozenset[Node]
    activations: frozenset[Node]
    products: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Ways:
    """All of them, from few tokens to many, and the node that is the number of tokens."""

    size: Node | int
    ways: tuple[Way, ...]


def recognize_ways(owner: GraphModule, cond: Node) -> Ways | str:
    """The ways among which a nest of ``cond`` chooses by the number of tokens.

    Args:
        owner: of the graph.
        cond: the outermost.

    Returns:
        The ways, or in words why these are not kernels of ours alone, for numbers of tokens alone.
    """
    size = _limit(cond)
    if isinstance(size, str):
        return size
    operands: Any = cond.args[3]
    found = _collect(owner, cond, {node: index for index, node in enumerate(operands)}, expression_of(size[0]))
    if isinstance(found, str):
        return found
    if any([each.meta["val"].dtype for each in way.products] != [each.meta["val"].dtype for each in found[0].products]
           for way in found):  # fmt: skip
        return "its branches return different dtypes"
    return Ways(size[0], tuple(found))


def expression_of(size: Node | int) -> Any:
    """A number of the graph as an expression of its sizes."""
    return size if isinstance(size, int) else expression(size.meta["val"])


def _collect(owner: GraphModule, cond: Node, numbers: Mapping[Node, int], size: Any) -> list[Way] | str:
    """The ways of a ``cond`` whose operands stand for those of the outermost one."""
    limit = _limit(cond)
    if isinstance(limit, str):
        return limit
    if expression_of(limit[0]) != size:
        return "the inner and the outer choice are not by the same number"
    operands: Any = cond.args[3]
    found: list[Way] = []
    for most, target in zip((limit[1], None), cond.args[1:3], strict=True):
        assert isinstance(target, Node)
        module: Any = getattr(owner, str(target.target))
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        inside = {node: numbers[operand] for node, operand in zip(inputs, operands, strict=True)}
        inner = _only_cond(module) if most is None else None
        ways = [_read(most, module, inside, size)] if inner is None else _collect(module, inner, inside, size)
        if isinstance(ways, str):
            return ways
        for way in ways:
            if isinstance(way, str):
                return way
            found.append(way)
    return found


def _limit(cond: Node) -> tuple[Node | int, int] | str:
    predicate = cond.args[0]
    if isinstance(predicate, Node) and predicate.target is operator.le:
        size, limit = predicate.args
        if isinstance(size, Node) and isinstance(limit, int) and limit > 0:
            return size, limit
    return "its predicate is not that a number is at most another one, above 0"


def _only_cond(module: GraphModule) -> Node | None:
    """The ``cond`` that is all of a branch: it reads the branch's inputs, and its results are the branch's."""
    conds = [node for node in module.graph.nodes if node.target is COND]
    (returned,) = module.graph.output_node().args
    if len(conds) != 1 or not isinstance(returned, tuple | list):
        return None
    operands: Any = conds[0].args[3]
    results = [(each.target, each.args) if isinstance(each, Node) else None for each in returned]
    if results != [(operator.getitem, (conds[0], index)) for index in range(len(conds[0].meta["val"]))]:
        return None
    return conds[0] if all(node.op == "placeholder" for node in operands) else None


def _read(most: int | None, module: GraphModule, operands: Mapping[Node, int], size: Any) -> Way | str:
    returned: Any = module.graph.output_node().args[0]
    results = [each for each in returned if isinstance(each, Node)]
    products = tuple(without_reshapes(each) for each in results)
    if len(set(products)) != len(returned) or not all(_is_product(each) for each in products):
        return "a branch returns something else than products"
    kernels: set[Node] = set()
    activations: set[Node] = set()
    for node in module.graph.nodes:
        if is_kernel(node) or (node.op != "output" and not kernels.isdisjoint(node.all_input_nodes)):
            kernels.add(node)
        reason = _refuse(node, products, kernels)
        if reason is not None:
            return f"{node.name} ({node.target}) {reason}"
        for read in _activations(node):
            origin = without_reshapes(read)
            if origin in kernels:
                return f"{node.name} reads activations that a kernel of the branch computes"
            if expression(math.prod(tensor_of(origin).shape[:-1])) != size:
                return f"{origin.name} does not have as many rows as the choice is by"
            activations.add(origin)
    for node in kernels:
        if is_kernel(node) and any(without_reshapes(read) in activations for read in _weights(node)):
            return f"{node.name} reads activations as a weight"
    return Way(most, module, operands, frozenset(kernels), frozenset(activations), products)


def without_reshapes(node: Node) -> Node:
    """What a tensor is a reshape of, or itself."""
    while node.target in RESHAPES:
        read = node.args[0]
        assert isinstance(read, Node)
        node = read
    return node


def _refuse(node: Node, products: Sequence[Node], kernels: Collection[Node]) -> str | None:
    """Why a node cannot be in straight code, or ``None``."""
    if node.op in ("placeholder", "output"):
        return None
    if node.op != "call_function":
        return "is no call"
    if node.target in _PREPARE:
        return "keeps its product" if arguments(node).get("keep_y", False) else None
    if node.target in RESHAPES:
        read = node.args[0]
        same = isinstance(read, Node) and tensor_of(read).shape[-1] == tensor_of(node).shape[-1]
        return None if same or node not in kernels else "changes the last size"
    if _is_product(node):
        behind = [user for user in _users(node) if user.op != "output"]
        if behind:
            return f"is read by {behind[0].name}"
        return None if node in products else "is not returned"
    if node.target is operator.getitem or isinstance(node.meta.get("val"), int | torch.SymInt):
        return None
    if node in kernels:
        return "reads what a kernel computes, and is none of ours"
    is_function = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
    return None if is_function else "is no operator that only computes"


def _users(node: Node) -> Iterator[Node]:
    """Readers of a tensor or of its reshapes; readers of sizes are none."""
    for user in node.users:
        if user.target in RESHAPES:
            yield from _users(user)
        elif user.target not in SIZE_OPS:
            yield user


def is_kernel(node: Node) -> bool:
    """Whether a node is one of the kernels that ways are made of."""
    return node.op == "call_function" and (node.target in _PREPARE or _is_product(node))


def _is_product(node: Node) -> bool:
    record = by_op(node.target)
    return record is not None and node.target in (
        record.matvec_op,
        record.matvec_quantized_op,
        record.matmul_reordered_op,
    )


def _activations(node: Node) -> list[Node]:
    """Arguments of a kernel that are activations [..., K], not what another kernel made of them."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return []
    record = by_op(node.target)
    names: tuple[str, ...] = _PREPARE.get(node.target, ())
    if record is not None and node.target is record.matvec_op:
        names = ("x",)
    given = arguments(node) if names else {}
    return [given[name] for name in names if given[name] is not None]


def _weights(node: Node) -> list[Node]:
    """What a kernel reads beside activations."""
    activations = _activations(node)
    return [read for read in node.all_input_nodes if read not in activations]
