"""Kernels with inline assembly: which tensors they write to."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch._higher_order_ops import triton_kernel_wrap

_ASSEMBLY = "tt.elementwise_inline_asm"


@contextlib.contextmanager
def assembly_without_operands_writes_nothing() -> Iterator[None]:
    """Makes PyTorch analyse kernels that wait for the kernel in front of them ("griddepcontrol").

    It gives up on assembly with side effects and takes every tensor of such a kernel to be written, weights too: each
    call would copy them first. Assembly that is given nothing has no address to write to.
    """
    parse = triton_kernel_wrap.ttir_to_functions

    def parse_and_mark(module: Any) -> Any:
        functions = parse(module)
        for operations in functions.values():
            for result, made in operations.items():
                operations[result] = [_marked(each) for each in made]
        return functions

    with mock.patch.object(triton_kernel_wrap, "ttir_to_functions", parse_and_mark):
        yield


def _marked(operation: Any) -> Any:
    harmless = operation.name == _ASSEMBLY and not operation.args
    return dataclasses.replace(operation, is_pure=True) if harmless else operation
