"""What a program asserts about values is checked by the runtime: which checks a lowering writes, and where."""

from __future__ import annotations

import operator
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch.export import Dim, ExportedProgram

import etcuda.runtime
from etcuda import CudaPartitioner, partition_report, save_program
from etcuda.partitioner.value_checks import is_value_check
from tests.partitioner.programs import export

X, N = torch.randn(8, 3), torch.tensor(4)


class FirstRows(torch.nn.Module):
    """As many rows as a number says, and something that a delegate computes."""

    def forward(self, x: torch.Tensor, n: torch.Tensor | int) -> tuple[torch.Tensor, torch.Tensor]:
        k: Any = n.item() if isinstance(n, torch.Tensor) else n
        torch._check(k >= 0)
        torch._check(k <= x.shape[0])
        return x[:k] * 2, (x + 1).exp()


SHAPES = {"x": {0: Dim("rows", max=64)}, "n": None}


def _sizes_alone(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    torch._check(x.shape[0] < 65)
    return x + n


def _messages(program: ExportedProgram) -> list[str]:
    return [str(node.args[2]) for node in program.graph.nodes if is_value_check(node)]


def _export(function: Callable[..., Any], x: torch.Tensor = X, n: torch.Tensor = N) -> ExportedProgram:
    return export(function, x, n, dynamic=({0: Dim("rows", max=64)}, None))


def _lowered(program: ExportedProgram, target: str = "host") -> ExportedProgram:
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target)])
    found: ExportedProgram = lowered.exported_program()
    return found


def _selected(x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.exp(), x[x > n]


def test_each_assertion_has_a_check_in_words(delegated: list[ExportedProgram]) -> None:
    program = torch.export.export(FirstRows(), (X, N), dynamic_shapes=SHAPES)
    found = " | ".join(_messages(_lowered(program)))
    assert "expected n.item() >= 0, as the model checks, got n.item() = {}." in found
    assert "expected n.item() <= x.shape[0], as the model checks, got n.item() = {}, x.shape[0] = {}. " in found


def test_a_program_that_asserts_nothing_of_values_has_none(delegated: list[ExportedProgram]) -> None:
    assert _messages(_lowered(_export(_sizes_alone))) == []


def test_a_result_whose_size_depends_on_data_comes_last(delegated: list[ExportedProgram]) -> None:
    graph = _lowered(_export(_selected)).graph
    assert graph.output_node().op == "output"


@pytest.mark.parametrize("target", ["host", "sm_90"])
def test_checks_stand_in_front_of_what_they_guard(target: str, delegated: list[ExportedProgram]) -> None:
    program = torch.export.export(FirstRows(), (X, N), dynamic_shapes=SHAPES)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target)])
    assert len(delegated) == 1
    nodes = list(lowered.exported_program().graph.nodes)
    names = [getattr(node.target, "__name__", str(node.target)) for node in nodes]
    checks = [place for place, node in enumerate(nodes) if is_value_check(node)]
    assert len(checks) >= 2
    assert max(checks) < names.index("aten.slice_copy.Tensor")
    assert all(nodes[place].args[0].target in (operator.eq, operator.ge, operator.le) for place in checks)
    assert not any("check_value" in each.op for each in partition_report(program, target).refusals)


def test_a_program_of_which_nothing_is_taken_has_none() -> None:
    def function(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        k: Any = n.item()
        torch._check(k >= 0)
        torch._check(k <= x.shape[0])
        return x[:k] * 2

    lowered = to_edge_transform_and_lower(_export(function), partitioner=[CudaPartitioner("host")])
    assert not any(is_value_check(node) for node in lowered.exported_program().graph.nodes)


def test_a_call_that_does_not_fulfil_them_fails_with_a_sentence(tmp_path: pathlib.Path) -> None:
    runtime = pytest.importorskip("executorch.runtime").Runtime.get()
    program = torch.export.export(FirstRows(), (X, N), dynamic_shapes=SHAPES)
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    save_program(lowered.to_executorch(), tmp_path / "m.pte")
    method = runtime.load_program(tmp_path / "m.pte").load_method("forward")
    for k in (4, 0, 8):
        for got, expected in zip(method.execute([X, torch.tensor(k)]), FirstRows()(X, k), strict=True):
            torch.testing.assert_close(got, expected)
    for k, words in (
        (9, "expected n.item() <= x.shape[0], as the model checks, got n.item() = 9, x.shape[0] = 8."),
        (-1, "expected n.item() >= 0, as the model checks, got n.item() = -1. Pass values that fulfil it."),
    ):
        with pytest.raises(RuntimeError):
            method.execute([X, torch.tensor(k)])
        assert words in etcuda.runtime.last_error()
    method.execute([X, N])
    assert etcuda.runtime.last_error() == ""
