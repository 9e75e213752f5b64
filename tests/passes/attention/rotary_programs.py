"""Attention over caches with rotary positions, as libraries write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tests.passes.attention.attention_routing import routed, runnable

HEADS, KV_HEADS, PLACES = 4, 2, 20
ROTARY = torch.ops.etcuda.rotary_cache.default
Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]


def halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Llama in transformers: tables as wide as a head, in the dtype of x."""
    first, second = x.chunk(2, -1)
    cos, sin = (torch.cat((table, table), -1).to(x.dtype) for table in (cos, sin))
    return x * cos + torch.cat((-second, first), -1) * sin


def halves_in_fp32(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """gpt-oss, and the decoder among the examples: tables half as wide, in fp32."""
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """GPT-J and Cohere in transformers: each entry of the tables twice."""
    cos, sin = (torch.repeat_interleave(table, 2, dim=-1).to(x.dtype) for table in (cos, sin))
    return x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sin


def neighbours_as_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Llama as ExecuTorch's examples have it."""
    first, second = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack((first * cos - second * sin, first * sin + second * cos), -1).flatten(3).to(x.dtype)


def neighbours_as_complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Llama as Meta published it."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(3).to(x.dtype)


def backwards(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation by the opposite angle."""
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), -1).to(x.dtype)


def partly(rotate: Rotate) -> Rotate:
    """Phi and GPT-NeoX: the first numbers of a head alone."""

    def rotate_first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        width = 2 * cos.shape[-1]
        return torch.cat((rotate(x[..., :width], cos, sin), x[..., width:]), -1)

    return rotate_first


def llama_norm(x: Tensor, weight: Tensor) -> Tensor:
    x32 = x.float()
    return weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def gemma_norm(x: Tensor, weight: Tensor) -> Tensor:
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + weight.float())).to(x.dtype)


class Attention(nn.Module):
    """[batch, L, hidden] on a cache of ``PLACES`` tokens.

    Args:
        rotate: of tensors [batch, heads, L, head_dim].
        head_dim: width of a head.
        rotary_dim: how much of it is rotated.
        norm: of each head, in front of it.
        tokens_first: rotates [batch, L, heads, head_dim], its tables with a dimension for the heads.
        batch: sequences.
        dtype: of weights and caches.
    """

    k_cache: Tensor
    v_cache: Tensor

    def __init__(
        self,
        rotate: Rotate,
        head_dim: int = 16,
        rotary_dim: int = 16,
        norm: Callable[[Tensor, Tensor], Tensor] | None = None,
        tokens_first: bool = False,
        batch: int = 1,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        self.rotate, self.norm, self.head_dim, self.tokens_first = rotate, norm, head_dim, tokens_first
        random = torch.Generator().manual_seed(0)
        width = (HEADS + 2 * KV_HEADS) * head_dim
        self.qkv = nn.Parameter((torch.randn(32, width, generator=random) / 6).to(dtype))
        self.q_weight = nn.Parameter(torch.linspace(-0.5, 1.5, head_dim).to(dtype))
        self.k_weight = nn.Parameter(torch.linspace(1.5, 0.5, head_dim).to(dtype))
        for name in ("k_cache", "v_cache"):
            self.register_buffer(name, torch.zeros(batch, KV_HEADS, PLACES, head_dim, dtype=dtype))
        angles = torch.outer(torch.arange(PLACES), torch.linspace(1, 0.01, rotary_dim // 2))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        cos, sin = self.tables(positions)
        q, k = (self.turned(*each, cos, sin) for each in ((q, self.q_weight), (k, self.k_weight)))
        keys, values = self.write(k, v.transpose(1, 2), positions)
        return self.attend(q, keys, values, positions)

    def heads(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values [batch, L, heads, head_dim]."""
        parts = (x @ self.qkv).split([HEADS * self.head_dim, *[KV_HEADS * self.head_dim] * 2], -1)
        return [part.view(*x.shape[:2], -1, self.head_dim) for part in parts]

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos[positions], self.sin[positions]
        return (cos[:, None], sin[:, None]) if self.tokens_first else (cos, sin)

    def turned(self, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Heads [batch, L, heads, head_dim], normed and rotated, [batch, heads, L, head_dim]."""
        x = x if self.norm is None else self.norm(x, weight)
        return (
            self.rotate(x, cos, sin).transpose(1, 2) if self.tokens_first else self.rotate(x.transpose(1, 2), cos, sin)
        )

    def write(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.k_cache.index_copy_(2, positions, k), self.v_cache.index_copy_(2, positions, v)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        mask = torch.arange(PLACES) <= positions[:, None]
        return nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)


def exported(model: nn.Module, length: int = 3, dynamic: bool = False) -> ExportedProgram:
    x, positions = inputs(model, length)
    size = torch.export.Dim("size", min=2, max=PLACES)
    shapes = ({1: size}, {0: size}) if dynamic else None
    return torch.export.export(model.eval(), (x, positions), dynamic_shapes=shapes)


def inputs(model: nn.Module, length: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and their positions, in no order."""
    batch, dtype = model.k_cache.shape[0], model.k_cache.dtype
    x = torch.randn(batch, length, 32, generator=torch.Generator().manual_seed(length)).to(dtype)  # type: ignore[call-overload]
    return x, torch.arange(start, start + length).flip(0)


def fused(program: ExportedProgram) -> list[Any]:
    return [node for node in program.graph.nodes if node.target is ROTARY]


def compare(model: nn.Module, program: ExportedProgram, lengths: tuple[int, ...]) -> None:
    """Asserts that the routed program computes what the model does, call by call, and keeps the same caches."""
    call = runnable(program)
    start = 0
    for length in lengths:
        x, positions = inputs(model, length, start)
        start += length
        with torch.no_grad():
            expected = model(x, positions)
        got = call(x=x, positions=positions)
        torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)


def rewritten(model: nn.Module, length: int = 3, dynamic: bool = False) -> ExportedProgram:
    """The program after the passes."""
    with torch.no_grad():
        return routed(exported(model, length, dynamic))
