"""Weights that are described and not held: what is made of other weights is made when its bytes are needed."""

from __future__ import annotations

import abc
import dataclasses
import mmap
import threading
import weakref
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from etcuda.torch_private import is_gone, weak_storage


class Recipe(abc.ABC):
    """How a dense weight is made, of other weights, which it keeps alive, or of nothing but what it says itself."""

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

    def leaves(self) -> Iterator[Recipe | Tensor]:
        """What the weight is made of in the end: recipes of no other weights, and dense tensors, after one another."""
        yield self


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(Recipe):
    """The rows of weights [n, ...] after one another, as ``torch.cat`` has them.

    What a row is the last part says; the others may be stacks [..., n, ...] of such weights.
    """

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        """[sum of n, ...]."""
        row = self.parts[-1].shape[1:]
        return torch.Size((sum(part.numel() for part in self.parts) // row.numel(), *row))

    @property
    def dtype(self) -> torch.dtype:
        """That of the parts, which have one."""
        return self.parts[0].dtype

    def pieces(self) -> Iterator[Tensor]:
        """The parts, or theirs."""
        for part in self.parts:
            yield from pieces_of(part)

    def leaves(self) -> Iterator[Recipe | Tensor]:
        """Those of the parts."""
        for part in self.parts:
            recipe = _whole(part)
            if recipe is None:
                yield part
            else:
                yield from recipe.leaves()


class Parts(abc.ABC):
    """Tensors that are made together, and taken one at a time. Threads may take them side by side."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    @abc.abstractmethod
    def make(self) -> dict[str, Tensor]:
        """All of them, by name."""

    def take(self, part: str) -> Tensor:
        """One of them. The others are kept until they are taken, so that a round through all makes them once."""
        with self._lock:
            if part not in self._held:
                self._held = self.make()
            return self._held.pop(part)


@dataclasses.dataclass(frozen=True, eq=False)
class PartOf(Recipe):
    """One of the tensors that are made together."""

    source: Parts
    part: str
    sizes: tuple[int, ...]
    kind: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """As given."""
        return torch.Size(self.sizes)

    @property
    def dtype(self) -> torch.dtype:
        """As given."""
        return self.kind

    def pieces(self) -> Iterator[Tensor]:
        """The tensor, contiguous."""
        yield self.source.take(self.part).contiguous()


# Of the tensors that are in use whose bytes a recipe makes, by their memory.
_RECIPES: dict[Hashable, Recipe] = {}
# Those of them that look like zeros.
_UNTOUCHED: set[Hashable] = set()


def stand_in(recipe: Recipe) -> torch.nn.Parameter:
    """A parameter without bytes that stands for what the recipe makes."""
    made = torch.nn.Parameter(torch.empty(recipe.shape, dtype=recipe.dtype, device="meta"), requires_grad=False)
    key = weak_storage(made)
    _RECIPES[key] = recipe
    weakref.finalize(made, _RECIPES.pop, key, None)
    return made


def deferred(recipe: Recipe) -> Tensor:
    """A tensor on the CPU for what the recipe makes, in memory of its own that is never touched and so costs nothing.
    What asks for the bytes by ``recipe_of`` or ``pieces_of`` gets them; read in any other way, all are zero."""
    shape, dtype = recipe.shape, recipe.dtype
    nbytes = shape.numel() * dtype.itemsize
    if nbytes == 0:
        return torch.empty(shape, dtype=dtype)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made = torch.frombuffer(memory, dtype=dtype).reshape(shape)
    _UNTOUCHED.add(weak_storage(made))
    return with_recipe(made, recipe)


def with_recipe(tensor: Tensor, recipe: Recipe) -> Tensor:
    """The tensor, its memory noted as what the recipe makes."""
    for key in [key for key in _RECIPES if is_gone(key)]:
        del _RECIPES[key]
        _UNTOUCHED.discard(key)
    _RECIPES[weak_storage(tensor)] = recipe
    return tensor


def recipe_of(tensor: Tensor) -> Recipe | None:
    """The recipe that makes the memory of a tensor; ``None`` if there is none."""
    return _RECIPES.get(weak_storage(tensor)) if tensor.device.type in ("meta", "cpu") else None


def is_deferred(value: object) -> bool:
    """Whether this is a tensor of ``deferred``, a view of one, or made of some, as a quantised weight is."""
    flatten: Any = getattr(value, "__tensor_flatten__", None)
    if flatten is not None and type(value) not in (Tensor, torch.nn.Parameter):
        return any(is_deferred(getattr(value, name)) for name in flatten()[0])
    return isinstance(value, Tensor) and value.device.type == "cpu" and weak_storage(value) in _UNTOUCHED


def pieces_of(tensor: Tensor) -> Iterator[Tensor]:
    """Dense tensors, whose bytes after one another are those of the elements of ``tensor`` in their order."""
    recipe = recipe_of(tensor)
    if recipe is None:
        yield tensor.detach().contiguous()
    elif _whole(tensor) is not None:
        yield from recipe.pieces()
    else:
        memory = torch.cat([piece.reshape(-1) for piece in recipe.pieces()])
        yield memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).contiguous()


def _whole(tensor: Tensor) -> Recipe | None:
    """The recipe of a tensor that is all of its memory, in order."""
    is_all = tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()
    return recipe_of(tensor) if is_all else None
