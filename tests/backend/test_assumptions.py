"""What generated code takes for granted about sizes holds at a call, or the call is refused."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from executorch.exir import to_edge, to_edge_transform_and_lower
from torch import Tensor
from torch.export import Dim, ExportedProgram

from etcuda import CudaPartitioner, save_program
from etcuda.backend.blob import MAGIC, read_blob
from etcuda.backend.values import describe_values
from etcuda.errors import CompileError
from tests.backend.test_sizes import Calls
from tests.run_program import run_program


def export(function: Callable[..., Any], most: tuple[int, int] = (64, 64)) -> ExportedProgram:
    shapes = ({0: Dim("rows", min=2, max=most[0]), 1: Dim("columns", min=2, max=most[1])},)
    return torch.export.export(Calls(function), (torch.randn(20, 24),), dynamic_shapes=shapes)


@pytest.mark.parametrize(
    ("function", "sizes"),
    [
        (lambda x: torch.diagonal(x) + 1, [(20, 24), (24, 20), (64, 2), (2, 64), (64, 64), (5, 4)]),
        (lambda x: torch.diagonal(x).sum(), [(20, 24), (24, 20), (64, 2), (2, 64), (64, 64), (5, 4)]),
        # By ``torch.export`` there are two elements at least.
        (lambda x: torch.diagonal(x, 2) + 1, [(20, 24), (24, 20), (2, 64), (64, 4), (64, 64)]),
        (lambda x: torch.diagonal(x, -3) * 2, [(20, 24), (24, 20), (64, 2), (5, 64), (64, 64)]),
        # How many numbers are summed decides which code is faster.
        (lambda x: x.sum(), [(20, 24), (64, 64), (2, 2), (63, 64)]),
    ],
)
def test_sizes_in_another_order_than_the_examples(
    tmp_path: pathlib.Path, function: Callable[[Tensor], Tensor], sizes: list[tuple[int, int]]
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the compiled code holds only")
        lowered = to_edge_transform_and_lower(export(function), partitioner=[CudaPartitioner("host")])
    save_program(lowered.to_executorch(), tmp_path / "m.pte")
    for rows, columns in sizes:
        x = torch.randn(rows, columns)
        (got,) = run_program(tmp_path / "m.pte", (x,), (function(x),))
        torch.testing.assert_close(got, function(x))


def test_elements_that_32_bits_count() -> None:
    program = torch.export.export(
        Calls(lambda x: x * 2 + 1), (torch.randn(20, 24),), dynamic_shapes=({0: Dim("rows"), 1: Dim("columns")},)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the compiled code holds only")
        lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("sm_90")])
    data = lowered.to_executorch().buffer
    (condition,) = read_blob(data[data.index(MAGIC) :]).conditions
    assert condition.text.endswith(b" <= 2147483647")


ROWS, COLUMNS, OTHER = (sympy.Symbol(name, integer=True, positive=True) for name in ("s77", "s27", "s99"))


@pytest.fixture
def edge() -> ExportedProgram:
    program = to_edge(export(lambda x: x * 2)).exported_program()
    (value,) = (node.meta["val"] for node in program.graph.nodes if node.name == "x")
    rows, columns = (size.node.expr for size in value.shape)
    assert {rows.name, columns.name} == {"s77", "s27"}
    return program


@pytest.mark.parametrize("condition", [ROWS >= 1, sympy.Le(COLUMNS, 64), sympy.Ne(ROWS, 65)])
def test_what_the_bounds_say(edge: ExportedProgram, condition: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not describe_values(edge, [sympy.srepr(condition)]).conditions


def test_what_they_do_not_say(edge: ExportedProgram) -> None:
    with pytest.warns(UserWarning, match=r"only where x\.shape\[0\] <= x\.shape\[1\] - 2, because .* Export with"):
        values = describe_values(edge, [sympy.srepr(sympy.Le(ROWS, COLUMNS - 2))] * 2)
    assert [each.text for each in values.conditions] == ["s77 <= s27 - 2"]


def test_what_cannot_be_checked(edge: ExportedProgram) -> None:
    with pytest.raises(CompileError, match=r"s99 <= 5, which cannot be checked at a call\. Declare fewer"):
        describe_values(edge, [sympy.srepr(sympy.Le(OTHER, 5))])
    # Such conditions are asserted where the number is known.
    unbacked = sympy.Symbol("u0", integer=True)
    assert not describe_values(edge, [sympy.srepr(sympy.Le(unbacked, 5))]).conditions
