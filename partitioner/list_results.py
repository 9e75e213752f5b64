"""Calls whose result is a list become slices, where ExecuTorch's check would fix a dynamic size.

It takes the first tensor of a list for the list, and asks for its length: a dynamic first dimension, as of a batch that
``chunk`` halves along another one, would be the example's from then on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.passes.base import graph_modules
from etcuda.passes.graph.calls import arguments

aten = torch.ops.aten

# What takes the place of one tensor of the list: an operator, and its arguments after the tensor.
Part = tuple[torch._ops.OpOverload, tuple[int, ...]]


def slice_lists(program: ExportedProgram) -> int:
    """Rewrites, in control flow too, what has sizes that are numbers; the sizes that are kept dynamic stay so.

    Args:
        program: a functional one, in ATen; changed.

    Returns:
        The number of calls that were rewritten.
    """
    changed = 0
    for module in graph_modules(program):
        before = changed
        for node in list(module.graph.nodes):
            part = _PARTS.get(node.target) if node.op == "call_function" else None
            if part is None or not _is_fixed_by_the_check(node) or not _is_taken_apart(node):
                continue
            given = arguments(node)
            parts = part(given)
            if parts is None:
                continue
            for user in list(node.users):
                op, rest = parts[user.args[1]]
                with module.graph.inserting_before(user):
                    piece = module.graph.call_function(op, (given["self"], *rest))
                piece.meta = dict(user.meta)
                user.replace_all_uses_with(piece)
                module.graph.erase_node(user)
            module.graph.erase_node(node)
            changed += 1
        if changed > before:
            module.recompile()
    return changed


def _is_fixed_by_the_check(node: Node) -> bool:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, list | tuple) and value else None
    return isinstance(first, Tensor) and first.ndim > 0 and isinstance(first.shape[0], SymInt)


def _is_taken_apart(node: Node) -> bool:
    return all(user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users)


def _with_sizes(given: dict[str, Any]) -> list[Part] | None:
    sizes = given["split_sizes"]
    if not all(isinstance(size, int) for size in sizes):
        return None
    ends = list(accumulate(sizes))
    return [(aten.slice.Tensor, (given["dim"], end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def _of_size(given: dict[str, Any]) -> list[Part] | None:
    size, length = given["split_size"], given["self"].meta["val"].shape[given["dim"]]
    if not isinstance(size, int) or not isinstance(length, int):
        return None
    starts = range(0, max(length, 1), max(size, 1))
    return [(aten.slice.Tensor, (given["dim"], start, min(start + size, length))) for start in starts]


def _one_by_one(given: dict[str, Any]) -> list[Part] | None:
    length = given["self"].meta["val"].shape[given["dim"]]
    return [(aten.select.int, (given["dim"], index)) for index in range(length)] if isinstance(length, int) else None


_PARTS: dict[object, Callable[[dict[str, Any]], list[Part] | None]] = {
    aten.split_with_sizes.default: _with_sizes,
    aten.split_with_sizes_copy.default: _with_sizes,
    aten.split.Tensor: _of_size,
    aten.split_copy.Tensor: _of_size,
    aten.unbind.int: _one_by_one,
    aten.unbind_copy.int: _one_by_one,
}
