"""Launches of the kernels that quantize activations. Arguments were checked before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.activations.choose.configs import ActivationConfig
from etcuda.kernels.activations.reference import Quantized
from etcuda.kernels.activations.triton.gate import gate_quantize_kernel, gate_quantize_pdl
from etcuda.kernels.activations.triton.norm import rms_norm_quantize_kernel, rms_norm_quantize_pdl
from etcuda.kernels.activations.triton.quantize import quantize_kernel, quantize_pdl
from etcuda.kernels.common.pdl import choose_kernel


def rms_norm_quantize(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    cast_first: bool,
    keep_h: bool,
    keep_y: bool,
    config: ActivationConfig,
    pdl: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h, y, q, scale, sum of x [..., K]; h and y are [0] where they are not kept."""
    rows = rows_of(x)
    h, y = (new_kept(x, x.shape, keep) for keep in (keep_h, keep_y))
    quantized = new_quantized(rows, rows.shape[0], x.shape[-1])
    kept = (h if keep_h else None, y if keep_y else None)
    _launch_norm(rows, residual, weight, eps, weight_offset, cast_first, *kept, quantized, config, pdl)
    return h, y, *quantized


def rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    cast_first: bool,
    keep_h: bool,
    config: ActivationConfig,
    pdl: int,
) -> tuple[Tensor, Tensor]:
    """h and y of x [..., K]; h is [0] where it is not kept."""
    h, y = new_kept(x, x.shape, keep_h), x.new_empty(x.shape)
    kept = h if keep_h else None
    _launch_norm(rows_of(x), residual, weight, eps, weight_offset, cast_first, kept, y, None, config, pdl)
    return h, y


def _launch_norm(
    rows: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    cast_first: bool,
    h: Tensor | None,
    y: Tensor | None,
    quantized: Quantized | None,
    config: ActivationConfig,
    pdl: int,
) -> None:
    """The norm of [M, K], into what is wanted."""
    more = None if residual is None else rows_of(residual)
    # The input stands in for what is absent.
    q, scale, total = (rows, rows, rows) if quantized is None else quantized
    kernel, options = choose_kernel(rows, rms_norm_quantize_kernel, rms_norm_quantize_pdl, pdl)
    kernel[(torch.sym_max(rows.shape[0], 1),)](
        rows, rows if more is None else more, rows if weight is None else weight.contiguous(),
        rows if h is None else h, rows if y is None else y, q, scale, total,
        rows.stride(0), 0 if more is None else more.stride(0), rows.shape[0],
        K=rows.shape[1], EPS=eps, WEIGHT_OFFSET=weight_offset, CAST_FIRST=cast_first, HAS_RESIDUAL=more is not None,
        HAS_WEIGHT=weight is not None, KEEP_H=h is not None, KEEP_Y=y is not None, QUANTIZE=quantized is not None,
        BLOCKS=config.blocks, num_warps=config.num_warps, **options,
    )  # fmt: skip


def gate_quantize(
    gate: Tensor, up: Tensor | None, activation: str, keep_y: bool, config: ActivationConfig, pdl: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, q, scale, sum of gate and up [..., K], or of both side by side; y is [0] where it is not kept."""
    k = gate.shape[-1] // (2 if up is None else 1)
    gates = rows_of(gate)
    ups = gates if up is None else rows_of(up)
    num_rows = gates.shape[0]
    y = new_kept(gate, (*gate.shape[:-1], k), keep_y)
    q, scale, total = new_quantized(gates, num_rows, k)
    num_blocks = num_rows * (k // 32)
    kernel, options = choose_kernel(gate, gate_quantize_kernel, gate_quantize_pdl, pdl)
    kernel[(torch.sym_max(triton.cdiv(num_blocks, config.blocks), 1),)](
        gates, ups, y if keep_y else gates, q, scale, total, gates.stride(0), ups.stride(0), num_blocks,
        K=k, UP_OFFSET=k if up is None else 0, ACTIVATION=activation, KEEP_Y=keep_y, BLOCKS=config.blocks,
        num_warps=config.num_warps, **options,
    )  # fmt: skip
    return y, q, scale, total


def quantize(x: Tensor, pdl: int) -> Quantized:
    """q int8 [M, K], scale and sum float32 [M, K / 32] of x [M, K], dense."""
    num_rows, k = x.shape
    q = x.new_empty((num_rows, k), dtype=torch.int8)
    scale, total = (x.new_empty((num_rows, k // 32), dtype=torch.float32) for _ in range(2))
    num_blocks = num_rows * k // 32
    # Few blocks are spread over many CTAs: what counts then is latency.
    many = statically_known_true(num_rows > 64)
    config = ActivationConfig(32, 4) if many else ActivationConfig(8, 1)
    kernel, options = choose_kernel(x, quantize_kernel, quantize_pdl, pdl)
    kernel[(torch.sym_max(triton.cdiv(num_blocks, config.blocks), 1),)](
        x, q, scale, total, num_blocks, BLOCKS=config.blocks, num_warps=config.num_warps, **options
    )
    return q, scale, total


def rows_of(x: Tensor) -> Tensor:
    """x as [M, K] whose columns follow each other in memory; rows may be any distance apart."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if statically_known_true(rows.stride(1) == 1) else rows.contiguous()


def new_kept(x: Tensor, shape: Sequence[int], keep: bool) -> Tensor:
    """A tensor of the dtype of ``x`` for a result that is wanted, else [0]."""
    return x.new_empty(shape if keep else (0,))


def new_quantized(x: Tensor, num_rows: int, k: int) -> Quantized:
    """Tensors for q, scale and sum."""
    scale, total = (x.new_empty((num_rows, k // 32), dtype=torch.float32) for _ in range(2))
    return x.new_empty((num_rows, k), dtype=torch.int8), scale, total
