"""Routers of transformers' mixtures of experts choose by ``etcuda::route_experts``: one kernel, where a softmax, a sort
and the rest are ten."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import etcuda.kernels  # noqa: F401  registers the operators

Results = tuple[Tensor, Tensor, Tensor]


def _softmax(self: Any, hidden_states: Tensor) -> Results:
    """Softmax over all experts, the best of them. Their weights stay fp32, which transformers rounds to that of the
    logits: that would be a kernel of its own in each layer."""
    logits = functional.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
    routing, indices = _route(logits, None, "softmax", self.top_k, normalize=getattr(self, "norm_topk_prob", True))
    return logits, routing, indices


def _softmax_fp32(self: Any, hidden_states: Tensor) -> Results:
    """Likewise, always normalised."""
    logits = functional.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
    routing, indices = _route(logits, None, "softmax", self.top_k)
    return logits, routing, indices


def _chosen_softmax(self: Any, hidden_states: Tensor) -> Results:
    """Softmax over the logits of the experts that were chosen: the softmax over all, normalised. Fp32 as in
    ``_softmax``."""
    logits = functional.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight, self.bias)
    routing, indices = _route(logits, None, "softmax", self.top_k)
    return logits, routing, indices


def _grouped_sigmoid(self: Any, hidden_states: Tensor) -> Results:
    """Sigmoid scores, a bias that corrects the choice, out of the best groups."""
    flat = hidden_states.view(-1, self.hidden_dim)
    logits = functional.linear(flat.to(torch.float32), self.weight.to(torch.float32))
    routing, indices = _route(
        logits, self.e_score_correction_bias, "sigmoid", self.top_k, self.num_group, self.topk_group,
        self.norm_topk_prob, 1e-20, self.routed_scaling_factor,
    )  # fmt: skip
    return logits, routing, indices


def _scaled_softmax(self: Any, hidden_states: Tensor) -> Results:
    """Softmax over all experts of a normed input, the best of them, normalised, times a factor of each expert."""
    normed = self.norm(hidden_states) * self.scale * self.scalar_root_size
    logits = self.proj(normed)
    routing, indices = _route(logits, None, "softmax", self.config.top_k_experts)
    # Callers do not read the first, which is then not computed.
    return functional.softmax(logits, dim=-1, dtype=torch.float32), routing * self.per_expert_scale[indices], indices


# By class. Others keep their own code.
_FORWARDS: dict[str, Callable[[Any, Tensor], Results]] = {
    "MixtralTopKRouter": _softmax_fp32,
    "OlmoeTopKRouter": _softmax,
    "Qwen2MoeTopKRouter": _softmax,
    "Qwen3MoeTopKRouter": _softmax,
    "Qwen3NextTopKRouter": _softmax,
    "Qwen3_5MoeTopKRouter": _softmax,
    "GptOssTopKRouter": _chosen_softmax,
    "DeepseekV3TopkRouter": _grouped_sigmoid,
    "Gemma4TextRouter": _scaled_softmax,
}
ROUTERS = tuple(_FORWARDS)


def replace_routers(model: Any) -> None:
    """Gives the routers of a model that are known the operator."""
    for module in model.modules():
        forward = _FORWARDS.get(type(module).__name__)
        if forward is not None:
            module.forward = types.MethodType(forward, module)


def _route(
    logits: Tensor, bias: Tensor | None, scores: str, top_k: int, groups: int = 1, top_groups: int = 1,
    normalize: bool = True, epsilon: float = 0.0, scale: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    found: tuple[Tensor, Tensor] = torch.ops.etcuda.route_experts(
        logits, bias, scores, top_k, groups, top_groups, "pair" if groups > top_groups else "max", normalize, epsilon,
        scale, 0,
    )  # fmt: skip
    return found
