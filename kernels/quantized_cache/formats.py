"""How caches of keys and values are stored in 8 and 4 bits.

A vector is the key or the value of one head and one token. It has ``width`` bytes of codes and a scale in bfloat16:

- ``int8``: 128 plus an integer from -127 to 127, a byte; the scale times the integer is the number.
- ``fp8``: a float of 4 bits of exponent and 3 of mantissa (e4m3fn), a byte; the scale times it is the number.
- ``tq4``: the vector is rotated (``rotation.py``); the scale is its length. A rotated number, divided by the length and
  times ``sqrt(head_dim)``, is about normal with variance 1, and is coded by the nearest of 16 levels, 0 to 15 in order.
  Byte ``i`` has number ``2 i`` in its low half and number ``2 i + 1`` in its high half (Zandieh et al., "TurboQuant",
  2025).
"""

from __future__ import annotations

import dataclasses
import itertools

import torch

MAX_HEAD_DIM = 512
MIN_ROTATED = 32
SCALE_DTYPE = torch.bfloat16
CODE_DTYPE = torch.uint8

# Magnitudes of the levels: (CUBIC[0] + CUBIC[1] x^2) x for x = 1, 3, ..., 15, in float16. It is a cubic next to the
# quantiser of least squared error for the normal distribution (Lloyd, 1982; Max, 1960), which takes a few products to
# evaluate, where a look-up takes more: its squared error is 0.00969, the least one 0.00950.
CUBIC = (0.1220703125, 0.0002498626708984375)
LEVELS = (0.122314453125, 0.373046875, 0.6416015625, 0.93994140625, 1.28125, 1.67578125, 2.13671875, 2.67578125)
# Between neighbours.
THRESHOLDS = tuple((low + high) / 2 for low, high in itertools.pairwise(LEVELS))
GREATEST_INT8, GREATEST_FP8 = 127.0, 448.0


@dataclasses.dataclass(frozen=True)
class CacheFormat:
    """How a cache is stored.

    Attributes:
        name: as options have it.
        number: as the kernels have it.
        bits: of a code.
    """

    name: str
    number: int
    bits: int

    @property
    def is_rotated(self) -> bool:
        """Whether vectors are rotated before they are coded."""
        return self.bits == 4

    def width(self, head_dim: int) -> int:
        """Bytes of a vector's codes."""
        return head_dim * self.bits // 8

    def vector_bytes(self, head_dim: int) -> int:
        """Bytes of a vector: codes and scale."""
        return self.width(head_dim) + SCALE_DTYPE.itemsize

    def refuse(self, head_dim: int) -> str | None:
        """Why heads of this width cannot be stored so, or ``None``."""
        if not 1 <= head_dim <= MAX_HEAD_DIM:
            return f"head_dim is 1 to {MAX_HEAD_DIM}, got {head_dim}"
        if head_dim % 2:
            return f"head_dim is even, got {head_dim}"
        if self.is_rotated and (head_dim < MIN_ROTATED or head_dim & (head_dim - 1)):
            return f"{self.name} takes a head_dim that is a power of two from {MIN_ROTATED} on, got {head_dim}"
        return None


FORMATS = {each.name: each for each in (CacheFormat("int8", 0, 8), CacheFormat("fp8", 1, 8), CacheFormat("tq4", 2, 4))}
