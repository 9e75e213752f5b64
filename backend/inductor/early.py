"""Inductor's own kernels launched early: each waits for the kernel in front of it, and starts the one behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._inductor.codegen.triton import TritonKernel, TritonScheduling
from torch._inductor.virtualized import V

from etcuda.kernels.common.device import supports_pdl
from etcuda.target import CudaTarget

# What the runtime launches early; see docs/decisions.md, 10.
_SUFFIX = "_pdl"
# torch 2.11 has no such method, nor generates what it is for.
_filter: Any = getattr(TritonKernel, "_filter_pdl", None)
_define_kernel: Any = TritonScheduling.define_kernel


def can_launch_early(target: CudaTarget | str) -> bool:
    """Whether the GPU can launch kernels early, and torch generates such: 2.11 does not."""
    return (
        isinstance(target, CudaTarget) and hasattr(torch._inductor.config.triton, "enable_pdl") and supports_pdl(target)
    )


@contextlib.contextmanager
def kernels_are_launched_early(target: CudaTarget | str) -> Iterator[None]:
    """Lets every kernel that Inductor generates wait at its beginning, and gives it a name that says so.

    By itself Inductor waits before the first access to what the kernel in front touches, and not at all if there is
    none: then what lies further in front need not be complete when the kernel ends, which those behind rely on.
    """
    if not can_launch_early(target):
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._inductor.config.patch({"triton.enable_pdl": True}))
        stack.enter_context(mock.patch.object(TritonKernel, "_filter_pdl", _wait_first))
        stack.enter_context(mock.patch.object(TritonScheduling, "define_kernel", _define))
        yield


def _wait_first(self: Any, code: Any) -> None:
    """In place of ``TritonKernel._filter_pdl``, which leaves the first wait and the last launch of a body."""
    if self._enable_pdl_codegen():
        code._lines.insert(0, self.GDC_WAIT)
    _filter(self, code)


def _define(self: Any, source: str, *rest: Any) -> Any:
    """In place of ``TritonScheduling.define_kernel``, which makes up a name and returns it."""
    wrapper: Any = V.graph.wrapper_code
    if TritonKernel.GDC_WAIT not in source:
        return _define_kernel(self, source, *rest)
    suffix = wrapper.next_kernel_suffix

    def next_suffix() -> str:
        return f"{suffix()}{_SUFFIX}"

    with mock.patch.object(wrapper, "next_kernel_suffix", next_suffix):
        return _define_kernel(self, source, *rest)
