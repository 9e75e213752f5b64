"""What the operators of quantised linear layers take, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.errors import WeightFormatError
from etcuda.kernels.activations.check import GATE_ACTIVATIONS, arch_of, check_activation_dtype, check_block_m
from etcuda.kernels.activations.hopper.reorder import SEMAPHORES
from etcuda.kernels.common.check import expect, expect_same
from etcuda.kernels.formats.base import DTYPES, GroupFormat
from etcuda.kernels.formats.registry import find
from etcuda.kernels.formats.stored import StoredWeight
from etcuda.kernels.linear.choose.configs import MatmulLaunch
from etcuda.kernels.linear.hopper.gemm import fits

_FLOATING = "bfloat16, float16 or float32"


def check_stored(
    op: str,
    format_type: type[GroupFormat],
    group_size: int,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_step: Tensor | None,
    zero_step: Tensor | None,
) -> StoredWeight:
    """The weight [N, K] that stored tensors are.

    Raises:
        WeightFormatError: they do not fit together, or are several weights; the message names the operator and the
            tensor.
    """
    weight_format = format_type.of(group_size, scale, zero, scale_step, zero_step)
    weight = StoredWeight(weight_format, qdata, scale, zero, scale_step, zero_step)
    shape = weight_format.check_components(weight.components, op)
    if len(shape) != 2:
        raise WeightFormatError(
            f"{op}: qdata: expected the integers of one weight [N, K], got those of a weight {list(shape)}. "
            "Take one of its weights, weight[0]."
        )
    return weight


def check_linear(op: str, weight: StoredWeight, x: Tensor, bias: Tensor | None, activation_dtype: str) -> None:
    """Checks what a linear layer takes beside its weight.

    Raises:
        KernelArgumentError: x, bias or activation_dtype is not one that the operator takes.
    """
    expect(x.dtype in DTYPES, op, "x", _FLOATING, x.dtype)
    expect(x.dim() >= 1, op, "x", "at least one dimension [..., K]", tuple(x.shape))
    expect_same(op, "x", "last dimension", x.shape[-1], weight.k)
    expect(x.device == weight.qdata.device, op, "x", f"the device of qdata, {weight.qdata.device}", x.device)
    check_activation_dtype(op, activation_dtype)
    check_bias(op, weight, bias)


def check_bias(op: str, weight: StoredWeight, bias: Tensor | None) -> None:
    """Checks a bias.

    Raises:
        KernelArgumentError: it is not [N] floating where the weight is.
    """
    if bias is None:
        return
    device = weight.qdata.device
    expect(bias.is_floating_point(), op, "bias", "a floating dtype", bias.dtype)
    expect(bias.dim() == 1, op, "bias", "one dimension [N]", tuple(bias.shape))
    expect_same(op, "bias", "size", bias.shape[0], weight.n)
    expect(bias.device == device, op, "bias", f"the device of qdata, {device}", bias.device)


def check_embedding(op: str, weight: StoredWeight, indices: Tensor, dtype: torch.dtype) -> None:
    """Checks what a look-up takes beside its weight.

    Raises:
        KernelArgumentError: indices or dtype is not one that the operator takes.
    """
    device = weight.qdata.device
    expect(indices.dtype in (torch.int32, torch.int64), op, "indices", "int32 or int64", indices.dtype)
    expect(dtype in DTYPES, op, "dtype", _FLOATING, dtype)
    expect(indices.device == device, op, "indices", f"the device of qdata, {device}", indices.device)


def check_quantized(op: str, q: Tensor, q_scale: Tensor, q_sum: Tensor, k: int, dtype: torch.dtype) -> None:
    """Checks quantized activations.

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
    expect(dtype in DTYPES, op, "dtype", _FLOATING, dtype)


def check_reordered(
    op: str, reordered: Tensor, factor: Tensor, semaphores: Tensor, k: int, dtype: torch.dtype, activation_dtype: str,
    how: MatmulLaunch,
) -> None:  # fmt: skip
    """Checks reordered activations.

    Raises:
        KernelArgumentError: they are not what ``reorder_activation`` returns for rows of ``k`` and this launch.
    """
    check_activation_dtype(op, activation_dtype)
    check_block_m(op, how.block_m)
    expect(factor.dtype == torch.float32, op, "factor", "float32", factor.dtype)
    segments = how.warpgroups and activation_dtype == "int8" and factor.dim() == 2 and 1 < factor.shape[0] <= k // 256
    expected = "one dimension [M]" + (", or [S, M] with S from 2 to K / 256" if how.warpgroups else "")
    expect(segments or factor.dim() == 1, op, "factor", expected, tuple(factor.shape))
    expect(semaphores.dtype == torch.int32, op, "semaphores", "int32", semaphores.dtype)
    taken = reordered.dtype in ((torch.float16, torch.bfloat16) if how.warpgroups else (torch.float16,))
    expected = "float16, or bfloat16 as reordered for warpgroups" if how.warpgroups else "float16"
    expect(taken, op, "reordered", expected, reordered.dtype)
    expect(reordered.dim() == 2, op, "reordered", "2 dimensions [M rounded up, K rounded up]", tuple(reordered.shape))
    expect_same(op, "reordered", "last dimension", reordered.shape[1], -(-k // 128) * 128)
    rows = -(-factor.shape[-1] // how.block_m) * how.block_m
    expect(
        not statically_known_true(reordered.shape[0] < rows), op, "reordered",
        f"at least {rows} rows, those of factor rounded up to block_m", reordered.shape[0],
    )  # fmt: skip
    expect(dtype in DTYPES, op, "dtype", _FLOATING, dtype)


def check_warpgroups(
    op: str, weight: StoredWeight, x: Tensor, how: MatmulLaunch, semaphores: Tensor | None = None
) -> None:
    """Checks that the kernel in gemm.cu takes a weight, if it is asked for.

    Raises:
        KernelArgumentError: it does not, or ``x`` is on a GPU that it is not for.
    """
    if not how.warpgroups:
        return
    arch, stored, n, k = arch_of(x), weight.format, weight.n, weight.k
    taken = fits(n, k, stored.bits, stored.group_size, stored.scale_storage, arch)
    got = f"{stored.name}, groups of {stored.group_size}, {stored.scale_storage} scales, {n} x {k} on {arch}"
    expect(
        "hopper_gemm" in find(stored.name).kernels and taken, op, "warpgroups",
        "0 but for int4 in groups of 32 with fp16 scales, below 4 GiB, K a multiple of 256 below 65536, on sm_90", got,
    )  # fmt: skip
    expect(
        how.block_n == 64 * how.warpgroups, op, "block_n", f"64 for each of {how.warpgroups} warpgroups", how.block_n
    )
    # The kernel counts what CTAs share in 32 bits.
    most = min(SEMAPHORES, math.isqrt((1 << 32) // (k // 256)) - 1)
    expect(0 < how.ctas <= most, op, "ctas", f"1 to {most}", how.ctas)
    if semaphores is not None:
        expected = f"at least {how.ctas}, of a tiled order"
        expect(semaphores.numel() >= how.ctas, op, "semaphores", expected, semaphores.numel())


def check_tokens(op: str, num_tokens: int, tokens: int) -> None:
    """Checks that there are at most ``tokens``.

    Raises:
        KernelArgumentError: they are more, or the kernels take no such number.
    """
    expect(tokens in (1, 2, 4, 8), op, "tokens", "1, 2, 4 or 8", tokens)
    expect(not statically_known_true(num_tokens > tokens), op, "x", f"at most {tokens} tokens", num_tokens)


def check_gated(op: str, weight: StoredWeight, activation: str) -> None:
    """Checks the activation that a product applies to the first half of its results.

    Raises:
        KernelArgumentError: there is none of that name, or the weight has no two halves.
    """
    names = ("none", *GATE_ACTIVATIONS)
    expect(activation in names, op, "activation", f"one of {', '.join(map(repr, names))}", repr(activation))
    whole = activation == "none" or weight.n % 2 == 0
    expect(whole, op, "qdata", "as many rows for the gate as for the rest", f"{weight.n} rows", "Join both halves.")
