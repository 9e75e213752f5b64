"""Bounds of sizes that ExecuTorch's lowering made narrower than they were declared."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch.export.exported_program import ExportedProgram
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from etcuda.partitioner.notes import take_notes


def warn_of_narrowed(program: ExportedProgram) -> None:
    """Warns of every input dimension whose declared bounds the program no longer has.

    A decomposition that looks at a size fixes how it compares with a number, for instance; nothing else says that the
    program no longer takes the sizes beyond.

    Args:
        program: in the Edge dialect.
    """
    for position, dim, declared, left in _narrowed(program):
        name = program.graph_signature.user_inputs[position]
        warnings.warn(
            f"input {position} ({name}), dimension {dim}: declared for sizes {_shown(declared)}, but ExecuTorch's "
            f"lowering of this program holds for {_shown(left)} alone, because an operator's decomposition asks how "
            "large the size is; a call with another size fails. Export under torch.no_grad() with "
            "model.requires_grad_(False), or with an example size in the middle of those that you need, or declare "
            "the narrower bounds.",
            UserWarning,
            stacklevel=2,
        )


def note_bounds(program: ExportedProgram) -> None:
    """Notes the declared bounds.

    Args:
        program: from ``torch.export.export``.
    """
    notes = take_notes(program)
    notes.ranges = dict(program.range_constraints)
    notes.dims = {
        place: notes.ranges[size.node.expr]
        for place, size in _dims(program).items()
        if isinstance(size, torch.SymInt) and size.node.expr in notes.ranges
    }


def _dims(program: ExportedProgram) -> dict[tuple[int, int], int | torch.SymInt]:
    """Sizes of the inputs' dimensions, by the input's position: its name changes on the way."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values.get(str(name)) for name in program.graph_signature.user_inputs]
    return {
        (position, dim): size
        for position, value in enumerate(inputs)
        if isinstance(value, torch.Tensor)
        for dim, size in enumerate(value.shape)
    }


def _narrowed(program: ExportedProgram) -> Iterator[tuple[int, int, Any, Any]]:
    sizes = _dims(program)
    seen = set()
    for place, declared in take_notes(program).dims.items():
        size = sizes.get(place)
        if size is None:
            continue
        expression = size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
        # A symbol that was fixed still prints as itself.
        fixed = expression.is_Integer
        left = ValueRanges(expression, expression) if fixed else program.range_constraints.get(expression, declared)
        key = (str(size), str(declared))
        # Sizes 0 and 1 are never traced: a lower bound of 2 is none.
        if key not in seen and (left.upper < declared.upper or left.lower > max(declared.lower, 2)):
            seen.add(key)
            yield (*place, declared, left)


def _shown(bounds: Any) -> str:
    if bounds.lower == bounds.upper:
        return str(bounds.lower)
    return f"from {bounds.lower}" if bounds.upper == int_oo else f"{bounds.lower}..{bounds.upper}"
