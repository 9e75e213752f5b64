"""Experts of a GGUF file: of each layer the gates, the other halves and the second matrices, stacked by expert."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from etcuda.kernels.weights.tensor import CoalescedTensor

_PARAMETER = re.compile(r".*\blayers\.(\d+)\..*\bexperts\.(gate_up_proj|down_proj)(_bias)?")
_TENSOR = re.compile(r"(blk\.\d+\.ffn_)(gate|up)(_exps\.(?:weight|bias))")


def experts_tensors(parameter: str) -> tuple[str, ...]:
    """Names of the file's tensors that a parameter of stacked experts is made of, the gate's first; none of others."""
    match = _PARAMETER.fullmatch(parameter)
    if match is None:
        return ()
    parts = ("gate", "up") if match[2] == "gate_up_proj" else ("down",)
    kind = "bias" if match[3] else "weight"
    return tuple(f"blk.{match[1]}.ffn_{part}_exps.{kind}" for part in parts)


def halves(source: str) -> tuple[str, ...]:
    """Names of the tensors that make one parameter together, the gate's first; of others the name alone."""
    match = _TENSOR.fullmatch(source)
    return (source,) if match is None else tuple(f"{match[1]}{part}{match[3]}" for part in ("gate", "up"))


def is_experts(attribute: str, parameter: Tensor) -> bool:
    """Whether a parameter is the stacked matrices of experts."""
    return attribute in ("gate_up_proj", "down_proj") and parameter.dim() == 3


def join_halves(parts: Sequence[Tensor]) -> Tensor:
    """Rows of the first, then of the second, of each expert; both are of one type."""
    first = parts[0]
    if not isinstance(first, CoalescedTensor):
        return torch.cat(list(parts), dim=1)
    components = {
        name: torch.cat([part.components[name] for part in parts if isinstance(part, CoalescedTensor)], dim=1)
        for name in first.components
    }
    made: Tensor = type(first).from_components(components, first.group_size, first.activation_dtype, first.dtype)
    return made
