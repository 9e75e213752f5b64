"""Checks of the convolution kernel: test_convolution.py runs them in Triton's interpreter, tests/gpu on a GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import etcuda.kernels  # noqa: F401  registers the operator
from tests.kernels.poison import Poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cuts fp32 off to bfloat16 where a GPU rounds.
DTYPES = (torch.float16, torch.bfloat16, torch.float32) if DEVICE == "cuda" else (torch.float16, torch.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: sizes, and what is behind the convolution."""

    batch: int = 1
    channels: int = 16
    height: int = 5
    width: int = 6
    out_channels: int = 16
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True
    residual: bool = False
    relu: bool = False
    dtype: torch.dtype = torch.float16

    def arguments(self) -> dict[str, Any]:
        """The operator's arguments."""
        random = torch.Generator().manual_seed(self.channels + self.height)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random).to(self.dtype).to(DEVICE)

        sizes = zip((self.height, self.width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        out = [(size + 2 * pad - gap * (taps - 1) - 1) // step + 1 for size, taps, step, pad, gap in sizes]
        x = numbers(self.batch, self.channels, self.height, self.width)
        residual = numbers(self.batch, self.out_channels, *out).contiguous(memory_format=torch.channels_last)
        return {
            "x": x.contiguous(memory_format=torch.channels_last),
            "weight": numbers(self.out_channels, *self.kernel, self.channels // self.groups),
            "bias": numbers(self.out_channels) if self.bias else None,
            "residual": residual if self.residual else None,
            "stride": list(self.stride), "padding": list(self.padding), "dilation": list(self.dilation),
            "groups": self.groups, "relu": self.relu, "tf32": False,
            "block_m": 16, "block_n": 16, "block_k": 16, "num_stages": 2, "num_warps": 1,
        }  # fmt: skip


CASES = [
    Case(),
    Case(batch=2, channels=32, out_channels=24, stride=(2, 1), relu=True, residual=True),
    Case(channels=3, out_channels=5, kernel=(5, 4), padding=(2, 0), stride=(1, 3), bias=False),
    Case(channels=32, out_channels=8, groups=2, dilation=(2, 1), padding=(2, 0), residual=True, bias=False),
    Case(channels=12, out_channels=6, groups=3, kernel=(1, 2), relu=True),
    Case(height=1, width=1, kernel=(1, 1), padding=(0, 0), out_channels=40),
]


def expected(given: dict[str, Any]) -> Tensor:
    """In double precision."""
    result = F.conv2d(
        given["x"].double(),
        given["weight"].double().permute(0, 3, 1, 2),
        None if given["bias"] is None else given["bias"].double(),
        given["stride"],
        given["padding"],
        given["dilation"],
        given["groups"],
    )
    result = result if given["residual"] is None else result + given["residual"].double()
    return result.relu() if given["relu"] else result


def check(given: dict[str, Any]) -> None:
    """Asserts that the operator computes what is expected, in the layout that it promises."""
    got = torch.ops.etcuda.convolution(**given)
    assert got.dtype == given["x"].dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}[got.dtype]
    wanted = expected(given)
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


class ConvolutionChecks(Poisoned):
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_numbers(self, case: Case, dtype: torch.dtype) -> None:
        check(dataclasses.replace(case, dtype=dtype).arguments())

    @pytest.mark.parametrize("blocks", [(32, 16, 32), (16, 32, 64)])
    def test_other_tiles(self, blocks: tuple[int, int, int]) -> None:
        tile = dict(zip(("block_m", "block_n", "block_k"), blocks, strict=True))
        check(Case(channels=64, out_channels=40, relu=True).arguments() | tile)

    def test_what_is_no_number_stays_so(self) -> None:
        given = Case(relu=True).arguments()
        given["x"][0, 0, 2, 2] = float("nan")
        assert torch.ops.etcuda.convolution(**given)[0, :, 2, 2].isnan().all()

    def test_no_images(self) -> None:
        assert torch.ops.etcuda.convolution(**Case(batch=0).arguments()).shape == (0, 16, 5, 6)
