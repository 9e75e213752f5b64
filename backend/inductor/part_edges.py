"""What goes from one part to another: code for ``etcuda::part_edge``, and the strides of what a part gives.

``part_edge`` generates nothing, but kernels on its two sides stay apart.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import sympy
import torch
from torch._inductor import ir, lowering
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V

import etcuda.kernels.common.part_edge  # noqa: F401  defines the operator


class PartEdge(ir.ExternKernel):
    """Says that it writes to a buffer, so that whoever reads it later has it from memory. Generates nothing."""

    def __init__(self, x: Any) -> None:
        super().__init__(None, ir.NoneLayout(device=x.get_device()), self.unwrap_storage([x]), ())
        V.graph.mark_buffer_mutated(x.get_name())
        self.name = V.graph.register_buffer(self)
        V.graph.register_operation(self)

    def codegen(self, wrapper: Any) -> None:
        """Nothing."""

    def should_allocate(self) -> bool:
        """It has no memory of its own."""
        return False

    def get_mutation_names(self) -> list[str]:
        """The buffer it stands for."""
        return [self.input_name(0)]

    def get_unbacked_symbol_defs(self) -> Any:
        """It makes no sizes."""
        return type(super().get_unbacked_symbol_defs())()


def register() -> None:
    """Tells Inductor how to lower the operator; a second call changes nothing."""
    op = torch.ops.etcuda.part_edge.default
    if op not in lowering.lowerings:
        declare: Any = lowering.register_lowering(op, type_promotion_kind=None)
        declare(_lower)


def _lower(x: Any, leaves: bool) -> Any:
    # At once, as what a graph returns: whoever reads it later does not compute it again.
    x.realize()
    name = x.get_name()
    if leaves and name not in V.graph.graph_inputs and name not in V.graph.constants:
        PartEdge(x)
    return x


@contextlib.contextmanager
def outputs_have_strides(strides: Sequence[Sequence[Any]]) -> Iterator[None]:
    """Lets a graph give its results with these strides, for whoever reads a part's results was compiled for them.

    By itself Inductor gives what it has: a copy of an expanded tensor may stay the view, with strides of 0.
    """
    give: Any = GraphLowering.output

    def output(self: GraphLowering, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Subgraphs have a class of their own.
        if type(self) is GraphLowering and isinstance(args[0], list | tuple) and len(args[0]) == len(strides):
            args = ([_with_strides(*pair) for pair in zip(args[0], strides, strict=True)], *args[1:])
        give(self, target, args, kwargs)

    with mock.patch.object(GraphLowering, "output", output):
        yield


def _with_strides(value: Any, strides: Sequence[Any]) -> Any:
    if not isinstance(value, ir.TensorBox):
        return value
    # As Inductor does behind this; a view has no strides before.
    realized: Any = ir.ExternKernel.realize_input(value)
    if are_equal(realized.get_stride(), strides):
        return value
    return ir.ExternKernel.require_exact_strides(realized, strides)


def are_equal(strides: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether expressions stand for the same strides."""
    pairs = itertools.zip_longest(strides, others, fillvalue=-1)
    return all(sympy.simplify(sympy.sympify(got) - sympy.sympify(wanted)) == 0 for got, wanted in pairs)
