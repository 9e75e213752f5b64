"""Counts of which a program takes a fixed number: ``bincount(x, minlength=n)[:n]``, whose size depends on no data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.edge_ops import ASSERTIONS
from etcuda.passes.graph.inline_function import inline_function

aten = torch.ops.aten


def fix_bincounts(program: ExportedProgram, config: BackendConfig) -> ExportedProgram:
    """Counts by a scatter where the program takes at most the first ``minlength`` counts of a ``bincount``.

    Args:
        program: from ``torch.export.export``; not changed.
        config: target and options.

    Returns:
        ``program`` where there is none of these, else a functional copy.

    Raises:
        PassError: a rewrite yields something else than the slice does.
    """
    if not any(_slices(node) for node in _bincounts(program)):
        return program
    # Here, for it brings the kernels with it.
    from etcuda.passes.manager import run_passes

    @graph_pass()
    def count_by_scatter(program: ExportedProgram, config: BackendConfig) -> int:
        found = [node for node in _bincounts(program) if _slices(node)]
        for node in found:
            _rewrite(node)
        return len(found)

    copy: ExportedProgram = program.run_decompositions({})
    run_passes(copy, config, (count_by_scatter,))
    return copy


def _bincounts(program: ExportedProgram) -> Iterator[Node]:
    for module in graph_modules(program):
        yield from (node for node in module.graph.nodes if node.target is aten.bincount.default)


def _slices(bincount: Node) -> list[Node]:
    """The slices of counts that a program takes; none where it takes more of them, or asks how many there are."""
    slices = []
    for user in bincount.users:
        if user.target in (aten.slice.Tensor, aten.narrow.default) and isinstance(user.meta["val"].shape[0], int):
            slices.append(user)
        elif not (user.target is aten.sym_size.int and all(_only_asserts(each) for each in user.users)):
            return []
    least = arguments(bincount)["minlength"]
    return slices if all(_end(each) <= least for each in slices) else []


def _end(part: Node) -> int:
    given = arguments(part)
    start: Any = given.get("start")
    end: Any = given.get("end")
    if part.target is aten.narrow.default:
        end = start + given["length"]
    known = all(isinstance(each, int) and each >= 0 for each in (start, end))
    return int(end) if known and given.get("step", 1) == 1 else torch.iinfo(torch.int64).max


def _only_asserts(node: Node) -> bool:
    if node.target in ASSERTIONS:
        return True
    return bool(node.users) and all(_only_asserts(user) for user in node.users)


def _rewrite(bincount: Node) -> None:
    given = arguments(bincount)
    inputs = [value for value in (given["self"], given["weights"]) if isinstance(value, Node)]
    for part in _slices(bincount):
        end = _end(part)
        value = part.meta["val"]
        inline_function(part, _Counts(end - value.shape[0], end, value.dtype), *inputs)
    _erase(bincount)


@dataclasses.dataclass(frozen=True)
class _Counts:
    """The counts of ``start`` to ``end``, or the sums of the weights there."""

    start: int
    end: int
    dtype: torch.dtype

    def __call__(self, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        each = inputs[1].to(self.dtype) if len(inputs) > 1 else torch.ones_like(x, dtype=self.dtype)
        # What is counted beyond the end goes to a place more.
        place = torch.where((x >= 0) & (x < self.end), x, self.end).to(torch.int64)
        zeros = torch.zeros([self.end + 1], dtype=self.dtype, device=x.device)
        found: Tensor = aten.scatter_add.default(zeros, 0, place, each)
        return found[self.start : self.end]


def _erase(node: Node) -> None:
    for user in list(node.users):
        _erase(user)
    node.graph.erase_node(node)
