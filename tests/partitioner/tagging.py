"""What the tests of partitions share: a program's tags, and what is left to ExecuTorch's own kernels."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import torch
from executorch.exir import EdgeProgramManager
from executorch.exir.backend.partitioner import PartitionResult
from torch.export import ExportedProgram
from torch.fx import Node

from etcuda import CudaPartitioner

X = torch.randn(4, 6)

_LIBRARY = torch.library.Library("tests", "DEF")
_LIBRARY.define("left_over(Tensor x, int k) -> Tensor")
_LIBRARY.define("left_over.out(Tensor x, int k, *, Tensor(a!) out) -> Tensor(a!)")


def _greatest(x: torch.Tensor, k: int) -> torch.Tensor:
    return torch.topk(x, k)[0]


_LIBRARY.impl("left_over", _greatest, "CompositeExplicitAutograd")
_LIBRARY.impl("left_over.out", lambda x, k, out: out.copy_(_greatest(x, k)), "CompositeExplicitAutograd")


def left_over(x: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k`` greatest elements of each row, by an operator that nothing claims."""
    found: torch.Tensor = torch.ops.tests.left_over(x, k)
    return found


def tags_of(program: ExportedProgram) -> dict[str, str | None]:
    return {node.name: node.meta.get("delegation_tag") for node in program.graph.nodes}


def partition(program: ExportedProgram, target: str = "host") -> tuple[PartitionResult, dict[str, str | None]]:
    result = CudaPartitioner(target).partition(program)
    return result, tags_of(program)


def left(manager: EdgeProgramManager, method: str = "forward") -> collections.Counter[str]:
    """Operators that ExecuTorch's own kernels run."""
    nodes: Iterator[Node] = iter(manager.exported_program(method).graph.nodes)
    names = [str(getattr(node.target, "__name__", node.target)) for node in nodes if node.op == "call_function"]
    return collections.Counter(names)


def model(x: torch.Tensor) -> torch.Tensor:
    """Two operators that are left over, and arithmetic around them."""
    return left_over(x.sin(), 2).cos() + left_over(x.exp(), 2)
