"""The operator ``etcuda::causal_conv``."""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.common.memory import needs_reference
from etcuda.kernels.recurrent import launch
from etcuda.kernels.recurrent.check import check_conv
from etcuda.kernels.recurrent.reference.conv import causal_conv_reference


@triton_op("etcuda::causal_conv", mutates_args=())
def causal_conv(
    x: Tensor, state: Tensor, positions: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """Convolves each channel along the sequence, with the last inputs of the calls before.

    Sums are fp32, the result is rounded once.

    Args:
        x: [batch, L, channels] bfloat16, float16 or float32, any strides.
        state: [batch, rows, channels], contiguous, ``width`` rows or more: the input of position p is in row p % rows.
            Rows of positions before 0 are not read, so that at position 0 any state is an empty one. A sequence can be
            taken back by as many tokens as there are rows more than ``width``.
        positions: [L] int32 or int64, of the tokens in the sequence; consecutive.
        weight: [channels, width], the newest token's last; width at most 8.
        bias: [channels], or ``None``.
        activation: "none" or "silu".

    Returns:
        [batch, L, channels] in the dtype of ``x``, dense, and the new state.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_conv(x, state, positions, weight, bias, activation)
    if needs_reference(x):
        return causal_conv_reference(x, state, positions, weight, bias, activation)
    new = state.clone()
    return launch.causal_conv(x, new, positions, weight, bias, activation), new


def fake_causal_conv(
    x: Tensor, state: Tensor, positions: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """Checks the arguments; returns fake results."""
    check_conv(x, state, positions, weight, bias, activation)
    return x.new_empty(x.shape), state.clone()


causal_conv.register_fake(fake_causal_conv)
