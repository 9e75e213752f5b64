"""What ``etcuda::selective_scan`` computes, in plain PyTorch: by chunks, as products (Dao and Gu, 2024)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F

from etcuda.kernels.recurrent.reference.chunks import (
    decays,
    for_each_chunk,
    in_chunks,
    out_of_chunks,
    prefixes,
)
from etcuda.kernels.recurrent.reference.states import keeps_each, kept, num_slots, started


def selective_scan_reference(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    positions: Tensor,
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor]:
    """Outputs and the new state; the arguments are the operator's."""
    heads = x.shape[2]
    step = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    step = F.softplus(step).clamp(dt_min, dt_max)
    inputs, (reads, writes) = x.float(), (t.float().repeat_interleave(heads // b.shape[2], 2, output_size=heads)
                                          for t in (c, b))  # fmt: skip
    given = (inputs * step.unsqueeze(-1), step * a.float(), writes, reads, started(state, positions))
    if statically_known_true(x.shape[1] == 1):
        out, new = _one(*given)
    else:
        out, new = _several(*given, num_slots(state) if keeps_each(state, x.shape[1]) else 0)
    if d is not None:
        out = out + inputs * d.float().unsqueeze(-1)
    return out.to(x.dtype), kept(state, new, positions)


def _one(x: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    state = state * a[:, 0].exp()[..., None, None] + x[:, 0].unsqueeze(-1) * b[:, 0].unsqueeze(-2)
    return (state * c[:, 0].unsqueeze(-2)).sum(-1).unsqueeze(1), state


def _several(x: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """The outputs, and the last state, or that behind each token, of which there are ``slots`` at most."""
    length = x.shape[1]
    x, b, c = in_chunks(x), in_chunks(b), in_chunks(c)
    cumulative = in_chunks(a.unsqueeze(-1)).squeeze(-1).cumsum(-1)
    past = cumulative.exp().unsqueeze(-1)
    rest = (cumulative[..., -1:] - cumulative).exp().unsqueeze(-1)
    through = past[..., -1:, :]
    written = (x * rest).transpose(-1, -2) @ b
    first, second = prefixes(through, written, torch.mul, through.new_ones(1, 1))
    states = first * for_each_chunk(state, first) + second
    before = torch.cat((state.unsqueeze(2), states), 2).narrow(2, 0, x.shape[2])
    decay = decays(cumulative)
    result = out_of_chunks((c * past) @ before.transpose(-1, -2) + (c @ b.transpose(-1, -2) * decay) @ x, length)
    if not slots:
        return result, states.select(2, -1)
    # All tokens are in the first chunk. [batch, heads, slots, head_dim, CHUNK] of inputs, as far as they are kept.
    parts = x[:, :, 0].transpose(-1, -2).unsqueeze(2) * decay[:, :, 0, :slots].unsqueeze(-2)
    each = past[:, :, 0, :slots].unsqueeze(-1) * state.unsqueeze(2) + parts @ b[:, :, 0].unsqueeze(2)
    return result, each.transpose(1, 2).narrow(1, 0, length)
