"""Functions of gates, in fp32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def silu(x):
    """x times its logistic function."""
    return x * tl.sigmoid(x)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), to the last bits also where exp(x) is small (Kahan's log1p)."""
    grown = tl.exp(tl.minimum(x, 20.0))
    above = 1.0 + grown
    small = above == 1.0
    exact = tl.log(above) * (grown / tl.where(small, 1.0, above - 1.0))
    return tl.where(x > 20.0, x, tl.where(small, grown, exact))


@triton.jit
def inverse_length(x):
    """Of the rows of [rows, columns]: what makes them of length 1."""
    return 1.0 / tl.sqrt(tl.sum(x * x, 1) + 1e-6)
