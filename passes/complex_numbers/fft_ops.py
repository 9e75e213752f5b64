"""The operators of Fourier transforms, on pairs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from etcuda.passes.complex_numbers.fourier import Transformer
from etcuda.passes.complex_numbers.pair import Pair, scale

aten = torch.ops.aten

_BY_ROOT, _BY_N = 1, 2  # normalisations of ATen; 0 is none


def fft_r2c(transformer: Transformer, x: Tensor, dims: list[int], norm: int, onesided: bool) -> Pair:
    """Real to complex: the last of ``dims`` by a transform of real numbers, of which half is kept."""
    sizes = [x.shape[dim] for dim in dims]
    last = dims[-1]
    made = transformer.transform(x, last, forward=True)
    # The sum of the elements is real, and that of elements with alternating signs: the argument depends on it.
    at = torch.arange(sizes[-1], device=x.device)
    is_real = ((at == 0) | (2 * at == sizes[-1])).reshape(-1, *[1] * (x.dim() - 1 - last % x.dim()))
    made = Pair(made.re, torch.where(is_real, 0, made.im))
    if onesided:
        made = Pair(*(part.narrow(last, 0, sizes[-1] // 2 + 1) for part in made))
    for dim in dims[:-1]:
        made = transformer.transform(made, dim, forward=True)
    return _normalized(made, sizes, norm)


def fft_c2c(transformer: Transformer, x: Pair, dims: list[int], norm: int, forward: bool) -> Pair:
    """Complex to complex."""
    sizes = [x.re.shape[dim] for dim in dims]
    for dim in dims:
        x = transformer.transform(x, dim, forward=forward)
    return _normalized(x, sizes, norm)


def fft_c2r(transformer: Transformer, x: Pair, dims: list[int], norm: int, last_dim_size: Any) -> Tensor:
    """Half of a spectrum to real numbers, backward; the other half is the conjugate of it."""
    last = dims[-1]
    for dim in dims[:-1]:
        x = transformer.transform(x, dim, forward=False)
    half = last_dim_size // 2 + 1
    x = Pair(*(part.narrow(last, 0, half) for part in x))
    mirrored = (last_dim_size - 1) // 2
    rest = Pair(*(part.narrow(last, 1, mirrored).flip(last) for part in x))
    full = Pair(torch.cat([x.re, rest.re], last), torch.cat([x.im, -rest.im], last))
    made = transformer.transform(full, last, forward=False)
    sizes = [*(x.re.shape[dim] for dim in dims[:-1]), last_dim_size]
    return _normalized(made, sizes, norm).re  # type: ignore[no-any-return]


def _normalized(x: Pair, sizes: list[Any], norm: int) -> Pair:
    if norm not in (_BY_ROOT, _BY_N):
        return x
    count = math.prod(sizes)
    if isinstance(count, int):
        return scale(x, 1 / count if norm == _BY_N else 1 / math.sqrt(count))
    number = torch.full((), count, dtype=x.re.dtype, device=x.re.device)
    return scale(x, 1 / number if norm == _BY_N else 1 / number.sqrt())


def overlap_add(x: Tensor, input_sizes: list[Any], dim: int, size: int, step: int) -> Tensor:
    """What ``unfold_backward`` does: frames (..., frames, ..., size) that are added where they overlap.

    Each place reads the frames that reach it, so that nothing is added atomically.
    """
    dim = dim % len(input_sizes)
    frames = x.shape[dim]
    x = x.movedim(dim, -2)
    reach = -(-size // step)
    at = torch.arange(input_sizes[dim], device=x.device).unsqueeze(1)
    frame = at // step - torch.arange(reach, device=x.device)
    offset = at - frame * step
    inside = (frame >= 0) & (frame < frames) & (offset < size)
    frame, offset = (torch.where(inside, index, 0) for index in (frame, offset))
    flat = x.reshape(*x.shape[:-2], frames * size)
    read = aten._unsafe_index.Tensor(flat, [*[None] * (flat.dim() - 1), frame * size + offset])
    return torch.where(inside, read, 0).sum(-1).movedim(-1, dim)
