"""The rotary kernel on the local GPU: every check of tests/kernels, and programmatic dependent launch."""

from __future__ import annotations

import pytest
import torch

import etcuda.kernels  # noqa: F401  registers the operator
from etcuda.kernels.rotary import launch
from etcuda.kernels.rotary.configs import RotaryConfig
from tests.kernels.rotary.rotary_checks import Case, RotaryChecks, check


class TestOnGpu(RotaryChecks):
    @pytest.mark.parametrize("length", [1, 4, 100])
    @pytest.mark.parametrize("normed", [False, True])
    def test_sizes_of_language_models(self, length: int, normed: bool) -> None:
        case = Case(32, 8, 128, 128, length, 1, 200, normed=normed, wide=True, dtype=torch.bfloat16)
        for heads, num_warps in ((1, 1), (8, 4)):
            check(case.arguments() | {"heads": heads, "num_warps": num_warps})

    @pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9, reason="kernels wait from sm_90 on"
    )
    def test_a_kernel_that_waits_computes_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It loads what the kernel in front of it stores; in a graph, where launches follow closely."""
        # Without the poison: kernels that fill would stand between, and all would wait for them.
        monkeypatch.undo()
        given = Case(32, 8, 128, 128, 4, 1, 50, dtype=torch.bfloat16).arguments()
        given["k"], given["v"] = (given[name].contiguous() for name in ("k", "v"))

        def chain(pdl: int) -> list[torch.Tensor]:
            made, turned = [], given["q"]
            for _ in range(6):
                results = torch.ops.etcuda.rotary_cache(**given | {"q": turned, "pdl": pdl})
                turned = results[0]
                made += results
            return made

        wanted = chain(0)
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

    @pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9, reason="kernels wait from sm_90 on"
    )
    @pytest.mark.parametrize("num_splits", [1, 4])
    def test_attention_behind_it_reads_what_it_writes(self, num_splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rotation, attention and the next rotation are all launched early."""
        monkeypatch.undo()
        given = Case(32, 8, 128, 128, 1, 1, 300, dtype=torch.bfloat16).arguments()
        positions = torch.tensor([299], device="cuda")
        tables = (given["cos"], given["sin"], positions)
        caches = [given[name].clone() for name in ("k_cache", "v_cache")]

        def chain(pdl: int) -> list[torch.Tensor]:
            made, turned = [], given["q"]
            for _ in range(6):
                turned = launch.rotary_cache(
                    turned, given["k"], given["v"], *tables, *caches, None, None, 0.0, 0.0, 128, False, False,
                    RotaryConfig(1, 1), pdl,
                )  # fmt: skip
                turned = torch.ops.etcuda.attention_split(
                    turned, *caches, None, None, positions, 0.1, 3, 0, 0.0, 16, 32, 4, 2, num_splits, 4, 64, pdl
                )
                made.append(turned)
            return made

        wanted = [result.clone() for result in chain(0)]
        chain(1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = chain(1)
        for _ in range(20):
            for cache in caches:
                cache[:, :, 299] = 77
            for result in got:
                result.fill_(77)
            graph.replay()
            torch.cuda.synchronize()
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
