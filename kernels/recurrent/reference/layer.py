"""What ``etcuda::gated_delta_layer`` computes, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from etcuda.kernels.recurrent.reference.conv import causal_conv_reference
from etcuda.kernels.recurrent.reference.delta import gated_delta_rule_reference


def gated_delta_layer_reference(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the new ring of inputs and the new state; the arguments are the operator's."""
    heads, value_dim, key_dim = z.shape[2], z.shape[3], state.shape[-2]
    keys = (x.shape[2] - heads * value_dim) // 2
    mixed, ring = causal_conv_reference(x, conv, positions, weight, bias, "silu")
    q, k, v = torch.split(mixed, [keys, keys, heads * value_dim], -1)
    shape = (x.shape[0], x.shape[1], -1)
    q, k, v = (part.reshape(*shape, width) for part, width in ((q, key_dim), (k, key_dim), (v, value_dim)))
    g = -a_log.float().exp() * F.softplus(a.float() + dt_bias.float())
    out, new = gated_delta_rule_reference(q, k, v, g, b.float().sigmoid(), state, positions, normalize=True)
    exact = out.float()
    scaled = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    return (norm.float() * scaled.to(x.dtype).float() * F.silu(z.float())).to(x.dtype), ring, new
