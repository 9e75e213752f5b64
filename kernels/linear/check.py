"""What the operators of quantised linear layers take, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.activations.check import arch_of, check_activation_dtype, check_block_m
from etcuda.kernels.activations.hopper.reorder import SEMAPHORES
from etcuda.kernels.common.check import expect, expect_same
from etcuda.kernels.formats.base import DTYPES, GroupFormat
from etcuda.kernels.linear.hopper.gemm import fits

Stored = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
PARTS = ("qdata", "scale", "zero", "scale_step", "zero_step")


def check_stored(op: str, kind: type[GroupFormat], stored: Stored, group_size: int) -> tuple[GroupFormat, int, int]:
    """The format of stored tensors, and N and K.

    Raises:
        WeightFormatError: they do not fit together; the message names the operator and the tensor.
    """
    form = kind.of(group_size, *stored[1:])
    n, k = form.check_components(dict(zip(PARTS, stored, strict=True)), op)
    return form, n, k


def check_linear(
    op: str,
    kind: type[GroupFormat],
    x: Tensor,
    stored: Stored,
    bias: Tensor | None,
    group_size: int,
    activation_dtype: str,
) -> tuple[GroupFormat, int, int]:
    """Checks the arguments of a linear layer.

    Returns:
        The format of the weight, N and K.

    Raises:
        KernelArgumentError: x, bias or activation_dtype is not one that the operator takes.
        WeightFormatError: the stored tensors do not fit together.
    """
    form, n, k = check_stored(op, kind, stored, group_size)
    expect(x.dtype in DTYPES, op, "x", "bfloat16, float16 or float32", x.dtype)
    expect(x.dim() >= 1, op, "x", "at least one dimension [..., K]", tuple(x.shape))
    expect_same(op, "x", "last dimension", x.shape[-1], k)
    expect(x.device == stored[0].device, op, "x", f"the device of qdata, {stored[0].device}", x.device)
    check_activation_dtype(op, activation_dtype)
    check_bias(op, bias, n, stored[0])
    return form, n, k


def check_bias(op: str, bias: Tensor | None, n: int, qdata: Tensor) -> None:
    """Checks a bias.

    Raises:
        KernelArgumentError: it is not [N] floating where the weight is.
    """
    if bias is None:
        return
    expect(bias.is_floating_point(), op, "bias", "a floating dtype", bias.dtype)
    expect(bias.dim() == 1, op, "bias", "one dimension [N]", tuple(bias.shape))
    expect_same(op, "bias", "size", bias.shape[0], n)
    expect(bias.device == qdata.device, op, "bias", f"the device of qdata, {qdata.device}", bias.device)


def check_embedding(
    op: str, kind: type[GroupFormat], indices: Tensor, stored: Stored, group_size: int, dtype: torch.dtype
) -> tuple[GroupFormat, int, int]:
    """Checks the arguments of a look-up; returns the format of the weight, N and K.

    Raises:
        KernelArgumentError: indices or dtype is not one that the operator takes.
        WeightFormatError: the stored tensors do not fit together.
    """
    form, n, k = check_stored(op, kind, stored, group_size)
    expect(indices.dtype in (torch.int32, torch.int64), op, "indices", "int32 or int64", indices.dtype)
    expect(dtype in DTYPES, op, "dtype", "bfloat16, float16 or float32", dtype)
    where = stored[0].device
    expect(indices.device == where, op, "indices", f"the device of qdata, {where}", indices.device)
    return form, n, k


def check_quantized(op: str, q: Tensor, q_scale: Tensor, q_sum: Tensor, k: int, dtype: torch.dtype) -> None:
    """Checks activations that were rounded.

    Raises:
        KernelArgumentError: they are not what ``quantize_activation`` returns for rows of ``k``.
    """
    expect(q.dtype == torch.int8, op, "q", "int8", q.dtype)
    expect(q.dim() == 2, op, "q", "2 dimensions [M, K]", tuple(q.shape))
    expect_same(op, "q", "last dimension", q.shape[1], k)
    for name, tensor in (("q_scale", q_scale), ("q_sum", q_sum)):
        expect(tensor.dtype == torch.float32, op, name, "float32", tensor.dtype)
        expect(tensor.dim() == 2, op, name, "2 dimensions [M, K / 32]", tuple(tensor.shape))
        expect_same(op, name, "first dimension", tensor.shape[0], q.shape[0])
        expect_same(op, name, "last dimension", tensor.shape[1], k // 32)
    expect(dtype in DTYPES, op, "dtype", "bfloat16, float16 or float32", dtype)


def check_reordered(
    op: str, reordered: Tensor, factor: Tensor, semaphores: Tensor, k: int, dtype: torch.dtype, activation_dtype: str,
    block_m: int, warpgroups: int,
) -> None:  # fmt: skip
    """Checks activations that were put in order.

    Raises:
        KernelArgumentError: they are not what ``reorder_activation`` returns for rows of ``k`` and tiles of ``block_m``.
    """
    check_activation_dtype(op, activation_dtype)
    check_block_m(op, block_m)
    expect(factor.dtype == torch.float32, op, "factor", "float32", factor.dtype)
    several = warpgroups and activation_dtype == "int8" and factor.dim() == 2 and 1 < factor.shape[0] <= k // 256
    expected = "one dimension [M]" + (", or [S, M] with S from 2 to K / 256" if warpgroups else "")
    expect(several or factor.dim() == 1, op, "factor", expected, tuple(factor.shape))
    expect(semaphores.dtype == torch.int32, op, "semaphores", "int32", semaphores.dtype)
    taken = reordered.dtype in ((torch.float16, torch.bfloat16) if warpgroups else (torch.float16,))
    expected = "float16, or bfloat16 as reordered for warpgroups" if warpgroups else "float16"
    expect(taken, op, "reordered", expected, reordered.dtype)
    expect(reordered.dim() == 2, op, "reordered", "2 dimensions [M rounded up, K rounded up]", tuple(reordered.shape))
    expect_same(op, "reordered", "last dimension", reordered.shape[1], -(-k // 128) * 128)
    rows = -(-factor.shape[-1] // block_m) * block_m
    expect(
        not statically_known_true(reordered.shape[0] < rows), op, "reordered",
        f"at least {rows} rows, those of factor rounded up to block_m", reordered.shape[0],
    )  # fmt: skip
    expect(dtype in DTYPES, op, "dtype", "bfloat16, float16 or float32", dtype)


def check_warpgroups(
    op: str, warpgroups: int, form: GroupFormat, n: int, k: int, x: Tensor, block_n: int, ctas: int,
    semaphores: Tensor | None = None,
) -> None:  # fmt: skip
    """Checks that the kernel in gemm.cu takes a weight, if it is asked for.

    Raises:
        KernelArgumentError: it does not, or ``x`` is on a GPU that it is not for.
    """
    if not warpgroups:
        return
    arch = arch_of(x)
    got = f"int{form.bits}, groups of {form.group_size}, {form.scale_storage} scales, {n} x {k} on {arch}"
    expect(
        fits(n, k, form.bits, form.group_size, form.scale_storage, arch), op, "warpgroups",
        "0 but for int4 in groups of 32 with fp16 scales, below 4 GiB, K a multiple of 256 below 65536, on sm_90", got,
    )  # fmt: skip
    expect(block_n == 64 * warpgroups, op, "block_n", f"64 for each of {warpgroups} warpgroups", block_n)
    # What programs share is counted in 32 bits.
    most = min(SEMAPHORES, math.isqrt((1 << 32) // (k // 256)) - 1)
    expect(0 < ctas <= most, op, "programs", f"1 to {most}", ctas)
    if semaphores is not None:
        expect(semaphores.numel() >= ctas, op, "semaphores", f"at least {ctas}, of a tiled order", semaphores.numel())


def check_tokens(op: str, m: int, tokens: int) -> None:
    """Checks that ``m`` rows are at most ``tokens``.

    Raises:
        KernelArgumentError: they are more, or the kernels have no such number of rows.
    """
    expect(tokens in (1, 2, 4, 8), op, "tokens", "1, 2, 4 or 8", tokens)
    expect(not statically_known_true(m > tokens), op, "x", f"at most {tokens} rows", m)
