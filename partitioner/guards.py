"""Conditions on sizes that ``torch.export`` checks at a call, as expressions."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch.export.exported_program import ExportedProgram
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

log = logging.getLogger(__name__)

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: FloorDiv,
    ast.Mod: lambda a, b: Mod(a, b) if a.is_nonnegative and b.is_positive else PythonMod(a, b),
    ast.Pow: lambda a, b: a**b,
}
_COMPARED: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: sympy.Eq,
    ast.NotEq: sympy.Ne,
    ast.Lt: sympy.Lt,
    ast.LtE: sympy.Le,
    ast.Gt: sympy.Gt,
    ast.GtE: sympy.Ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"max": Max, "min": Min}


class _UnknownGuardError(Exception):
    """A guard is not a condition on the sizes of inputs."""


def declared_conditions(program: ExportedProgram) -> list[Any]:
    """What a program from ``torch.export.export`` or ``torch.export.load`` demands of its inputs' sizes.

    The guards are source text, which is all that a loaded program has of them.
    """
    inputs = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for code in getattr(program, "_guards_code", ()):
        try:
            condition = _translate(ast.parse(code.strip(), mode="eval").body, inputs)
        except (_UnknownGuardError, SyntaxError) as error:
            log.info("the guard %s is not checked: %s", code, error)
            continue
        if isinstance(condition, sympy.Basic) and condition.free_symbols:
            found.append(condition)
    return found


def _translate(node: ast.expr, inputs: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() as value):
            return sympy.sympify(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_translate(operand, inputs)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return sympy.Not(_translate(operand, inputs))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_translate(left, inputs), _translate(right, inputs))
        case ast.BoolOp(op=op, values=values):
            join = sympy.And if isinstance(op, ast.And) else sympy.Or
            return join(*(_translate(value, inputs) for value in values))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            terms = [_translate(term, inputs) for term in (left, *comparators)]
            return sympy.And(*(_compare(op, a, b) for op, a, b in zip(ops, terms, terms[1:], strict=False)))
        case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_translate(arg, inputs) for arg in args))
        # L['x'].size()[0]
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=source, attr="size")), slice=ast.Constant(value=dim)
        ):
            return _size(source, dim, inputs)
    raise _UnknownGuardError(f"{ast.unparse(node)} is not known")


def _compare(op: ast.cmpop, a: Any, b: Any) -> Any:
    if type(op) not in _COMPARED:
        raise _UnknownGuardError(f"{type(op).__name__} is not known")
    return _COMPARED[type(op)](a, b)


def _size(source: ast.expr, dim: Any, inputs: dict[str, Any]) -> Any:
    name = _placeholder_name(source)
    # Names that Python has already get a number.
    value = inputs.get(name, inputs.get(f"{name}_1"))
    if not isinstance(value, torch.Tensor) or not isinstance(dim, int) or dim >= value.dim():
        raise _UnknownGuardError(f"{ast.unparse(source)} is no input tensor")
    size = value.shape[dim]
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _placeholder_name(source: ast.expr) -> str:
    """``L['x'][0]['key']`` is the placeholder ``x_0_key``."""
    parts: list[str] = []
    while isinstance(source, ast.Subscript) and isinstance(source.slice, ast.Constant):
        parts.append(re.sub(r"[^a-zA-Z0-9]", "_", str(source.slice.value)).lower())
        source = source.value
    return "_".join(reversed(parts))
