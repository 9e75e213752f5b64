"""Activations reordered for the product in gemm.cu: what is taken, and the reference."""

from __future__ import annotations

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from etcuda.errors import KernelArgumentError
from etcuda.kernels.activations import reorder_launch
from etcuda.kernels.activations.hopper.reorder import SEMAPHORES
from etcuda.kernels.activations.reorder_op import reorder_activation
from etcuda.kernels.linear.hopper import gemm
from tests.kernels.linear.linear_cases import untiled


@pytest.mark.parametrize(
    ("n", "k", "fits"), [(1 << 15, 1 << 13, True), ((1 << 18) - 1, 1 << 15, True), (1 << 18, 1 << 15, False)]
)
def test_sizes_that_the_product_takes(n: int, k: int, fits: bool) -> None:
    assert gemm.fits(n, k, 4, 32, "fp16", "sm_90") == fits
    assert not gemm.fits(n, k, 4, 32, "fp16", "sm_100")


@pytest.mark.parametrize(("bits", "k"), [(8, 256), (4, 160), (4, 65536)])
def test_what_tiled_reordering_does_not_take(bits: int, k: int) -> None:
    expected = "tiled: expected 0 but for int4 and K a multiple of 256 below 65536 on sm_90, got 1 for "
    expected += f"int{bits} and K = {k} on sm"
    with pytest.raises(KernelArgumentError, match=re.escape(f"reorder_activation: {expected}")):
        reorder_activation(torch.ones(3, k), bits, "exact", 16, 1, 0)
    with FakeTensorMode(), pytest.raises(KernelArgumentError, match=re.escape(expected)):
        reorder_activation(torch.ones(3, k), bits, "exact", 16, 1, 0)


def test_tiled_rows_are_the_same_elsewhere() -> None:
    x = torch.randn(21, 512)
    plain, factor, _ = reorder_activation(x, 4, "exact", 16, 0, 0)
    tiled, same, semaphores = reorder_activation(x, 4, "exact", 16, 1, 0)
    assert torch.equal(same, factor)
    assert torch.equal(untiled(tiled), plain)
    assert semaphores.shape == (SEMAPHORES,)
    assert not semaphores.any()


@pytest.mark.parametrize(("dtype", "block_m"), [(torch.bfloat16, 64), (torch.float32, 16), (torch.float16, 128)])
def test_activations_for_sums_in_float16_are_not_quantized(dtype: torch.dtype, block_m: int) -> None:
    x = (torch.randn(21, 512) * torch.logspace(-6, 6, 21, base=2).unsqueeze(1)).to(dtype)
    plain, divided_by, _ = reorder_activation(x, 4, "exact", block_m, 0, 0)
    tiled, factor, _ = reorder_activation(x, 4, "int8", block_m, 1, 0)
    assert tiled.dtype == torch.float16
    assert 2 <= tiled.abs().max() < 4
    assert torch.equal(factor, divided_by * 2**12)
    expected = plain[:21].double() * divided_by.unsqueeze(1)
    assert (untiled(tiled)[:21].double() * factor.unsqueeze(1) - expected).abs().max() <= 2**-25 * factor.max()


def test_bfloat16_for_small_tiles_stays_as_it_is() -> None:
    x = torch.randn(21, 512).bfloat16()
    x[3] *= 1e30
    plain, factor, _ = reorder_activation(x[:3], 4, "exact", 16, 0, 0)
    tiled, ones, _ = reorder_activation(x, 4, "int8", 16, 1, 0)
    assert (tiled.dtype, tiled.shape) == (torch.bfloat16, (32, 512))
    assert torch.equal(ones, torch.ones(21))
    assert torch.equal(untiled(tiled)[:3].float(), plain[:3].float() * factor.unsqueeze(1))
    assert torch.equal(untiled(tiled)[3].sort().values, x[3].sort().values)
    exact, _, _ = reorder_activation(x, 4, "exact", 16, 1, 0)
    assert exact.dtype == torch.float16


def test_rows_that_kernels_read_by_fours() -> None:
    wide = torch.randn(6, 40)
    assert reorder_launch._rows_of_fours(wide[:, :32]).stride() == (40, 1)
    for rows in (torch.randn(32, 1).t(), torch.randn(6, 33)[:, :32], torch.randn(32, 6).t()):
        got = reorder_launch._rows_of_fours(rows)
        assert torch.equal(got, rows)
        assert got.stride() == (32, 1)
