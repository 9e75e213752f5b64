"""Operators that are kernels on quantised weights, defined alike for every format that they serve; see ``define.py``.

Their trailing integers are a launch (``MatvecLaunch``, ``MatmulLaunch``), so that a graph fixes the configuration.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.common.memory import dense_rows, require_device
from etcuda.kernels.formats.registry import WeightFormat
from etcuda.kernels.formats.stored import StoredWeight
from etcuda.kernels.linear import launch
from etcuda.kernels.linear.check import (
    check_bias,
    check_gated,
    check_linear,
    check_quantized,
    check_reordered,
    check_stored,
    check_tokens,
    check_warpgroups,
)
from etcuda.kernels.linear.choose.configs import MatmulLaunch, MatvecLaunch

Function = TypeVar("Function", bound=Callable[..., Tensor])

# What the operators take of a weight, as of ``linear``: the stored tensors, the bias and the group size.
_WEIGHT: dict[str, Any] = {
    "qdata": Tensor,
    "scale": Tensor,
    "zero": Tensor | None,
    "scale_step": Tensor | None,
    "zero_step": Tensor | None,
    "bias": Tensor | None,
    "group_size": int,
}
# What the products of few tokens apply to the first half of their results, to multiply the other half with.
_ACTIVATION: dict[str, tuple[Any, Any]] = {"activation": (str, "none")}


def define_matvec(record: WeightFormat) -> None:
    """Defines ``etcuda::<name>_matvec``."""
    name = f"{record.name}_matvec"

    def read(x: Tensor, rest: Sequence[Any]) -> tuple[StoredWeight, Tensor | None, MatvecLaunch, str]:
        weight, bias, others = _read_weight(name, record, rest)
        integers, activation = _read_activation(others)
        how = MatvecLaunch.from_args(False, *integers)
        check_linear(name, weight, x, bias, "int8")
        check_tokens(name, x.numel() // weight.k, how.tokens)
        check_gated(name, weight, activation)
        return weight, bias, how, activation

    @triton_op(f"etcuda::{name}", mutates_args=())
    @_takes({"x": Tensor}, {}, MatvecLaunch.names(False), _ACTIVATION)
    def matvec(x: Tensor, *rest: Any) -> Tensor:
        """``linear`` with activation_dtype "int8" for at most ``tokens``, which the product quantizes itself.

        Args:
            x: [..., K] bfloat16 or float16.
            rest: the weight as of ``linear``, the integers of a ``MatvecLaunch``, and "silu", "gelu_tanh" or
                "gelu_erf" to multiply the activation of the first N / 2 results with the others, or "none".

        Returns:
            [..., N] in the dtype of ``x``, with an activation [..., N / 2].

        Raises:
            KernelArgumentError: an argument is not one that the kernel takes, or is on no GPU.
            WeightFormatError: the stored tensors do not fit together.
        """
        weight, bias, how, activation = read(x, rest)
        require_device(name, x)
        out = launch.matvec(weight, dense_rows(x), how, bias, x.dtype, activation)
        # Of two dimensions it is the result already, in memory that may have room for more tokens.
        return out if x.dim() == 2 else out.reshape(*x.shape[:-1], _width(weight, activation))

    def fake_matvec(x: Tensor, *rest: Any) -> Tensor:
        """Checks the arguments; returns a fake result."""
        weight, _, _, activation = read(x, rest)
        return x.new_empty((*x.shape[:-1], _width(weight, activation)))

    matvec.register_fake(fake_matvec)


def define_matvec_quantized(record: WeightFormat) -> None:
    """Defines ``etcuda::<name>_matvec_quantized``."""
    name = f"{record.name}_matvec_quantized"

    def read(quantized: tuple[Tensor, Tensor, Tensor], rest: Sequence[Any]) -> Any:
        weight, bias, (dtype, *others) = _read_weight(name, record, rest)
        integers, activation = _read_activation(others)
        how = MatvecLaunch.from_args(True, *integers)
        check_bias(name, weight, bias)
        check_quantized(name, *quantized, weight.k, dtype)
        check_tokens(name, quantized[0].shape[0], how.tokens)
        check_gated(name, weight, activation)
        return weight, bias, dtype, how, activation

    before = {"q": Tensor, "q_scale": Tensor, "q_sum": Tensor}

    @triton_op(f"etcuda::{name}", mutates_args=())
    @_takes(before, {"dtype": torch.dtype}, MatvecLaunch.names(True), _ACTIVATION)
    def matvec_quantized(q: Tensor, q_scale: Tensor, q_sum: Tensor, *rest: Any) -> Tensor:
        """Like ``matvec`` on what ``quantize_activation`` returned; [M, N] in ``dtype``.

        Args:
            q, q_scale, q_sum: int8 [M, K], float32 [M, K / 32] both.
            rest: the weight as of ``linear``, the result's dtype, the integers of a ``MatvecLaunch``, and the
                activation as of ``matvec``.
        """
        weight, bias, dtype, how, activation = read((q, q_scale, q_sum), rest)
        require_device(name, q)
        x = (dense_rows(q), q_scale.contiguous(), q_sum.contiguous())
        return launch.matvec(weight, x, how, bias, dtype, activation)

    def fake_matvec_quantized(q: Tensor, q_scale: Tensor, q_sum: Tensor, *rest: Any) -> Tensor:
        """Checks the arguments; returns a fake result."""
        weight, _, dtype, _, activation = read((q, q_scale, q_sum), rest)
        return q.new_empty((q.shape[0], _width(weight, activation)), dtype=dtype)

    matvec_quantized.register_fake(fake_matvec_quantized)


def define_matmul(record: WeightFormat) -> None:
    """Defines ``etcuda::<name>_matmul``."""
    name = f"{record.name}_matmul"

    def read(x: Tensor, rest: Sequence[Any]) -> Any:
        weight, bias, (activation_dtype, *integers) = _read_weight(name, record, rest)
        how = MatmulLaunch.from_args(*integers)
        check_linear(name, weight, x, bias, activation_dtype)
        check_warpgroups(name, weight, x, how)
        return weight, bias, activation_dtype, how

    @triton_op(f"etcuda::{name}", mutates_args=())
    @_takes({"x": Tensor}, {"activation_dtype": str}, MatmulLaunch.names())
    def matmul(x: Tensor, *rest: Any) -> Tensor:
        """``linear`` on tensor cores, for any number of tokens.

        Args:
            x: [..., K] bfloat16, float16 or float32.
            rest: the weight and ``activation_dtype`` as of ``linear``, and the integers of a ``MatmulLaunch``. With
                ``warpgroups`` it is the kernel in gemm.cu, which takes int4 weights in groups of 32 with float16
                scales, below 4 GiB, K a multiple of 256 below 65536, and a block_n of 64 for each.

        Returns:
            [..., N] in the dtype of ``x``.

        Raises:
            KernelArgumentError: an argument is not one that the kernel takes, or is on no GPU.
            WeightFormatError: the stored tensors do not fit together.
        """
        weight, bias, activation_dtype, how = read(x, rest)
        require_device(name, x)
        out = launch.matmul(weight, dense_rows(x), how, bias, activation_dtype)
        return out.reshape(*x.shape[:-1], weight.n)

    def fake_matmul(x: Tensor, *rest: Any) -> Tensor:
        """Checks the arguments; returns a fake result."""
        weight, *_ = read(x, rest)
        return x.new_empty((*x.shape[:-1], weight.n))

    matmul.register_fake(fake_matmul)


def define_matmul_reordered(record: WeightFormat) -> None:
    """Defines ``etcuda::<name>_matmul_reordered``."""
    name = f"{record.name}_matmul_reordered"

    def read(reordered: launch.Reordered, rest: Sequence[Any]) -> Any:
        weight, bias, (dtype, activation_dtype, *integers) = _read_weight(name, record, rest)
        how = MatmulLaunch.from_args(*integers)
        check_bias(name, weight, bias)
        check_reordered(name, *reordered, weight.k, dtype, activation_dtype, how)
        check_warpgroups(name, weight, reordered[0], how, reordered[2])
        return weight, bias, dtype, activation_dtype, how

    before = {"reordered": Tensor, "factor": Tensor, "semaphores": Tensor}

    @triton_op(f"etcuda::{name}", mutates_args=())
    @_takes(before, {"dtype": torch.dtype, "activation_dtype": str}, MatmulLaunch.names())
    def matmul_reordered(reordered: Tensor, factor: Tensor, semaphores: Tensor, *rest: Any) -> Tensor:
        """Like ``matmul`` on what ``reorder_activation`` returned for weights of as many bits.

        Launched early, the kernel still finds what other products ran behind: each of their kernels waited for the end
        of the one in front of it before it ended itself, and so the last one ended after the reordering.

        Args:
            reordered: float16, for ``warpgroups`` also bfloat16, [at least M rounded up to ``block_m``, K rounded up to
                128]; tiled for ``warpgroups``.
            factor, semaphores: float32 [M] or [S, M], and int32, as they were returned.
            rest: the weight as of ``linear``, the result's dtype (bfloat16, float16 or float32), ``activation_dtype``
                as it was when they were reordered, and the integers of a ``MatmulLaunch``.

        Returns:
            [M, N] in ``dtype``.

        Raises:
            KernelArgumentError: an argument is not one that the kernel takes, or is on no GPU.
            WeightFormatError: the stored tensors do not fit together.
        """
        weight, bias, dtype, activation_dtype, how = read((reordered, factor, semaphores), rest)
        require_device(name, reordered)
        x = (dense_rows(reordered), factor.contiguous(), semaphores)
        return launch.matmul_reordered(weight, x, how, bias, dtype, activation_dtype)

    def fake_matmul_reordered(reordered: Tensor, factor: Tensor, semaphores: Tensor, *rest: Any) -> Tensor:
        """Checks the arguments; returns a fake result."""
        weight, _, dtype, _, _ = read((reordered, factor, semaphores), rest)
        return reordered.new_empty((factor.shape[-1], weight.n), dtype=dtype)

    matmul_reordered.register_fake(fake_matmul_reordered)


def _takes(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    integers: Sequence[str],
    optional: Mapping[str, tuple[Any, Any]] | None = None,
) -> Callable[[Function], Function]:
    """Gives a function the signature of its operator, from which PyTorch infers the schema: what comes before the
    weight, the weight, what comes behind it, the integers of its launch, and what has a default: type and default."""
    types = {**before, **_WEIGHT, **after, **dict.fromkeys(integers, int)}
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, either, annotation=each) for name, each in types.items()]
    for name, (each, default) in (optional or {}).items():
        parameters.append(inspect.Parameter(name, either, annotation=each, default=default))

    def give(function: Function) -> Function:
        function.__signature__ = inspect.Signature(parameters, return_annotation=Tensor)  # type: ignore[attr-defined]
        return function

    return give


def _read_weight(
    op: str, record: WeightFormat, arguments: Sequence[Any]
) -> tuple[StoredWeight, Tensor | None, Sequence[Any]]:
    """The weight and the bias in front of an operator's arguments, and those behind them."""
    *tensors, bias, group_size = arguments[: len(_WEIGHT)]
    qdata, scale, zero, scale_step, zero_step = tensors
    weight = check_stored(op, record.format_type, group_size, qdata, scale, zero, scale_step, zero_step)
    return weight, bias, arguments[len(_WEIGHT) :]


def _read_activation(arguments: Sequence[Any]) -> tuple[Sequence[Any], str]:
    """The integers of a launch, and the activation behind them, which PyTorch leaves out where it is the default."""
    *integers, last = arguments
    return (integers, last) if isinstance(last, str) else (arguments, "none")


def _width(weight: StoredWeight, activation: str) -> int:
    """Columns of a result."""
    return weight.n if activation == "none" else weight.n // 2
