"""Checks of the kernels over coded caches: test_quantized_cache.py runs them in Triton's interpreter, tests/gpu on a
GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.kernels.common.registry import find
from etcuda.kernels.quantized_cache.codes import decode, encode
from etcuda.kernels.quantized_cache.configs import QuantizedConfig
from etcuda.kernels.quantized_cache.formats import FORMATS, SCALE_DTYPE
from tests.kernels.poison import Poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cuts fp32 off to bfloat16 where a GPU rounds.
DTYPES = (torch.float16, torch.bfloat16, torch.float32) if DEVICE == "cuda" else (torch.float16, torch.float32)
MOST_ERROR = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 8e-3}
# Levels of tq4 are computed in bfloat16 there, and three of eight are half a percent off: 0.4% of all keys and values,
# where the codes themselves are 10% off.
MOST_ERROR_OF_LEVELS = 1.2e-2
GENERIC = QuantizedConfig(16, 16, 4, 2, 1)


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of attention: sizes, and what a row sees."""

    format: str = "tq4"
    head_dim: int = 64
    heads: int = 4
    kv_heads: int = 2
    batch: int = 1
    l_q: int = 1
    l_kv: int = 37
    start: int | None = None
    window: int = 0
    ring: bool = False
    lengths: bool = False
    mask: str = ""
    sinks: bool = False
    softcap: float = 0.0
    splits: int = 1
    section: int = 0
    block_n: int = 16
    dtype: torch.dtype = torch.float16

    def arguments(self) -> dict[str, Any]:
        """The operator's arguments."""
        random = torch.Generator().manual_seed(self.head_dim + self.l_kv + self.l_q)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random)

        shape = (self.batch, self.kv_heads, self.l_kv, self.head_dim)
        (k, k_scale), (v, v_scale) = (encode(2.0 * numbers(*shape), self.format) for _ in range(2))
        mask = numbers(self.l_q, self.l_kv) if self.mask else None
        found: dict[str, Any] = {
            "q": numbers(self.batch, self.heads, self.l_q, self.head_dim).to(self.dtype),
            "k": k,
            "k_scale": k_scale,
            "v": v,
            "v_scale": v_scale,
            "mask": None if mask is None else mask > 0 if self.mask == "bool" else mask,
            "kv_len": torch.tensor([self.l_kv, 5][: self.batch]) if self.lengths else None,
            "positions": None if self.start is None else torch.arange(self.start, self.start + self.l_q),
            "sinks": numbers(self.heads) if self.sinks else None,
        }
        moved = {name: each.to(DEVICE) if isinstance(each, Tensor) else each for name, each in found.items()}
        numbers_of = {"format": self.format, "scale": self.head_dim**-0.5, "window": self.window}
        config = dataclasses.replace(GENERIC, num_splits=self.splits, section=self.section, block_n=self.block_n)
        return moved | numbers_of | {"softcap": self.softcap, "ring": self.ring} | vars(config)


ATTENTION_CASES = (
    Case("int8", 80, start=36),
    Case("fp8", 64, start=20, splits=3),
    Case("tq4", 128, start=36, splits=4),
    Case("tq4", 256, l_kv=33, start=30, l_q=3, dtype=torch.float32),
    Case("tq4", 512, l_kv=17, start=16, kv_heads=1, splits=2),
    Case("int8", 512, l_kv=17, start=11, heads=2, kv_heads=2, dtype=torch.float32),
    Case("tq4", 32, l_q=21, start=10, window=7),
    Case("tq4", 64, l_q=3, l_kv=24, start=53, window=22, ring=True, splits=2),
    Case("fp8", 20, l_q=2, l_kv=11, start=53, window=10, ring=True, sinks=True),
    Case("int8", 32, batch=2, l_q=2, lengths=True, softcap=2.0, splits=2),
    Case("tq4", 64, batch=2, l_q=5, lengths=True, start=30, sinks=True),
    Case("tq4", 64, l_q=4, mask="bool", splits=2),
    Case("tq4", 64, l_q=21, l_kv=70, start=30, window=9, section=2),
    Case("tq4", 64, l_q=18, l_kv=300, start=140, window=9, section=2, block_n=64),
    Case("int8", 20, l_q=19, l_kv=40, start=53, window=22, ring=True, sinks=True, section=4),
    Case("fp8", 32, batch=2, l_q=17, lengths=True, softcap=2.0, section=1),
    Case("fp8", 64, l_q=4, mask="float", dtype=torch.float32),
)


def compare(arguments: dict[str, Any]) -> None:
    """The operator against its formula."""
    record = find("etcuda::quantized_attention")
    got, wanted = record.overload(**arguments), record.compute(arguments)
    error = float((got.double() - wanted.double()).norm() / wanted.double().norm())
    in_levels = arguments["format"] == "tq4" and got.dtype == torch.bfloat16
    assert error <= (MOST_ERROR_OF_LEVELS if in_levels else MOST_ERROR[got.dtype]), error
    assert got.transpose(1, 2).is_contiguous()


class QuantizedCacheChecks(Poisoned):
    @pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
    def test_attention(self, case: Case) -> None:
        compare(case.arguments())

    @pytest.mark.parametrize("format", list(FORMATS))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_code_means_what_the_reference_says(self, format: str, dtype: torch.dtype) -> None:
        """One key, whose value is the result: a cache of all codes, one slot at a time through its length."""
        width = FORMATS[format].width(64)
        codes = torch.arange(256, dtype=torch.uint8).reshape(256 // width, 1, 1, width)
        if format == "fp8":
            codes[(codes & 0x7F) == 0x7F] = 0  # NaN, which no number is coded as.
        if format == "int8":
            codes[codes == 0] = 128
        scale = torch.full((len(codes), 1, 1), 0.75, dtype=SCALE_DTYPE)
        q = torch.zeros(len(codes), 1, 1, 64, dtype=dtype)
        tensors = [each.to(DEVICE) for each in (q, codes, scale, codes, scale)]
        got = torch.ops.etcuda.quantized_attention(*tensors, None, None, None, None, format, 1.0)
        wanted = find("etcuda::quantized_attention").compute(
            dict(zip(("q", "k", "k_scale", "v", "v_scale"), tensors, strict=True))
            | {"mask": None, "kv_len": None, "positions": None, "sinks": None, "format": format, "scale": 1.0}
        )
        torch.testing.assert_close(got.float(), wanted.float(), rtol=MOST_ERROR[dtype], atol=2e-2 * 0.75)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("format", "head_dim"), [("int8", 80), ("fp8", 64), ("tq4", 128), ("tq4", 512)])
    def test_store(self, format: str, head_dim: int, dtype: torch.dtype) -> None:
        """Codes are those of the formula but where two kinds of sums lie on two sides of a threshold; a vector of
        zeros, places that are outside, and slots that stay."""
        random = torch.Generator().manual_seed(head_dim)
        k, v = (torch.randn(2, 3, 5, head_dim, generator=random).to(dtype).to(DEVICE) for _ in range(2))
        k[0, 0, 0] = 0
        positions = torch.tensor([8, 2, -1, 40, 0], device=DEVICE)
        width = FORMATS[format].width(head_dim)
        codes = torch.full((2, 3, 11, width), 7, dtype=torch.uint8, device=DEVICE)
        scale = torch.full((2, 3, 11), 2.0, dtype=SCALE_DTYPE, device=DEVICE)
        got = torch.ops.etcuda.quantized_cache_store(k, v, positions, codes, scale, codes, scale, format)
        written, rows = [8, 2, 10, 0], [0, 1, 2, 4]
        rest = [slot for slot in range(11) if slot not in written]
        for x, made, sizes in ((k, got[0], got[1]), (v, got[2], got[3])):
            wanted_codes, wanted_scale = encode(x[:, :, rows], format)
            torch.testing.assert_close(sizes[:, :, written], wanted_scale, rtol=1e-2, atol=0)
            # The interpreter cuts scales off where a GPU rounds them.
            same = sizes[:, :, written] == wanted_scale
            assert bool(same.any())
            assert float((made[:, :, written] != wanted_codes)[same].double().mean()) < 0.01
            error = decode(made[:, :, written], sizes[:, :, written], format) - decode(
                wanted_codes, wanted_scale, format
            )
            assert float(error.norm()) <= 2e-2 * float(x.float().norm())
            assert torch.equal(made[:, :, rest], codes[:, :, rest])
            assert torch.equal(sizes[:, :, rest], scale[:, :, rest])
