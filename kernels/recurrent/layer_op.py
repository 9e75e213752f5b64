"""The operator ``etcuda::gated_delta_layer``."""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.common.memory import needs_reference
from etcuda.kernels.recurrent import launch
from etcuda.kernels.recurrent.check_layer import check_layer
from etcuda.kernels.recurrent.reference.layer import gated_delta_layer_reference


@triton_op("etcuda::gated_delta_layer", mutates_args=())
def gated_delta_layer(
    x: Tensor,
    z: Tensor,
    b: Tensor,
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a_log: Tensor,
    dt_bias: Tensor,
    norm: Tensor,
    eps: float,
    conv: Tensor,
    state: Tensor,
    positions: Tensor,
    pdl: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """One token of a gated delta net between its projections: ``causal_conv`` with silu, ``gated_delta_rule`` with
    ``normalize``, the decay ``exp(-exp(a_log) softplus(a + dt_bias))`` and the strength ``sigmoid(b)``, an RMSNorm of
    each head and a gate ``silu(z)``.

    Args:
        x: [batch, 1, channels] bfloat16, float16 or float32, any strides: queries of all key heads, their keys, values.
        z: [batch, 1, num_v_heads, value_dim].
        b: [batch, 1, num_v_heads].
        a: likewise.
        weight: [channels, width] of the convolution.
        bias: [channels], or ``None``.
        a_log: [num_v_heads].
        dt_bias: likewise.
        norm: [value_dim], the norm's weight.
        eps: of the norm.
        conv: [batch, rows, channels], as of ``causal_conv``.
        state: [batch, num_v_heads, key_dim, value_dim] or [batch, slots, ...], as of ``gated_delta_rule``.
        positions: [1] int32 or int64, of the token in the sequence.
        pdl: 1 to launch the kernel while the one in front of it runs.

    Returns:
        [batch, 1, num_v_heads, value_dim] in the dtype of ``x``, dense, and what ``conv`` and ``state`` are then.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_layer(x, z, b, a, weight, bias, a_log, dt_bias, norm, conv, state, positions)
    if needs_reference(x):
        return gated_delta_layer_reference(x, z, b, a, weight, bias, a_log, dt_bias, norm, eps, conv, state, positions)
    ring, new = conv.clone(), state.clone()
    out = launch.gated_delta_layer(x, z, b, a, weight, bias, a_log, dt_bias, norm, eps, ring, new, positions, pdl)
    return out, ring, new


def fake_gated_delta_layer(
    x: Tensor, z: Tensor, b: Tensor, a: Tensor, weight: Tensor, bias: Tensor | None, a_log: Tensor, dt_bias: Tensor,
    norm: Tensor, eps: float, conv: Tensor, state: Tensor, positions: Tensor, pdl: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Checks the arguments; returns fake results."""
    check_layer(x, z, b, a, weight, bias, a_log, dt_bias, norm, conv, state, positions)
    return x.new_empty(z.shape), conv.clone(), state.clone()


gated_delta_layer.register_fake(fake_gated_delta_layer)
