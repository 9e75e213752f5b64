"""Philox 4x32-10: random words as a function of a key and a counter.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# The paper's constants: a multiplier for each half of the counter, and what each half of the key grows by.
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Four random words.

    Args:
        counter: four int64 tensors that broadcast, each from 0 to 2**32 - 1.
        key: two, likewise.

    Returns:
        Four int64 tensors of the broadcast shape, each from 0 to 2**32 - 1.
    """
    x, k = tuple(counter), tuple(key)
    for index in range(ROUNDS):
        if index:
            k = ((k[0] + KEY_STEPS[0]) & MASK, (k[1] + KEY_STEPS[1]) & MASK)
        high_0, low_0 = _product(x[0], MULTIPLIERS[0])
        high_1, low_1 = _product(x[2], MULTIPLIERS[1])
        x = (high_1 ^ x[1] ^ k[0], low_1, high_0 ^ x[3] ^ k[1], low_0)
    return x


def _product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of a product of two words, in halves: the whole does not fit into int64."""
    low = (word & 0xFFFF) * factor
    high = (word >> 16) * factor + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox_bits_reference(state: Tensor, draw: int, size: Sequence[int], bits: int, word: int) -> Tensor:
    """What ``etcuda::philox_bits`` returns, in integer arithmetic of tensors.

    Element ``i``, counted in row-major order, has the block whose key is the seed and whose counter is (``i``, offset +
    ``draw``), both of 64 bits. Words ``word`` and the one behind it are an integer of 64 bits, the first one its upper
    half, of which the upper ``bits`` are returned.

    Args:
        state: [2] int64, the seed and the offset.
        draw: number of the draw, added to the offset.
        size: shape of the result.
        bits: 1 to 63.
        word: 0 or 2.

    Returns:
        ``size`` int64, each from 0 to 2**bits - 1.
    """
    words = _blocks(state, draw, size)
    upper, lower = words[word], words[word + 1]
    if bits <= 32:
        return upper >> (32 - bits)
    return (upper << (bits - 32)) | (lower >> (64 - bits))


def philox_below_reference(state: Tensor, draw: int, size: Sequence[int], count: int) -> Tensor:
    """What ``etcuda::philox_below`` returns: x * count / 2**62, rounded down, where x is 62 random bits.

    Computed in limbs of 31 bits, so that no product and no sum of products exceeds int64.

    Args:
        state: [2] int64, the seed and the offset.
        draw: number of the draw, added to the offset.
        size: shape of the result.
        count: 1 to 2**62 - 1.

    Returns:
        ``size`` int64, each from 0 to ``count`` - 1. None is likelier than another by more than a factor of
        1 + count * 2**-62.
    """
    words = _blocks(state, draw, size)
    x_1, x_0 = words[0] >> 1, words[1] >> 1
    n_1, n_0 = count // 2**31, count % 2**31
    cross_1 = x_1 * n_0 + ((x_0 * n_0) >> 31)
    cross_0 = x_0 * n_1 + (cross_1 & (2**31 - 1))
    return x_1 * n_1 + (cross_1 >> 31) + (cross_0 >> 31)


def _blocks(state: Tensor, draw: int, size: Sequence[int]) -> tuple[Tensor, ...]:
    index = torch.arange(math.prod(size), dtype=torch.int64, device=state.device).reshape(size)
    return philox((*_halves(index), *_halves(state[1] + draw)), _halves(state[0]))


def _halves(value: Tensor) -> tuple[Tensor, Tensor]:
    return value & MASK, (value >> 32) & MASK
