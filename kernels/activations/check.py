"""What the operators take, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.errors import KernelArgumentError
from etcuda.kernels.activations.hopper.reorder import ARCH, fits_k
from etcuda.kernels.activations.problem import ACTIVATION_DTYPES, ActivationProblem, refuse, refuse_gate_reorder
from etcuda.kernels.common.check import expect
from etcuda.kernels.formats.base import BLOCK, DTYPES

GATE_ACTIVATIONS = ("silu", "gelu_tanh", "gelu_erf")
_DTYPE_NAMES = "bfloat16, float16 or float32"


def check_norm(
    op: str, x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, blocks: int, num_warps: int
) -> int:
    """Checks the arguments of a norm; returns K.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    k = _check_rows(op, "x", x, 1)
    if residual is not None:
        _check_like(op, "residual", residual, "x", x)
    if weight is not None:
        expect(weight.dtype in DTYPES, op, "weight", _DTYPE_NAMES, weight.dtype)
        expect(tuple(weight.shape) == (k,), op, "weight", f"shape [{k}]", list(weight.shape))
        expect(weight.device == x.device, op, "weight", f"the device of x, {x.device}", weight.device)
    expect(eps > 0 and math.isfinite(eps), op, "eps", "a positive finite number", eps)
    check_config(op, blocks, num_warps)
    return k


def check_gate(op: str, gate: Tensor, up: Tensor | None, activation: str, name: str = "activation") -> int:
    """Checks a gated activation, whose function is the argument ``name``; returns K, the numbers of a row of it.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    k = _check_rows(op, "gate", gate, 2 if up is None else 1)
    if up is not None:
        _check_like(op, "up", up, "gate", gate)
    known = ", ".join(repr(each) for each in GATE_ACTIVATIONS)
    expect(activation in GATE_ACTIVATIONS, op, name, f"one of {known}", repr(activation))
    return k


def check_config(op: str, blocks: int, num_warps: int) -> None:
    """Checks a configuration.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    expect(blocks > 0 and blocks & (blocks - 1) == 0, op, "blocks", "a power of two", blocks)
    expect(num_warps in (1, 2, 4, 8, 16, 32), op, "num_warps", "1, 2, 4, 8, 16 or 32", num_warps)


def check_activation(op: str, x: Tensor) -> int:
    """Checks activations that are to be quantized or reordered; returns K.

    Raises:
        KernelArgumentError: another dtype, or K not a multiple of 32.
    """
    expect(x.dtype in DTYPES, op, "x", _DTYPE_NAMES, x.dtype)
    expect(x.dim() >= 1, op, "x", "at least one dimension [..., K]", tuple(x.shape))
    k = x.shape[-1]
    expect(isinstance(k, int), op, "x", "a fixed last dimension", k)
    expect(k > 0 and k % BLOCK == 0, op, "x", f"K to be a multiple of {BLOCK}", f"K = {k}")
    return k


def check_reorder(op: str, x: Tensor, bits: int, activation_dtype: str, block_m: int, tiled: int) -> int:
    """Checks activations that are to be reordered, and how; returns K.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    k = check_activation(op, x)
    expect(bits in (4, 8), op, "bits", "4 or 8", bits)
    _check_layout(op, x, k, bits, activation_dtype, block_m, tiled)
    return k


def check_gate_reorder(
    op: str, gate: Tensor, up: Tensor | None, gate_activation: str, activation_dtype: str, block_m: int
) -> int:
    """Checks a gated activation that is to be reordered, and how; returns K.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    k = check_gate(op, gate, up, gate_activation, "gate_activation")
    reason = refuse_gate_reorder(ActivationProblem(1, k, gate.dtype.itemsize))
    if reason is not None:
        raise KernelArgumentError(f"{op}: gate: {reason}. Pad the rows, or use reorder_activation with tiled=0.")
    _check_layout(op, gate, k, 4, activation_dtype, block_m, 1)
    return k


def check_activation_dtype(op: str, activation_dtype: str) -> None:
    """Checks in which dtype activations are multiplied.

    Raises:
        KernelArgumentError: it is not a known one.
    """
    known = " or ".join(repr(each) for each in ACTIVATION_DTYPES)
    expect(activation_dtype in ACTIVATION_DTYPES, op, "activation_dtype", known, repr(activation_dtype))


def check_block_m(op: str, block_m: int) -> None:
    """Checks the rows of a tile.

    Raises:
        KernelArgumentError: they are not a power of two of at least 16.
    """
    expect(block_m >= 16 and block_m & (block_m - 1) == 0, op, "block_m", "a power of two of at least 16", block_m)


def arch_of(x: Tensor) -> str:
    """The architecture of the GPU that ``x`` is on; where it is on none yet, the one that the CUDA C++ is for."""
    if type(x) is Tensor and x.device.type == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability(x.device))
    return ARCH


def _check_rows(op: str, name: str, x: Tensor, halves: int) -> int:
    """Checks ``x``, which holds so many rows of the result side by side; returns the numbers of one."""
    expect(x.dtype in DTYPES, op, name, _DTYPE_NAMES, x.dtype)
    expect(x.dim() >= 1, op, name, "at least one dimension [..., K]", list(x.shape))
    size = x.shape[-1]
    expect(isinstance(size, int), op, name, "a fixed last dimension", size)
    if halves == 2:
        expect(size % (2 * BLOCK) == 0, op, name, f"gate | up of 2 K columns, K a multiple of {BLOCK}", size)
    k = size // halves
    reason = refuse(ActivationProblem(1, k, x.dtype.itemsize))
    if reason is not None:
        raise KernelArgumentError(f"{op}: {name}: {reason}. Pad the rows, or do not quantize them.")
    return k


def _check_like(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    expect(tensor.dtype == other.dtype, op, name, f"the dtype of {other_name}, {other.dtype}", tensor.dtype)
    wanted, got = list(other.shape), list(tensor.shape)
    expect(len(got) == len(wanted), op, name, f"the shape of {other_name}, {wanted}", got)
    for one, size in zip(got, wanted, strict=True):
        if isinstance(one, int) and isinstance(size, int):
            expect(one == size, op, name, f"the shape of {other_name}, {wanted}", got)
        elif not statically_known_true(one == size):
            message = f"{op}: {name}: expected the shape of {other_name}, {wanted}, got {got}."
            torch._check(one == size, lambda message=message: message)
    expect(tensor.device == other.device, op, name, f"the device of {other_name}, {other.device}", tensor.device)


def _check_layout(op: str, x: Tensor, k: int, bits: int, activation_dtype: str, block_m: int, tiled: int) -> None:
    """Checks how rows of ``k`` activations, computed from ``x``, are to be reordered."""
    check_activation_dtype(op, activation_dtype)
    check_block_m(op, block_m)
    if tiled:
        arch = arch_of(x)
        expect(
            arch == ARCH and bits == 4 and fits_k(k), op, "tiled",
            "0 but for int4 and K a multiple of 256 below 65536 on sm_90",
            f"{tiled} for int{bits} and K = {k} on {arch}",
        )  # fmt: skip
