"""Which of a kernel's two names is launched: the plain one, or the one that may start early."""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor
from torch.library import wrap_triton


def choose_kernel(
    x: Tensor, plain: Any, overlapped: Any, pdl: int, max_registers: int = 0
) -> tuple[Any, dict[str, Any]]:
    """The kernel, and what Triton's own launcher is told beside its arguments: whether to launch early, and a bound on
    registers, 0 for none. Compiled programs go by the kernel's name and by its argument ``MAX_REGISTERS``."""
    kernel = overlapped if pdl else plain
    if not isinstance(kernel, triton.runtime.JITFunction):
        return kernel, {}  # The interpreter's functions cannot be traced and need not be.
    if type(x) is not Tensor:
        return wrap_triton(kernel), {}
    early = {"launch_pdl": True} if pdl else {}
    return kernel, {**early, "maxnreg": max_registers} if max_registers else early
