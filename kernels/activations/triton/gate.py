"""A gated activation whose result is quantized to int8 per block of 32 before it leaves the registers."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.common.blocks import quantize_blocks


@triton.jit
def activate(gate, ACTIVATION: tl.constexpr):
    """fp32 to fp32."""
    if ACTIVATION == "silu":
        return gate / (1.0 + tl.exp(-gate))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 is 1 / (1 + exp(-2 u)); u = sqrt(2 / pi) (g + 0.044715 g^3).
        return gate / (1.0 + tl.exp(-1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)))
    else:
        return 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))


@triton.jit
def _gate_quantize(
    gate, up,  # [num_rows, K], rows gate_stride and up_stride apart, up from UP_OFFSET on
    y, q,  # [num_rows, K]
    scale, total,  # [num_rows, K / 32] fp32
    gate_stride, up_stride, num_blocks,
    K: tl.constexpr, UP_OFFSET: tl.constexpr, ACTIVATION: tl.constexpr, KEEP_Y: tl.constexpr, BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A CTA computes BLOCKS blocks of 32, counted through all rows."""
    DTYPE: tl.constexpr = gate.dtype.element_ty
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    inside = (block < num_blocks)[:, None]
    row = (block // (K // 32)).to(tl.int64)[:, None]
    column = (block % (K // 32) * 32)[:, None] + tl.arange(0, 32)[None, :]
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    g = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + UP_OFFSET + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    result = (activate(g, ACTIVATION).to(DTYPE).to(tl.float32) * u).to(DTYPE)
    at = block.to(tl.int64)[:, None] * 32 + tl.arange(0, 32)[None, :]
    if KEEP_Y:
        tl.store(y + at, result, mask=inside)
    quantized, step, sums = quantize_blocks(result.to(tl.float32))
    tl.store(q + at, quantized.to(tl.int8), mask=inside)
    tl.store(scale + block, step, mask=block < num_blocks)
    tl.store(total + block, sums, mask=block < num_blocks)


@triton.jit
def gate_quantize_kernel(
    gate, up,  # [num_rows, K], rows gate_stride and up_stride apart, up from UP_OFFSET on
    y, q,  # [num_rows, K]
    scale, total,  # [num_rows, K / 32] fp32
    gate_stride, up_stride, num_blocks,
    K: tl.constexpr, UP_OFFSET: tl.constexpr, ACTIVATION: tl.constexpr, KEEP_Y: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """activation(gate) * up, quantized to int8."""
    _gate_quantize(
        gate, up, y, q, scale, total, gate_stride, up_stride, num_blocks,
        K, UP_OFFSET, ACTIVATION, KEEP_Y, BLOCKS, False,
    )  # fmt: skip


@triton.jit
def gate_quantize_pdl(
    gate, up,  # [num_rows, K], rows gate_stride and up_stride apart, up from UP_OFFSET on
    y, q,  # [num_rows, K]
    scale, total,  # [num_rows, K / 32] fp32
    gate_stride, up_stride, num_blocks,
    K: tl.constexpr, UP_OFFSET: tl.constexpr, ACTIVATION: tl.constexpr, KEEP_Y: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Like ``gate_quantize_kernel``, and may be launched while the kernel in front of it runs."""
    _gate_quantize(
        gate, up, y, q, scale, total, gate_stride, up_stride, num_blocks,
        K, UP_OFFSET, ACTIVATION, KEEP_Y, BLOCKS, True,
    )  # fmt: skip
