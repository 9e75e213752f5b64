"""Inputs and outputs of a delegate: dtype, dimension bounds, how sizes depend on each other, memory order."""

from __future__ import annotations

import dataclasses
from typing import Any

import sympy
import torch
from torch.export.exported_program import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from etcuda.backend.blob import DTYPE_CODES
from etcuda.backend.least_sizes import least_sizes
from etcuda.backend.schema.generated import delegate_generated as schema
from etcuda.backend.sizes import SizeTable
from etcuda.errors import UnsupportedGraphError
from etcuda.partitioner.notes import notes_of
from etcuda.passes.canonical.record_output_layout import OUTPUT_DIM_ORDERS, dim_order

# Sizes are int64; a dimension without a bound of its own is limited by what fits there.
_UNBOUNDED = 2**62


@dataclasses.dataclass(frozen=True)
class DelegateValues:
    """What a call passes, in order, and what must hold of the sizes; see the schema."""

    inputs: list[schema.ValueT]
    outputs: list[schema.ValueT]
    sizes: list[schema.SizeT]
    conditions: list[schema.SizeT]


def describe_values(program: ExportedProgram) -> DelegateValues:
    """Describes the inputs and outputs of a delegated program after the passes.

    Raises:
        UnsupportedGraphError: one of them is not a tensor of a supported dtype.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = [(str(name), nodes[str(name)].meta["val"]) for name in program.graph_signature.user_inputs]
    for name, value in inputs:
        _require_tensor(name, value)
    table = SizeTable([[_expression(size) for size in value.shape] for _, value in inputs])
    ranges = _ranges(program)
    described = [_describe(name, value, dim_order(value), ranges, table) for name, value in inputs]
    output = program.graph.output_node()
    orders = output.meta.get(OUTPUT_DIM_ORDERS)
    outputs = []
    for index, node in enumerate(output.args[0]):
        if program.graph_signature.output_specs[index].kind.name == "USER_OUTPUT":
            value = node.meta["val"]
            _require_tensor(node.name, value)
            order = (orders[index] if orders else None) or dim_order(value)
            outputs.append(_describe(node.name, value, order, ranges, table))
    return DelegateValues(described, outputs, table.records, _conditions(program, inputs, ranges, table))


def _require_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise UnsupportedGraphError(
            f"{name!r} is passed into or out of the delegate as {type(value).__name__}; expected a tensor."
        )
    if value.dtype not in DTYPE_CODES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPE_CODES)
        raise UnsupportedGraphError(f"{name!r} has dtype {value.dtype}; expected one of {known}.")


def _expression(size: int | torch.SymInt) -> Any:
    """The number, or the expression; ``None`` for a size that depends on data."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    return None if free_unbacked_symbols(size) else size.node.expr


def _ranges(program: ExportedProgram) -> dict[Any, ValueRanges[Any]]:
    known = program.range_constraints
    least = least_sizes(program)
    symbols = {key: bounds for key, bounds in known.items() if key.is_Symbol}
    return {
        symbol: ValueRanges(sympy.Integer(min(least.get(symbol, 1), max(0, bounds.upper))), bounds.upper)
        for symbol, bounds in symbols.items()
    }


def _describe(
    name: str, value: torch.Tensor, order: tuple[int, ...], ranges: dict[Any, ValueRanges[Any]], table: SizeTable
) -> schema.ValueT:
    record = schema.ValueT()
    record.name = name
    record.dtype = DTYPE_CODES[value.dtype]
    record.dims = [_dim(_expression(size), ranges, table) for size in value.shape]
    record.dimOrder = list(order)
    return record


def _dim(size: Any, ranges: dict[Any, ValueRanges[Any]], table: SizeTable) -> schema.DimT:
    record = schema.DimT()
    record.size = -1
    if isinstance(size, int):
        record.min = record.max = size
        return record
    record.min, record.max = 0, _UNBOUNDED
    if size is None:
        return record
    bounds = bound_sympy(size, {symbol: ranges[symbol] for symbol in size.free_symbols if symbol in ranges})
    record.min = max(0, int(bounds.lower)) if bounds.lower != -int_oo else 0
    record.max = min(_UNBOUNDED, int(bounds.upper)) if bounds.upper != int_oo else _UNBOUNDED
    record.size = table.position(size)
    return record


def _conditions(
    program: ExportedProgram,
    inputs: list[tuple[str, torch.Tensor]],
    ranges: dict[Any, ValueRanges[Any]],
    table: SizeTable,
) -> list[schema.SizeT]:
    """What the graph was traced under and the bounds do not say: that a size is a multiple of 8, less than another."""
    notes = notes_of(program)
    found: list[Any] = list(notes.conditions) if notes is not None else []
    sizes: list[Any] = [size for _, value in inputs for size in value.shape if isinstance(size, torch.SymInt)]
    if sizes:
        environment: Any = sizes[0].node.shape_env
        found += [guard.expr for guard in environment.guards]
        found = [environment.replace(condition) for condition in found]
    records: dict[str, schema.SizeT] = {}
    for condition in found:
        if not condition.free_symbols or not table.knows(condition.free_symbols):
            continue
        known = {symbol: ranges[symbol] for symbol in condition.free_symbols if symbol in ranges}
        if bound_sympy(condition, known).lower is not sympy.true:
            record = table.condition(condition)
            if record is not None:
                records.setdefault(record.text, record)
    return list(records.values())
