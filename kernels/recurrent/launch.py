"""Launches of the kernels. Arguments were checked before; states are written in place."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.common.pdl import choose_kernel, traceable
from etcuda.kernels.recurrent.reference.chunks import CHUNK, num_chunks
from etcuda.kernels.recurrent.reference.states import keeps_each, num_slots
from etcuda.kernels.recurrent.triton.conv import causal_conv_kernel
from etcuda.kernels.recurrent.triton.delta_chunk import delta_prepare_kernel, delta_walk_kernel
from etcuda.kernels.recurrent.triton.delta_layer import gated_delta_layer_kernel, gated_delta_layer_pdl
from etcuda.kernels.recurrent.triton.delta_rows import gated_delta_rows_kernel
from etcuda.kernels.recurrent.triton.delta_step import gated_delta_step_kernel
from etcuda.kernels.recurrent.triton.scan import selective_scan_kernel
from etcuda.kernels.recurrent.triton.scan_rows import selective_scan_rows_kernel


def causal_conv(
    x: Tensor, state: Tensor, positions: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    """The convolution; the ring ``state`` holds the new inputs."""
    batch, length, channels = x.shape
    out = x.new_empty(x.shape)
    one = statically_known_true(length == 1)
    block_l, block_c = (1, 256) if one else (16, 128)
    weight = weight.contiguous()
    grid = (triton.cdiv(torch.sym_max(length, 1), block_l), triton.cdiv(channels, block_c), batch)
    # The weight stands in for a bias that is absent.
    traceable(x, causal_conv_kernel)[grid](
        x, state, positions, weight, weight if bias is None else bias.contiguous(), out, length, channels, *x.stride(),
        WIDTH=weight.shape[1], ROWS=state.shape[1], HAS_BIAS=bias is not None, SILU=activation == "silu",
        BLOCK_L=block_l, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
    return out


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, positions: Tensor, normalize: bool
) -> Tensor:
    """The outputs; ``state`` has what is kept."""
    batch, length, key_heads, key_dim = q.shape
    heads, value_dim = v.shape[2], v.shape[3]
    out = v.new_empty(v.shape)
    scale = key_dim**-0.5
    sizes = {"HEADS": heads, "GROUP": heads // key_heads, "K": key_dim, "V": value_dim}
    block_v = min(32, triton.next_power_of_2(value_dim))
    if keeps_each(state, length):
        traceable(q, gated_delta_rows_kernel)[(triton.cdiv(value_dim, block_v), batch * heads)](
            q, k, v, g, beta, state, positions, out, length, scale, *q.stride(), *k.stride(), *v.stride(), *g.stride(),
            *beta.stride(), **sizes, NORMALIZE=normalize, SLOTS=num_slots(state),
            BLOCK_K=triton.next_power_of_2(key_dim), BLOCK_V=block_v, num_warps=4,
        )  # fmt: skip
        return out
    if statically_known_true(length == 1):
        traceable(q, gated_delta_step_kernel)[(triton.cdiv(value_dim, block_v), batch * heads)](
            q, k, v, g, beta, state, positions, out, scale, *_but_token(q), *_but_token(k), *_but_token(v),
            *_but_token(g), *_but_token(beta), **sizes, NORMALIZE=normalize,
            BLOCK_K=triton.next_power_of_2(key_dim), BLOCK_V=block_v, num_warps=4,
        )  # fmt: skip
        return out
    chunks = num_chunks(length)
    block_k, block_v = _block(key_dim), _block(value_dim)
    precision = _precision(q)
    read = q.new_empty((batch, heads, chunks, CHUNK, key_dim))
    written = q.new_empty((batch, heads, chunks, CHUNK, value_dim))
    scores = q.new_empty((batch, heads, chunks, CHUNK, CHUNK))
    factors = q.new_empty((batch, heads, chunks, 3, CHUNK), dtype=torch.float32)
    traceable(q, delta_prepare_kernel)[(torch.sym_max(chunks, 1), batch * heads)](
        q, k, v, g, beta, read, written, scores, factors, length, chunks, scale, *q.stride(), *k.stride(), *v.stride(),
        *g.stride(), *beta.stride(), **sizes, NORMALIZE=normalize, BLOCK_K=block_k, BLOCK_V=block_v,
        PRECISION=precision, num_warps=4,
    )  # fmt: skip
    block_v = min(32, block_v)
    traceable(q, delta_walk_kernel)[(triton.cdiv(value_dim, block_v), batch * heads)](
        q, k, read, written, scores, factors, state, positions, out, length, chunks, *q.stride(), *k.stride(), **sizes,
        SLOTS=num_slots(state), BLOCK_K=block_k, BLOCK_V=block_v, PRECISION=precision,
        STAGES=2 if q.dtype.itemsize == 2 else 1, num_warps=4,
    )  # fmt: skip
    return out


def gated_delta_layer(
    x: Tensor,
    z: Tensor,
    b: Tensor,
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a_log: Tensor,
    dt_bias: Tensor,
    norm: Tensor,
    eps: float,
    conv: Tensor,
    state: Tensor,
    positions: Tensor,
    pdl: int,
) -> Tensor:
    """The outputs; ``conv`` and ``state`` are those behind the token."""
    heads, key_dim, value_dim = state.shape[-3:]
    batch = x.shape[0]
    key_heads = (x.shape[2] - heads * value_dim) // (2 * key_dim)
    out = x.new_empty(z.shape)
    weight = weight.contiguous()
    kernel, options = choose_kernel(x, gated_delta_layer_kernel, gated_delta_layer_pdl, pdl)
    # The weight stands in for a bias that is absent.
    kernel[(batch * heads,)](
        x, z, b, a, weight, weight if bias is None else bias.contiguous(), a_log.contiguous(), dt_bias.contiguous(),
        norm.contiguous(), conv, state, positions, out, key_dim**-0.5, eps, *_but_token(x), *_but_token(z),
        *_but_token(b), *_but_token(a), HEADS=heads, GROUP=heads // key_heads, K=key_dim, V=value_dim,
        WIDTH=weight.shape[1], ROWS=conv.shape[1], SLOTS=num_slots(state), HAS_BIAS=bias is not None,
        BLOCK_K=triton.next_power_of_2(key_dim), BLOCK_V=triton.next_power_of_2(value_dim), num_warps=8, **options,
    )  # fmt: skip
    return out


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
) -> Tensor:
    """The outputs; ``state`` has what is kept."""
    batch, length, heads, head_dim = x.shape
    out = x.new_empty(x.shape)
    each = keeps_each(state, length)
    one = each or statically_known_true(length == 1)
    a = a.contiguous()
    # A number that is written into the code of a program; infinity is none.
    dt_max = min(dt_max, 3e38)
    block_n = triton.next_power_of_2(b.shape[3]) if one else _block(b.shape[3])
    block_p = min(16, triton.next_power_of_2(head_dim)) if one else min(32, _block(head_dim))
    # The rates stand in for what is absent.
    given = (a, a if d is None else d.contiguous(), a if dt_bias is None else dt_bias.contiguous(), b, c, state)
    numbers = (length, dt_min, dt_max, *x.stride(), *dt.stride(), *b.stride(), *c.stride())
    sizes = {"HEADS": heads, "GROUP": heads // b.shape[2], "P": head_dim, "N": b.shape[3], "SLOTS": num_slots(state)}
    flags = {"HAS_D": d is not None, "HAS_BIAS": dt_bias is not None}
    grid = (triton.cdiv(head_dim, block_p), batch * heads)
    if each:
        traceable(x, selective_scan_rows_kernel)[grid](
            x, dt, *given, positions, out, *numbers, **sizes, **flags, BLOCK_P=block_p, BLOCK_N=block_n, num_warps=4
        )
        return out
    traceable(x, selective_scan_kernel)[grid](
        x, dt, *given, positions, out, *numbers, **sizes, **flags, BLOCK_P=block_p, BLOCK_N=block_n,
        PRECISION=_precision(x), ONE=one, num_warps=4 if one or block_n < 256 else 8, num_stages=2,
    )  # fmt: skip
    return out


def _but_token(x: Tensor) -> list[int]:
    """Strides of [batch, 1, ...] without that of the token."""
    return [x.stride(0), *x.stride()[2:]]


def _block(width: int) -> int:
    """Columns of a tile. Products of 16 columns came out wrong on sm_90 (Triton 3.6), of 32 and more right."""
    return max(32, int(triton.next_power_of_2(width)))


def _precision(x: Tensor) -> str:
    return "tf32" if x.dtype.itemsize == 2 else "tf32x3"
