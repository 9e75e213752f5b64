"""Inputs and outputs of a delegate: dtype, dimension bounds, memory order."""

from __future__ import annotations

import sympy
import torch
from torch.export.exported_program import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from etcuda.backend.blob import DTYPE_CODES
from etcuda.backend.schema.generated import delegate_generated as schema
from etcuda.errors import UnsupportedGraphError
from etcuda.passes.canonical.record_output_layout import OUTPUT_DIM_ORDERS, dim_order

# Sizes are int64; a dimension without a bound of its own is limited by what fits there.
_UNBOUNDED = 2**62


def _least(lower: sympy.Expr) -> sympy.Expr:
    # torch.export writes 2 for "no lower bound": it never traces with sizes 0 and 1. At run time 1 is as good as any.
    return sympy.Integer(1) if lower <= 2 else lower


def describe_values(program: ExportedProgram) -> tuple[list[schema.ValueT], list[schema.ValueT]]:
    """The inputs and outputs that a call passes, in order.

    Raises:
        UnsupportedGraphError: one of them is not a tensor of a supported dtype.
    """
    symbols: dict[str, int] = {}
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = []
    for name in program.graph_signature.user_inputs:
        value = nodes[str(name)].meta["val"]
        inputs.append(
            _describe(str(name), value, dim_order(value) if isinstance(value, torch.Tensor) else (), program, symbols)
        )
    output = program.graph.output_node()
    orders = output.meta.get(OUTPUT_DIM_ORDERS)
    user_outputs = set(program.graph_signature.user_outputs)
    outputs = []
    for index, node in enumerate(output.args[0]):
        if node.name in user_outputs and program.graph_signature.output_specs[index].kind.name == "USER_OUTPUT":
            value = node.meta["val"]
            order = (orders[index] if orders else None) or (dim_order(value) if isinstance(value, torch.Tensor) else ())
            outputs.append(_describe(node.name, value, order, program, symbols))
    return inputs, outputs


def _describe(
    name: str, value: object, order: tuple[int, ...], program: ExportedProgram, symbols: dict[str, int]
) -> schema.ValueT:
    record = schema.ValueT()
    record.name = name
    if not isinstance(value, torch.Tensor):
        raise UnsupportedGraphError(
            f"{name!r} is passed into or out of the delegate as {type(value).__name__}; expected a tensor."
        )
    if value.dtype not in DTYPE_CODES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPE_CODES)
        raise UnsupportedGraphError(f"{name!r} has dtype {value.dtype}; expected one of {known}.")
    record.dtype = DTYPE_CODES[value.dtype]
    record.dims = [_dim(size, program, symbols) for size in value.shape]
    record.dimOrder = list(order)
    return record


def _dim(size: int | torch.SymInt, program: ExportedProgram, symbols: dict[str, int]) -> schema.DimT:
    record = schema.DimT()
    record.multipleOf = 1
    if not isinstance(size, torch.SymInt):
        record.min = record.max = int(size)
        record.symbol = -1
        return record
    expression = size.node.expr
    if free_unbacked_symbols(size):
        record.min, record.max = 0, _UNBOUNDED
        record.symbol = -1
        return record
    known = program.range_constraints
    ranges = {
        symbol: ValueRanges(_least(known[symbol].lower), known[symbol].upper)
        for symbol in expression.free_symbols
        if symbol in known
    }
    bounds = bound_sympy(expression, ranges)
    record.min = max(0, int(bounds.lower)) if bounds.lower != -int_oo else 0
    record.max = min(_UNBOUNDED, int(bounds.upper)) if bounds.upper != int_oo else _UNBOUNDED
    # Equal expressions must have equal sizes in one call.
    record.symbol = symbols.setdefault(str(expression), len(symbols))
    return record
