"""Activations in plain PyTorch: RMSNorm, gated activations, dynamic quantisation and reordering.

Tests compare the kernels with these functions, operators compute them on the CPU, and they are the lowering where no
kernel serves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from etcuda.errors import KernelArgumentError
from etcuda.kernels.formats.base import BLOCK

Quantized = tuple[Tensor, Tensor, Tensor]
_TINY = 2.0**-120  # Below this, 127 / amax would overflow: such a block is zero.
# Rows of the tiles that activations are reordered for, from which bfloat16 ones too are for sums in float16.
SUMS_IN_FLOAT16_FROM = 64


def quantize_activation_reference(x: Tensor) -> Quantized:
    """Quantizes activations to int8, symmetric, per block of 32.

    ``amax`` is the greatest magnitude of a block; q = round(x * (127 / amax)), halves to even, and scale =
    amax * (1 / 127), all in fp32. A block whose ``amax`` is below 2**-120 is zero, with scale 0.

    Args:
        x: [..., K] floating, K a multiple of 32.

    Returns:
        q int8 [M, K]; scale float32 [M, K / 32]; sum float32 [M, K / 32], scale times the sum of q over the block. M is
        the product of the leading sizes.
    """
    k = x.shape[-1]
    if k == 0 or k % BLOCK:
        raise KernelArgumentError(f"quantize_activation: x: expected K to be a multiple of {BLOCK}, got K = {k}.")
    rows = math.prod(x.shape[:-1])
    blocks = x.to(torch.float32).reshape(rows, k // BLOCK, BLOCK)
    amax = blocks.abs().amax(dim=-1)
    small = amax < _TINY
    inverse = torch.where(small, 0.0, 127.0 / amax)
    scale = torch.where(small, 0.0, amax * (1.0 / 127.0))
    q = torch.round(blocks * inverse.unsqueeze(-1)).to(torch.int8)
    total = scale * q.sum(dim=-1, dtype=torch.int32).to(torch.float32)
    return q.reshape(rows, k), scale, total


def num_k_segments(k: int, activation_dtype: str, block_m: int) -> int:
    """K segments of a row of ``k`` that are divided by a power of two each, where activations are reordered for sums in
    float16: a segment has as many columns as are summed so, fewer for few rows, whose segments have a CTA each."""
    steps = k // 256
    if activation_dtype != "int8" or (block_m <= 64 and steps <= 24):
        return 1
    return -(-steps // (16 if block_m <= 64 else 42))


def reorder_activation_reference(
    x: Tensor, bits: int, activation_dtype: str, block_m: int, tiled: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations reordered along K, in the dtype that tensor-core products load.

    Args:
        x: [..., K] floating, K a multiple of 32.
        bits: 4 or 8, of the weights.
        activation_dtype: "exact", or "int8" for activations quantized as ``quantize_activation_reference`` does.
        block_m: what M, the product of the leading sizes, is rounded up to.
        tiled: 1 for [K / 64, rows, 64] in memory, the eight pieces of 16 bytes of a row of 64 swapped: piece p of row
            m lies at p ^ (m % 8).

    Returns:
        The activations, float16 [M rounded up, at least ``block_m``, K rounded up to 128], zero beyond M and K. The
        power of two that each row was divided by, float32 [M], so that its greatest is below 2**14. Semaphores, int32
        zeros [1024] if ``tiled``, else [1].
        With ``tiled`` and ``activation_dtype`` "int8" activations are not quantized. They are divided so that the
        greatest is below 4, of each of S k segments of a row if there are several: powers of two [S, M]. bfloat16 ones
        for ``block_m`` below 64 stay as they are, bfloat16 and divided by 1.
    """
    keeps_values = bool(tiled) and activation_dtype == "int8"
    as_is = keeps_values and x.dtype == torch.bfloat16 and block_m < SUMS_IN_FLOAT16_FROM
    top = 1 if keeps_values else 13
    k, rows = x.shape[-1], math.prod(x.shape[:-1])
    count = 1 if as_is or not keeps_values else num_k_segments(k, activation_dtype, block_m)
    length = k if count == 1 else -(-k // 256 // count) * 256
    segments = torch.split(x.to(torch.float32).reshape(rows, k), length, 1)
    greatest = torch.stack([segment.abs().amax(dim=1) for segment in segments])
    exponent = ((greatest.view(torch.int32) >> 23) & 0xFF).clamp(27, 240)
    down, factor = ((bits << 23).view(torch.float32) for bits in (254 + top - exponent, exponent - top))
    padding = (0, -k % 128, 0, max(-rows % block_m, block_m if rows == 0 else 0))
    if as_is:
        factor = torch.ones_like(factor)
    downs = down.T.repeat_interleave(length, 1)[:, :k]
    if as_is:
        values = F.pad(x.reshape(rows, k), padding)
    else:
        values = activation_rows(x, "exact" if keeps_values else activation_dtype) * downs
        values = F.pad(values.to(torch.float16), padding)
    factor = factor[0] if count == 1 else factor
    # Column 128 unit + 32 block + 16 high + 4 word + 2 e + odd; of int8 128 unit + 32 block + 4 word + 2 second + e.
    sizes, order = ((4, 2, 4, 2, 2), (2, 3, 5, 1, 4)) if bits == 4 else ((4, 8, 2, 2), (2, 3, 1, 4))
    units = values.reshape(-1, *sizes).permute(0, *order)
    reordered = units.reshape(values.shape)
    if tiled:
        count, width = reordered.shape
        row, piece = torch.arange(count).unsqueeze(1) % 8, torch.arange(8).unsqueeze(0)
        pieces = reordered.reshape(count, width // 64, 8, 8).permute(1, 0, 2, 3)
        index = (piece ^ row).to(x.device).reshape(1, count, 8, 1).expand_as(pieces)
        reordered = pieces.gather(2, index).reshape(count, width)
    return reordered, factor, torch.zeros(1024 if tiled else 1, dtype=torch.int32, device=x.device)


def activation_rows(x: Tensor, activation_dtype: str) -> Tensor:
    """x as float32 [M, K]: what is left of it after quantisation to int8 per block of 32, or "exact"."""
    if activation_dtype == "int8":
        q, scale, _ = quantize_activation_reference(x)
        return (q.to(torch.float32).reshape(q.shape[0], q.shape[1] // BLOCK, BLOCK) * scale.unsqueeze(-1)).flatten(-2)
    if activation_dtype == "exact":
        return x.to(torch.float32).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    raise KernelArgumentError(f"activation_dtype: expected 'int8' or 'exact', got {activation_dtype!r}.")


def rms_norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, weight_offset: float, cast_first: bool
) -> tuple[Tensor, Tensor]:
    """RMSNorm (Zhang and Sennrich, 2019) in fp32, rounded to the dtype of ``x`` where README.md says.

    Returns:
        h = x + residual, and the norm of h; both in the shape and dtype of ``x``.
    """
    h = x if residual is None else x + residual
    wide = h.to(torch.float32)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if cast_first:
        normed = normed.to(x.dtype).to(torch.float32)
    if weight is not None:
        normed = normed * (weight.to(torch.float32) + weight_offset)
    return h, normed.to(x.dtype)


def rms_norm_kept_reference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    cast_first: bool,
    keep_h: bool = True,
) -> tuple[Tensor, Tensor]:
    """h and its norm as of ``rms_norm_reference``; h is [0] if it is not kept."""
    h, y = rms_norm_reference(x, residual, weight, eps, weight_offset, cast_first)
    return _kept(h, keep_h), y


def rms_norm_quantize_reference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    cast_first: bool,
    keep_h: bool = True,
    keep_y: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h and its norm y as of ``rms_norm_reference``, [0] if not kept, and what ``quantize_activation_reference`` makes
    of y."""
    h, y = rms_norm_reference(x, residual, weight, eps, weight_offset, cast_first)
    return _kept(h, keep_h), _kept(y, keep_y), *quantize_activation_reference(y)


def gate_reference(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """activation(gate) * up, the activation rounded to the dtype of ``gate``; without ``up``, ``gate`` holds both."""
    if up is None:
        gate, up = gate.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


def gate_quantize_reference(
    gate: Tensor, up: Tensor | None, activation: str, keep_y: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y of ``gate_reference``, [0] if not kept, and what ``quantize_activation_reference`` makes of y."""
    y = gate_reference(gate, up, activation)
    return _kept(y, keep_y), *quantize_activation_reference(y)


def gate_reorder_reference(
    gate: Tensor, up: Tensor | None, gate_activation: str, activation_dtype: str, block_m: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``reorder_activation_reference`` makes of y of ``gate_reference``, tiled for int4."""
    return reorder_activation_reference(gate_reference(gate, up, gate_activation), 4, activation_dtype, block_m, 1)


def _kept(tensor: Tensor, keep: bool) -> Tensor:
    return tensor if keep else tensor.new_empty((0,))
