"""A Llama-shaped decoder in plain PyTorch: RMSNorm, rotary positions, grouped-query attention, SwiGLU, a KV cache.

One ``forward`` serves both methods of the exported program. ``prefill`` is it with a dynamic number of tokens,
``decode`` with one token; both see the same parameters and the same cache buffers under the same names.
"""

from __future__ import annotations

import dataclasses
import pathlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder. The defaults are those of the weights in this folder."""

    vocab_size: int = 256
    dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    hidden_dim: int = 384
    max_seq: int = 512
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, computed in fp32 (Zhang and Sennrich, 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last axis of ``x``; same shape and dtype."""
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * scale).to(x.dtype) * self.weight


def rotary_tables(head_dim: int, max_seq: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, each [max_seq, head_dim / 2] in fp32 (Su et al., 2021)."""
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(max_seq, dtype=torch.float32), frequency)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of each head.

    Args:
        x: [batch, heads, L, head_dim].
        cos: [L, head_dim / 2], fp32.
        sin: [L, head_dim / 2], fp32.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention over a cache that is written in place."""

    k_cache: Tensor
    v_cache: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        kv_dim = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.k_proj = nn.Linear(config.dim, kv_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, kv_dim, bias=False)
        self.o_proj = nn.Linear(config.dim, config.dim, bias=False)
        cache = (1, config.num_kv_heads, config.max_seq, config.head_dim)
        self.register_buffer("k_cache", torch.zeros(cache))
        self.register_buffer("v_cache", torch.zeros(cache))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """Attends from ``x`` [batch, L, dim] to the cache, or to ``x`` itself where ``positions`` is None."""
        batch, length, dim = x.shape
        q, k, v = (
            proj(x).view(batch, length, -1, self.config.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if positions is not None:
            k = self.k_cache.index_copy_(2, positions, k)
            v = self.v_cache.index_copy_(2, positions, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        projected: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, dim))
        return projected


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.down_proj = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out, [batch, L, dim]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and a residual."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """Same shape in and out, [batch, L, dim]."""
        x = x + self.attention(self.attention_norm(x), cos, sin, positions, mask)
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out


class Decoder(nn.Module):
    """The whole model; the output projection shares the embedding's weight."""

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: DecoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DecoderConfig()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        cos, sin = rotary_tables(config.head_dim, config.max_seq, config.rope_base)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.rope_cos[positions], self.rope_sin[positions]

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Appends tokens to the cache and predicts what follows the last of them.

        Args:
            tokens: [1, L] int64, values below ``vocab_size``.
            positions: [L] int64, where in the cache each token goes; ascending, below ``max_seq``.

        Returns:
            logits [1, vocab_size] in the model's dtype.
        """
        cos, sin = self._rotary(positions)
        mask = torch.arange(self.config.max_seq, device=positions.device) <= positions.unsqueeze(1)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin, positions, mask)
        return F.linear(self.norm(x[:, -1]), self.embedding.weight)

    def training_logits(self, tokens: Tensor) -> Tensor:
        """Logits [batch, L, vocab_size] at every position of ``tokens`` [batch, L]; the cache is not used."""
        cos, sin = self._rotary(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin, None)
        return F.linear(self.norm(x), self.embedding.weight)

    def convert(self, dtype: torch.dtype) -> Decoder:
        """Casts weights and cache; the rotary tables stay in fp32, for their angles need it."""
        cos, sin = self.rope_cos, self.rope_sin
        self.to(dtype)
        self.rope_cos, self.rope_sin = cos, sin
        return self

    def reset(self) -> None:
        """Empties the cache."""
        for name, buffer in self.named_buffers():
            if name.endswith(("k_cache", "v_cache")):
                buffer.zero_()


WEIGHTS = pathlib.Path(__file__).parent / "weights.safetensors"


def encode(text: str) -> list[int]:
    """Text to tokens: the bytes of its UTF-8 form."""
    return list(text.encode())


def decode(tokens: list[int]) -> str:
    """Tokens to text; bytes that are no UTF-8 become the replacement character."""
    return bytes(tokens).decode(errors="replace")


def load_decoder(dtype: torch.dtype = torch.float32) -> Decoder:
    """The trained decoder in evaluation mode.

    Raises:
        FileNotFoundError: the weights are missing; ``train.py`` makes them.
    """
    from safetensors.torch import load_file

    if not WEIGHTS.is_file():
        raise FileNotFoundError(f"{WEIGHTS} is missing. Expected the trained weights; run train.py to make them.")
    model = Decoder()
    missing, unexpected = model.load_state_dict(load_file(WEIGHTS), strict=False)
    missing = [name for name in missing if not name.endswith(("k_cache", "v_cache"))]
    if missing or unexpected:
        raise ValueError(
            f"{WEIGHTS} does not fit the model: missing {missing}, unexpected {unexpected}. Run train.py again."
        )
    return model.eval().requires_grad_(False).convert(dtype)


def export_decoder(model: Decoder, hint: int = 32) -> dict[str, torch.export.ExportedProgram]:
    """The two methods of the program.

    Args:
        model: in evaluation mode; its cache is emptied first, so that programs start from zeros.
        hint: length of the example prompt, which code generation takes as the typical one.
    """
    model.reset()
    length = torch.export.Dim("length", min=2, max=model.config.max_seq)
    prompt = (torch.zeros(1, hint, dtype=torch.long), torch.arange(hint))
    one = (torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        return {
            "prefill": torch.export.export(
                model, prompt, dynamic_shapes={"tokens": {1: length}, "positions": {0: length}}, strict=True
            ),
            "decode": torch.export.export(model, one, strict=True),
        }
