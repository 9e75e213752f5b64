"""Launches of the kernels. Arguments were checked before."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import triton
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.attention.check import broadcast_strides
from etcuda.kernels.attention.configs import TiledConfig
from etcuda.kernels.attention.launch import Masking, empty_like_result, tiled
from etcuda.kernels.attention.problem import FULL, POSITIONS, padded
from etcuda.kernels.common.pdl import traceable
from etcuda.kernels.quantized_cache.configs import QuantizedConfig
from etcuda.kernels.quantized_cache.formats import FORMATS
from etcuda.kernels.quantized_cache.triton.attention import quantized_attention_kernel, quantized_merge_kernel
from etcuda.kernels.quantized_cache.triton.expand import expand_kernel
from etcuda.kernels.quantized_cache.triton.rotate import rotate_kernel
from etcuda.kernels.quantized_cache.triton.store import quantized_store_kernel

_LOG2E = math.log2(math.e)
# Splits that a CTA of the merge loads at a time, as numbers.
_MOST_MERGED = 4096
# Slots that a CTA decodes.
_EXPANDED = 32
# What decoded numbers of a byte are divided by in float16; see ``from_bytes`` of the kernel.
_FP16_UNITS = {"int8": 128.0, "fp8": 256.0}


@dataclasses.dataclass(frozen=True)
class QuantizedCall:
    """What a call attends to, and how; see ``quantized_attention_reference``."""

    k: Tensor
    k_scale: Tensor
    v: Tensor
    v_scale: Tensor
    mask: Tensor | None
    kv_len: Tensor | None
    positions: Tensor | None
    sinks: Tensor | None
    format: str
    scale: float
    window: int
    softcap: float
    ring: bool

    def ring_kind(self, block_n: int) -> int:
        """The kernels' ``RING``."""
        if not self.ring:
            return 0
        return 1 if statically_known_true(self.k.shape[2] >= block_n) else 2


def store(
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    k_scale: Tensor,
    v_cache: Tensor,
    v_scale: Tensor,
    format: str,
) -> None:
    """Writes keys and values to the caches, in place."""
    k, v = dense_rows(k), dense_rows(v)
    batch, heads, length, head_dim = k.shape
    rows = batch * length
    traceable(k, quantized_store_kernel)[(torch.sym_max(rows, 1), 2 * heads)](
        k, v, positions, k_cache, k_scale, v_cache, v_scale, *k.stride()[:3], *v.stride()[:3], positions.stride(0),
        rows, torch.sym_max(length, 1), k_cache.shape[2], HEADS=heads, D=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim), WIDTH=k_cache.shape[3], FORMAT=FORMATS[format].number, num_warps=1,
    )  # fmt: skip


def attention(q: Tensor, call: QuantizedCall, config: QuantizedConfig) -> Tensor:
    """Queries are rotated if keys are; one kernel attends, another merges splits if there are several."""
    is_rotated = FORMATS[call.format].is_rotated
    q = dense_rows(q)
    out = empty_like_result(q)
    batch, heads, l_q, head_dim = q.shape
    if is_rotated:
        q = rotated(q, q.new_empty(q.shape), back=False)
    if config.section:
        out = _expanded(q, call, config)
        return rotated(out, out, back=True) if is_rotated else out
    k, splits = call.k, config.num_splits
    kv_heads, l_kv = k.shape[1], k.shape[2]
    group, words = heads // kv_heads, k.shape[3] // 2
    rows = l_q * group
    partial = stats = None
    if splits > 1:
        partial = q.new_empty((batch * kv_heads * splits, rows, head_dim), dtype=torch.float32)
        stats = q.new_empty((batch * kv_heads * splits, rows, 2), dtype=torch.float32)
    lengths = None if call.kv_len is None else call.kv_len.contiguous()
    sinks = None if call.sinks is None else call.sinks.contiguous()
    stride_p = [0, 0] if call.positions is None else broadcast_strides(call.positions, 2)
    mask_type, stride_m = 0, [0, 0, 0, 0]
    if call.mask is not None:
        mask_type, stride_m = 1 if call.mask.dtype == torch.bool else 2, broadcast_strides(call.mask, 4)
    modes: dict[str, Any] = {
        "KV_HEADS": kv_heads, "GROUP": group, "HEAD_DIM": head_dim, "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n, "CAUSAL": FULL if call.positions is None else POSITIONS, "WINDOW": call.window,
        "HAS_LEN": lengths is not None, "RING": call.ring_kind(config.block_n), "SINKS": sinks is not None,
        "FORMAT": FORMATS[call.format].number,
    }  # fmt: skip
    traceable(q, quantized_attention_kernel)[(splits, kv_heads * triton.cdiv(rows, config.block_m), batch)](
        q, k, call.k_scale, call.v, call.v_scale, out, partial, stats, call.mask, lengths, call.positions, sinks,
        *q.stride()[:3], *out.stride()[:3], *stride_m, *stride_p, l_q, l_kv, splits, call.scale * _LOG2E,
        _unit(call.format, head_dim, q.dtype), WORDS=words,
        BLOCK_W=padded(words),
        STAGES=config.num_stages, SOFTCAP=call.softcap, MASK=mask_type, SPLITS=splits > 1, **modes,
        num_warps=config.num_warps,
    )  # fmt: skip
    if splits == 1:
        return rotated(out, out, back=True) if is_rotated else out
    block_d = padded(head_dim)
    traceable(q, quantized_merge_kernel)[(rows, batch * kv_heads)](
        out, partial, stats, lengths, call.positions, sinks, *out.stride()[:3], *stride_p, l_q, l_kv, splits,
        BLOCK_D=block_d, BLOCK_S=min(triton.next_power_of_2(splits), max(1, _MOST_MERGED // block_d)), **modes,
        num_warps=4,
    )  # fmt: skip
    return out


def _expanded(q: Tensor, call: QuantizedCall, config: QuantizedConfig) -> Tensor:
    """Attention over the cache as numbers in the dtype of ``q``; of ``tq4`` they and the result are rotated."""
    batch, kv_heads, l_kv, width = call.k.shape
    l_q, head_dim, words = q.shape[2], q.shape[3], width // 2
    stride_p = [0, 0] if call.positions is None else broadcast_strides(call.positions, 2)
    numbers = []
    for codes, scale in ((call.k, call.k_scale), (call.v, call.v_scale)):
        made = q.new_empty((batch, kv_heads, l_kv, head_dim))
        traceable(q, expand_kernel)[(triton.cdiv(l_kv, _EXPANDED), kv_heads, batch)](
            codes, scale, made, call.positions, *stride_p, l_q, l_kv, _unit(call.format, head_dim, q.dtype),
            HEADS=kv_heads, HEAD_DIM=head_dim, WORDS=words, BLOCK_W=padded(words), BLOCK_N=_EXPANDED,
            ALIGNED=max(_EXPANDED, config.block_n),
            BOUND=call.positions is not None and not call.ring, WINDOW=call.window,
            FORMAT=FORMATS[call.format].number, num_warps=4,
        )  # fmt: skip
        numbers.append(made)
    causal = FULL if call.positions is None else POSITIONS
    masking = Masking(
        call.mask, call.kv_len, call.positions, call.scale, causal, call.window, call.softcap, call.sinks, call.ring
    )
    block_m, block_n, num_warps, num_stages, _, one_loop, section = config.to_args()
    keys, values = numbers
    return tiled(q, keys, values, masking, TiledConfig(block_m, block_n, num_warps, num_stages, one_loop, section))


def rotated(x: Tensor, out: Tensor, back: bool) -> Tensor:
    """Rows of ``x`` [batch, heads, L, head_dim], rotated or rotated back, in ``out``, which may be ``x``."""
    batch, heads, length, head_dim = x.shape
    traceable(x, rotate_kernel)[(batch * heads * length,)](
        x, out, *x.stride()[:3], *out.stride()[:3], heads, length, D=head_dim, BACK=back, num_warps=1
    )
    return out


def dense_rows(tensor: Tensor) -> Tensor:
    """The tensor, its last dimension dense."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _unit(format: str, head_dim: int, dtype: torch.dtype) -> float:
    """What a scale is multiplied by for the numbers that the kernel decodes."""
    if FORMATS[format].is_rotated:
        return float(head_dim**-0.5)
    return _FP16_UNITS[format] if dtype == torch.float16 else 1.0
