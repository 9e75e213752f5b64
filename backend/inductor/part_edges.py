"""Code for ``etcuda::part_edge``: none, but kernels on its two sides stay apart."""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor import ir, lowering
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
