"""Searches and scans that are written out for a GPU, as functions of tensors, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch

from etcuda.passes.library import scans
from etcuda.passes.library.search import search
from tests.passes.library.order_cases import FLOATS, INTEGERS, numbers

LENGTHS = (0, 1, 2, 7, 8, 100, 1300)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=str)
@pytest.mark.parametrize("rows", [(), (3,)], ids=["one row", "rows"])
@pytest.mark.parametrize("length", LENGTHS)
def test_search(dtype: torch.dtype, rows: tuple[int, ...], length: int) -> None:
    sequence = numbers((*rows, length), dtype).sort(-1)[0]
    loose = numbers((*rows, length), dtype, 1)
    values = numbers((*rows, 40), dtype, 2, True)
    if dtype.is_floating_point and length:
        # PyTorch's search does not take a NaN for the greatest: what it finds follows from what it looks at.
        sequence[..., -1] = torch.nan
    for right in (False, True):
        for out_int32 in (False, True):
            expected = torch.searchsorted(sequence, values, right=right, out_int32=out_int32)
            found = search(False, sequence, values, right, out_int32=out_int32)
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
        order = loose.argsort(-1)
        expected = torch.searchsorted(loose, values, right=right, sorter=order)
        assert torch.equal(search(False, loose, values, right, sorter=order), expected)


@pytest.mark.parametrize("dtype", [torch.bool, *INTEGERS, *FLOATS], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_scans_by_doubling(dtype: torch.dtype, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "generates_scans", lambda: False)
    x = numbers((3, length, 2), dtype, 0, True)
    for ours, theirs in ((scans.cummax, torch.cummax), (scans.cummin, torch.cummin)):
        found, expected = ours(False, x, 1), theirs(x, 1)
        assert torch.equal(found[1], expected[1])
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0, equal_nan=True)
    # Sums of quarters that stay exact.
    plain = numbers((3, min(length, 100), 2), dtype)
    found, expected = scans.cumsum(False, plain, 1), torch.cumsum(plain, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    few = plain[:, :5]
    torch.testing.assert_close(scans.cumprod(False, few, 1), torch.cumprod(few, 1))
    if dtype.is_floating_point:
        expected = torch.logcumsumexp(plain.double(), 1)
        tolerance = 4 * torch.finfo(dtype).eps
        found = scans.logcumsumexp(False, plain, 1).double()
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
