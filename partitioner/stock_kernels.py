"""What is left after all partitioners, and has no kernel in ExecuTorch's own runtime: a warning names it at export."""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import re
import sys
import warnings
from collections.abc import Iterator, Set
from typing import Any

import torch
from executorch.exir.dialects.edge._ops import EdgeOpOverload
from executorch.exir.operator.convert import to_out_variant
from executorch.exir.passes import to_out_var_skiplist
from torch.export.exported_program import ExportedProgram

from etcuda.errors import UnsupportedGraphError
from etcuda.partitioner.value_checks import is_value_check
from etcuda.passes.base import graph_modules
from etcuda.passes.graph.exempt_ops import exempted
from etcuda.torch_private import behind_edge

# The runtime says the same where a method is loaded, in runtime/core/last_error.cpp.
SENTENCE = (
    "no delegate computes {ops}, and the runtime has no kernel for that. Let another partitioner take it, write the "
    "model without it, or register a kernel for it before the program is loaded."
)

# Besides the portable kernels, the runtime of the wheel has these.
_OPTIMIZED = frozenset({"aten::_fft_c2r.out", "aten::_fft_r2c.out", "aten::linear.out"})
_WARNED = "etcuda_warned"


def warn_of_missing_kernels(program: ExportedProgram) -> None:
    """Warns once of all operators of a method for which the stock runtime has no kernel.

    Args:
        program: in the Edge dialect, after all partitioners.
    """
    if program.graph_module.meta.get(_WARNED):
        return
    program.graph_module.meta[_WARNED] = True
    missing = sorted(set(missing_kernels(program)))
    if missing:
        warnings.warn(SENTENCE.format(ops=", ".join(missing)), UserWarning, stacklevel=2)


def refuse_mislaid(program: ExportedProgram) -> None:
    """Refuses ``nonzero`` of several dimensions, whose readers would take rows for columns.

    Args:
        program: in the Edge dialect, after all partitioners.

    Raises:
        UnsupportedGraphError: there is one.
    """
    for module in graph_modules(program):
        for node in module.graph.nodes:
            if node.op != "call_function" or behind_edge(node.target) is not torch.ops.aten.nonzero.default:
                continue
            indices = node.meta["val"]
            # By PyTorch it gives columns, transposed; ExecuTorch's kernel writes rows.
            if indices.shape[1] != 1 and not (isinstance(indices.stride(1), int) and indices.stride(1) == 1):
                raise UnsupportedGraphError(
                    f"{node.name}: nonzero (torch.argwhere, torch.where of one argument) of a tensor with "
                    f"{indices.shape[1]} dimensions: expected its result in rows, as ExecuTorch's kernel writes it, "
                    "got columns in the program, so that whatever reads it takes one for the other. Select by a mask, "
                    "x[mask], or compute with torch.where(mask, a, b), or give another partitioner the operator."
                )


def missing_kernels(program: ExportedProgram) -> Iterator[str]:
    """Operators, as the runtime calls them (``aten::avg_pool3d.out``), that it has no kernel for."""
    known = stock_kernels() | _registered()
    for module in graph_modules(program):
        for node in module.graph.nodes:
            if node.op != "call_function" or node.target in to_out_var_skiplist or is_value_check(node):
                continue
            op = behind_edge(node.target)
            # Those that return numbers or nothing are the runtime's own.
            returns = op._schema.returns if isinstance(op, torch._ops.OpOverload) else ()
            if not any(isinstance(each.type, torch.TensorType | torch.ListType) for each in returns):
                continue
            name = _runtime_name(node.target)
            if name not in known:
                yield name


@functools.cache
def stock_kernels() -> frozenset[str]:
    """Names of the kernels of the installed ExecuTorch's runtime."""
    text = importlib.resources.files("executorch.kernels.portable").joinpath("functions.yaml").read_text("utf-8")
    names = re.findall(r"^- (?:op|func): ([^\s(]+)", text, re.MULTILINE)
    return _OPTIMIZED | {name if "::" in name else f"aten::{name}" for name in names}


def _registered() -> Set[str]:
    """Kernels that the user has loaded into this process's runtime, if there is one."""
    runtime = sys.modules.get("executorch.runtime")
    return set() if runtime is None else runtime.Runtime.get().operator_registry.operator_names


def _runtime_name(target: Any) -> str:
    """The name under which the emitter writes a call: that of the operator that writes to its argument."""
    op: Any = behind_edge(target)
    exempt = exempted(op)
    # An operator of the Edge dialect knows its own; a search by name fails for ``pow``, two of whose schemas are alike.
    search = target.to_out_variant if exempt is op and isinstance(target, EdgeOpOverload) else None
    op = exempt
    # Where there is none ExecuTorch will say so.
    with contextlib.suppress(RuntimeError):
        op = to_out_variant(op)[0] if search is None else search()
    overload = op._schema.overload_name
    return f"{op._schema.name}.{overload}" if overload else str(op._schema.name)
