"""A program that no other partitioner takes part in is decomposed in the trace that makes it functional.

ExecuTorch makes a program functional, asks partitioners what they keep whole, and then decomposes it: each is a trace
of the whole graph, a sixth of what lowering a language model takes.
"""

from __future__ import annotations

import torch
from torch.export import default_decompositions
from torch.export.exported_program import ExportedProgram

from etcuda.options import BackendConfig
from etcuda.partitioner.aliases import base_name, functional_copy
from etcuda.partitioner.kept_whole import KEPT_WHOLE, kept_operators
from etcuda.passes.base import graph_modules
from etcuda.passes.repeats.fold import Folded, flattened, fold

_KEPT_NAMES = frozenset(op._schema.name.split("::")[-1] for op in KEPT_WHOLE)


def decompose_at_once(
    program: ExportedProgram, config: BackendConfig, folds: bool
) -> tuple[ExportedProgram, Folded | None]:
    """A functional copy, decomposed but for what is kept whole; repetitions are taken out of it.

    Args:
        program: from ``torch.export.export``; not changed.
        config: target and options.
        folds: whether repetitions are taken out.

    Returns:
        The copy; or ``program``, where only the functional one shows what can be kept whole. And what was taken out.
    """
    if _writes_what_is_kept(program):
        return program, None
    table = dict(default_decompositions())
    for op in kept_operators(program, config):
        table.pop(op, None)
    left, folded = (fold(program) if folds else None) or (program, None)
    made = functional_copy(left, table)
    return made, None if folded is None else flattened(folded, made)


def _writes_what_is_kept(program: ExportedProgram) -> bool:
    """Whether a call that writes to its argument will be one that can be kept whole, as ``silu_`` will be ``silu``."""
    return any(
        isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
        and base_name(node) in _KEPT_NAMES
        for module in graph_modules(program)
        for node in module.graph.nodes
    )
