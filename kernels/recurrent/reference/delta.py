"""What ``etcuda::gated_delta_rule`` computes, in plain PyTorch: by chunks, in the WY form (Yang et al., 2024)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.recurrent.reference.chunks import (
    CHUNK,
    decays,
    for_each_chunk,
    in_chunks,
    out_of_chunks,
    prefixes,
)
from etcuda.kernels.recurrent.reference.states import keeps_each, kept, num_slots, started


def gated_delta_rule_reference(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, positions: Tensor, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Outputs and the new state; the arguments are the operator's."""
    query, key, value = q.float(), k.float(), v.float()
    if normalize:
        query, key = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (query, key))
    group = v.shape[2] // k.shape[2]
    query, key = (x.repeat_interleave(group, 2, output_size=v.shape[2]) for x in (query, key))
    query = query * q.shape[-1] ** -0.5
    given = (query, key, value, g.float(), beta.float(), started(state, positions))
    if statically_known_true(q.shape[1] == 1):
        out, new = _one(*given)
    else:
        out, new = _several(*given, num_slots(state) if keeps_each(state, q.shape[1]) else 0)
    return out.to(v.dtype), kept(state, new, positions)


def _one(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (x[:, 0] for x in (q, k, v))
    state = state * g[:, 0].exp()[..., None, None]
    held = (state * k.unsqueeze(-1)).sum(-2)
    state = state + k.unsqueeze(-1) * ((v - held) * beta[:, 0].unsqueeze(-1)).unsqueeze(-2)
    return (state * q.unsqueeze(-1)).sum(-2).unsqueeze(1), state


def _several(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, slots: int
) -> tuple[Tensor, Tensor]:
    """The outputs, and the last state, or that behind each token, of which there are ``slots`` at most."""
    length = q.shape[1]
    q, k, v, beta = in_chunks(q), in_chunks(k), in_chunks(v), in_chunks(beta.unsqueeze(-1))
    cumulative = in_chunks(g.unsqueeze(-1)).squeeze(-1).cumsum(-1)
    decay = decays(cumulative)
    past = cumulative.exp().unsqueeze(-1)
    rest = (cumulative[..., -1:] - cumulative).exp().unsqueeze(-1)
    keys = k.transpose(-1, -2)
    inverse = _inverse((beta * k) @ keys * decay)
    written = inverse @ (beta * v)
    read = inverse @ (beta * k * past)
    kept = (k * rest).transpose(-1, -2)
    one = torch.eye(k.shape[-1], device=k.device)
    through = past[..., -1:, :] * one - kept @ read
    first, second = prefixes(through, kept @ written, torch.matmul, one)
    states = first @ for_each_chunk(state, first) + second
    before = torch.cat((state.unsqueeze(2), states), 2).narrow(2, 0, k.shape[2])
    new = written - read @ before
    out = (q * past) @ before + (q @ keys * decay) @ new
    result = out_of_chunks(out, length)
    if not slots:
        return result, states.select(2, -1)
    # All tokens are in the first chunk. [batch, heads, slots, key_dim, CHUNK] of keys, as far as they are kept.
    parts = k[:, :, 0].transpose(-1, -2).unsqueeze(2) * decay[:, :, 0, :slots].unsqueeze(-2)
    each = past[:, :, 0, :slots].unsqueeze(-1) * state.unsqueeze(2) + parts @ new[:, :, 0].unsqueeze(2)
    return result, each.transpose(1, 2).narrow(1, 0, length)


def _inverse(system: Tensor) -> Tensor:
    """The inverse of 1 + the part of [..., CHUNK, CHUNK] below its diagonal, by halves: exact as substitution is."""
    shape = system.shape
    system = system.reshape(-1, CHUNK, CHUNK)
    # Blocks along the diagonal, [all, blocks, size, size], of twice the size in each step.
    found = system.new_ones(()).expand(system.shape[0], CHUNK, 1, 1)
    size = 1
    while size < CHUNK:
        half = found.reshape(-1, CHUNK // (2 * size), 2, size, size)
        upper, lower = half[:, :, 0], half[:, :, 1]
        blocks = system.reshape(-1, CHUNK // (2 * size), 2 * size, CHUNK // (2 * size), 2 * size)
        own = blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        corner = -(lower @ own[:, :, size:, :size] @ upper)
        top = torch.cat((upper, torch.zeros_like(upper)), -1)
        found = torch.cat((top, torch.cat((corner, lower), -1)), -2)
        size *= 2
    return found.reshape(shape)
