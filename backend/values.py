"""Inputs and outputs of a delegate: dtype, dimension bounds, how sizes depend on each other, memory order."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import sympy
import torch
from torch.export.exported_program import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.symbol import SymT, symbol_is_type
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from etcuda.backend.blob import DTYPE_CODES
from etcuda.backend.least_sizes import least_sizes
from etcuda.backend.schema.generated import delegate_generated as schema
from etcuda.backend.sizes import SizeTable, parse
from etcuda.errors import CompileError, UnsupportedGraphError
from etcuda.partitioner.notes import notes_of
from etcuda.passes.canonical.record_output_layout import OUTPUT_DIM_ORDERS, dim_order

# Sizes are int64; a dimension without a bound of its own is limited by what fits there.
_UNBOUNDED = 2**62
_MOST_OF_32_BITS = 2**31 - 1

Inputs: TypeAlias = Sequence[tuple[str, torch.Tensor]]
Ranges: TypeAlias = dict[Any, ValueRanges[Any]]


@dataclasses.dataclass(frozen=True)
class DelegateValues:
    """What a call passes, in order, and what must hold of the sizes; see the schema."""

    inputs: list[schema.ValueT]
    outputs: list[schema.ValueT]
    sizes: list[schema.SizeT]
    conditions: list[schema.SizeT]


def describe_values(program: ExportedProgram, assumptions: Sequence[str] = ()) -> DelegateValues:
    """Describes the inputs and outputs of a delegated program after the passes.

    Args:
        program: the program.
        assumptions: of its compiled code, see ``JobResult``. They become conditions; a warning names each.

    Raises:
        CompileError: an assumption cannot be checked at a call.
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
    records = _traced(program, inputs, ranges, table)
    records |= _assumed(assumptions, inputs, ranges, table, records)
    return DelegateValues(described, outputs, table.records, list(records.values()))


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


def _traced(program: ExportedProgram, inputs: Inputs, ranges: Ranges, table: SizeTable) -> dict[str, schema.SizeT]:
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
        if condition.free_symbols and table.knows(condition.free_symbols) and not _holds(condition, ranges):
            record = table.condition(condition)
            if record is not None:
                records.setdefault(record.text, record)
    return records


def _assumed(
    assumptions: Sequence[str], inputs: Inputs, ranges: Ranges, table: SizeTable, known: dict[str, schema.SizeT]
) -> dict[str, schema.SizeT]:
    """What the compiled code takes for granted, and neither the bounds nor ``known`` say."""
    dims: list[tuple[str, Any]] = [
        (f"{name}.shape[{dim}]", size) for name, value in inputs for dim, size in enumerate(value.shape)
    ]
    # The first place of a size names it.
    places = {size.node.expr: place for place, size in reversed(dims) if isinstance(size, torch.SymInt)}
    records: dict[str, schema.SizeT] = {}
    for text in dict.fromkeys(assumptions):
        condition = parse(text, {symbol for size in places for symbol in size.free_symbols})
        if any(
            symbol_is_type(symbol, (SymT.UNBACKED_INT, SymT.UNBACKED_FLOAT)) for symbol in condition.free_symbols
        ) or _holds(condition, ranges):
            continue
        shown = str(condition.xreplace({size: sympy.Symbol(place) for size, place in places.items()}))
        record = table.condition(condition)
        if record is None:
            raise CompileError(
                f"the compiled code holds only where {shown}, which cannot be checked at a call. Declare fewer dynamic "
                "sizes, or leave the operators behind it to another backend; please report it with the model."
            )
        if record.text in known:
            continue
        records[record.text] = record
        # Elements that 32 bits count are as good as no bound: nothing that anybody would have to do at export.
        if not (isinstance(condition, sympy.Le) and condition.rhs == _MOST_OF_32_BITS):
            warnings.warn(
                f"the compiled code holds only where {shown}, because the compiler decided so by the example; a call "
                "with other sizes fails. Export with an example of the sizes that you need, or one program for each "
                "kind of sizes, or declare fewer dynamic sizes.",
                UserWarning,
                stacklevel=2,
            )
    return records


def _holds(condition: Any, ranges: Ranges) -> bool:
    """Whether the bounds of sizes say so."""
    known = {symbol: ranges[symbol] for symbol in condition.free_symbols if symbol in ranges}
    return bound_sympy(condition, known).lower is sympy.true
