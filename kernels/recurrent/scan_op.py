"""The operator ``etcuda::selective_scan``."""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.common.memory import needs_reference
from etcuda.kernels.recurrent import launch
from etcuda.kernels.recurrent.check import check_scan
from etcuda.kernels.recurrent.reference.scan import selective_scan_reference


@triton_op("etcuda::selective_scan", mutates_args=())
def selective_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    positions: Tensor,
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor]:
    """The selective scan of Mamba 2 (Dao and Gu, 2024): of each token, in turn, with t the step
    ``clamp(softplus(dt + dt_bias), dt_min, dt_max)``, ``S = exp(t a) S + t x b; out = S c + d x``.

    Computed in fp32 and rounded once for one token; for several, products are of the dtype of ``x``, in chunks.

    Args:
        x: [batch, L, num_heads, head_dim] bfloat16, float16 or float32, any strides.
        dt: [batch, L, num_heads].
        a: [num_heads], 0 or less.
        b: [batch, L, groups, state_dim]; neighbouring heads share a group.
        c: likewise.
        d: [num_heads], or ``None``.
        dt_bias: [num_heads], or ``None``.
        state: [batch, num_heads, head_dim, state_dim], contiguous; or a ring, [batch, slots, ...], where the state
            behind position p is in slot p % slots. Where a length is at most ``slots``, or a dynamic one bounded by it,
            the state behind each token is kept, otherwise that behind the last.
        positions: [L] int32 or int64, of the tokens in the sequence; consecutive. At position 0 a sequence begins:
            the state counts as zeros.
        dt_min: least step.
        dt_max: greatest step, which may be infinite.

    Returns:
        [batch, L, num_heads, head_dim] in the dtype of ``x``, dense, and the new state.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_scan(x, dt, a, b, c, d, dt_bias, state, positions, dt_min, dt_max)
    if needs_reference(x):
        return selective_scan_reference(x, dt, a, b, c, d, dt_bias, state, positions, dt_min, dt_max)
    new = state.clone()
    return launch.selective_scan(x, dt, a, b, c, d, dt_bias, new, positions, dt_min, dt_max), new


def fake_selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, dt_bias: Tensor | None, state: Tensor,
    positions: Tensor, dt_min: float, dt_max: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Checks the arguments; returns fake results."""
    check_scan(x, dt, a, b, c, d, dt_bias, state, positions, dt_min, dt_max)
    return x.new_empty(x.shape), state.clone()


selective_scan.register_fake(fake_selective_scan)
