"""Positions at which a model in bfloat16 may choose other experts than it does in fp32, and so say other things."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from etcuda.llm.routers import ROUTERS

# Of the deviation of a token's scores; bfloat16 moved those of small models by up to 0.02 of it.
CLEAR = 0.05


def clear_choices(model: Any, tokens: Tensor) -> Tensor:
    """Whether the experts of each token [length] are chosen clearly in all layers: [length] bool.

    Args:
        model: transformers' own in fp32; without routers all is clear. Groups of experts are not looked at.
        tokens: [1, length].
    """
    found: list[Tensor] = []

    def look(module: Any, _inputs: Any, outputs: tuple[Tensor, ...]) -> None:
        scores, chosen = outputs[0].float(), outputs[-1].shape[-1]
        ordered = scores.reshape(-1, scores.shape[-1]).sort(1, descending=True).values
        found.append((ordered[:, chosen - 1] - ordered[:, chosen]) / ordered.std(1))

    hooks = [each.register_forward_hook(look) for each in model.modules() if type(each).__name__ in ROUTERS]
    try:
        with torch.no_grad():
            model(tokens, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    gaps = torch.stack(found).amin(0) if found else torch.full((tokens.shape[1],), float("inf"))
    return gaps >= CLEAR
