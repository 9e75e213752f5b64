"""Where the states of a sequence are: one, of its last token, or a ring with those of the last few.

A ring has ``slots`` states, [batch, slots, heads, ...], and that behind the token of position p is in slot p % slots.
A sequence that is taken back by some tokens then goes on from another slot, which its positions say.
"""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.errors import KernelArgumentError
from etcuda.torch_private import bounds


def num_slots(state: Tensor) -> int:
    """States of [batch, heads, ...], which is 1, or of [batch, slots, heads, ...]."""
    return int(state.shape[1]) if state.dim() == 5 else 1


def keeps_each(state: Tensor, length: int | torch.SymInt) -> bool:
    """Whether the state behind each of ``length`` tokens is kept: if a ring has room for as many as there may be.
    Otherwise that behind the last one is.

    Raises:
        KernelArgumentError: the state is a ring, and nothing bounds the length.
    """
    if state.dim() != 5:
        return False
    most = bounds(length)[1]
    if most is None:
        raise KernelArgumentError(
            f"length: expected a bound for a call with a ring of {num_slots(state)} states, got {length} without one. "
            "Give its dimension a maximum, Dim(max=...)."
        )
    return most <= num_slots(state)


def started(state: Tensor, positions: Tensor) -> Tensor:
    """The state in front of the first token, in fp32; zeros where a sequence begins, at position 0."""
    if state.dim() == 5:
        state = state.index_select(1, (positions[:1] - 1) % num_slots(state)).squeeze(1)
    return torch.where(positions[0] > 0, state.float(), 0.0)


def kept(state: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    """``state`` with new ones.

    Args:
        state: as the operators take it.
        new: [batch, heads, ...] behind the last token; or, for a ring, [batch, tokens, heads, ...] behind each.
        positions: [tokens] of the tokens.
    """
    new = new.to(state.dtype)
    if state.dim() != 5:
        return new
    if new.dim() != 5:
        new, positions = new.unsqueeze(1), positions[-1:]
    return state.index_copy(1, (positions % num_slots(state)).long(), new)
