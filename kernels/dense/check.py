"""What the operator takes, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

from torch import Tensor

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.check import expect, expect_same
from etcuda.kernels.dense.choose.configs import DenseLaunch
from etcuda.kernels.dense.problem import DTYPES, problem_of, refuse
from etcuda.kernels.dense.reference import ACTIVATIONS

OP = "dense_matvec"


def check_arguments(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    """Checks tensors.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    names = ("none", *ACTIVATIONS)
    expect(activation in names, OP, "activation", f"one of {', '.join(names)}", repr(activation))
    expect(x.dtype in DTYPES, OP, "x", "bfloat16 or float16", x.dtype)
    expect(x.dim() >= 1, OP, "x", "at least one dimension [..., K]", list(x.shape))
    expect(weight.dim() == 2, OP, "weight", "two dimensions [N, K]", list(weight.shape))
    fixed = isinstance(weight.shape[0], int) and isinstance(weight.shape[1], int)
    expect(fixed, OP, "weight", "fixed sizes", list(weight.shape))
    expect(weight.dtype == x.dtype, OP, "weight", f"the dtype of x, {x.dtype}", weight.dtype)
    expect(weight.device == x.device, OP, "weight", f"the device of x, {x.device}", weight.device)
    expect_same(OP, "x", "last dimension", x.shape[-1], weight.shape[1])
    expect(
        activation == "none" or weight.shape[0] % 2 == 0, OP, "weight", "as many rows for the gate as for the rest",
        list(weight.shape),
    )  # fmt: skip
    if bias is not None:
        expect(bias.dtype == x.dtype, OP, "bias", f"the dtype of x, {x.dtype}", bias.dtype)
        expect(list(bias.shape) == [weight.shape[0]], OP, "bias", f"shape [{weight.shape[0]}]", list(bias.shape))
        expect(bias.device == x.device, OP, "bias", f"the device of x, {x.device}", bias.device)
    reason = refuse(problem_of(x, weight, activation))
    if reason is not None:
        raise KernelArgumentError(f"{OP}: {reason}. Call torch.nn.functional.linear.")


def check_launch(x: Tensor, weight: Tensor, how: DenseLaunch) -> None:
    """Checks a launch.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    for name in ("tokens", "block_n", "block_k", "num_warps"):
        value = getattr(how, name)
        expect(value > 0 and value & (value - 1) == 0, OP, name, "a power of two", value)
    expect(how.block_k >= 8, OP, "block_k", "at least 8", how.block_k)
    expect(how.num_warps <= 32, OP, "num_warps", "at most 32", how.num_warps)
    expect(how.ctas >= 0, OP, "ctas", "a positive number, or 0 for a CTA for each tile", how.ctas)
    k = weight.shape[1]
    expect(how.ctas == 0 or how.block_k >= k, OP, "block_k", f"at least K, {k}, for CTAs that keep x", how.block_k)
    m = problem_of(x, weight, "none").m
    expect(m <= how.tokens, OP, "tokens", f"at least the {m} tokens of x", how.tokens)
