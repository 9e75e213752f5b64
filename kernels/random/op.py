"""The operators that all random numbers come from: ``etcuda::philox_bits`` and ``etcuda::philox_below``.

They are functions of their arguments, with the same integers on every device. Eager they compute their references;
Inductor has code for them in ``etcuda.backend.inductor.random``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from etcuda.errors import KernelArgumentError
from etcuda.kernels.random.philox import philox_below_reference, philox_bits_reference


@custom_op("etcuda::philox_bits", mutates_args=())
def philox_bits(state: Tensor, draw: int, size: Sequence[int], bits: int, word: int) -> Tensor:
    """Random bits. Arguments and result as of ``philox_bits_reference``.

    Raises:
        KernelArgumentError: another state, number of bits or word.
    """
    _check_bits(state, bits, word)
    return philox_bits_reference(state, draw, size, bits, word)


@custom_op("etcuda::philox_below", mutates_args=())
def philox_below(state: Tensor, draw: int, size: Sequence[int], count: int) -> Tensor:
    """Random integers below a number. Arguments and result as of ``philox_below_reference``.

    Raises:
        KernelArgumentError: another state or count.
    """
    _check_below(state, count)
    return philox_below_reference(state, draw, size, count)


def fake_philox_bits(state: Tensor, draw: int, size: Sequence[int], bits: int, word: int) -> Tensor:
    """Checks the arguments; returns a fake result."""
    _check_bits(state, bits, word)
    return state.new_empty(size, dtype=torch.int64)


def fake_philox_below(state: Tensor, draw: int, size: Sequence[int], count: int) -> Tensor:
    """Checks the arguments; returns a fake result."""
    _check_below(state, count)
    return state.new_empty(size, dtype=torch.int64)


def _check_bits(state: Tensor, bits: int, word: int) -> None:
    _check_state("philox_bits", state)
    if not 1 <= bits <= 63:
        raise KernelArgumentError(f"philox_bits: bits: expected 1 to 63, got {bits}.")
    if word not in (0, 2):
        raise KernelArgumentError(f"philox_bits: word: expected 0 or 2, got {word}.")


def _check_below(state: Tensor, count: int) -> None:
    _check_state("philox_below", state)
    # A number that follows from sizes is below 2**62, and may be 0 where nothing is drawn.
    if isinstance(count, int) and not 1 <= count < 2**62:
        raise KernelArgumentError(f"philox_below: count: expected 1 to 2**62 - 1, got {count}.")


def _check_state(op: str, state: Tensor) -> None:
    if tuple(state.shape) != (2,) or state.dtype != torch.int64:
        raise KernelArgumentError(
            f"{op}: state: expected [2] int64, the seed and the offset, got {list(state.shape)} {state.dtype}. "
            "Make it with etcuda.random.make_state(seed)."
        )


philox_bits.register_fake(fake_philox_bits)
philox_below.register_fake(fake_philox_below)
