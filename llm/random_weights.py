"""Seeded weights of any size, with the same bytes under every version of torch and numpy.

A tensor's numbers depend on the seed and on its name alone: they are raw words of numpy's Philox generator, whose
stream numpy keeps, made floating by exact arithmetic. They are uniform, in 65536 steps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.registry import find
from etcuda.kernels.weights.quantize import check_weight, quantize_rows
from etcuda.passes.graph.recipes import Parts, Recipe, deferred, with_recipe

# Of a weight that is not quantised, its only part.
DENSE = "values"
_CHUNK = 1 << 17  # Numbers made at a time: they stay in a core's cache, with what is made of them on the way.
_HELD = 1 << 20  # Bytes of a dense weight below which it is made at once.
# Stored scales from here on have all digits of float16, so that no group is lost.
_NORMAL = 2.0**-14


class RandomWeights:
    """Weights for a model that has none.

    Args:
        shapes: of the model's tensors, by name.
        seed: 0 or more.
        deviation: standard deviation of weights of two dimensions and more. Those of one dimension that a norm scales
            by are near 1; biases have the deviation.
        dtype: of the weights.
        configs: of those that are quantised, by name.
        defer: large tensors are made when their bytes are asked for, as ``deferred`` says.
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, ...]],
        seed: int,
        deviation: float,
        dtype: torch.dtype = torch.float32,
        configs: dict[str, Any] | None = None,
        defer: bool = False,
    ) -> None:
        # A power of two times an integer is exact in float32.
        exponent = round(math.log2(deviation * math.sqrt(3)))
        self._configs, self._defer = configs or {}, defer
        self._weights = {
            name: RandomWeight(name, shape, dtype, seed, exponent, self._format(name, shape))
            for name, shape in shapes.items()
        }

    def _format(self, name: str, shape: tuple[int, ...]) -> GroupFormat | None:
        made: GroupFormat | None = self._configs[name].format(shape[-1]) if name in self._configs else None
        return made

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._weights)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._weights[name].shape

    def read(self, name: str) -> Tensor:
        """A tensor as the model keeps it: plain, or quantised."""
        weight = self._weights[name]
        making = _Making(weight)
        if self._defer and (weight.format is not None or weight.nbytes >= _HELD):
            made = {part: deferred(RandomPart(making, part)) for part in weight.parts}
        else:
            made = making.make()
            if self._defer:
                made = {part: with_recipe(tensor, RandomPart(making, part)) for part, tensor in made.items()}
        if weight.format is None:
            return made[DENSE]
        config = self._configs[name]
        qdata, scale = made.pop("qdata"), made.pop("scale")
        tensor_type = find(config.format_name).tensor_type
        whole: Tensor = tensor_type(
            qdata, scale, weight.format.group_size, config.activation_dtype, weight.dtype, **made
        )
        return whole


@dataclasses.dataclass(frozen=True)
class RandomWeight:
    """One weight, and all that its bytes depend on.

    Attributes:
        name: of the tensor in the model.
        shape: of the weight.
        dtype: of its numbers, before they are quantised.
        seed: of all weights.
        exponent: numbers lie between plus and minus 2 to this power; one is added to the weights of norms.
        format: that the weight is quantised to, by its extremes; ``None`` leaves it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    seed: int
    exponent: int
    format: GroupFormat | None

    @property
    def parts(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each stored tensor, by name."""
        return {DENSE: (self.shape, self.dtype)} if self.format is None else self.format.components(*self.shape)

    @property
    def nbytes(self) -> int:
        """Of all stored tensors."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.parts.values())

    def blocks(self) -> Iterator[dict[str, Tensor]]:
        """The stored tensors some rows at a time: each part's blocks after one another are its bytes.

        Raises:
            WeightFormatError: the format does not hold the weight.
        """
        count = math.prod(self.shape)
        is_norm = len(self.shape) == 1 and self.name.endswith("weight")
        row = self.shape[-1] if self.shape else 1
        step = max(1, _CHUNK // max(row, 1)) * row if self.format is not None else _CHUNK
        for values in _values(f"{self.seed}/{self.name}", count, step, self.exponent):
            if is_norm:
                values.add_(1.0)
            values = values.to(self.dtype)
            yield {DENSE: values} if self.format is None else self._quantize(values.reshape(-1, row), self.format)

    def _quantize(self, values: Tensor, weight_format: GroupFormat) -> dict[str, Tensor]:
        made = quantize_rows(values, weight_format)
        scale = made["scale"]
        if scale.dtype != torch.float16 or float(scale.abs().amin()) < _NORMAL:
            check_weight(values, weight_format, self.name)
        return made


class _Making(Parts):
    """The stored tensors of a weight, made together."""

    def __init__(self, weight: RandomWeight) -> None:
        super().__init__()
        self.weight = weight

    def make(self) -> dict[str, Tensor]:
        """All of them."""
        made = {part: torch.empty(shape, dtype=dtype) for part, (shape, dtype) in self.weight.parts.items()}
        done = dict.fromkeys(made, 0)
        for block in self.weight.blocks():
            for part, rows in block.items():
                made[part].view(-1)[done[part] : done[part] + rows.numel()] = rows.reshape(-1)
                done[part] += rows.numel()
        return made


@dataclasses.dataclass(frozen=True, eq=False)
class RandomPart(Recipe):
    """A stored tensor of a random weight."""

    making: _Making
    part: str

    @property
    def weight(self) -> RandomWeight:
        """Whose it is."""
        return self.making.weight

    @property
    def shape(self) -> torch.Size:
        """Sizes of the stored tensor."""
        return torch.Size(self.weight.parts[self.part][0])

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored tensor."""
        return self.weight.parts[self.part][1]

    def pieces(self) -> Iterator[Tensor]:
        """A dense weight in blocks, a part of a quantised one whole."""
        if self.weight.format is None:
            for block in self.weight.blocks():
                yield block[DENSE]
        else:
            yield self.making.take(self.part)


def random_values(key: str, count: int) -> Tensor:
    """``count`` float32 numbers between -1 and 1, multiples of ``2 ** -15``, which depend on ``key`` alone."""
    return torch.cat([torch.empty(0), *_values(key, count, _CHUNK)])


def _values(key: str, count: int, step: int, exponent: int = 0) -> Iterator[Tensor]:
    """The numbers of ``random_values``, ``step`` at a time, times 2 to the power of ``exponent``."""
    digest = hashlib.sha256(key.encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    left = np.empty(0, "<i2")
    for start in range(0, count, step):
        here = min(step, count - start)
        words = generator.random_raw(-(-(here - len(left)) // 4)).astype("<u8", copy=False).view("<i2")
        # A word is four numbers.
        numbers = np.concatenate([left, words]) if len(left) else words
        left = numbers[here:]
        yield torch.from_numpy(numbers[:here]).to(torch.float32).mul_(2.0 ** (exponent - 15))
