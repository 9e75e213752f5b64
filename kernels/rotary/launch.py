"""Launches of the kernel. Arguments were checked before."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.common.pdl import choose_kernel
from etcuda.kernels.rotary.configs import RotaryConfig
from etcuda.kernels.rotary.triton.rotary import rotary_cache_kernel, rotary_cache_pdl


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
    config: RotaryConfig,
    pdl: int,
) -> Tensor:
    """Rotated queries; rotated keys, and values, are written to the caches, which are those given."""
    q, k, v = _dense_rows(q), _dense_rows(k), _dense_rows(v)
    batch, heads, length, head_dim = q.shape
    kv_heads = k.shape[1]
    out = empty_like_queries(q)
    kernel, options = choose_kernel(q, rotary_cache_kernel, rotary_cache_pdl, pdl)
    blocks = triton.cdiv(heads, config.heads) + 2 * triton.cdiv(kv_heads, config.heads)
    rows = batch * length
    # The queries stand in for weights that are absent.
    kernel[(torch.sym_max(rows, 1), blocks)](
        q, k, v, cos, sin, positions, q if q_weight is None else q_weight.contiguous(),
        q if k_weight is None else k_weight.contiguous(), out, k_cache, v_cache,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *_strides(cos), *_strides(sin), positions.stride(0),
        *out.stride()[:3], *k_cache.stride()[:3], *v_cache.stride()[:3], rows, torch.sym_max(length, 1),
        k_cache.shape[2], HQ=heads, HKV=kv_heads, D=head_dim, R=rotary_dim, WIDTH=cos.shape[-1],
        INTERLEAVED=interleaved, CONSECUTIVE=consecutive, EPS=eps, WEIGHT_OFFSET=weight_offset,
        HAS_Q_WEIGHT=q_weight is not None, HAS_K_WEIGHT=k_weight is not None, HEADS=config.heads,
        BLOCK_D=triton.next_power_of_2(head_dim), num_warps=config.num_warps, **options,
    )  # fmt: skip
    return out


def empty_like_queries(q: Tensor) -> Tensor:
    """Memory for rotated queries [batch, heads, L, head_dim], dense."""
    return q.new_empty(q.shape)


def _dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _strides(table: Tensor) -> list[int]:
    """Of a table [L, columns] or [batch, L, columns]: the three strides, 0 where all of a dimension is one entry."""
    leading = [
        0 if statically_known_true(size == 1) else stride
        for size, stride in zip(table.shape[:-1], table.stride()[:-1], strict=True)
    ]
    return [*[0] * (2 - len(leading)), *leading, table.stride(-1)]
