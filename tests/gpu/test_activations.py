"""The activation kernels on the local GPU: every check of tests/kernels, and programmatic dependent launch."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.activations.activation_checks import (
    DTYPES,
    ActivationChecks,
    check_quantized,
    check_values,
    expected_norm,
    gated,
    norm,
    numbers,
)


class TestOnGpu(ActivationChecks):
    @pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9, reason="kernels wait from sm_90 on"
    )
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("m", [1, 9])
    def test_kernels_that_wait_compute_the_same(
        self, dtype: torch.dtype, m: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each kernel loads what the one in front of it stores; in a graph, where launches follow closely."""
        # Without the poison: kernels that fill would stand between, and all would wait for them.
        monkeypatch.undo()
        x, residual = (numbers(m, 5376, dtype=dtype, seed=seed, spread=0.0) for seed in (0, 1))
        weight = torch.full((5376,), 0.25, dtype=dtype, device="cuda")

        def chain(pdl: int) -> list[torch.Tensor]:
            h, made = residual, []
            for _ in range(4):  # After more, numbers no longer fit fp16.
                h, y, *quantized = norm(x, h, weight, pdl=pdl)
                h, *more = gated(y, h, pdl=pdl)
                made += [y, h, *quantized, *more]
            return made

        wanted = chain(0)
        chain(1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = chain(1)
        for _ in range(20):
            # What is loaded before it is stored is this.
            for result in got:
                result.fill_(77)
            graph.replay()
            torch.cuda.synchronize()
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))

    @pytest.mark.parametrize("k", [1024, 5376, 21504, 131072])
    def test_sizes_of_language_models(self, k: int) -> None:
        x, residual = (numbers(3, k, dtype=torch.bfloat16, seed=seed) for seed in (0, 1))
        weight = numbers(1, k, dtype=torch.bfloat16, seed=2)[0]
        for pdl in (0, torch.cuda.get_device_capability()[0] >= 9):
            h, y, *quantized = norm(x, residual, weight, cast_first=True, pdl=int(pdl))
            assert torch.equal(h, x + residual)
            check_values(y, expected_norm(x, residual, weight, 0.0, True))
            check_quantized(y, *quantized)
