"""Tracing without the branches of ``cond`` again and again."""

from __future__ import annotations

import contextlib
import importlib
import operator
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeGuard, cast
from unittest import mock

import torch
from torch import Tensor
from torch._higher_order_ops import utils
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_functional
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

_COND = torch.ops.higher_order.cond
# A function of the same name hides it.
_COND_MODULE: Any = importlib.import_module("torch._higher_order_ops.cond")
_NOTHING_IS_WRITTEN = torch._C.parse_schema("cond() -> ()")


@contextlib.contextmanager
def branches_are_traced_once() -> Iterator[None]:
    """Answers what PyTorch asks of the branches of ``cond`` from their graphs, where these say it.

    PyTorch traces each branch to learn whether it writes to its operands, again to learn whether it returns one of
    them, and runs it whenever it wants the shapes of what it returns; each of these goes through all branches within,
    and half of the time in which the decoder in int4 was exported went there.
    """
    check, schema = utils._check_alias_and_mutation, type(_COND).gen_schema
    reenter, evaluate = _COND_MODULE.reenter_make_fx, _COND.python_key_table[FakeTensorMode]
    shapes = _Shapes()

    def check_unless_known(branch: Any, *args: Any) -> None:
        if not is_functional(branch):
            check(branch, *args)  # type: ignore[no-untyped-call]

    def schema_unless_known(self: Any, pred: Any, true_fn: Any, false_fn: Any, operands: Any) -> Any:
        if is_functional(true_fn) and is_functional(false_fn):
            return _NOTHING_IS_WRITTEN
        return schema(self, pred, true_fn, false_fn, operands)  # type: ignore[no-untyped-call]

    def trace(function: Any, *args: Any) -> Any:
        make = reenter(function, *args)

        def trace_and_learn(*operands: Any) -> Any:
            traced = make(*operands)
            shapes.learn(traced)
            return traced

        return trace_and_learn

    def evaluate_once(mode: FakeTensorMode, pred: Any, true_fn: Any, false_fn: Any, operands: Any) -> Any:
        return evaluate(mode, pred, shapes.of(true_fn), shapes.of(false_fn), operands)

    with (
        mock.patch.object(utils, "_check_alias_and_mutation", check_unless_known),
        mock.patch.object(type(_COND), "gen_schema", schema_unless_known),
        mock.patch.object(_COND_MODULE, "reenter_make_fx", trace),
        mock.patch.dict(_COND.python_key_table, {FakeTensorMode: evaluate_once}),
    ):
        yield


def is_functional(branch: object) -> bool:
    """Whether a branch is a graph that writes to no tensor and returns new ones, none of which is another's view."""
    return returns_new_tensors(branch) and _writes_nothing(branch)


def returns_new_tensors(branch: object) -> TypeGuard[GraphModule]:
    """Whether a branch is a graph that returns tensors that it made, none of which is a view of another one."""
    if not isinstance(branch, GraphModule):
        return False
    # Where the memory of a tensor comes from: a node and, if that makes several, which of them.
    made_by: dict[Node, tuple[Node, object]] = {}
    for node in branch.graph.nodes:
        first = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if node.op == "output":
            origins = [made_by.get(leaf) for leaf in pytree.tree_leaves(node.args) if isinstance(leaf, Node)]
            return None not in origins and len(set(origins)) == len(origins)
        if node.op == "call_function" and _makes_tensors(branch, node):
            made_by[node] = node, None
        elif first is None or first not in made_by:
            continue
        elif node.target is operator.getitem and made_by[first] == (first, None):
            made_by[node] = first, node.args[1]
        elif _is_view_of_first(node.target):
            made_by[node] = made_by[first]
    return False


def _makes_tensors(branch: GraphModule, node: Node) -> bool:
    """Whether what is returned has memory of its own."""
    target = node.target
    if target is _COND:
        return all(returns_new_tensors(each) for each in _branches(branch, node))
    if not isinstance(target, OpOverload):
        return target is triton_kernel_wrapper_functional
    may_return_an_argument = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    return not may_return_an_argument and all(each.alias_info is None for each in target._schema.returns)


def _is_view_of_first(target: object) -> bool:
    if not isinstance(target, OpOverload):
        return False
    first, *others = target._schema.arguments
    return first.alias_info is not None and all(each.alias_info is None for each in others)


def _writes_nothing(branch: GraphModule) -> bool:
    for node in branch.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is _COND:
            if not all(_writes_nothing(each) for each in _branches(branch, node)):
                return False
        elif isinstance(node.target, OpOverload):
            if node.target._schema.is_mutable:
                return False
        elif isinstance(node.target, HigherOrderOperator):
            return False
    return True


def _branches(graph: GraphModule, cond: Node) -> list[Any]:
    return [getattr(graph, str(cast(Node, each).target)) for each in cond.args[1:3]]


class _Shapes:
    """What graphs return for operands of given shapes, as far as that is known."""

    def __init__(self) -> None:
        self.known: dict[Hashable, Any] = {}

    def of(self, branch: Any) -> Any:
        """The branch, or a stand-in that computes shapes once for equal graphs and operands."""
        if not returns_new_tensors(branch):
            return branch

        def run(*operands: Any) -> Any:
            key = _key(branch, operands)
            if key is None:
                return branch(*operands)
            if key not in self.known:
                self.known[key] = branch(*operands)
            return pytree.tree_map_only(Tensor, _like, self.known[key])

        return run

    def learn(self, traced: GraphModule) -> None:
        """Notes what a graph that was traced just now returns for the operands that it was traced with."""
        operands = [node.meta.get("val") for node in traced.graph.nodes if node.op == "placeholder"]
        (returned,) = traced.graph.output_node().args
        values = pytree.tree_map_only(Node, lambda node: node.meta.get("val"), returned)
        key = _key(traced, operands)
        if key is not None and all(isinstance(each, Tensor) for each in pytree.tree_leaves(values)):
            self.known.setdefault(key, values)


def _key(branch: GraphModule, operands: Iterable[object]) -> Hashable | None:
    described = tuple(_description(each) for each in operands)
    return None if None in described else (_fingerprint(branch), described)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _description(value: object) -> Hashable | None:
    """All of an operand that the shapes of what is computed from it can depend on; ``None`` if that is not known."""
    if isinstance(value, torch.SymInt):
        return "symbol", value.node.expr
    if isinstance(value, bool | int | float):
        return type(value), value
    if not isinstance(value, Tensor) or value.storage_offset() or value.is_sparse:
        return None
    sizes = (*value.shape, *value.stride())
    return value.dtype, value.device, len(value.shape), tuple(_description(each) for each in sizes)


def _fingerprint(branch: GraphModule) -> Hashable:
    """Equal for graphs that compute the same, and changes with the graph."""
    nodes = [(node.op, node.target, str(node.args), str(node.kwargs)) for node in branch.graph.nodes]
    attributes = [getattr(branch, node.target) for node in branch.graph.nodes if node.op == "get_attr"]
    return tuple(nodes), tuple(_fingerprint(a) if isinstance(a, GraphModule) else id(a) for a in attributes)
