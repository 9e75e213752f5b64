"""The operator ``etcuda::gated_delta_rule``.

It is functional, as graphs are: it returns a new state. In a compiled program nothing reads the old one any more, and
the kernel writes to it in place; eager calls copy it.
"""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.common.memory import needs_reference
from etcuda.kernels.recurrent import launch
from etcuda.kernels.recurrent.check import check_delta
from etcuda.kernels.recurrent.reference.delta import gated_delta_rule_reference


@triton_op("etcuda::gated_delta_rule", mutates_args=())
def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, positions: Tensor, normalize: bool
) -> tuple[Tensor, Tensor]:
    """The gated delta rule (Yang et al., 2024): of each token, in turn,
    ``S = exp(g) S; S = S + beta k (v - k S); out = q S / sqrt(key_dim)``.

    Computed in fp32 and rounded once for one token; for several, products are of the dtype of ``q``, in chunks.

    Args:
        q: [batch, L, num_k_heads, key_dim] bfloat16, float16 or float32, any strides.
        k: likewise.
        v: [batch, L, num_v_heads, value_dim]; as many neighbouring heads share a key head as there are to each.
        g: [batch, L, num_v_heads], logarithms of decays, 0 or less.
        beta: [batch, L, num_v_heads], from 0 to 1.
        state: [batch, num_v_heads, key_dim, value_dim], contiguous; or a ring, [batch, slots, ...], where the state
            behind position p is in slot p % slots. Where a length is at most ``slots``, or a dynamic one bounded by it,
            the state behind each token is kept, otherwise that behind the last.
        positions: [L] int32 or int64, of the tokens in the sequence; consecutive. At position 0 a sequence begins:
            the state counts as zeros.
        normalize: whether queries and keys are divided by their lengths.

    Returns:
        [batch, L, num_v_heads, value_dim] in the dtype of ``v``, dense, and the new state.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_delta(q, k, v, g, beta, state, positions)
    if needs_reference(q):
        return gated_delta_rule_reference(q, k, v, g, beta, state, positions, normalize)
    new = state.clone()
    return launch.gated_delta_rule(q, k, v, g, beta, new, positions, normalize), new


def fake_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, positions: Tensor, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Checks the arguments; returns fake results."""
    check_delta(q, k, v, g, beta, state, positions)
    return v.new_empty(v.shape), state.clone()


gated_delta_rule.register_fake(fake_gated_delta_rule)
