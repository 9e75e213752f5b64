"""Which of a kernel's two names is launched: the plain one, or the one that may start early."""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor
from torch.library import wrap_triton


def choose_kernel(x: Tensor, plain: Any, overlapped: Any, overlap: int) -> tuple[Any, dict[str, bool]]:
    """The kernel, and what launches it early: only Triton's own launcher takes the flag, compiled programs go by the
    kernel's name."""
    kernel = overlapped if overlap else plain
    if not isinstance(kernel, triton.runtime.JITFunction):
        return kernel, {}  # The interpreter's functions cannot be traced and need not be.
    if type(x) is not Tensor:
        return wrap_triton(kernel), {}
    return kernel, {"launch_pdl": True} if overlap else {}
