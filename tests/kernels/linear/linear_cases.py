"""Quantised weights for the tests of the kernels, and the product in double precision that they are compared with.

The kernels run on the GPU if there is one; else in Triton's interpreter, which must be on before triton is imported.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from etcuda.kernels.formats.base import COMPONENTS, GroupFormat
from etcuda.kernels.formats.registry import find
from etcuda.kernels.formats.stored import StoredWeight

Stored = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter multiplies the bit patterns of bfloat16 matrices.
DTYPES = (torch.float16, torch.bfloat16, torch.float32) if DEVICE == "cuda" else (torch.float16, torch.float32)
# Largest error relative to the norm of the result: the rounding of the result, and of weights to fp16.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 5e-3, torch.float32: 2e-3}


@dataclasses.dataclass(frozen=True)
class Case:
    """A weight: N is odd where nothing else is said."""

    format_name: str = "int4"
    n: int = 9
    k: int = 256
    group_size: int = 32
    storage: str = "fp16"
    offset: str = "zero_point"
    bias: bool = True
    seed: int = 0

    @property
    def format(self) -> GroupFormat:
        """The weight's format."""
        return find(self.format_name).format_type(self.group_size, self.storage, self.offset)

    @property
    def bits(self) -> int:
        """Of an integer."""
        return self.format.bits

    def __str__(self) -> str:
        return f"{self.format_name}-{self.storage}-{self.offset}-{self.group_size}-{self.k}"


@dataclasses.dataclass(frozen=True)
class Weight:
    """Stored tensors, the bias, and both in double precision."""

    format: GroupFormat
    stored: Stored
    bias: Tensor | None
    values: Tensor

    @property
    def quantized(self) -> StoredWeight:
        """The stored tensors with their format."""
        return StoredWeight(self.format, *self.stored)

    def product(self, x: Tensor) -> Tensor:
        """x @ weight.T + bias in double precision."""
        result = x.double() @ self.values.T
        return result if self.bias is None else result + self.bias.double()


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is not a number."""
    plain = Tensor.new_empty

    def new_empty(self: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        made = plain(self, *arguments, **keywords)
        return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(77)

    monkeypatch.setattr(Tensor, "new_empty", new_empty)


def make(case: Case, dtype: torch.dtype = torch.float16) -> Weight:
    """A random weight."""
    random = torch.Generator().manual_seed(case.seed)
    weight_format = case.format
    least, most = weight_format.integers
    q = torch.randint(least, most + 1, (case.n, case.k), generator=random)
    parts: dict[str, Tensor] = {}
    for name, (shape, stored_dtype) in weight_format.components(case.n, case.k).items():
        if name == "qdata":
            parts[name] = weight_format.pack(q)
        elif stored_dtype == torch.uint8:
            most = 255 if name == "zero" and weight_format.offset == "zero_point" else 63
            parts[name] = torch.randint(0, most + 1, shape, generator=random, dtype=torch.uint8)
        else:
            size = (1e-2 if "zero" not in name else 5e-2) * (1.0 if case.bits == 4 else 0.1)
            parts[name] = (torch.randn(shape, generator=random) * size).to(stored_dtype)
    stored = tuple(parts.get(name) for name in COMPONENTS)
    bias = torch.randn(case.n, generator=random).to(dtype) if case.bias else None
    values = _values(weight_format, q, parts)
    moved = tuple(None if part is None else part.to(DEVICE) for part in stored)
    return Weight(weight_format, moved, None if bias is None else bias.to(DEVICE), values.to(DEVICE))  # type: ignore[arg-type]


def activations(m: int, k: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """Random rows of very different magnitude; some blocks of the first are zero."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=random) * 10.0 ** torch.linspace(-2, 2, max(m, 1))[:m, None]
    if m:
        x[0, 32:64] = 0
    return x.to(dtype).to(DEVICE)


def rounded(x: Tensor) -> Tensor:
    """What int8 activations per block of 32 stand for, in double precision; written down without the code under
    test."""
    blocks = x.double().reshape(x.shape[0], -1, 32)
    step = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
    return (torch.round(blocks / step) * step).reshape(x.shape)


def error(got: Tensor, expected: Tensor) -> float:
    """The greatest error of a row relative to the row's norm."""
    difference = (got.double() - expected).norm(dim=-1)
    return float((difference / expected.norm(dim=-1)).max())


def _values(weight_format: GroupFormat, q: Tensor, parts: dict[str, Tensor]) -> Tensor:
    grouped = q.reshape(q.shape[0], -1, weight_format.group_size).double()
    scale = _wide(parts["scale"], parts.get("scale_step"))
    if weight_format.offset == "symmetric":
        grouped = grouped - {"int4": 8, "int8": 0}[weight_format.name]
    elif weight_format.offset == "zero_point":
        grouped = grouped - parts["zero"].double()[..., None]
    values = grouped * scale[..., None]
    if weight_format.offset == "minimum":
        minimum = _wide(parts["zero"], parts.get("zero_step"))
        values = values - minimum[..., None] if "zero_step" in parts else values + minimum[..., None]
    return values.reshape(q.shape)


def _wide(codes: Tensor, step: Tensor | None) -> Tensor:
    if step is None:
        return codes.double()
    return codes.double() * step.double().repeat_interleave(codes.shape[1] // step.shape[1], 1)


def untiled(reordered: Tensor) -> Tensor:
    """Rows of 64 columns, piece p of row m of which lies at p ^ (m % 8), as plain rows."""
    rows, width = reordered.shape
    pieces = reordered.reshape(width // 64, rows, 8, 8)
    plain = torch.empty_like(reordered)
    for m in range(rows):
        swapped = [piece ^ (m % 8) for piece in range(8)]
        plain[m] = pieces[:, m, swapped].reshape(width)
    return plain


def compare_reordered(got: Tensor, wanted: Tensor, same: bool) -> None:
    """Checks reordered activations, on the CPU, against the reference's: the same, or quantized by other
    instructions."""
    got, wanted = got.float(), wanted.float()
    if same:
        assert torch.equal(got, wanted)
        return
    # A step that is divided for, or multiplied, otherwise differs by one of fp16, and at a tie the integer by one.
    far = (got - wanted).abs() > 1e-3 * wanted.abs()
    assert float(far.double().mean()) < 0.01
    step = wanted.reshape(len(wanted), -1, 32).abs().amax(2).max() / 127
    assert float((got - wanted).abs().max()) <= 1.01 * float(step)
