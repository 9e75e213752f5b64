"""Operators that are kernels on int4 and int8 weights, defined alike for both; see ``define.py``.

Their trailing integers are the configuration, so that a graph fixes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.common.memory import dense_rows, require_device
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.linear import launch
from etcuda.kernels.linear.check import (
    check_bias,
    check_linear,
    check_quantized,
    check_reordered,
    check_stored,
    check_tokens,
    check_warpgroups,
)


def define_matvec(kind: type[GroupFormat]) -> Any:
    """Defines ``int4_matvec`` or ``int8_matvec``; returns it and its fake."""
    name = f"int{kind.bits}_matvec"

    @triton_op(f"etcuda::{name}", mutates_args=())
    def matvec(
        x: Tensor,
        qdata: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        scale_step: Tensor | None,
        zero_step: Tensor | None,
        bias: Tensor | None,
        group_size: int,
        tokens: int,
        ctas: int,
        block_n: int,
        blocks: int,
        num_warps: int,
        num_stages: int,
        pdl: int,
    ) -> Tensor:
        """``linear`` with activation "int8" for at most ``tokens`` rows, which the product rounds itself.

        Args:
            x: [..., K] bfloat16 or float16; the stored tensors, ``bias`` and ``group_size`` as of ``linear``.
            tokens: 1, 2, 4 or 8, at least M.
            ctas: of the resident kernel, or 0 for the stepped one.
            block_n: weight rows of a tile.
            blocks: blocks of 32 of a tile.
            num_warps: warps of a program.
            num_stages: tiles in flight.
            pdl: 1 to launch the kernel while the one in front of it runs, which must not write the weight.

        Returns:
            [..., N] in the dtype of ``x``.

        Raises:
            KernelArgumentError: an argument is not one that the kernel takes, or is on no GPU.
            WeightFormatError: the stored tensors do not fit together.
        """
        stored = (qdata, scale, zero, scale_step, zero_step)
        form, n, _ = check_linear(name, kind, x, stored, bias, group_size, "int8")
        require_device(name, x)
        rows = dense_rows(x)
        check_tokens(name, rows.shape[0], tokens)
        out = launch.matvec(kind.bits, form, rows, stored, bias, x.dtype, tokens, ctas, block_n, blocks, num_warps,
                            num_stages, pdl)  # fmt: skip
        return out.reshape(*x.shape[:-1], n)

    def fake_matvec(
        x: Tensor, qdata: Tensor, scale: Tensor, zero: Tensor | None, scale_step: Tensor | None,
        zero_step: Tensor | None, bias: Tensor | None, group_size: int, tokens: int, *config: int,
    ) -> Tensor:  # fmt: skip
        """Checks the arguments; returns a fake result."""
        stored = (qdata, scale, zero, scale_step, zero_step)
        _, n, k = check_linear(name, kind, x, stored, bias, group_size, "int8")
        check_tokens(name, x.numel() // k, tokens)
        return x.new_empty((*x.shape[:-1], n))

    matvec.register_fake(fake_matvec)
    return matvec, fake_matvec


def define_matvec_quantized(kind: type[GroupFormat]) -> Any:
    """Defines ``int4_matvec_quantized`` or ``int8_matvec_quantized``; returns it and its fake."""
    name = f"int{kind.bits}_matvec_quantized"

    @triton_op(f"etcuda::{name}", mutates_args=())
    def matvec_quantized(
        q: Tensor,
        q_scale: Tensor,
        q_sum: Tensor,
        qdata: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        scale_step: Tensor | None,
        zero_step: Tensor | None,
        bias: Tensor | None,
        group_size: int,
        dtype: torch.dtype,
        tokens: int,
        block_n: int,
        blocks: int,
        num_warps: int,
        num_stages: int,
        pdl: int,
    ) -> Tensor:
        """Like ``matvec`` on what ``quantize_activation`` returned; [M, N] in ``dtype``."""
        stored = (qdata, scale, zero, scale_step, zero_step)
        form, n, k = check_stored(name, kind, stored, group_size)
        check_bias(name, bias, n, qdata)
        check_quantized(name, q, q_scale, q_sum, k, dtype)
        require_device(name, q)
        check_tokens(name, q.shape[0], tokens)
        x = (dense_rows(q), q_scale.contiguous(), q_sum.contiguous())
        return launch.matvec(kind.bits, form, x, stored, bias, dtype, tokens, 0, block_n, blocks, num_warps, num_stages,
                             pdl)  # fmt: skip

    def fake_matvec_quantized(
        q: Tensor, q_scale: Tensor, q_sum: Tensor, qdata: Tensor, scale: Tensor, zero: Tensor | None,
        scale_step: Tensor | None, zero_step: Tensor | None, bias: Tensor | None, group_size: int, dtype: torch.dtype,
        tokens: int, *config: int,
    ) -> Tensor:  # fmt: skip
        """Checks the arguments; returns a fake result."""
        stored = (qdata, scale, zero, scale_step, zero_step)
        _, n, k = check_stored(name, kind, stored, group_size)
        check_bias(name, bias, n, qdata)
        check_quantized(name, q, q_scale, q_sum, k, dtype)
        check_tokens(name, q.shape[0], tokens)
        return q.new_empty((q.shape[0], n), dtype=dtype)

    matvec_quantized.register_fake(fake_matvec_quantized)
    return matvec_quantized, fake_matvec_quantized


def define_matmul(kind: type[GroupFormat]) -> Any:
    """Defines ``int4_matmul`` or ``int8_matmul``; returns it and its fake."""
    name = f"int{kind.bits}_matmul"

    @triton_op(f"etcuda::{name}", mutates_args=())
    def matmul(
        x: Tensor,
        qdata: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        scale_step: Tensor | None,
        zero_step: Tensor | None,
        bias: Tensor | None,
        group_size: int,
        activation_dtype: str,
        block_n: int,
        block_m: int,
        blocks: int,
        num_warps: int,
        num_stages: int,
        ctas: int,
        max_registers: int,
        warpgroups: int,
        pdl: int,
    ) -> Tensor:
        """``linear`` on tensor cores, for any number of rows.

        Args:
            x: [..., K] bfloat16, float16 or float32; the rest up to ``activation_dtype`` as of ``linear``.
            block_n: weight rows of a tile.
            block_m: activation rows of a tile.
            blocks: blocks of 32 along K of a step, 4 or 8.
            num_warps: warps of a program.
            num_stages: steps whose loads are in flight.
            ctas: that share the tiles evenly, or 0 for one per tile.
            max_registers: that a thread may use; 0 for as many as the compiler takes.
            warpgroups: that multiply, of the kernel in gemm.cu, which takes int4 weights in groups of 32 with
                float16 scales, below 4 GiB, K a multiple of 256 below 65536, and a block_n of 64 each; 0 for
                Triton's.
            pdl: 1 to launch each kernel while the one in front of it runs.

        Returns:
            [..., N] in the dtype of ``x``.

        Raises:
            KernelArgumentError: an argument is not one that the kernel takes, or is on no GPU.
            WeightFormatError: the stored tensors do not fit together.
        """
        stored = (qdata, scale, zero, scale_step, zero_step)
        form, n, k = check_linear(name, kind, x, stored, bias, group_size, activation_dtype)
        check_warpgroups(name, warpgroups, form, n, k, x, block_n, ctas)
        require_device(name, x)
        out = launch.matmul(kind.bits, form, dense_rows(x), stored, bias, activation_dtype, block_n, block_m, blocks,
                            num_warps, num_stages, ctas, max_registers, warpgroups, pdl)  # fmt: skip
        return out.reshape(*x.shape[:-1], n)

    def fake_matmul(
        x: Tensor, qdata: Tensor, scale: Tensor, zero: Tensor | None, scale_step: Tensor | None,
        zero_step: Tensor | None, bias: Tensor | None, group_size: int, activation_dtype: str, *config: int,
    ) -> Tensor:  # fmt: skip
        """Checks the arguments; returns a fake result."""
        stored = (qdata, scale, zero, scale_step, zero_step)
        form, n, k = check_linear(name, kind, x, stored, bias, group_size, activation_dtype)
        check_warpgroups(name, config[-2], form, n, k, x, config[0], config[-4])
        return x.new_empty((*x.shape[:-1], n))

    matmul.register_fake(fake_matmul)
    return matmul, fake_matmul


def define_matmul_reordered(kind: type[GroupFormat]) -> Any:
    """Defines ``int4_matmul_reordered`` or ``int8_matmul_reordered``; returns it and its fake."""
    name = f"int{kind.bits}_matmul_reordered"

    @triton_op(f"etcuda::{name}", mutates_args=())
    def matmul_reordered(
        reordered: Tensor,
        factor: Tensor,
        semaphores: Tensor,
        qdata: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        scale_step: Tensor | None,
        zero_step: Tensor | None,
        bias: Tensor | None,
        group_size: int,
        dtype: torch.dtype,
        activation_dtype: str,
        block_n: int,
        block_m: int,
        blocks: int,
        num_warps: int,
        num_stages: int,
        ctas: int,
        max_registers: int,
        warpgroups: int,
        pdl: int,
    ) -> Tensor:
        """Like ``matmul`` on what ``reorder_activation`` returned for weights of as many bits.

        Launched early, it still finds what other products ran behind: each of their kernels waited for the end of the
        one in front of it before it ended itself, and so the last one ended after the ordering.

        Args:
            reordered: float16, for ``warpgroups`` also bfloat16, [at least M rounded up to ``block_m``, K rounded up to
                128]; tiled for ``warpgroups``.
            factor, semaphores: float32 [M] or [S, M], and int32, as they were returned; the stored tensors, ``bias`` and
                ``group_size`` as of ``linear``.
            dtype: of the result: bfloat16, float16 or float32.
            activation_dtype: as it was when they were reordered.
            block_n: weight rows of a tile; this and what follows as of ``matmul``.

        Returns:
            [M, N] in ``dtype``.

        Raises:
            KernelArgumentError: an argument is not one that the kernel takes, or is on no GPU.
            WeightFormatError: the stored tensors do not fit together.
        """
        stored = (qdata, scale, zero, scale_step, zero_step)
        form, n, k = check_stored(name, kind, stored, group_size)
        check_bias(name, bias, n, qdata)
        check_reordered(name, reordered, factor, semaphores, k, dtype, activation_dtype, block_m, warpgroups)
        check_warpgroups(name, warpgroups, form, n, k, reordered, block_n, ctas, semaphores)
        require_device(name, reordered)
        return launch.matmul_reordered(
            kind.bits, form, dense_rows(reordered), factor.contiguous(), semaphores, stored, bias, dtype, activation_dtype,
            block_n, block_m, blocks, num_warps, num_stages, ctas, max_registers, warpgroups, pdl,
        )  # fmt: skip

    def fake_matmul_reordered(
        reordered: Tensor, factor: Tensor, semaphores: Tensor, qdata: Tensor, scale: Tensor, zero: Tensor | None,
        scale_step: Tensor | None, zero_step: Tensor | None, bias: Tensor | None, group_size: int,
        dtype: torch.dtype, activation_dtype: str, block_n: int, block_m: int, *config: int,
    ) -> Tensor:  # fmt: skip
        """Checks the arguments; returns a fake result."""
        stored = (qdata, scale, zero, scale_step, zero_step)
        form, n, k = check_stored(name, kind, stored, group_size)
        check_bias(name, bias, n, qdata)
        check_reordered(name, reordered, factor, semaphores, k, dtype, activation_dtype, block_m, config[-2])
        check_warpgroups(name, config[-2], form, n, k, reordered, block_n, config[-4], semaphores)
        return reordered.new_empty((factor.shape[-1], n), dtype=dtype)

    matmul_reordered.register_fake(fake_matmul_reordered)
    return matmul_reordered, fake_matmul_reordered
