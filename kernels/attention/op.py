"""The attention operators: ``etcuda::attention_split`` and ``etcuda::attention_tiled``.

Both compute what ``attention_reference`` does. The trailing integers are the configuration, so that the graph fixes it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from etcuda.errors import KernelArgumentError
from etcuda.kernels.attention.check import broadcast_strides, check_arguments
from etcuda.kernels.attention.problem import padded
from etcuda.kernels.attention.split import (
    MAX_QUERY,
    attention_reduce_kernel,
    attention_reduce_pdl,
    attention_split_kernel,
)
from etcuda.kernels.attention.tiled import attention_tiled_kernel

_LOG2E = math.log2(math.e)


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
        block_n: keys of a step.
        num_warps: warps of a block.
        num_stages: steps whose loads are in flight.
        num_splits: parts that the keys are cut into.
        block_s: parts that are merged at a time.
        chunk_d: width of the head that one block merges.
        pdl: 1 if the merging is launched while the parts are computed, which needs sm_90; else 0.

    Returns:
        [batch, num_heads, L_q, head_dim], in memory [batch, L_q, num_heads, head_dim].

    Raises:
        KernelArgumentError: an argument is not one that the kernel takes.
    """
    check_arguments(
        "attention_split", q, k, v, mask, kv_len, positions, scale, causal, window, softcap, MAX_QUERY
    )  # fmt: skip
    _require_device("attention_split", q, attention_split_kernel)
    q, k, v = _dense_rows(q), _dense_rows(k), _dense_rows(v)
    batch, heads, l_q, head_dim = q.shape
    kv_heads, l_kv = k.shape[1], k.shape[2]
    group = heads // kv_heads
    rows = l_q * group
    out = _empty_like_result(q)
    partial = stats = None
    if num_splits > 1:
        partial = q.new_empty((batch * kv_heads * num_splits, rows, head_dim), dtype=torch.float32)
        stats = q.new_empty((batch * kv_heads * num_splits, rows, 2), dtype=torch.float32)
    lengths, stride_p, mask_kind, stride_m = _optional(mask, kv_len, positions)
    modes: dict[str, Any] = {"CAUSAL": causal, "WINDOW": window, "HAS_LEN": kv_len is not None, "MAX_Q": MAX_QUERY}
    kernel = _wrapped(attention_split_kernel)
    kernel[(num_splits, kv_heads * triton.cdiv(rows, block_m), batch)](
        q, k, v, out, partial, stats, mask, lengths, positions,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *stride_m, *stride_p,
        l_q, l_kv, num_splits, scale * _LOG2E,
        KV_HEADS=kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_D=padded(head_dim), BLOCK_M=block_m, BLOCK_N=block_n,
        STAGES=num_stages, SOFTCAP=softcap, MASK=mask_kind, MERGED=num_splits > 1,
        PDL=num_splits > 1 and pdl == 1, **modes, num_warps=num_warps,
    )  # fmt: skip
    if num_splits > 1:
        merge = _wrapped(attention_reduce_pdl if pdl else attention_reduce_kernel)
        # Only Triton's own launcher takes the flag; compiled programs go by the kernel's name.
        early = {"launch_pdl": True} if pdl and isinstance(merge, triton.runtime.JITFunction) else {}
        merge[(rows, batch * kv_heads, triton.cdiv(head_dim, chunk_d))](
            out, partial, stats, lengths, positions, *out.stride()[:3], *stride_p, l_q, l_kv, num_splits, block_n,
            kv_heads, group, HEAD_DIM=head_dim, **modes, BLOCK_S=block_s, CHUNK_D=chunk_d, num_warps=4, **early,
        )  # fmt: skip
    return out


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
) -> Tensor:
    """Tiled attention, any ``L_q``. Arguments, result and errors are those of ``attention_split``, but for:

    Args:
        block_m: query rows of one head in a tile.
        one_loop: 1 for one loop over all keys, 0 for three, of which two mask.
        section: heads, over all batch rows, that run at a time.
    """
    check_arguments("attention_tiled", q, k, v, mask, kv_len, positions, scale, causal, window, softcap, None)
    _require_device("attention_tiled", q, attention_tiled_kernel)
    q, k, v = _dense_rows(q), _dense_rows(k), _dense_rows(v)
    batch, heads, l_q, head_dim = q.shape
    kv_heads, l_kv = k.shape[1], k.shape[2]
    out = _empty_like_result(q)
    lengths, stride_p, mask_kind, stride_m = _optional(mask, kv_len, positions)
    kernel = _wrapped(attention_tiled_kernel)
    kernel[(triton.cdiv(l_q, block_m) * batch * heads,)](
        q, k, v, out, mask, lengths, positions,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *stride_m, *stride_p,
        l_q, l_kv, heads, heads // kv_heads, batch * heads, section, scale * _LOG2E,
        HEAD_DIM=head_dim, BLOCK_D=padded(head_dim), BLOCK_M=block_m, BLOCK_N=block_n, STAGES=num_stages,
        CAUSAL=causal, WINDOW=window, SOFTCAP=softcap, MASK=mask_kind, HAS_LEN=kv_len is not None,
        ONE_LOOP=one_loop == 1, num_warps=num_warps,
    )  # fmt: skip
    return out


def fake_split(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    """Checks the arguments; returns a fake result."""
    mask, kv_len, positions, scale, causal, window, softcap = rest[:7]
    check_arguments("attention_split", q, k, v, mask, kv_len, positions, scale, causal, window, softcap, MAX_QUERY)
    return _empty_like_result(q)


def fake_tiled(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    """Checks the arguments; returns a fake result."""
    mask, kv_len, positions, scale, causal, window, softcap = rest[:7]
    check_arguments("attention_tiled", q, k, v, mask, kv_len, positions, scale, causal, window, softcap, None)
    return _empty_like_result(q)


attention_split.register_fake(fake_split)
attention_tiled.register_fake(fake_tiled)


def _empty_like_result(q: Tensor) -> Tensor:
    # Models go on with [batch, L_q, heads * head_dim]: in this order that is a view.
    batch, heads, l_q, head_dim = q.shape
    return q.new_empty((batch, l_q, heads, head_dim)).transpose(1, 2)


def _dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _optional(
    mask: Tensor | None, kv_len: Tensor | None, positions: Tensor | None
) -> tuple[Tensor | None, list[int], int, list[int]]:
    """Lengths; strides of the positions; kind of mask, its strides."""
    lengths = None if kv_len is None else kv_len.contiguous()
    stride_p = [0, 0] if positions is None else broadcast_strides(positions, 2)
    if mask is None:
        return lengths, stride_p, 0, [0, 0, 0, 0]
    return lengths, stride_p, 1 if mask.dtype == torch.bool else 2, broadcast_strides(mask, 4)


def _wrapped(kernel: Any) -> Any:
    # The interpreter's functions cannot be traced and need not be.
    return wrap_triton(kernel) if isinstance(kernel, triton.runtime.JITFunction) else kernel


def _require_device(op: str, q: Tensor, kernel: Any) -> None:
    real = type(q) is Tensor
    if real and q.device.type != "cuda" and isinstance(kernel, triton.runtime.JITFunction):
        raise KernelArgumentError(
            f"{op}: q: expected a tensor on a GPU, got one on {q.device}. Move it, or use attention_reference."
        )
