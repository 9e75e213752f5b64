"""Seeded weights of any size, with the same bytes under every version of torch and numpy.

A tensor's numbers depend on the seed and on its name alone: they are raw words of numpy's Philox generator, whose
stream numpy keeps, made floating by exact arithmetic. They are uniform, in 65536 steps.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 22  # Words of 8 bytes made at a time.


class RandomWeights:
    """Weights for a model that has none.

    Args:
        shapes: of the model's tensors, by name.
        seed: 0 or more.
        deviation: standard deviation of weights of two dimensions and more. Those of one dimension that a norm scales
            by are near 1; biases have the deviation.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], seed: int, deviation: float) -> None:
        self._shapes = shapes
        self._seed = seed
        # A power of two times an integer is exact in float32.
        self._scale = 2.0 ** round(math.log2(deviation * math.sqrt(3)))

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def read(self, name: str) -> Tensor:
        """A tensor, float32, uniform between plus and minus the scale; one is added to the weights of norms."""
        shape = self._shapes[name]
        out = random_values(f"{self._seed}/{name}", math.prod(shape)).mul_(self._scale).reshape(shape)
        return out.add_(1.0) if len(shape) == 1 and name.endswith("weight") else out


def random_values(key: str, count: int) -> Tensor:
    """``count`` float32 numbers between -1 and 1, multiples of ``2 ** -15``, which depend on ``key`` alone."""
    digest = hashlib.sha256(key.encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    out = torch.empty(count)
    for start in range(0, count, 4 * _CHUNK):
        here = min(4 * _CHUNK, count - start)
        words = generator.random_raw(-(-here // 4)).astype("<u8", copy=False)
        values = torch.from_numpy(words.view("<i2")[:here])
        torch.mul(values, 2.0**-15, out=out[start : start + here])
    return out
