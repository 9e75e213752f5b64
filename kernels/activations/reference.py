"""RMSNorm and gated activations with rounding, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from etcuda.errors import KernelArgumentError
from etcuda.kernels.formats.base import BLOCK

Quantized = tuple[Tensor, Tensor, Tensor]
_TINY = 2.0**-120  # Below, 127 / amax would overflow: such a block is zero.


def quantize_activation_reference(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds activations to int8, symmetric, per block of 32.

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


# Rows of the tiles that activations are put in order for, from which bfloat16 ones are for sums in float16 too.
SUMS_IN_FLOAT16_FROM = 64


def num_k_segments(k: int, activation_dtype: str, block_m: int) -> int:
    """K segments of a row of ``k`` that are divided by a power of two each, where activations are put in order for sums
    in float16: as many columns as are summed so, fewer for few rows, where each k segment has a program of its own."""
    steps = k // 256
    if activation_dtype != "int8" or (block_m <= 64 and steps <= 24):
        return 1
    return -(-steps // (16 if block_m <= 64 else 42))


def reorder_activation_reference(
    x: Tensor, bits: int, activation_dtype: str, block_m: int, tiled: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations in the order of K, and the type, that tensor-core products read.

    Args:
        x: [..., K] floating, K a multiple of 32.
        bits: 4 or 8, of the weights.
        activation_dtype: "exact", or "int8" for activations rounded as ``quantize_activation_reference`` does.
        block_m: what M, the product of the leading sizes, is rounded up to.
        tiled: 1 for [K / 64, rows, 64] in memory, the eight pieces of 16 bytes of a row of 64 swapped: piece p of row
            m lies at p ^ (m % 8).

    Returns:
        float16 [M rounded up, at least ``block_m``, K rounded up to 128], zero beyond M and K; float32 [M], the power
        of two that a row was divided by: its greatest is below 2**14 then; int32 zeros, [1024] if ``tiled``, else [1].
        ``tiled``, and with ``activation_dtype`` "int8", they are not rounded, and the greatest is below 4, of each of the
        ``k_segments`` S of a row, of 256 columns times as many as are needed, if these are more than one: float32 [S, M]
        then; with bfloat16 ``x`` and ``block_m`` below 64 they are bfloat16, not divided.
    """
    unrounded = bool(tiled) and activation_dtype == "int8"
    as_is = unrounded and x.dtype == torch.bfloat16 and block_m < SUMS_IN_FLOAT16_FROM
    top = 1 if unrounded else 13
    k, rows = x.shape[-1], math.prod(x.shape[:-1])
    count = 1 if as_is or not unrounded else num_k_segments(k, activation_dtype, block_m)
    length = k if count == 1 else -(-k // 256 // count) * 256
    parts = torch.split(x.to(torch.float32).reshape(rows, k), length, 1)
    greatest = torch.stack([part.abs().amax(dim=1) for part in parts])
    exponent = ((greatest.view(torch.int32) >> 23) & 0xFF).clamp(27, 240)
    down, factor = ((part << 23).view(torch.float32) for part in (254 + top - exponent, exponent - top))
    padding = (0, -k % 128, 0, max(-rows % block_m, block_m if rows == 0 else 0))
    if as_is:
        factor = torch.ones_like(factor)
    handling = "exact" if unrounded else activation_dtype
    downs = down.T.repeat_interleave(length, 1)[:, :k]
    taken = x.reshape(rows, k) if as_is else (activation_rows(x, handling) * downs).to(torch.float16)
    factor = factor[0] if count == 1 else factor
    values = torch.nn.functional.pad(taken, padding)
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
    """x as float32 [M, K], rounded to int8 per block of 32 or not."""
    if activation_dtype == "int8":
        q, scale, _ = quantize_activation_reference(x)
        return (q.to(torch.float32).reshape(q.shape[0], q.shape[1] // BLOCK, BLOCK) * scale.unsqueeze(-1)).flatten(-2)
    if activation_dtype == "exact":
        return x.to(torch.float32).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    raise KernelArgumentError(f"activation_dtype: expected 'int8' or 'exact', got {activation_dtype!r}.")


def rms_norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, weight_offset: float, cast_first: bool
) -> tuple[Tensor, Tensor]:
    """RMSNorm (Zhang and Sennrich, 2019) in fp32, with the roundings to the dtype of ``x`` that README.md gives.

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


def rms_norm_quantize_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, weight_offset: float, cast_first: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h and its norm as of ``rms_norm_reference``, and what ``quantize_activation_reference`` makes of the norm."""
    h, y = rms_norm_reference(x, residual, weight, eps, weight_offset, cast_first)
    return h, y, *quantize_activation_reference(y)


def gate_reference(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """activation(gate) * up, the activation rounded to the dtype of ``gate``; without ``up``, ``gate`` holds both."""
    if up is None:
        gate, up = gate.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


def gate_quantize_reference(gate: Tensor, up: Tensor | None, activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The product of ``gate_reference``, and what ``quantize_activation_reference`` makes of it."""
    y = gate_reference(gate, up, activation)
    return y, *quantize_activation_reference(y)


def gate_reorder_reference(
    gate: Tensor, up: Tensor | None, gate_activation: str, activation_dtype: str, block_m: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``reorder_activation_reference`` makes of the product of ``gate_reference``, tiled for int4."""
    return reorder_activation_reference(gate_reference(gate, up, gate_activation), 4, activation_dtype, block_m, 1)
