"""The attention operators: ``etcuda::attention_split`` and ``etcuda::attention_tiled``.

Both compute what ``attention_reference`` does. The trailing integers are the configuration, so that the graph fixes it.
"""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.attention import launch
from etcuda.kernels.attention.check import check_arguments
from etcuda.kernels.attention.configs import SplitConfig, TiledConfig
from etcuda.kernels.attention.launch import Masking
from etcuda.kernels.attention.problem import MAX_QUERY
from etcuda.kernels.common.memory import require_device


@triton_op("etcuda::attention_split", mutates_args=())
def attention_split(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    kv_len: Tensor | None,
    positions: Tensor | None,
    scale: float,
    causal: int,
    window: int,
    softcap: float,
    block_m: int,
    block_n: int,
    num_warps: int,
    num_stages: int,
    num_splits: int,
    block_s: int,
    chunk_d: int,
    pdl: int,
    sinks: Tensor | None = None,
    ring: bool = False,
) -> Tensor:
    """Split-K attention, ``L_q`` from 1 to ``MAX_QUERY``.

    Args:
        q: [batch, num_heads, L_q, head_dim] bf16 or fp16, any strides.
        k: [batch, num_kv_heads, L_kv, head_dim].
        v: like ``k``.
        mask: broadcastable to [batch, num_heads, L_q, L_kv], bool or floating.
        kv_len: [batch] int32 or int64; each at most ``L_kv``.
        positions: [L_q] or [batch, L_q] int32 or int64, if ``causal`` is 3.
        scale: factor on the logits.
        causal: 0 none, 1 upper left, 2 lower right, 3 by positions.
        window: keys that a row sees; 0 for all.
        softcap: 0 for none.
        block_m: rows (query, head of the group) of a tile.
        block_n: this and the rest as of ``SplitConfig``.
        sinks: [num_heads] floating, logits that take part in the sum of the weights and have no value.
        ring: the key at position ``n`` is in slot ``n % L_kv``; ``causal`` is 3, and there is a window of at most
            ``L_kv - L_q + 1`` keys.

    Returns:
        [batch, num_heads, L_q, head_dim], in memory [batch, L_q, num_heads, head_dim].

    Raises:
        KernelArgumentError: an argument is not one that the kernel takes.
    """
    check_arguments(
        "attention_split", q, k, v, mask, kv_len, positions, scale, causal, window, softcap, MAX_QUERY, sinks, ring
    )
    require_device("attention_split", q, "q", "attention_reference")
    masking = Masking(mask, kv_len, positions, scale, causal, window, softcap, sinks, ring)
    config = SplitConfig(block_m, block_n, num_warps, num_stages, num_splits, block_s, chunk_d, pdl)
    return launch.split(q, k, v, masking, config)


@triton_op("etcuda::attention_tiled", mutates_args=())
def attention_tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    kv_len: Tensor | None,
    positions: Tensor | None,
    scale: float,
    causal: int,
    window: int,
    softcap: float,
    block_m: int,
    block_n: int,
    num_warps: int,
    num_stages: int,
    one_loop: int,
    section: int,
    sinks: Tensor | None = None,
    ring: bool = False,
) -> Tensor:
    """Tiled attention, any ``L_q``. Arguments, result and errors are those of ``attention_split``, but for:

    Args:
        block_m: query rows of one head in a tile; this and the rest as of ``TiledConfig``.
    """
    check_arguments(
        "attention_tiled", q, k, v, mask, kv_len, positions, scale, causal, window, softcap, None, sinks, ring
    )
    require_device("attention_tiled", q, "q", "attention_reference")
    masking = Masking(mask, kv_len, positions, scale, causal, window, softcap, sinks, ring)
    return launch.tiled(q, k, v, masking, TiledConfig(block_m, block_n, num_warps, num_stages, one_loop, section))


def fake_split(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_len: Tensor | None, positions: Tensor | None,
    scale: float, causal: int, window: int, softcap: float,
    block_m: int, block_n: int, num_warps: int, num_stages: int, num_splits: int, block_s: int, chunk_d: int, pdl: int,
    sinks: Tensor | None = None, ring: bool = False,
) -> Tensor:  # fmt: skip
    """Checks the arguments; returns a fake result."""
    check_arguments(
        "attention_split", q, k, v, mask, kv_len, positions, scale, causal, window, softcap, MAX_QUERY, sinks, ring
    )
    return launch.empty_like_result(q)


def fake_tiled(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_len: Tensor | None, positions: Tensor | None,
    scale: float, causal: int, window: int, softcap: float,
    block_m: int, block_n: int, num_warps: int, num_stages: int, one_loop: int, section: int,
    sinks: Tensor | None = None, ring: bool = False,
) -> Tensor:  # fmt: skip
    """Checks the arguments; returns a fake result."""
    check_arguments(
        "attention_tiled", q, k, v, mask, kv_len, positions, scale, causal, window, softcap, None, sinks, ring
    )
    return launch.empty_like_result(q)


attention_split.register_fake(fake_split)
attention_tiled.register_fake(fake_tiled)
