"""Operators that stay whole through ExecuTorch's decompositions, call by call: a refused call is decomposed alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.export import default_decompositions
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

import etcuda.kernels  # noqa: F401  registers the kernels
from etcuda.kernels.common.registry import records
from etcuda.options import BackendConfig
from etcuda.partitioner.node_view import Refusal
from etcuda.partitioner.support import refuse
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.inline_function import inline_function

aten = torch.ops.aten

# Operators that passes route to kernels, as the kernels' records say.
ROUTED = frozenset(op for record in records() for op in record.kept_whole)
KEPT_WHOLE: tuple[torch._ops.OpOverload, ...] = (aten.baddbmm.default, aten.silu.default, *sorted(ROUTED, key=str))


def decide(program: ExportedProgram, config: BackendConfig) -> dict[Node, Refusal | None]:
    """For every call of an operator that could stay whole: why it cannot be claimed, or ``None``."""
    routed = set() if config.is_host else set(ROUTED)
    if not config.options.attention_kernels:
        routed.discard(aten.scaled_dot_product_attention.default)
    wanted = {op for op in KEPT_WHOLE if op in routed or op not in ROUTED}
    return {
        node: refuse(node, config)
        for module in graph_modules(program)
        for node in module.graph.nodes
        if node.op == "call_function" and node.target in wanted
    }


def kept_operators(program: ExportedProgram, config: BackendConfig) -> list[torch._ops.OpOverload]:
    """The operators of ``KEPT_WHOLE`` that occur and whose every call is claimed."""
    decisions = decide(program, config)
    refused = {node.target for node, refusal in decisions.items() if refusal is not None}
    occurring = {node.target for node in decisions}
    return [op for op in KEPT_WHOLE if op in occurring and op not in refused]


def decompose_refused(program: ExportedProgram, config: BackendConfig) -> ExportedProgram:
    """Decomposes the refused calls of operators that other calls keep whole.

    ExecuTorch keeps an operator whole in all of a program or nowhere. Where no call or every call of an operator is
    refused there is nothing to do.

    Args:
        program: from ``torch.export.export``; not changed.
        config: target and options.

    Returns:
        ``program``, or a functional copy whose calls of operators in ``KEPT_WHOLE`` agree with each other.

    Raises:
        PassError: a decomposition yields something else than the call does.
    """
    if not any(_mixed(program, config)):
        return program
    # Here, for it brings the kernels with it.
    from etcuda.passes.manager import run_passes

    @graph_pass()
    def decompose_refused_calls(program: ExportedProgram, config: BackendConfig) -> int:
        table = default_decompositions()
        refused = list(_mixed(program, config))
        for node in refused:
            inline_function(node, _Decomposition(node, table[node.target]), *_tensors(node))
        return len(refused)

    copy: ExportedProgram = program.run_decompositions({})
    run_passes(copy, config, (decompose_refused_calls,))
    return copy


def _mixed(program: ExportedProgram, config: BackendConfig) -> Iterator[Node]:
    """Refused calls of operators of which another call is claimed."""
    decisions = decide(program, config)
    claimed = {node.target for node, refusal in decisions.items() if refusal is None}
    return (node for node, refusal in decisions.items() if refusal is not None and node.target in claimed)


def _tensors(node: Node) -> list[Node]:
    return [source for source in node.all_input_nodes if isinstance(source.meta["val"], torch.Tensor)]


class _Decomposition:
    """A call as a function of its tensors."""

    def __init__(self, node: Node, function: Any) -> None:
        self._node = node
        self._function = function

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(_tensors(self._node), tensors, strict=True))
        arguments = (self._node.args, self._node.kwargs)
        args, kwargs = torch.fx.map_arg(arguments, lambda source: given.get(source, source.meta["val"]))
        result: torch.Tensor = self._function(*args, **kwargs)
        return result
