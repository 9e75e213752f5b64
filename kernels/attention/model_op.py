"""``etcuda::attention``: what models call for attention that ``scaled_dot_product_attention`` has no arguments for.

On tensors it computes the reference. In a program a pass routes it to the kernels, or puts its formula in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.kernels.attention.check import check_ring, check_sinks
from etcuda.kernels.attention.problem import FULL, POSITIONS
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.common.check import expect


@torch.library.custom_op("etcuda::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    positions: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
    ring: bool,
) -> Tensor:
    """Softmax attention; a row that attends to no key gives zeros.

    Args:
        q: [batch, num_heads, L_q, head_dim] floating.
        k: [batch, num_kv_heads, L_kv, head_dim].
        v: [batch, num_kv_heads, L_kv, head_dim_v].
        mask: broadcastable to [batch, num_heads, L_q, L_kv], bool or floating.
        positions: of the rows, [L_q] or [batch, L_q] integers; a row then sees keys up to its own position alone.
        sinks: [num_heads], a logit of each head that takes part in the sum of the weights and has no value.
        scale: factor on the logits.
        window: keys that a row sees, if there are positions; 0 for all.
        softcap: logits become ``softcap * tanh(logits / softcap)``; 0 for none.
        ring: the key at position ``n`` is in slot ``n % L_kv``; with positions and a window of at most
            ``L_kv - L_q + 1`` keys.

    Returns:
        [batch, num_heads, L_q, head_dim_v] in the dtype of ``q``.

    Raises:
        KernelArgumentError: arguments do not fit each other.
    """
    _check(q, k, mask, positions, sinks, window, ring)
    causal = FULL if positions is None else POSITIONS
    return attention_reference(q, k, v, mask, None, positions, scale, causal, window, softcap, sinks, ring)


@attention.register_fake
def _fake(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, positions: Tensor | None, sinks: Tensor | None,
    scale: float, window: int, softcap: float, ring: bool,
) -> Tensor:  # fmt: skip
    _check(q, k, mask, positions, sinks, window, ring)
    return q.new_empty((*q.shape[:3], v.shape[3]))


def _check(
    q: Tensor, k: Tensor, mask: Tensor | None, positions: Tensor | None, sinks: Tensor | None, window: int, ring: bool
) -> None:
    op = "attention"
    for name, tensor in (("q", q), ("k", k)):
        expect(tensor.dim() == 4, op, name, "4 dimensions [batch, heads, length, head_dim]", tuple(tensor.shape))
    alone = window == 0 or positions is not None
    expect(alone, op, "window", "0 without positions", window, "Pass positions, or the window as a mask.")
    check_sinks(op, sinks, q.shape[1])
    if ring:
        check_ring(op, q.shape[2], k.shape[2], mask, None, FULL if positions is None else POSITIONS, window)
