"""Checkpoints whose experts are stored one by one, read as the model has them: stacked."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from etcuda.errors import CheckpointError
from etcuda.llm.checkpoint import Weights

# Of an expert's matrices in a file: where it is in the model's, and in which half of it.
_PARTS = {
    "gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1), "down_proj": ("down_proj", 0),
    "w1": ("gate_up_proj", 0), "w3": ("gate_up_proj", 1), "w2": ("down_proj", 0),
}  # fmt: skip
_NAME = re.compile(rf"(.+\.experts)\.(\d+)\.({'|'.join(_PARTS)})\.weight")
# Mixtral's blocks have another name in files than in the model.
_RENAMED = (".block_sparse_moe.", ".mlp.")


def stacked(weights: Weights, wanted: Mapping[str, Tensor]) -> Weights:
    """The weights by the model's names.

    Args:
        weights: of a checkpoint.
        wanted: the model's tensors by name, ``...experts.gate_up_proj`` [experts, 2 * width, hidden_size] among them
            if it stacks experts. Where it does not, the weights are returned as they are.

    Raises:
        CheckpointError: an expert lacks a matrix, or has one of another shape.
    """
    if not any(name.endswith(".experts.gate_up_proj") for name in wanted):
        return weights
    return StackedExperts(weights)


class StackedExperts:
    """Weights with one tensor for the matrices of all experts of a layer. See ``stacked``."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._plain: dict[str, str] = {}
        # By the model's name: for each expert, the names of what stands in its matrix, one below the other.
        self._stacks: dict[str, list[list[str]]] = {}
        found: dict[str, dict[tuple[int, int], str]] = {}
        for name in weights.names():
            renamed = name.replace(*_RENAMED)
            match = _NAME.fullmatch(renamed)
            if match is None:
                self._plain[renamed] = name
                continue
            matrix, half = _PARTS[match[3]]
            found.setdefault(f"{match[1]}.{matrix}", {})[int(match[2]), half] = name
        for stack, parts in found.items():
            self._stacks[stack] = self._in_order(stack, parts)

    def _in_order(self, stack: str, parts: dict[tuple[int, int], str]) -> list[list[str]]:
        halves = 2 if stack.endswith("gate_up_proj") else 1
        count = 1 + max(expert for expert, _ in parts)
        missing = [expert for expert in range(count) for half in range(halves) if (expert, half) not in parts]
        if missing:
            raise CheckpointError(
                f"{stack}: expected the matrices of {count} experts, got none, or not all, of expert {missing[0]}. "
                "Copy the checkpoint again."
            )
        shapes = {self._weights.shape(name): name for name in parts.values()}
        if len(shapes) > 1:
            raise CheckpointError(
                f"{stack}: expected matrices of one shape, got {', '.join(map(str, sorted(shapes)))}."
            )
        return [[parts[expert, half] for half in range(halves)] for expert in range(count)]

    def names(self) -> list[str]:
        """Names of all tensors, as the model has them."""
        return [*self._plain, *self._stacks]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        if name in self._plain:
            return self._weights.shape(self._plain[name])
        experts = self._stacks[name]
        rows, columns = self._weights.shape(experts[0][0])
        return len(experts), len(experts[0]) * rows, columns

    def read(self, name: str) -> Tensor:
        """A tensor, in the dtype that it is stored in; of experts, one matrix after the other is read into it.

        Raises:
            CheckpointError: an expert's matrix is quantised.
        """
        if name in self._plain:
            return self._weights.read(self._plain[name])
        result: Tensor | None = None
        for number, parts in enumerate(self._stacks[name]):
            for half, part in enumerate(parts):
                matrix = self._weights.read(part)
                if type(matrix) is not Tensor:
                    raise CheckpointError(
                        f"{part}: expected an expert in a floating dtype, got a quantised one. Name a checkpoint whose "
                        "experts are not."
                    )
                if result is None:
                    result = torch.empty(self.shape(name), dtype=matrix.dtype)
                rows = matrix.shape[0]
                result[number, half * rows : (half + 1) * rows] = matrix
        assert result is not None
        return result
