"""Several cases of the suite in one export, and what became of each."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir.delegate import executorch_call_delegate
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from etcuda import CompileOptions, CudaPartitioner, save_program
from tests.suite.cases import SuiteCase

OPTIONS = CompileOptions(progress=False)


class Batch(nn.Module):
    """Runs every case on its own part of the inputs; returns the tensors of all results, one after the other."""

    def __init__(self, cases: Sequence[SuiteCase]) -> None:
        super().__init__()
        self.cases = nn.ModuleList(case.model for case in cases)
        self.inputs = [pytree.tree_flatten(case.inputs) for case in cases]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors of all cases' inputs in order, to those of their outputs."""
        left, results = list(tensors), []
        for model, (leaves, spec) in zip(self.cases, self.inputs, strict=True):
            filled = [left.pop(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            results += outputs_of(model(*pytree.tree_unflatten(filled, spec)))
        return tuple(results)


def outputs_of(result: Any) -> list[Tensor]:
    """The tensors of a result."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def batch_inputs(cases: Sequence[SuiteCase]) -> tuple[Tensor, ...]:
    """What ``Batch`` takes; every tensor is one of its own."""
    return tuple(tensor.clone() for case in cases for tensor in case.tensors())


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A batch that was exported.

    Attributes:
        path: the program.
        left: for each case, the operators that the delegate did not take, with repetitions.
        partitions: delegates in the program.
    """

    path: pathlib.Path
    left: tuple[tuple[str, ...], ...]
    partitions: int


def lower(cases: Sequence[SuiteCase], target: str, path: pathlib.Path) -> Lowered:
    """Exports the cases as one program. Dynamic shapes are those of a case that is alone; elsewhere sizes are fixed.

    Raises:
        Exception: whatever the export raised.
    """
    alone = len(cases) == 1 and cases[0].dynamic_shapes is not None
    if alone:
        program = torch.export.export(cases[0].model, cases[0].inputs, dynamic_shapes=cases[0].dynamic_shapes)
    else:
        program = torch.export.export(Batch(cases).eval(), batch_inputs(cases))
    edge = to_edge_transform_and_lower(
        program,
        partitioner=[CudaPartitioner(target=target, options=OPTIONS)],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    left: list[list[str]] = [[] for _ in cases]
    partitions = 0
    for node in edge.exported_program().graph.nodes:
        if node.op != "call_function" or getattr(node.target, "__name__", "") == "getitem":
            continue
        if node.target is executorch_call_delegate:
            partitions += 1
        else:
            left[0 if len(cases) == 1 else case_of(node)].append(operator_name(node))
    save_program(edge.to_executorch(), path)
    return Lowered(path, tuple(tuple(each) for each in left), partitions)


def operator_name(node: Node) -> str:
    """``aten.add.Tensor`` or the like."""
    return str(getattr(node.target, "_op", node.target))


def case_of(node: Node) -> int:
    """Which module of ``Batch.cases`` a call came from.

    Raises:
        ValueError: nothing says so.
    """
    for path, _ in node.meta.get("nn_module_stack", {}).values():
        words = str(path).split(".")
        if "cases" in words[:-1]:
            return int(words[words.index("cases") + 1])
    raise ValueError(
        f"{node.name} ({operator_name(node)}): expected the module that it came from in its nn_module_stack."
    )
