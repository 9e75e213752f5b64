"""Calls whose result is a list, where ExecuTorch's check would take the example's size for the only one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch.export import Dim, ExportedProgram

from etcuda.partitioner.list_results import slice_lists
from etcuda.partitioner.preview import PartitionRecorder
from tests.partitioner.programs import export

X = torch.arange(3 * 7 * 4).reshape(3, 7, 4).float()
BATCH = {0: Dim("n", max=50)}


def halves(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return first * second


def uneven(x: torch.Tensor) -> list[torch.Tensor]:
    a, b, c = x.split([1, 4, 2], dim=1)
    return [c * 2, a.relu(), b + 1]


def of_a_size(x: torch.Tensor) -> list[torch.Tensor]:
    return [part * 2 for part in x.split(3, 1)]


def one_by_one(x: torch.Tensor) -> torch.Tensor:
    a, _, c, d = x.unbind(-1)
    return torch.stack([a - c, d])


def by_name(x: torch.Tensor) -> list[torch.Tensor]:
    return [part + 1 for part in (*torch.tensor_split(x, 3, 1), *torch.hsplit(x, [2, 5]))]


def in_a_branch(x: torch.Tensor) -> torch.Tensor:
    return torch.cond(x.sum() > 0, halves, lambda y: y.chunk(2, -1)[1] + 1, (x,))


@pytest.mark.parametrize("function", [halves, uneven, of_a_size, one_by_one, by_name, in_a_branch])
def test_other_sizes_stay_served(function: Callable[..., Any]) -> None:
    program = export(function, X, dynamic=[BATCH])
    recorder = PartitionRecorder("host")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        lowered = to_edge_transform_and_lower(program, partitioner=[recorder]).exported_program()
    assert recorder.report is not None
    assert recorder.report.refusals == ()
    sizes = [value.shape[0] for value in _user_inputs(lowered)]
    assert all(isinstance(size, torch.SymInt) and size.node.expr.is_symbol for size in sizes), sizes
    assert next(iter(lowered.range_constraints.values())).upper == 50


def _user_inputs(program: ExportedProgram) -> list[torch.Tensor]:
    names = set(program.graph_signature.user_inputs)
    return [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


@pytest.mark.parametrize("function", [halves, uneven, of_a_size, one_by_one, by_name])
def test_the_parts_are_the_same(function: Callable[..., Any]) -> None:
    program = export(function, X, dynamic=[BATCH]).run_decompositions()
    # PyTorch's own decompositions know the others.
    assert slice_lists(program) == (function in (halves, uneven, of_a_size))
    assert slice_lists(program) == 0
    program.graph.lint()
    for rows in (1, 5):
        given = torch.randn(rows, 7, 4)
        torch.testing.assert_close(program.module(check_guards=False)(given), function(given), rtol=0, atol=0)


def test_lists_of_fixed_sizes_are_left() -> None:
    assert slice_lists(export(halves, X).run_decompositions()) == 0
