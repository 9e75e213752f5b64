"""What ``etcuda::gated_delta_layer`` takes."""

from __future__ import annotations

from torch import Tensor

from etcuda.kernels.common.check import expect, expect_same
from etcuda.kernels.recurrent.check import check_conv, check_shape, check_sizes, check_state, refused
from etcuda.kernels.recurrent.problem import DeltaProblem, refuse_layer

OP = "gated_delta_layer"


def check_layer(
    x: Tensor, z: Tensor, b: Tensor, a: Tensor, weight: Tensor, bias: Tensor | None, a_log: Tensor, dt_bias: Tensor,
    norm: Tensor, conv: Tensor, state: Tensor, positions: Tensor,
) -> None:  # fmt: skip
    """Checks a call.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    check_conv(x, conv, positions, weight, bias, "silu")
    check_shape(OP, "z", z, "[batch, 1, num_v_heads, value_dim]", [x.shape[0], x.shape[1], None, None])
    expect_same(OP, "x", "number of tokens", x.shape[1], 1)
    heads, value_dim = z.shape[2], z.shape[3]
    for name, tensor in (("b", b), ("a", a)):
        check_shape(OP, name, tensor, "[batch, 1, num_v_heads]", [x.shape[0], x.shape[1], heads])
    for name, tensor in (("a_log", a_log), ("dt_bias", dt_bias)):
        check_shape(OP, name, tensor, "[num_v_heads]", [heads])
    check_shape(OP, "norm", norm, "[value_dim]", [value_dim])
    check_sizes(OP, state, "[batch, num_v_heads, key_dim, value_dim]", [x.shape[0], heads, None, value_dim])
    check_state(OP, state, positions, x.shape[1])
    key_dim = int(state.shape[-2])
    keys = int(x.shape[2]) - int(heads) * int(value_dim)
    key_heads = keys // (2 * key_dim)
    expect(
        keys > 0 and keys % (2 * key_dim) == 0 and int(heads) % key_heads == 0, OP, "x",
        f"channels of whole key heads of {key_dim}, twice, and of {heads} value heads of {value_dim}", x.shape[2],
    )  # fmt: skip
    refused(OP, refuse_layer(DeltaProblem(1, 1, key_heads, int(heads), key_dim, int(value_dim))))
