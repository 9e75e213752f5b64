"""Loops, as ``while_loop``, ``scan`` and ``map`` are compiled to, whose bodies write to what they carry."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu


@dataclasses.dataclass(frozen=True)
class _Named:
    name: str

    def get_name(self) -> str:
        return self.name


def all_carried(loop: Any) -> list[Any]:
    """One output for every carried value, in order, for Inductor's ``WhileLoop``.

    A value that the body writes to in place is no output there: a name stands in for it.
    """
    outputs = {output.indices[-1][1]: output for output in loop.outputs}
    stand_in = f"{loop.get_name()}_carried"
    return [outputs.get(index) or _Named(f"{stand_in}{index}") for index in range(len(loop.carried_inputs))]


@contextlib.contextmanager
def written_values_are_carried() -> Iterator[None]:
    """Lets a loop's body write to a carried value in place.

    torch 2.11 pairs the carried values with the loop's outputs, among which those that are written to are not, and
    fails on the number of values; 2.14 names every one.
    """
    generate: Any = CppWrapperCpu.codegen_while_loop

    def codegen_while_loop(self: CppWrapperCpu, while_loop: Any, stack_output: bool = False) -> None:
        outputs = while_loop.outputs
        while_loop.outputs = all_carried(while_loop)
        try:
            generate(self, while_loop, stack_output)
        finally:
            while_loop.outputs = outputs

    if hasattr(CppWrapperCpu, "_get_while_loop_carried_output_names"):
        yield
        return
    with mock.patch.object(CppWrapperCpu, "codegen_while_loop", codegen_while_loop):
        yield
