"""The products of few rows on the local GPU: every check of tests/kernels, sizes of models, and early launches."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.dense.choose.configs import candidates
from etcuda.kernels.dense.problem import DenseProblem
from tests.kernels.dense.dense_checks import Case, DenseChecks, check


class TestOnGpu(DenseChecks):
    @pytest.mark.parametrize("m", [1, 3, 8])
    @pytest.mark.parametrize(("n", "k"), [(6144, 4096), (1024, 3072), (1000, 1000)])
    @pytest.mark.parametrize("activation", ["none", "silu"])
    def test_candidates_for_sizes_of_models(self, m: int, n: int, k: int, activation: str) -> None:
        case = Case(m, n, k, True, activation, dtype=torch.bfloat16)
        given = case.arguments()
        device = LocalDevice.current()
        found = candidates(DenseProblem(m, n, k, int(activation != "none")), device)
        for config in found[:3] + [each for each in found if each.ctas_per_sm][:2]:
            how = config.launch(m, device.num_sms, 0)
            check(given | {name: getattr(how, name) for name in ("ctas", "block_n", "block_k", "num_warps")})

    @pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9, reason="kernels wait from sm_90 on"
    )
    @pytest.mark.parametrize("ctas", [0, 264])
    def test_a_kernel_that_waits_computes_the_same(self, ctas: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """A norm, a product, a gated product and so on, each reading what the one in front of it stores, in a graph."""
        # Without the poison: kernels that fill would stand between, and all would wait for them.
        monkeypatch.undo()
        case = Case(1, 2048, 2048, dtype=torch.bfloat16, ctas=ctas, block_n=2, block_k=2048, num_warps=4)
        given = case.arguments()
        gated = dataclasses.replace(case, activation="silu").arguments()
        weight = torch.ones(2048, device="cuda", dtype=torch.bfloat16)

        def chain(pdl: int) -> list[torch.Tensor]:
            made, x = [], given["x"]
            residual = x
            for _ in range(5):
                residual, y = torch.ops.etcuda.rms_norm(x, residual, weight, 1e-5, 0.0, True, True, 64, 4, pdl)
                x = torch.ops.etcuda.dense_matvec(**given | {"x": y, "pdl": pdl})
                x = torch.ops.etcuda.dense_matvec(**gated | {"x": x, "pdl": pdl})
                made += [residual, y, x]
            return made

        wanted = chain(0)
        assert all(each.isfinite().all() for each in wanted)
        chain(1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = chain(1)
        for _ in range(20):
            for result in got:
                result.fill_(77)
            graph.replay()
            torch.cuda.synchronize()
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
