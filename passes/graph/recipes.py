"""Weights that are described and not held: what is made of other weights is made when its bytes are needed."""

from __future__ import annotations

import abc
import dataclasses
import weakref
from collections.abc import Hashable, Iterator

import torch
from torch import Tensor

from etcuda.torch_private import weak_storage


class Recipe(abc.ABC):
    """How a dense weight is made of other weights, which it keeps alive."""

    @property
    @abc.abstractmethod
    def shape(self) -> torch.Size:
        """Sizes of what is made."""

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """Of what is made."""

    @abc.abstractmethod
    def pieces(self) -> Iterator[Tensor]:
        """Dense tensors, whose bytes after one another are the weight's; made one at a time, on every call anew."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(Recipe):
    """The rows of weights [n, ...] after one another, as ``torch.cat`` has them."""

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        """[sum of n, ...]."""
        return torch.Size((sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """That of the parts, which have one."""
        return self.parts[0].dtype

    def pieces(self) -> Iterator[Tensor]:
        """The parts, or theirs."""
        for part in self.parts:
            yield from pieces_of(part)


# Of the stand-ins that are in use, by their memory, which has no bytes.
_RECIPES: dict[Hashable, Recipe] = {}


def stand_in(recipe: Recipe) -> torch.nn.Parameter:
    """A parameter without bytes that stands for what the recipe makes."""
    made = torch.nn.Parameter(torch.empty(recipe.shape, dtype=recipe.dtype, device="meta"), requires_grad=False)
    key = weak_storage(made)
    _RECIPES[key] = recipe
    weakref.finalize(made, _RECIPES.pop, key, None)
    return made


def recipe_of(tensor: Tensor) -> Recipe | None:
    """The recipe that a tensor stands for; ``None`` if it has bytes of its own."""
    return _RECIPES.get(weak_storage(tensor)) if tensor.device.type == "meta" else None


def pieces_of(tensor: Tensor) -> Iterator[Tensor]:
    """Dense tensors, whose bytes after one another are those of the elements of ``tensor`` in their order."""
    recipe = recipe_of(tensor)
    if recipe is None:
        yield tensor.detach().contiguous()
    else:
        yield from recipe.pieces()
