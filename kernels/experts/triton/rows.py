"""Rows of activations as products of quantised weights load them: what ``reorder_kernel`` of activations does, for many
rows that are short. A CTA has several and loads each once."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _rows(
    x, reordered, factor, num_rows,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    UNITS: tl.constexpr = COLUMNS // 128
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < num_rows)[:, None]
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    values = tl.load(x + row[:, None] * K + column, mask=inside & (column < K), other=0.0).to(tl.float32)
    # Of the greatest magnitude the exponent alone: activations below 2^14 in fp16, exact down to 2^-24 of the greatest.
    exponent = (tl.max(tl.abs(values), 1).to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.minimum(tl.maximum(exponent, 27), 240)
    down = ((254 + 13 - exponent) << 23).to(tl.float32, bitcast=True)
    tl.store(factor + row, ((exponent - 13) << 23).to(tl.float32, bitcast=True), mask=row < num_rows)
    units = (values * down[:, None]).to(tl.float16)
    if BITS == 4:
        units = tl.permute(tl.reshape(units, [ROWS, UNITS, 4, 2, 4, 2, 2]), [0, 1, 3, 4, 6, 2, 5])
    else:
        units = tl.permute(tl.reshape(units, [ROWS, UNITS, 4, 8, 2, 2]), [0, 1, 3, 4, 2, 5])
    units = tl.reshape(units, [ROWS, COLUMNS])
    tl.store(reordered + row[:, None] * WIDTH + column, units, mask=inside & (column < WIDTH))


@triton.jit
def rows_kernel(
    x,  # [num_rows, K]
    reordered,  # [num_rows, WIDTH] fp16: x[m] / factor[m], along K as matmul_kernel loads it, 0 beyond K
    factor,  # [num_rows] fp32, powers of two
    num_rows,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Reorders rows; grid: tiles of ROWS."""
    _rows(x, reordered, factor, num_rows, K, WIDTH, BITS, ROWS, COLUMNS, False)


@triton.jit
def rows_pdl(
    x,  # [num_rows, K]
    reordered,  # [num_rows, WIDTH] fp16: x[m] / factor[m], along K as matmul_kernel loads it, 0 beyond K
    factor,  # [num_rows] fp32, powers of two
    num_rows,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``rows_kernel`` that may be launched while the kernel in front of it runs."""
    _rows(x, reordered, factor, num_rows, K, WIDTH, BITS, ROWS, COLUMNS, True)
