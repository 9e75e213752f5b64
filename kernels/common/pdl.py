"""How operators launch Triton kernels, with or without programmatic dependent launch.

A kernel that may be launched while the one in front of it runs has two names: by the one that ends in ``_pdl`` the
runtime knows that it waits on the GPU for what it reads.
"""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor
from torch.library import wrap_triton

from etcuda.kernels.common.conditional import conditional


def traceable(x: Tensor, kernel: Any) -> Any:
    """A kernel to launch on ``x``: recorded by the tracer where ``x`` is a stand-in for a tensor."""
    # The interpreter's functions cannot be traced and need not be.
    if isinstance(kernel, triton.runtime.JITFunction) and type(x) is not Tensor:
        return conditional(wrap_triton(kernel))
    return kernel


def choose_kernel(x: Tensor, plain: Any, early: Any, pdl: int, max_registers: int = 0) -> tuple[Any, dict[str, Any]]:
    """Which of a kernel's two names is launched, and how.

    Args:
        x: what it is launched on.
        plain: the kernel that is launched after the one in front of it.
        early: the kernel that is launched while that runs, and waits.
        pdl: 1 for ``early``.
        max_registers: a bound on a thread's registers; 0 for none.

    Returns:
        The kernel, and the options of Triton's own launcher. Compiled programs go by the kernel's name, and by its
        argument ``MAX_REGISTERS``.
    """
    kernel = early if pdl else plain
    if not isinstance(kernel, triton.runtime.JITFunction) or type(x) is not Tensor:
        return traceable(x, kernel), {}
    options = {"launch_pdl": True} if pdl else {}
    return kernel, {**options, "maxnreg": max_registers} if max_registers else options
