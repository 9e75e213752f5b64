"""Launches of the kernels. Arguments were checked before."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from etcuda.kernels.activations.reorder_launch import reorder
from etcuda.kernels.common.blocks import GROUPS_FIRST
from etcuda.kernels.common.pdl import choose_kernel
from etcuda.kernels.cuda import native_kernels
from etcuda.kernels.experts.configs import FewLaunch, HopperLaunch, ManyLaunch, padded
from etcuda.kernels.experts.hopper import grouped
from etcuda.kernels.experts.hopper.stand_in import hopper_grouped_kernel, hopper_grouped_pdl
from etcuda.kernels.experts.matrices import Matrices
from etcuda.kernels.experts.triton import few_dense, few_quantized
from etcuda.kernels.experts.triton.grouped import grouped_kernel, grouped_pdl
from etcuda.kernels.experts.triton.plan import (
    combine_kernel,
    combine_pdl,
    count_kernel,
    count_pdl,
    place_kernel,
    place_pdl,
)
from etcuda.kernels.experts.triton.rows import rows_kernel, rows_pdl
from etcuda.torch_private import hint

_MOST_CHUNK = 8192  # Assignments that a CTA looks at at a time.
_TILE, _MOST_COLUMNS = 4096, 8192  # Activations that a CTA reorders, and of a row.


def few(
    x: Tensor, indices: Tensor, routing: Tensor, gate_up: Matrices, down: Matrices, activation: str, how: FewLaunch
) -> Tensor:
    """x [tokens, hidden], dense, by the kernels for few tokens; [tokens, hidden]."""
    num_tokens, hidden = x.shape
    width, top_k = down.k, indices.shape[1]
    between = x.new_empty((num_tokens * top_k, width))
    out = x.new_empty((num_tokens, hidden))
    # Tokens first: CTAs that read the same rows of an expert run at the same time, and memory is read once.
    up_grid = (num_tokens * top_k, triton.cdiv(width, how.up_n))
    down_grid = (num_tokens, triton.cdiv(hidden, how.down_n))
    if gate_up.format is None:
        kernel, early = choose_kernel(x, few_dense.dense_up_kernel, few_dense.dense_up_pdl, how.pdl)
        kernel[up_grid](
            x, indices, gate_up.weight, gate_up.tensors[-1], between, width, K=hidden, TOP_K=top_k,
            HAS_BIAS=gate_up.bias is not None, ACTIVATION=activation, BLOCK_N=how.up_n, BLOCK_K=how.up_k,
            num_warps=how.up_warps, **early,
        )  # fmt: skip
        kernel, early = choose_kernel(x, few_dense.dense_down_kernel, few_dense.dense_down_pdl, how.pdl)
        kernel[down_grid](
            between, indices, routing, down.weight, down.tensors[-1], out, hidden, K=width, TOP_K=top_k,
            HAS_BIAS=down.bias is not None, BLOCK_N=how.down_n, BLOCK_K=how.down_k, num_warps=how.down_warps, **early,
        )  # fmt: skip
        return out
    kernel, early = choose_kernel(x, few_quantized.up_kernel, few_quantized.up_pdl, how.pdl)
    kernel[up_grid](
        x, indices, *gate_up.tensors, between, width, **gate_up.constants, TOP_K=top_k, ACTIVATION=activation,
        BLOCK_N=how.up_n, BLOCKS=how.up_k // 32, GROUPS_FIRST=GROUPS_FIRST, num_warps=how.up_warps, **early,
    )  # fmt: skip
    kernel, early = choose_kernel(x, few_quantized.down_kernel, few_quantized.down_pdl, how.pdl)
    kernel[down_grid](
        between, indices, routing, *down.tensors, out, hidden, **down.constants, TOP_K=top_k, BLOCK_N=how.down_n,
        BLOCKS=how.down_k // 32, GROUPS_FIRST=GROUPS_FIRST, num_warps=how.down_warps, **early,
    )  # fmt: skip
    return out


def many_hopper(
    x: Tensor, indices: Tensor, routing: Tensor, gate_up: Matrices, down: Matrices, activation: str, how: HopperLaunch
) -> Tensor:
    """x [tokens, hidden], dense, by the kernel in CUDA C++; [tokens, hidden]."""
    num_tokens, hidden = x.shape
    width, top_k = down.k, indices.shape[1]
    rows = num_tokens * top_k
    order, tiles = plan(x, indices, gate_up.weight.shape[0], grouped.BLOCK_M, how.pdl)
    reordered, _, _ = reorder(4, x, "int8", grouped.ROWS, 1, how.pdl)
    between = x.new_empty((torch.sym_max(triton.cdiv(rows, grouped.ROWS), 1) * grouped.ROWS, width))
    products = x.new_empty((torch.sym_max(rows, 2), hidden))
    product_hopper(reordered, order, tiles, gate_up, between, width, activation, top_k, how)
    product_hopper(between, order, tiles, down, products, hidden, "", top_k, how)
    return combine(products, routing, x, how.pdl)


def product_hopper(
    x: Tensor, order: Tensor, tiles: Tensor, weights: Matrices, out: Tensor, n: int, gate: str, top_k: int,
    how: HopperLaunch,
) -> None:  # fmt: skip
    """One product of ``many_hopper``: into ``out``, with a gate [rows, n] sorted and reordered, else by assignment."""
    qdata, scale, zero, *_ = weights.tensors
    # The kernel in front of it would write a weight that was copied, which is read before that one's end.
    given = ((weights.weight, qdata), (weights.scale, scale), (weights.zero, zero))
    copied = any(stored is not None and made is not stored for stored, made in given)
    kernel, early = choose_kernel(x, hopper_grouped_kernel, hopper_grouped_pdl, 0 if copied else how.pdl)
    bits, offset = (16, "symmetric") if weights.format is None else (weights.format.bits, weights.format.offset)
    native = grouped.GroupedConfig(weights.k, n, gate, top_k, bits, offset).native()
    with native_kernels():
        kernel[(how.ctas,)](
            x, order, tiles, qdata, scale, zero, out, x.shape[0], out.shape[0], MARK=native.mark, **early
        )


def many(
    x: Tensor, indices: Tensor, routing: Tensor, gate_up: Matrices, down: Matrices, activation: str, how: ManyLaunch
) -> Tensor:
    """x [tokens, hidden], dense, by the kernels for many tokens; [tokens, hidden]. Activations are not quantised."""
    num_tokens, hidden = x.shape
    width, top_k = down.k, indices.shape[1]
    rows, experts = num_tokens * top_k, gate_up.weight.shape[0]
    tiles_m = most_tiles(rows, experts, how.block_m)
    order, tiles = plan(x, indices, experts, how.block_m, how.pdl)
    between = x.new_empty((rows, width))
    products = x.new_empty((rows, hidden))
    values, factor = _operand(x, gate_up, how)
    kernel, early = choose_kernel(x, grouped_kernel, grouped_pdl, how.pdl)
    kernel[(tiles_m * triton.cdiv(width, how.up_n),)](
        values, factor, order, tiles, *gate_up.tensors, between, width, **gate_up.constants, WIDTH=values.shape[1],
        TOP_K=top_k, ACTIVATION=activation, BLOCK_N=how.up_n, BLOCK_M=how.block_m, BLOCKS=how.up_k // 32,
        STAGES=how.up_stages, num_warps=how.up_warps, **early,
    )  # fmt: skip
    values, factor = _operand(between, down, how)
    kernel, early = choose_kernel(x, grouped_kernel, grouped_pdl, how.pdl)
    kernel[(tiles_m * triton.cdiv(hidden, how.down_n),)](
        values, factor, order, tiles, *down.tensors, products, hidden, **down.constants, WIDTH=values.shape[1],
        TOP_K=top_k, ACTIVATION="none", BLOCK_N=how.down_n, BLOCK_M=how.block_m, BLOCKS=how.down_k // 32,
        STAGES=how.down_stages, num_warps=how.down_warps, **early,
    )  # fmt: skip
    return combine(products, routing, x, how.pdl)


def combine(products: Tensor, routing: Tensor, x: Tensor, pdl: int) -> Tensor:
    """The weighted sum of each token's products, in the shape and dtype of ``x``."""
    num_tokens, hidden = x.shape
    out = x.new_empty((num_tokens, hidden))
    kernel, early = choose_kernel(x, combine_kernel, combine_pdl, pdl)
    block_n = min(2048, padded(hidden))
    kernel[(num_tokens, triton.cdiv(hidden, block_n))](
        products, routing, out, hidden, TOP_K=routing.shape[1], BLOCK_N=block_n, num_warps=4, **early
    )
    return out


def plan(x: Tensor, indices: Tensor, experts: int, block_m: int, pdl: int) -> tuple[Tensor, Tensor]:
    """The assignments sorted by expert, and the tiles of at most ``block_m`` of them."""
    rows = indices.numel()
    counts = x.new_empty((experts,), dtype=torch.int32)
    order = x.new_empty((rows,), dtype=torch.int32)
    tiles = x.new_empty((1 + most_tiles(rows, experts, block_m), 4), dtype=torch.int32)
    chunk = min(_MOST_CHUNK, max(256, padded(hint(rows))))
    kernel, early = choose_kernel(x, count_kernel, count_pdl, pdl)
    kernel[(experts,)](indices, counts, rows, CHUNK=chunk, num_warps=8, **early)
    kernel, early = choose_kernel(x, place_kernel, place_pdl, pdl)
    kernel[(experts,)](
        indices, counts, order, tiles, rows, EXPERTS=experts, PADDED=padded(experts), BLOCK_M=block_m, CHUNK=chunk,
        num_warps=8, **early,
    )  # fmt: skip
    return order, tiles


def most_tiles(rows: int | torch.SymInt, experts: int, block_m: int) -> int | torch.SymInt:
    """So many tiles of ``block_m`` rows there are at most, whatever was chosen."""
    return torch.sym_min(rows, rows // block_m + experts)


def _operand(x: Tensor, weights: Matrices, how: ManyLaunch) -> tuple[Tensor, Tensor]:
    """Activations as the product loads them, and what they were divided by."""
    if weights.format is None:
        return x, x
    num_rows, k = x.shape
    bits, width = weights.format.bits, triton.cdiv(k, 128) * 128
    columns = padded(width)
    if columns > _MOST_COLUMNS:
        values, factor, _ = reorder(bits, x, "exact", how.block_m, 0, how.pdl)
        return values, factor
    values = x.new_empty((num_rows, width), dtype=torch.float16)
    factor = x.new_empty((num_rows,), dtype=torch.float32)
    rows = max(1, _TILE // columns)
    kernel, early = choose_kernel(x, rows_kernel, rows_pdl, how.pdl)
    kernel[(triton.cdiv(num_rows, rows),)](
        x, values, factor, num_rows, K=k, WIDTH=width, BITS=bits, ROWS=rows, COLUMNS=columns, num_warps=4, **early
    )
    return values, factor
