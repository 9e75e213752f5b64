"""The operator ``etcuda::rotary_cache``.

It is functional, as graphs are: it returns new caches. In a compiled program nothing reads the old ones any more, and
the kernel writes to them in place; eager calls copy them.
"""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.common.memory import needs_reference
from etcuda.kernels.rotary import launch
from etcuda.kernels.rotary.check import check_arguments, check_config
from etcuda.kernels.rotary.configs import RotaryConfig
from etcuda.kernels.rotary.reference import rotary_cache_reference


@triton_op("etcuda::rotary_cache", mutates_args=())
def rotary_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    weight_offset: float,
    rotary_dim: int,
    interleaved: bool,
    consecutive: bool,
    heads: int,
    num_warps: int,
    pdl: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotates queries and keys (Su et al., 2021), an RMSNorm of each head in front, and writes keys and values.

    Results are computed in fp32 and rounded once.

    Args:
        q: [batch, num_heads, L, head_dim] bfloat16, float16 or float32, any strides.
        k: [batch, num_kv_heads, L, head_dim], the dtype of ``q``.
        v: like ``k``.
        cos: [L, columns] or [batch, L, columns], each leading size may be 1; as many columns as are rotated, or half.
        sin: likewise.
        positions: [L] int32 or int64, the place of each token in the caches, or [1], that of the first. Negative ones
            count from the end; what lies outside is not written.
        k_cache: [batch, num_kv_heads, places, head_dim], contiguous.
        v_cache: likewise.
        q_weight: [head_dim] of the norm of each query head, or ``None``.
        k_weight: likewise, of each key head.
        eps: added to the mean of the squares; 0 for no norm.
        weight_offset: added to the weights, in fp32.
        rotary_dim: numbers of a head that are rotated, its first ones.
        interleaved: whether a number is rotated with its neighbour, else with the one half of ``rotary_dim`` away.
        consecutive: whether ``positions`` is [1], and each token stands behind the one before.
        heads: this and ``num_warps`` as of ``RotaryConfig``.
        num_warps: of a CTA.
        pdl: 1 to launch the kernel while the one in front of it runs.

    Returns:
        The rotated queries, like ``q`` and contiguous, and the two caches as they are then.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_arguments(q, k, v, cos, sin, positions, k_cache, v_cache, q_weight, k_weight, eps, rotary_dim, consecutive)
    check_config(heads, num_warps)
    if needs_reference(q):
        return rotary_cache_reference(
            q, k, v, cos, sin, positions, k_cache, v_cache, q_weight, k_weight, eps, weight_offset, rotary_dim,
            interleaved, consecutive,
        )  # fmt: skip
    keys, values = k_cache.clone(), v_cache.clone()
    out = launch.rotary_cache(
        q, k, v, cos, sin, positions, keys, values, q_weight, k_weight, eps, weight_offset, rotary_dim, interleaved,
        consecutive, RotaryConfig(heads, num_warps), pdl,
    )  # fmt: skip
    return out, keys, values


def fake_rotary_cache(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, k_cache: Tensor, v_cache: Tensor,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float, weight_offset: float, rotary_dim: int,
    interleaved: bool, consecutive: bool, heads: int, num_warps: int, pdl: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Checks the arguments; returns fake results."""
    check_arguments(q, k, v, cos, sin, positions, k_cache, v_cache, q_weight, k_weight, eps, rotary_dim, consecutive)
    check_config(heads, num_warps)
    return launch.empty_like_queries(q), k_cache.clone(), v_cache.clone()


rotary_cache.register_fake(fake_rotary_cache)
