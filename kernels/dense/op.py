"""The operator ``etcuda::dense_matvec``."""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.common.memory import dense_rows, needs_reference
from etcuda.kernels.dense import launch
from etcuda.kernels.dense.check import check_arguments, check_launch
from etcuda.kernels.dense.choose.configs import DenseLaunch
from etcuda.kernels.dense.reference import dense_matvec_reference


@triton_op("etcuda::dense_matvec", mutates_args=())
def dense_matvec(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    tokens: int,
    ctas: int,
    block_n: int,
    block_k: int,
    num_warps: int,
    pdl: int,
) -> Tensor:
    """x @ weight.T + bias for at most eight tokens, and activation(gate) * up of it.

    Products and sums are fp32; the result is rounded once, of a gate also behind the product and the activation.

    Args:
        x: [..., K] bfloat16 or float16; K a multiple of 8.
        weight: [N, K] in the dtype of ``x``; with an activation [2 N, K], the rows of the gate and then the others.
        bias: ``None``, or a number for each row of the weight, in the dtype of ``x``.
        activation: "none", "silu", "gelu_erf" or "gelu_tanh".
        tokens: 1, 2, 4 or 8, at least M, the product of the leading sizes of ``x``.
        ctas: that keep the activations, or 0 for a CTA for each tile; this and what follows as of ``DenseLaunch``.
        block_n: rows of a tile.
        block_k: columns of a tile.
        num_warps: of a CTA.
        pdl: 1 to launch the kernel while the one in front of it runs, which must not write the weight.

    Returns:
        [..., N] in the dtype of ``x``.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    how = DenseLaunch(tokens, ctas, block_n, block_k, num_warps, pdl)
    check_arguments(x, weight, bias, activation)
    check_launch(x, weight, how)
    if needs_reference(x):
        return dense_matvec_reference(x, weight, bias, activation)
    out = launch.dense_matvec(dense_rows(x), weight, bias, activation, how)
    # Of two dimensions it is the result already, in memory that may have room for more tokens.
    return out if x.dim() == 2 else out.reshape(*x.shape[:-1], out.shape[-1])


def fake_dense_matvec(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, tokens: int, ctas: int, block_n: int,
    block_k: int, num_warps: int, pdl: int,
) -> Tensor:  # fmt: skip
    """Checks the arguments; returns a fake result."""
    check_arguments(x, weight, bias, activation)
    check_launch(x, weight, DenseLaunch(tokens, ctas, block_n, block_k, num_warps, pdl))
    n = weight.shape[0] if activation == "none" else weight.shape[0] // 2
    return x.new_empty((*x.shape[:-1], n))


dense_matvec.register_fake(fake_dense_matvec)
