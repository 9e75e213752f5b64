"""What the partitioner would take, what it would leave, and why: a partition that leaves the program as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir.backend.partitioner import PartitionResult
from torch.export.exported_program import ExportedProgram

from etcuda.options import CompileOptions
from etcuda.partitioner.bounds import warn_of_narrowed
from etcuda.partitioner.ownership import TAG
from etcuda.partitioner.partitioner import CudaPartitioner, tag_program
from etcuda.partitioner.report import PartitionReport, RefusedNode, decomposed_calls
from etcuda.passes.base import graph_modules, values_of
from etcuda.target import CudaTarget
from etcuda.torch_private import restored_sizes


def partition_report(
    ep: ExportedProgram,
    target: str | CudaTarget = "auto",
    options: CompileOptions | Mapping[str, Any] | None = None,
    compile_config: EdgeCompileConfig | None = None,
) -> PartitionReport:
    """Says what ``CudaPartitioner(target, options)`` would take of a program. The program is not changed.

    Args:
        ep: from ``torch.export.export``, or in the Edge dialect (``EdgeProgramManager.exported_program()``).
        target: as for ``CudaPartitioner``.
        options: as for ``CudaPartitioner``.
        compile_config: as for ``to_edge_transform_and_lower``; its checks are left out, so that what they refuse is
            in the report.

    Raises:
        TypeError: ``ep`` is no exported program.
        TargetError, OptionError: as for ``CudaPartitioner``.
    """
    if not isinstance(ep, ExportedProgram):
        raise TypeError(
            f"ep: expected an ExportedProgram, got {type(ep).__name__}. Call torch.export.export(model, inputs) first."
        )
    recorder = PartitionRecorder(target, options)
    if ep.dialect == "EDGE":
        return recorder.record(ep)
    # A copy, for ExecuTorch writes to what it is given.
    config = dataclasses.replace(compile_config or EdgeCompileConfig(), _check_ir_validity=False)
    config._core_aten_ops_exception_list = list(config._core_aten_ops_exception_list)
    with restored_sizes(values_of(ep)):
        to_edge_transform_and_lower(ep, partitioner=[recorder], compile_config=config)
    if recorder.report is None:
        raise RuntimeError("ExecuTorch did not call the partitioner; expected to_edge_transform_and_lower to do so.")
    return recorder.report


class PartitionRecorder(CudaPartitioner):
    """Finds out what would be claimed and claims nothing.

    Attributes:
        report: that of the program seen last.
    """

    report: PartitionReport | None = None
    _decomposed: tuple[RefusedNode, ...] = ()

    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        """Records the report, warns as an export does, and leaves the program as it was."""
        self.record(exported_program)
        warn_of_narrowed(exported_program)
        return PartitionResult(tagged_exported_program=exported_program, partition_tags={})

    def record(self, program: ExportedProgram) -> PartitionReport:
        """The report of a program in the Edge dialect."""
        before = {node: node.meta.get(TAG) for module in graph_modules(program) for node in module.graph.nodes}
        _, report = tag_program(program, self.config)
        self.report = dataclasses.replace(report, decomposed=self._decomposed)
        for node, tag in before.items():
            if tag is None:
                node.meta.pop(TAG, None)
        return self.report

    def transform_for_pre_decomposition(self, exported_program: ExportedProgram) -> ExportedProgram:
        """Records which calls could not stay whole, and does what an export does."""
        self._decomposed = decomposed_calls(exported_program, self.config)
        return super().transform_for_pre_decomposition(exported_program)
