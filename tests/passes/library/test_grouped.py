"""Products of groups: what the batched product of blocks computes, wherever groups end."""

from __future__ import annotations

import pytest
import torch

from etcuda.passes.library.grouped import grouped_mm


@pytest.mark.parametrize("count", [1, 5, 40, 130, 2000])
@pytest.mark.parametrize("groups", [1, 4, 9])
def test_groups_end_anywhere(count: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(count * groups)
    rows = torch.randn(count, 8, dtype=torch.float64, generator=generator)
    matrices = torch.randn(groups, 8, 6, dtype=torch.float64, generator=generator)
    cuts = torch.randint(0, count + 1, (groups,), generator=generator).sort()[0]
    for ends in (cuts, torch.full_like(cuts, count), torch.zeros_like(cuts), cuts.clamp(min=count // 2)):
        expected, start = torch.zeros(count, 6, dtype=torch.float64), 0
        for group, end in enumerate(ends.tolist()):
            expected[start:end] = rows[start:end] @ matrices[group]
            start = end
        torch.testing.assert_close(grouped_mm(True, rows, matrices, ends.int(), None, None), expected)


def test_without_groups() -> None:
    rows, matrices = torch.randn(3, 4, 8), torch.randn(3, 8, 6)
    torch.testing.assert_close(grouped_mm(True, rows, matrices, None, None, None), rows @ matrices)
