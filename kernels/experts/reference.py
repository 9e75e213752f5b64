"""Mixtures of experts in plain PyTorch: what the kernels are compared with, and what a CPU computes.

Rows (a token for each of its experts) are cut into blocks of one expert, and a batched product takes every block with a
copy of its expert's matrix. How many blocks there are at most follows from sizes alone, so nothing is read on the host.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from etcuda.kernels.activations.reference import activation_rows
from etcuda.kernels.experts.problem import format_of

# Of "swiglu_oai", whose gate is multiplied with the other half and 1.
SWIGLU_ALPHA, SWIGLU_LIMIT = 1.702, 7.0
# Activations of a gate, and as what PyTorch has them.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_erf": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "swiglu_oai": lambda x: x * torch.sigmoid(SWIGLU_ALPHA * x),
}
# Rows up to which each is a block of its own.
_FEW_ROWS = 128
# Rows of a block: with more, fewer matrices are copied.
_BLOCK = 64

Matrices = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def experts_reference(
    x: Tensor,
    indices: Tensor,
    routing: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor | None,
    gate_up_zero: Tensor | None,
    gate_up_scale_step: Tensor | None,
    gate_up_zero_step: Tensor | None,
    gate_up_bias: Tensor | None,
    down: Tensor,
    down_scale: Tensor | None,
    down_zero: Tensor | None,
    down_scale_step: Tensor | None,
    down_zero_step: Tensor | None,
    down_bias: Tensor | None,
    group_size: int,
    down_group_size: int,
    activation: str,
    activation_dtype: str,
) -> Tensor:
    """The operator, with fp32 products and sums; see ``experts``.

    Products of the gate and the other half, the activation and their product are rounded to the dtype of ``x``, as is
    the end.
    """
    first = (gate_up, gate_up_scale, gate_up_zero, gate_up_scale_step, gate_up_zero_step, gate_up_bias)
    second = (down, down_scale, down_zero, down_scale_step, down_zero_step, down_bias)
    top_k = indices.shape[1]
    expert = indices.reshape(-1).to(torch.int64)
    token = torch.arange(expert.shape[0], device=x.device) // top_k
    kind = activation_dtype if gate_up_scale is not None else "exact"
    rows = activation_rows(x, kind)[token]

    def compute(blocks: Tensor, of_block: Tensor) -> Tensor:
        products = _multiply(blocks, first, of_block, group_size).to(x.dtype).to(torch.float32)
        gate, up = products.chunk(2, -1)
        if activation == "swiglu_oai":
            gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT) + 1
        gated = (ACTIVATIONS[activation](gate).to(x.dtype).to(torch.float32) * up).to(x.dtype)
        hidden = activation_rows(gated, kind).reshape(gated.shape)
        return _multiply(hidden, second, of_block, down_group_size)

    if isinstance(expert.shape[0], int) and expert.shape[0] <= _FEW_ROWS:
        products = compute(rows.unsqueeze(1), expert)
    else:
        products = _sorted(rows, expert, gate_up.shape[0], compute)
    shared = products.reshape(-1, top_k, products.shape[-1]) * routing.to(torch.float32).unsqueeze(-1)
    return shared.sum(1).to(x.dtype)


def _sorted(rows: Tensor, expert: Tensor, num_experts: int, compute: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The products of rows, computed in blocks of rows of one expert."""
    count = rows.shape[0]
    each = torch.arange(num_experts, device=rows.device)
    ordered, order = torch.sort(expert, stable=True)
    counts = (expert.unsqueeze(0) == each.unsqueeze(1)).sum(1)
    before = each.unsqueeze(0) < each.unsqueeze(1)
    starts = torch.where(before, counts.unsqueeze(0), 0).sum(1)
    blocks = (counts + (_BLOCK - 1)) // _BLOCK
    first_blocks = torch.where(before, blocks.unsqueeze(0), 0).sum(1)
    last_blocks = first_blocks + blocks
    block = torch.arange(torch.sym_min(count, count // _BLOCK + num_experts), device=rows.device)
    of_block = (last_blocks.unsqueeze(0) <= block.unsqueeze(1)).sum(1).clamp(max=num_experts - 1)
    start = starts[of_block] + (block - first_blocks[of_block]) * _BLOCK
    taken = (start.unsqueeze(1) + torch.arange(_BLOCK, device=rows.device)).clamp(max=count - 1)
    products = compute(rows[order[taken]], of_block)
    place = first_blocks[ordered] * _BLOCK + torch.arange(count, device=rows.device) - starts[ordered]
    _, back = torch.sort(order)
    return products.reshape(-1, products.shape[-1])[place[back]]


def _multiply(rows: Tensor, matrices: Matrices, of_block: Tensor, group_size: int) -> Tensor:
    """fp32 [blocks, rows, K] times the matrix [N, K] of each block's expert, and its bias; fp32 [blocks, rows, N]."""
    weight, scale, zero, scale_step, zero_step, bias = matrices
    stored = format_of(*matrices[:-1], group_size)
    if stored is None or scale is None:
        chosen = weight[of_block].to(torch.float32)
    else:
        parts = [None if each is None else each[of_block] for each in (zero, scale_step, zero_step)]
        chosen = stored.dequantize(weight[of_block], scale[of_block], *parts)
    products = torch.bmm(rows.to(torch.float32), chosen.transpose(1, 2))
    return products if bias is None else products + bias[of_block].to(torch.float32).unsqueeze(1)
