"""GGUF's quantised blocks as our stored tensors: integers and scales are moved, never recomputed.

The block layouts are those of llama.cpp's ``ggml-common.h``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from etcuda.errors import WeightFormatError
from etcuda.kernels.formats.base import MINIMUM, SYMMETRIC, GroupFormat
from etcuda.kernels.formats.int4 import Int4Format
from etcuda.kernels.formats.int8 import Int8Format

Components = dict[str, Tensor]
# Twice the sixteen numbers of E2M1, which are integers.
_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
# Exponents of the powers of two that float16 holds.
_LEAST, _MOST = -24, 15


@dataclasses.dataclass(frozen=True)
class BlockType:
    """A quantised type of GGUF.

    Attributes:
        weights: of a block.
        nbytes: of a block.
        format: what it becomes.
        read: takes blocks uint8 [rows, blocks, nbytes]; the stored tensors [rows, ...].
    """

    weights: int
    nbytes: int
    format: GroupFormat
    read: Callable[[Tensor], Components]

    @property
    def bits_per_weight(self) -> float:
        """In the file."""
        return self.nbytes * 8 / self.weights


def _q4_0(blocks: Tensor) -> Components:
    return {"scale": _half(blocks, 0), "qdata": blocks[..., 2:].flatten(1)}


def _q4_1(blocks: Tensor) -> Components:
    return {"scale": _half(blocks, 0), "zero": _half(blocks, 2), "qdata": blocks[..., 4:].flatten(1)}


def _q5_0(blocks: Tensor) -> Components:
    q = _nibbles(blocks[..., 6:], 16) | (_bits(blocks[..., 2:6]) << 4)
    return {"scale": _half(blocks, 0), "qdata": q.to(torch.int8).sub_(16).flatten(1)}


def _q5_1(blocks: Tensor) -> Components:
    q = _nibbles(blocks[..., 8:], 16) | (_bits(blocks[..., 4:8]) << 4)
    return {"scale": _half(blocks, 0), "zero": _half(blocks, 2), "qdata": q.to(torch.int8).flatten(1)}


def _q8_0(blocks: Tensor) -> Components:
    return {"scale": _half(blocks, 0), "qdata": blocks[..., 2:].flatten(1).view(torch.int8)}


def _q4_k(blocks: Tensor) -> Components:
    q = _nibbles(blocks[..., 16:], 32)
    return {**_scales_k(blocks), "qdata": Int4Format.pack(q.flatten(1))}


def _q5_k(blocks: Tensor) -> Components:
    # Bit j of byte i of the high bits belongs to weight 32 j + i.
    high = (blocks[..., 16:48].unsqueeze(-2) >> _shifts(blocks, 8)) & 1
    q = _nibbles(blocks[..., 48:], 32) | (high.flatten(-2) << 4)
    return {**_scales_k(blocks), "qdata": q.flatten(1).view(torch.int8)}


def _q6_k(blocks: Tensor) -> Components:
    # Two bits of byte i of each half's 32 high bytes: weights i, 32 + i, 64 + i and 96 + i of the half.
    high = blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 1, 32)
    high = (high >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8).unsqueeze(-1)) & 3
    q = _nibbles(blocks[..., :128], 64) | (high.flatten(-3) << 4)
    signed = blocks[..., 192:208].contiguous().view(torch.int8).to(torch.int16)
    # Scale codes have no sign, so that of a scale goes to its 16 integers: 32 at most, which int8 holds.
    sign = torch.where(signed < 0, -1, 1).to(torch.int8)
    grouped = (q.to(torch.int8) - 32).reshape(*signed.shape, 16) * sign.unsqueeze(-1)
    return {
        "scale": signed.abs().to(torch.uint8).flatten(1),
        "scale_step": _half(blocks, 208),
        "qdata": grouped.flatten(1),
    }


def _mxfp4(blocks: Tensor) -> Components:
    qdata, scale = from_mxfp4(_nibbles(blocks[..., 1:], 16), blocks[..., 0], "MXFP4")
    return {"scale": scale, "qdata": qdata.flatten(1)}


def from_mxfp4(codes: Tensor, exponents: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Integers and scales of MXFP4 in groups of 32, exactly.

    The format is of the Open Compute Project's Microscaling Formats (MX) specification 1.0: blocks of 32 numbers of 4
    bits (E2M1) that share a power of two (E8M0).

    Args:
        codes: uint8 [..., 32], numbers from 0 to 15.
        exponents: uint8 [...], of the shared powers of two, plus 127.
        name: for errors.

    Returns:
        int8 [..., 32], twice the numbers; float16 [...], half the powers of two, 1 where all numbers are zero.

    Raises:
        WeightFormatError: float16 does not hold half of a power of two.
    """
    qdata = torch.tensor(_DOUBLED, dtype=torch.int8)[codes.long()]
    exponent = torch.where((qdata != 0).any(-1), exponents.to(torch.int32) - 128, 0)
    if exponent.numel() and (int(exponent.min()) < _LEAST or int(exponent.max()) > _MOST):
        raise WeightFormatError(
            f"{name}: expected MXFP4 with scales from 2^{_LEAST + 1} to 2^{_MOST + 1}, got 2^{int(exponent.min()) + 1} "
            f"to 2^{int(exponent.max()) + 1}, whose half float16 does not hold. Take the weights in bfloat16."
        )
    return qdata, torch.ldexp(torch.ones(exponent.shape), exponent).to(torch.float16)


def _scales_k(blocks: Tensor) -> Components:
    """Steps, and 8 scales and 8 minima of six bits in 12 bytes."""
    packed = blocks[..., 4:16].reshape(*blocks.shape[:2], 3, 4)
    low, middle, high = packed.unbind(-2)
    scale = torch.cat([low & 0x3F, (high & 0xF) | ((low >> 2) & 0x30)], dim=-1)
    minimum = torch.cat([middle & 0x3F, (high >> 4) | ((middle >> 2) & 0x30)], dim=-1)
    return {
        "scale": scale.flatten(1),
        "zero": minimum.flatten(1),
        "scale_step": _half(blocks, 0),
        "zero_step": _half(blocks, 2),
    }


def _half(blocks: Tensor, offset: int) -> Tensor:
    """The float16 at a byte of each block, [rows, blocks]."""
    return blocks[..., offset : offset + 2].contiguous().view(torch.float16).squeeze(-1)


def _nibbles(packed: Tensor, width: int) -> Tensor:
    """Bytes [rows, blocks, n] as [rows, blocks, 2 n]: of each ``width`` bytes first the low halves, then the high."""
    runs = packed.reshape(*packed.shape[:2], packed.shape[2] // width, 1, width)
    return torch.cat([runs & 0xF, runs >> 4], dim=-2).flatten(2)


def _bits(packed: Tensor) -> Tensor:
    """Bytes [rows, blocks, 4] as 32 bits, the lowest first."""
    return ((packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(-2)


def _shifts(blocks: Tensor, count: int) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=blocks.device).unsqueeze(-1)


_MINIMA = ("codes", MINIMUM)
BLOCK_TYPES: dict[str, BlockType] = {
    "Q4_0": BlockType(32, 18, Int4Format(32, "fp16", SYMMETRIC), _q4_0),
    "Q4_1": BlockType(32, 20, Int4Format(32, "fp16", MINIMUM), _q4_1),
    "Q4_K": BlockType(256, 144, Int4Format(32, *_MINIMA), _q4_k),
    "Q5_0": BlockType(32, 22, Int8Format(32, "fp16", SYMMETRIC), _q5_0),
    "Q5_1": BlockType(32, 24, Int8Format(32, "fp16", MINIMUM), _q5_1),
    "Q5_K": BlockType(256, 176, Int8Format(32, *_MINIMA), _q5_k),
    "Q6_K": BlockType(256, 210, Int8Format(16, "codes", SYMMETRIC), _q6_k),
    "MXFP4": BlockType(32, 17, Int8Format(32, "fp16", SYMMETRIC), _mxfp4),
    "Q8_0": BlockType(32, 34, Int8Format(32, "fp16", SYMMETRIC), _q8_0),
}
