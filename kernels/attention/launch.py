"""Launches of the attention kernels. Arguments were checked before."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import triton
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.attention.check import broadcast_strides
from etcuda.kernels.attention.configs import SplitConfig, TiledConfig
from etcuda.kernels.attention.problem import MAX_QUERY, padded
from etcuda.kernels.attention.triton.split import (
    attention_reduce_kernel,
    attention_reduce_pdl,
    attention_split_kernel,
    attention_split_pdl,
)
from etcuda.kernels.attention.triton.tiled import attention_tiled_kernel
from etcuda.kernels.common.pdl import choose_kernel, traceable

LOG2E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Masking:
    """Which keys a row attends to, and what its logits become; see ``attention_reference``."""

    mask: Tensor | None
    kv_len: Tensor | None
    positions: Tensor | None
    scale: float
    causal: int
    window: int
    softcap: float
    sinks: Tensor | None = None
    ring: bool = False

    def ring_kind(self, l_kv: int, block_n: int) -> int:
        """The kernels' ``RING``."""
        if not self.ring:
            return 0
        return 1 if statically_known_true(l_kv >= block_n) else 2


def split(q: Tensor, k: Tensor, v: Tensor, masking: Masking, config: SplitConfig) -> Tensor:
    """Split-K attention: one kernel computes the splits, another merges them if there are several."""
    q, k, v = _dense_rows(q), _dense_rows(k), _dense_rows(v)
    batch, heads, l_q, head_dim = q.shape
    kv_heads, l_kv = k.shape[1], k.shape[2]
    group = heads // kv_heads
    rows = l_q * group
    out = empty_like_result(q)
    num_splits = config.num_splits
    partial = stats = None
    if num_splits > 1:
        partial = q.new_empty((batch * kv_heads * num_splits, rows, head_dim), dtype=torch.float32)
        stats = q.new_empty((batch * kv_heads * num_splits, rows, 2), dtype=torch.float32)
    lengths, stride_p, mask_type, stride_m = _optional(masking)
    sinks = None if masking.sinks is None else masking.sinks.contiguous()
    modes: dict[str, Any] = {
        "CAUSAL": masking.causal, "WINDOW": masking.window, "HAS_LEN": lengths is not None, "MAX_Q": MAX_QUERY,
        "RING": masking.ring_kind(l_kv, config.block_n), "SINKS": sinks is not None,
    }  # fmt: skip
    kernel, options = choose_kernel(q, attention_split_kernel, attention_split_pdl, config.pdl)
    kernel[(num_splits, kv_heads * triton.cdiv(rows, config.block_m), batch)](
        q, k, v, out, partial, stats, masking.mask, lengths, masking.positions, sinks,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *stride_m, *stride_p,
        l_q, l_kv, num_splits, masking.scale * LOG2E,
        KV_HEADS=kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_D=padded(head_dim), BLOCK_M=config.block_m,
        BLOCK_N=config.block_n, STAGES=config.num_stages, SOFTCAP=masking.softcap, MASK=mask_type,
        MERGED=num_splits > 1, **modes, num_warps=config.num_warps, **options,
    )  # fmt: skip
    if num_splits > 1:
        kernel, options = choose_kernel(q, attention_reduce_kernel, attention_reduce_pdl, config.pdl)
        kernel[(rows, batch * kv_heads, triton.cdiv(head_dim, config.chunk_d))](
            out, partial, stats, lengths, masking.positions, sinks, *out.stride()[:3], *stride_p, l_q, l_kv,
            num_splits, config.block_n, kv_heads, group, HEAD_DIM=head_dim, **modes, BLOCK_S=config.block_s,
            CHUNK_D=config.chunk_d, num_warps=4, **options,
        )  # fmt: skip
    return out


def tiled(q: Tensor, k: Tensor, v: Tensor, masking: Masking, config: TiledConfig) -> Tensor:
    """Tiled attention: one kernel."""
    q, k, v = _dense_rows(q), _dense_rows(k), _dense_rows(v)
    batch, heads, l_q, head_dim = q.shape
    kv_heads, l_kv = k.shape[1], k.shape[2]
    out = empty_like_result(q)
    lengths, stride_p, mask_type, stride_m = _optional(masking)
    sinks = None if masking.sinks is None else masking.sinks.contiguous()
    kernel = traceable(q, attention_tiled_kernel)
    kernel[(triton.cdiv(l_q, config.block_m) * batch * heads,)](
        q, k, v, out, masking.mask, lengths, masking.positions, sinks,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *stride_m, *stride_p,
        l_q, l_kv, heads, heads // kv_heads, batch * heads, config.section, masking.scale * LOG2E,
        HEAD_DIM=head_dim, BLOCK_D=padded(head_dim), BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        STAGES=config.num_stages, CAUSAL=masking.causal, WINDOW=masking.window, SOFTCAP=masking.softcap,
        MASK=mask_type, HAS_LEN=lengths is not None, ONE_LOOP=config.one_loop == 1,
        RING=masking.ring_kind(l_kv, config.block_n), SINKS=sinks is not None, num_warps=config.num_warps,
    )  # fmt: skip
    return out


def empty_like_result(q: Tensor) -> Tensor:
    """Memory for a result. Models go on with [batch, L_q, heads * head_dim]: in this order that is a view."""
    batch, heads, l_q, head_dim = q.shape
    return q.new_empty((batch, l_q, heads, head_dim)).transpose(1, 2)


def _dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _optional(masking: Masking) -> tuple[Tensor | None, list[int], int, list[int]]:
    """Lengths; strides of the positions; type of the mask as the kernels count it, its strides."""
    lengths = None if masking.kv_len is None else masking.kv_len.contiguous()
    stride_p = [0, 0] if masking.positions is None else broadcast_strides(masking.positions, 2)
    if masking.mask is None:
        return lengths, stride_p, 0, [0, 0, 0, 0]
    return lengths, stride_p, 1 if masking.mask.dtype == torch.bool else 2, broadcast_strides(masking.mask, 4)
