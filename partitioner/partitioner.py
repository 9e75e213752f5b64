"""The partitioner that an export takes."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.errors import OptionError
from etcuda.options import BACKEND_ID, COMPILE_SPEC_KEY, BackendConfig, CompileOptions
from etcuda.partitioner.bincounts import fix_bincounts
from etcuda.partitioner.bounds import warn_of_narrowed
from etcuda.partitioner.claims import claim
from etcuda.partitioner.decompose_at_once import decompose_at_once
from etcuda.partitioner.kept_whole import decompose_refused, kept_operators
from etcuda.partitioner.lean import lean_export
from etcuda.partitioner.loop_bodies import decompose_loops
from etcuda.partitioner.names import check_names
from etcuda.partitioner.notes import take_notes
from etcuda.partitioner.outside_core import ExemptingProgram, restore_unclaimed
from etcuda.partitioner.ownership import (
    TAG,
    note_declared,
    owned_placeholders,
    settle_buffers,
    tag_constants,
    tag_mutated_buffers,
)
from etcuda.partitioner.random_state import draw_from_state
from etcuda.partitioner.report import PartitionReport, decomposed_calls, make_report
from etcuda.partitioner.state_copies import copy_state
from etcuda.partitioner.stock_kernels import refuse_mislaid, warn_of_missing_kernels
from etcuda.partitioner.support import branches
from etcuda.partitioner.value_checks import add_value_checks
from etcuda.partitioner.without_complex import without_complex
from etcuda.passes.base import graph_modules, values_of
from etcuda.passes.graph.meta import forget_computed
from etcuda.passes.repeats.fold import Folded
from etcuda.target import CudaTarget, resolve_target
from etcuda.torch_private import forget_pending_symbols

log = logging.getLogger(__name__)


class CudaPartitioner(Partitioner):  # type: ignore[misc]
    """Claims what etcuda can run.

    Args:
        target: ``"auto"``, ``"host"``, ``"portable"``, ``"sm_90"`` and the like, or a ``CudaTarget``.
        options: ``CompileOptions``, or a mapping of option names to values.
        alone: no other partitioner takes part in the export. The graph is then decomposed when it is made functional,
            and not once more after the partitioners were asked what they keep whole. Repetitions, as layers are, go
            through ExecuTorch's stages three times at most, unless the option ``reroll`` is off or ``folds`` is False.
        folds: see ``alone``.

    Raises:
        TargetError: the target names nothing that can be compiled for.
        OptionError: an option is unknown, or its value is not one that it takes.
    """

    def __init__(
        self,
        target: str | CudaTarget = "auto",
        options: CompileOptions | Mapping[str, Any] | None = None,
        *,
        alone: bool = False,
        folds: bool = True,
    ) -> None:
        super().__init__()
        self.config = make_config(target, options)
        self._alone, self._folds = alone, folds and self.config.options.reroll

    @lean_export()
    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        """Tags the nodes, weights and buffers that the delegate takes."""
        # ExecuTorch finds a backend among the classes that exist. Loading the module defines ours; by its name, since
        # nothing here knows the backend otherwise.
        importlib.import_module("etcuda.backend.preprocess")
        spec = DelegationSpec(BACKEND_ID, [CompileSpec(COMPILE_SPEC_KEY, self.config.to_bytes())])
        tags, report = tag_program(exported_program, self.config)
        log.info("%s", report)
        kept = {each.node: each.reason for each in report.refusals if each.kept_buffer}
        warn_of_narrowed(exported_program)
        settle_buffers(exported_program, set(tags), kept)
        return PartitionResult(tagged_exported_program=exported_program, partition_tags=dict.fromkeys(tags, spec))

    def ops_to_not_decompose(
        self, ep: ExportedProgram
    ) -> tuple[list[torch._ops.OpOverload], Callable[[Node], bool] | None]:
        """Operators of ``KEPT_WHOLE`` that occur and whose every call is claimed; never one that would be left over.

        ExecuTorch asks again when every partitioner has had its turn: what is left is looked at then.
        """
        if ep.dialect == "EDGE":
            self.look_at_rest(ep)
        return kept_operators(ep, self.config), None

    def look_at_rest(self, program: ExportedProgram) -> None:
        """Warns of what no partitioner took and the stock runtime has no kernel for.

        Nothing outside of the delegates keeps a name of ours, also where a subclass claimed less than this class would.
        """
        restore_unclaimed(program.graph_module, set())
        add_value_checks(program.graph_module)
        refuse_mislaid(program)
        warn_of_missing_kernels(program)

    @lean_export()
    def transform_for_pre_decomposition(self, exported_program: ExportedProgram) -> ExportedProgram:
        """Decomposes the refused calls of operators that other calls keep whole, so that each call has its own way.

        Raises:
            UnsupportedGraphError: a weight has a name that PyTorch's graphs cannot hold.
        """
        check_names(exported_program)
        for each in decomposed_calls(exported_program, self.config):
            log.info("%s (%s) is decomposed: %s", each.node, each.op, each.reason)
        note_declared(exported_program)
        forget_pending_symbols(values_of(exported_program))
        program = fix_bincounts(draw_from_state(exported_program, self.config), self.config)
        program = without_complex(program, self.config)
        program = decompose_refused(program, self.config)
        folded: Folded | None = None
        if self._alone:
            program, folded = decompose_at_once(program, self.config, self._folds)
        program = copy_state(program, self.config)
        take_notes(program).folded = folded
        for module in graph_modules(program):
            forget_computed(module.graph)
        return decompose_loops(ExemptingProgram.of(program, self.config), self.config)


def tag_program(program: ExportedProgram, config: BackendConfig) -> tuple[list[str], PartitionReport]:
    """Tags the calls, weights and buffers of every partition, and says what was left.

    Returns:
        The tags in execution order, and the report.
    """
    claims = claim(program.graph_module, config, set(owned_placeholders(program)))
    restore_unclaimed(program.graph_module, {node for group in claims.partitions for node in group})
    tags = [f"etcuda_{index}" for index in range(len(claims.partitions))]
    for tag, group in zip(tags, claims.partitions, strict=True):
        for node in group:
            _tag(node, tag)
    tag_constants(program, set(tags))
    kept = tag_mutated_buffers(program, set(tags))
    return tags, make_report(claims, kept)


def make_config(
    target: str | CudaTarget = "auto", options: CompileOptions | Mapping[str, Any] | None = None
) -> BackendConfig:
    """Resolves what a user wrote, once.

    Raises:
        TargetError: the target names nothing that can be compiled for.
        OptionError: an option is unknown, or its value is not one that it takes.
    """
    if options is None:
        options = CompileOptions()
    elif isinstance(options, Mapping):
        options = CompileOptions.from_mapping(options)
    elif not isinstance(options, CompileOptions):
        raise OptionError(
            f"options: expected CompileOptions, a mapping or None, got {type(options).__name__}. "
            "Pass options={'allow_tf32': True} or the like."
        )
    return BackendConfig(resolve_target(target), options)


def _tag(node: Node, tag: str) -> None:
    node.meta[TAG] = tag
    if branches(node):
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                source.meta[TAG] = tag
