"""From a model to a ``.pte`` file, and what there is to say about the file. The public API only."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping

import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.exir.delegate import executorch_call_delegate
from torch.export import ExportedProgram

from etcuda import CompileOptions, CudaPartitioner, save_program
from examples.models import find_case


@dataclasses.dataclass(frozen=True)
class ExportRecord:
    """Facts of one export.

    Attributes:
        target: what it was compiled for.
        seconds: wall time from ExportedProgram to file.
        nbytes: size of the ``.pte`` file.
        nodes: operator calls of all methods together.
        delegated: how many of them the delegate took.
        partitions: delegates in the program.
        kernels: kernels in their code images; for ``host``, generated C++ functions.
        attention: which of etcuda's attention kernels are among them: ``split``, ``tiled``.
    """

    target: str
    seconds: float
    nbytes: int
    nodes: int
    delegated: int
    partitions: int
    kernels: int
    attention: tuple[str, ...] = ()


def count_nodes(program: ExportedProgram) -> tuple[int, int, int]:
    """Operator calls of a lowered method, how many of them are delegated, and the number of delegates."""
    nodes = delegated = partitions = 0
    for module in program.graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.op != "call_function" or getattr(node.target, "__name__", "") == "getitem":
                continue
            if node.target is executorch_call_delegate:
                lowered = getattr(module, str(node.args[0].target))
                inside = _calls(lowered.original_module.graph_module)
                delegated, nodes, partitions = delegated + inside, nodes + inside, partitions + 1
            else:
                nodes += 1
    return nodes, delegated, partitions


def _calls(module: torch.nn.Module) -> int:
    graphs = [m.graph for m in module.modules() if isinstance(m, torch.fx.GraphModule)]
    return sum(
        node.op == "call_function" and getattr(node.target, "__name__", "") != "getitem"
        for graph in graphs
        for node in graph.nodes
    )


def export_program(
    methods: Mapping[str, ExportedProgram],
    target: str,
    path: pathlib.Path,
    options: CompileOptions | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> ExportRecord:
    """Lowers the methods for ``target`` and writes ``path``; ``on_stage`` hears "lower", "write" as each begins."""
    start = time.perf_counter()
    on_stage("lower")
    edge = to_edge_transform_and_lower(
        dict(methods), partitioner=[CudaPartitioner(target=target, options=options or CompileOptions(progress=False))]
    )
    counts = [count_nodes(edge.exported_program(name)) for name in methods]
    on_stage("write")
    save_program(edge.to_executorch(), path)
    nodes, delegated, partitions = (sum(column) for column in zip(*counts, strict=True))
    return ExportRecord(
        target=target,
        seconds=time.perf_counter() - start,
        nbytes=path.stat().st_size,
        nodes=nodes,
        delegated=delegated,
        partitions=partitions,
        kernels=count_kernels(path),
        attention=attention_kernels(path),
    )


def count_kernels(path: pathlib.Path) -> int:
    """Kernels in all code images of a program."""
    from etcuda.backend.inspect import inspect_program

    return inspect_program(path).num_kernels


def attention_kernels(path: pathlib.Path) -> tuple[str, ...]:
    """Which of etcuda's attention kernels a program holds: of ``split`` and ``tiled``; always none for the host."""
    from etcuda.backend.inspect import inspect_program

    delegates = [delegate for method in inspect_program(path).methods for delegate in method.delegates]
    names = {name for delegate in delegates for image in delegate.images for name in image.kernels}
    return tuple(
        kind for kind in ("split", "cluster", "tiled") if any(name.startswith(f"attention_{kind}_") for name in names)
    )


def export_case(name: str, target: str, path: pathlib.Path, options: CompileOptions | None = None) -> ExportRecord:
    """Exports a case of a registry."""
    case = find_case(name)
    return export_program(case.export(case.model()), target, path, options)
