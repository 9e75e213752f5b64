"""Choices among kernels by the number of tokens, as straight code: Inductor makes a graph of each branch of ``cond``.

The kernels of all branches are launched one after another, and those of all but one branch have empty grids. They write
their results to the same memory. See ``etcuda/kernels/common/conditional.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode

import etcuda.kernels.common.part_edge  # noqa: F401  defines the operator
from etcuda.kernels.common.conditional import in_range, launched_if
from etcuda.passes.recognize.ways import COND, Way, recognize_ways, without_reshapes

log = logging.getLogger(__name__)


def straighten(module: GraphModule) -> int:
    """Replaces every ``cond`` that chooses among our kernels for products; returns how many.

    Before: ``cond(m <= 8, few, many, (x, w))``, where ``many`` is ``cond(m <= 64, some, most, (x, w))``.
    After: a call of a submodule on ``(m, x, w)``, which is traced as straight code.
    """
    changed = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not COND:
            continue
        found = recognize_ways(module, node)
        if isinstance(found, str):
            log.info("%s stays a branch: %s", node.name, found)
            continue
        operands: Any = node.args[3]
        name = f"straight_{changed}"
        module.add_submodule(name, StraightCode(found.ways))
        with module.graph.inserting_before(node):
            called = module.graph.call_module(name, (found.size, *operands))
        called.meta = dict(node.meta)
        node.replace_all_uses_with(called)
        module.graph.erase_node(node)
        changed += 1
    if changed:
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.recompile()
    return changed


class StraightCode(torch.nn.Module):
    """The kernels of all ways, one after another.

    Args:
        ways: from few tokens to many.
    """

    def __init__(self, ways: Sequence[Way]) -> None:
        super().__init__()
        self._ways = tuple(ways)

    def forward(self, size: int | torch.SymInt, *operands: Tensor) -> tuple[Tensor, ...]:
        """Products [..., N] of activations [..., K], ``size`` tokens in all."""
        before = _Before(operands)
        first = self._ways[0]
        x = before.activations(first, min(first.activations, key=lambda node: node.name))
        like = [product.meta["val"] for product in first.products]
        results = [x.new_empty((size, each.shape[-1]), dtype=each.dtype) for each in like]
        shaped = tuple(result.view(*x.shape[:-1], result.shape[1]) for result in results)
        if get_proxy_mode() is None:
            # PyTorch asks for shapes alone, which no launch changes.
            return shaped
        least = 0
        for way in self._ways:
            rows = size if way.most is None else torch.sym_min(size, way.most)
            _launch(way, in_range(size, least, way.most), rows, before, results)
            least = 0 if way.most is None else way.most + 1
        return shaped


class _Before:
    """What ways compute before their kernels read it: once for all of them, on all rows, whichever is taken."""

    def __init__(self, operands: Sequence[Tensor]) -> None:
        self._operands = operands
        self._values: dict[Hashable, Any] = {}

    def activations(self, way: Way, node: Node) -> Tensor:
        """Activations [..., K], in memory, so that no way computes them again for itself."""
        key = ("activations", _key(way, node))
        if key not in self._values:
            self._values[key] = torch.ops.etcuda.part_edge(self.value(way, node), False)
        made: Tensor = self._values[key]
        return made

    def value(self, way: Way, node: Node) -> Any:
        """What a node that reads no kernel's result computes."""
        if node in way.operands:
            return self._operands[way.operands[node]]
        key = _key(way, node)
        if key not in self._values:
            target: Any = node.target
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda read: self.value(way, read))
            self._values[key] = target(*args, **kwargs)
        return self._values[key]


def _key(way: Way, node: Node) -> Hashable:
    """Equal for nodes of several ways that compute the same."""
    if node in way.operands:
        return way.operands[node]
    return node.target, str(torch.fx.map_arg((node.args, node.kwargs), lambda read: str(_key(way, read))))


def _launch(
    way: Way,
    active: int | torch.SymInt,
    rows: int | torch.SymInt,
    before: _Before,
    results: Sequence[Tensor],
) -> None:
    """Launches the kernels of a way on grids that are empty unless ``active`` is 1.

    Activations have ``rows`` rows there, as many as the way is for: so its memory stays small where it is not taken.
    """
    memory = dict(zip(way.products, results, strict=True))
    values: dict[Node, Any] = {}

    def value_of(node: Node) -> Any:
        if node not in values:
            values[node] = compute(node)
        return values[node]

    def compute(node: Node) -> Any:
        if without_reshapes(node) in way.activations:
            x = before.activations(way, without_reshapes(node))
            return x.reshape(-1, x.shape[-1])[:rows]
        if node not in way.kernels:
            return before.value(way, node)
        target: Any = node.target
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value_of)
        with launched_if(active, memory.get(node)):
            return target(*args, **kwargs)

    for node in way.module.graph.nodes:
        if node in memory:
            value_of(node)
