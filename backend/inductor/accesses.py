"""Which tensors kernels read and write: asked of each kernel once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any
from unittest import mock

import sympy
import torch
from torch import Tensor
from torch._higher_order_ops import triton_kernel_wrap
from torch._inductor.ir import TensorBox
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

# torch 2.11 has the second, which returns names.
_ANALYSES = ("identify_accessed_tensors", "identify_mutated_tensors")
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool, sympy.Expr)
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


@contextlib.contextmanager
def each_kernel_analysed_once() -> Iterator[None]:
    """Lets PyTorch keep what it found out about a kernel.

    It generates the intermediate code of a kernel anew for each call in a graph, and for each of the times that it
    traces the graph: a quarter of the time in which the decoder in int4 is exported. Of tensors it looks at the dtype
    alone, and all symbols are alike to it.
    """
    with contextlib.ExitStack() as stack:
        for name in _ANALYSES:
            if hasattr(triton_kernel_wrap, name):
                once = _Once(getattr(triton_kernel_wrap, name))
                stack.enter_context(mock.patch.object(triton_kernel_wrap, name, once))
        yield


class _Once:
    """An analysis that remembers its results."""

    def __init__(self, analyse: Callable[..., Any]) -> None:
        self.analyse = analyse
        # With the kernels, so that none of their addresses is given to another one.
        self.found: dict[Hashable, tuple[object, Any]] = {}

    def __call__(self, kernel: Any, kwargs: dict[str, Any], tma_descriptor_metadata: dict[str, Any]) -> Any:
        function, fixed = kernel, dict[str, Any]()
        if isinstance(kernel, Autotuner):
            # Made anew for each launch with options; of its configurations the first is looked at.
            function, fixed = kernel.fn, kernel.configs[0].kwargs if kernel.configs else {}
        kinds = {name: _kind(value) for name, value in {**kwargs, **fixed}.items()}
        if tma_descriptor_metadata or None in kinds.values() or not isinstance(function, JITFunction):
            return self.analyse(kernel, kwargs, tma_descriptor_metadata)
        key = id(function), tuple(kinds.items())
        if key not in self.found:
            self.found[key] = function, self.analyse(kernel, kwargs, tma_descriptor_metadata)
        result = self.found[key][1]
        return list(result) if isinstance(result, list) else result


def _kind(value: object) -> Hashable | None:
    """All that the analysis looks at; ``None`` if it is not known what that is."""
    if isinstance(value, Tensor | TensorBox):
        return "tensor", value.dtype
    if isinstance(value, _SYMBOLS):
        return ("symbol",)
    # 1, 1.0 and True are equal.
    return (type(value), value) if isinstance(value, _PLAIN) else None
