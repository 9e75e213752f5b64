"""One token of a gated delta net, as one operator between its projections."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from etcuda.llm.recurrent_cache import recurrent_of

# Classes of transformers whose code between the projections is what the operator computes.
_CLASSES = ("Qwen3NextGatedDeltaNet", "Qwen3_5GatedDeltaNet", "Qwen3_5MoeGatedDeltaNet")


def is_delta_net(module: nn.Module) -> bool:
    """Whether ``forward`` computes what a module does."""
    return type(module).__name__ in _CLASSES and getattr(module, "activation", None) in ("silu", "swish")


def forward(module: Any, hidden_states: Tensor, cache: Any = None, attention_mask: Any = None, **more: Any) -> Tensor:
    """The layer: transformers' own code for several tokens, the operator for one.

    Args:
        module: of a class that ``is_delta_net`` knows.
        hidden_states: [batch, L, hidden_size].
        cache: of ours.
        attention_mask: ``None``; prompts are not padded.
        more: for transformers' code.
    """
    if hidden_states.shape[1] != 1:
        whole: Tensor = type(module).forward(module, hidden_states, cache=cache, attention_mask=attention_mask, **more)
        return whole
    layer = recurrent_of(cache.layers[module.layer_idx])
    assert layer is not None
    assert layer.conv is not None
    assert layer.state is not None
    x, z, b, a = _projected(module, hidden_states)
    out, ring, state = torch.ops.etcuda.gated_delta_layer(
        x, z, b, a, module.conv1d.weight.squeeze(1), module.conv1d.bias, module.A_log, module.dt_bias,
        module.norm.weight, module.layer_norm_epsilon, layer.conv, layer.state, layer.positions, 0,
    )  # fmt: skip
    layer.conv.copy_(ring)
    layer.state.copy_(state)
    result: Tensor = module.out_proj(out.flatten(2))
    return result


def route(module: nn.Module) -> None:
    """Makes a module call ``forward``, until ``unroute``."""
    module.forward = functools.partial(forward, module)


def unroute(module: nn.Module) -> None:
    """Undoes ``route``."""
    del module.__dict__["forward"]


def _projected(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values [batch, 1, channels], z [batch, 1, heads, value_dim], b and a [batch, 1, heads]."""
    if hasattr(module, "in_proj_qkvz"):
        q, k, v, z, b, a = module.fix_query_key_value_ordering(module.in_proj_qkvz(x), module.in_proj_ba(x))
        return torch.cat([each.flatten(2) for each in (q, k, v)], -1), z, b, a
    z = module.in_proj_z(x).unflatten(-1, (-1, module.head_v_dim))
    return module.in_proj_qkv(x), z, module.in_proj_b(x), module.in_proj_a(x)
