"""Claimed calls of operators outside Core ATen pass ExecuTorch's check of operators under names of our own."""

from __future__ import annotations

import functools
from collections.abc import Set
from typing import Any

import torch
from executorch.exir.passes.replace_aten_with_edge_pass import aten_to_edge
from torch.export import default_decompositions
from torch.export.exported_program import ExportedProgram
from torch.fx import GraphModule, Node

from etcuda.options import BackendConfig
from etcuda.partitioner.aliases import FunctionalProgram, called
from etcuda.partitioner.list_results import slice_lists
from etcuda.partitioner.support import branches, refuse
from etcuda.passes.base import graph_modules
from etcuda.passes.graph.exempt_ops import exempt, exempted
from etcuda.torch_private import behind_edge, is_core


class ExemptingProgram(ExportedProgram):
    """A program whose decompositions end with claimed calls under names of our own.

    ExecuTorch decomposes what a partitioner returns and checks the result; only the program itself takes part between.
    """

    _config: BackendConfig
    # Of a functional program: what was to be decomposed and stayed.
    _stays: frozenset[object] | None

    @classmethod
    def of(cls, program: ExportedProgram, config: BackendConfig) -> ExemptingProgram:
        """The same program, graph and tensors shared, of this class. A functional one is changed."""
        made = cls.__new__(cls)
        made.__dict__.update(program.__dict__)
        made._config = config
        made._stays = program.stays if isinstance(program, FunctionalProgram) else None
        if made._stays is not None:
            made._settle()
        return made

    def run_decompositions(
        self, decomp_table: dict[Any, Any] | None = None, decompose_custom_triton_ops: bool = False
    ) -> ExportedProgram:
        """As of any program, which is not changed; without gradients, for which loops would keep every step.

        The program itself where no call writes to its arguments and none is to be decomposed, or was and stayed:
        ExecuTorch asks for that, and tracing the graph takes as long as decomposing it.
        """
        table = dict(default_decompositions() if decomp_table is None else decomp_table)
        if self._stays is not None and not any(op in table and op not in self._stays for op in called(self)):
            return self
        with torch.no_grad():
            made = super().run_decompositions(table, decompose_custom_triton_ops)
        return ExemptingProgram.of(FunctionalProgram.of(made, table), self._config)

    def _settle(self) -> None:
        with torch.no_grad():
            _forget_gradients(self)
        for module in graph_modules(self):
            if module.graph.eliminate_dead_code():
                module.recompile()
        slice_lists(self)
        exempt_claimed(self, self._config)


def exempt_claimed(program: ExportedProgram, config: BackendConfig) -> None:
    """Gives each claimed call that ExecuTorch's check would refuse the operator of our namespace.

    What the decompositions know is left: it will be decomposed, or a partitioner keeps it whole and so exempts it.

    Args:
        program: a functional one, in ATen.
        config: target and options.
    """
    for module in graph_modules(program):
        changed = False
        for node in module.graph.nodes:
            if node.op == "call_function" and _is_outside(node.target) and refuse(node, config) is None:
                node.target = exempt(node.target)
                changed = True
        if changed:
            module.recompile()


def restore_unclaimed(module: GraphModule, claimed: Set[Node]) -> None:
    """Gives the calls that are not claimed after all their own operators back, for the check and for other backends.

    Args:
        module: an Edge graph.
        claimed: calls in partitions; the branches of claimed control flow are claimed too.
    """
    changed = False
    for node in module.graph.nodes:
        if node.op != "call_function" or node in claimed:
            continue
        for branch in branches(node):
            restore_unclaimed(branch, claimed)
        op = behind_edge(node.target)
        if isinstance(op, torch._ops.OpOverload) and exempted(op) is not op:
            node.target = aten_to_edge(exempted(op))
            changed = True
    if changed:
        module.recompile()


def _forget_gradients(program: ExportedProgram) -> None:
    """Has no input ask for a gradient: ExecuTorch traces the graph again, where loops would keep every step."""
    for module in graph_modules(program):
        for node in module.graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, torch.Tensor) and value.requires_grad:
                node.meta["val"] = value.detach()


@functools.cache
def _is_outside(op: object) -> bool:
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten" or op in _decomposed():
        return False
    shares = any(each.alias_info is not None for each in (*op._schema.arguments, *op._schema.returns))
    return not shares and not is_core(op)


@functools.cache
def _decomposed() -> frozenset[object]:
    return frozenset(default_decompositions())
