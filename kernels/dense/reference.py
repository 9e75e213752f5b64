"""The formula in plain PyTorch: what the kernel is compared with, and what a CPU computes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# Activations of a gate, and as what PyTorch has them.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_erf": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def dense_matvec_reference(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """x @ weight.T + bias with fp32 products and sums, rounded once; of a gate also behind the activation and the end.

    Args:
        x: [..., K] bfloat16 or float16.
        weight: [N, K] in the dtype of ``x``; with an activation [2 N, K], the rows of the gate and then the others.
        bias: ``None``, or a number for each row of the weight.
        activation: "none", or a key of ``ACTIVATIONS``: the result is activation(gate) * up.

    Returns:
        [..., N] in the dtype of ``x``.
    """
    products = x.to(torch.float32) @ weight.to(torch.float32).t()
    if bias is not None:
        products = products + bias.to(torch.float32)
    rounded = products.to(x.dtype)
    if activation == "none":
        return rounded
    gate, up = rounded.to(torch.float32).chunk(2, -1)
    gate = ACTIVATIONS[activation](gate).to(x.dtype).to(torch.float32)
    return (gate * up).to(x.dtype)
