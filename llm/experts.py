"""What transformers' mixtures of experts call for their products, registered as the implementation ``"etcuda"``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IMPLEMENTATION = "etcuda"


def experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The experts' answers, weighted and summed, by one grouped product for each of their matrices.

    Args:
        module: the calling module, whose parameters are stacked by expert.
        hidden_states: [tokens, hidden_size].
        top_k_index: [tokens, top_k] integers, the experts of each token.
        top_k_weights: [tokens, top_k].

    Returns:
        [tokens, hidden_size].
    """
    from transformers.integrations.moe import grouped_mm_experts_forward

    if hidden_states.device.type == "meta":
        # The grouped product has no shape for fp32 there.
        return torch.empty_like(hidden_states)
    result: Tensor = grouped_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
    return result


def register() -> None:
    """Makes ``experts_implementation="etcuda"`` known to transformers. Idempotent."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(IMPLEMENTATION, experts)
