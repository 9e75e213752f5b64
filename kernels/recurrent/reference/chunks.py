"""What the formulas of recurrent layers share: chunks of a sequence, and sums over chunks without a loop.

Programs for the host are compiled from these formulas, with sequences of any length: no step of them counts tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from etcuda.torch_private import bounds

# Tokens of a chunk; a power of two.
CHUNK = 64
# Chunks of a sequence whose length nothing bounds.
_MOST_CHUNKS = 1 << 14


def num_chunks(length: int | torch.SymInt) -> int | torch.SymInt:
    """Chunks of a sequence of ``length`` tokens."""
    return (length + CHUNK - 1) // CHUNK


def in_chunks(x: Tensor) -> Tensor:
    """[batch, L, heads, ...] as [batch, heads, chunks, CHUNK, ...], with zeros behind the last token.

    Where the length is not fixed, a chunk of zeros is added, which changes nothing: PyTorch asks of sizes whether they
    are 1, and a program would be of sequences with one chunk alone, or with several, as its example is.
    """
    length = x.shape[1]
    count = num_chunks(length) + (0 if isinstance(length, int) else 1)
    behind: list[Any] = [*(0, 0) * (x.dim() - 2), 0, count * CHUNK - x.shape[1]]
    padded = F.pad(x, behind)
    return padded.reshape(x.shape[0], count, CHUNK, *x.shape[2:]).movedim(3, 1)


def out_of_chunks(x: Tensor, length: int | torch.SymInt) -> Tensor:
    """[batch, heads, chunks, CHUNK, width] as [batch, L, heads, width]."""
    batch, heads, count, _, width = x.shape
    return x.reshape(batch, heads, count * CHUNK, width).transpose(1, 2).narrow(1, 0, length).contiguous()


def decays(cumulative: Tensor) -> Tensor:
    """exp(c_i - c_j) of [..., CHUNK] for j at most i, else 0: [..., CHUNK, CHUNK]."""
    differences = cumulative.unsqueeze(-1) - cumulative.unsqueeze(-2)
    row = torch.arange(CHUNK, device=cumulative.device)
    # Above the diagonal the exponent is positive, and could overflow.
    return differences.masked_fill(row.unsqueeze(0) > row.unsqueeze(1), float("-inf")).exp()


def prefixes(
    first: Tensor, second: Tensor, apply: Callable[[Tensor, Tensor], Tensor], one: Tensor
) -> tuple[Tensor, Tensor]:
    """For chunks that map a state s to ``apply(first, s) + second``: what all chunks up to each one do together.

    Args:
        first: [batch, heads, chunks, ...].
        second: likewise.
        apply: of a chunk's ``first`` and a state, or another chunk's ``first``.
        one: [...], the ``first`` that changes nothing.

    Returns:
        Both, for the chunks up to each one, itself included.
    """
    count = first.shape[2]
    most = bounds(count)[1]
    reach = 1
    while reach < (_MOST_CHUNKS if most is None else min(most, _MOST_CHUNKS)):
        ones = one.expand(*first.shape[:2], reach, *one.shape)
        zeros = second.new_zeros(*second.shape[:2], reach, *second.shape[3:])
        before_first = torch.cat((ones, first), 2).narrow(2, 0, count)
        before_second = torch.cat((zeros, second), 2).narrow(2, 0, count)
        second = apply(first, before_second) + second
        first = apply(first, before_first)
        reach *= 2
    return first, second


def for_each_chunk(state: Tensor, like: Tensor) -> Tensor:
    """[batch, heads, ...] as [batch, heads, chunks, ...]. A size of 1 that is broadcast would ask whether there is more
    than one chunk, and a program would be of sequences with as many as its example has."""
    return state.unsqueeze(2).expand(*state.shape[:2], like.shape[2], *state.shape[2:])
