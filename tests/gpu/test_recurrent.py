"""Recurrent kernels on the local GPU: every check of tests/kernels, sizes of models, and states written in place."""

from __future__ import annotations

import pytest
import torch

from etcuda.kernels.recurrent.reference.delta import gated_delta_rule_reference
from etcuda.kernels.recurrent.reference.scan import selective_scan_reference
from tests.kernels.recurrent.recurrent_checks import (
    Numbers,
    RecurrentChecks,
    check_ring,
    close,
    naive_delta,
    naive_scan,
)


class TestOnGpu(RecurrentChecks):
    @pytest.mark.parametrize("length", [1, 1000])
    @pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
    def test_sizes_of_qwen3_next(self, length: int, state_dtype: torch.dtype) -> None:
        numbers = Numbers(torch.bfloat16)
        given = {
            "q": numbers(1, length, 16, 128), "k": numbers(1, length, 16, 128), "v": numbers(1, length, 32, 128),
            "g": -numbers(1, length, 32, dtype=torch.float32).abs(), "beta": numbers(1, length, 32).sigmoid(),
            "state": numbers(1, 32, 128, 128, dtype=state_dtype),
            "positions": torch.arange(5, 5 + length, device="cuda"), "normalize": True,
        }  # fmt: skip
        close(torch.ops.etcuda.gated_delta_rule(**given), gated_delta_rule_reference(**given), 2e-2)

    @pytest.mark.parametrize(("length", "slots"), [(1, 8), (8, 8), (5, 16), (1000, 4)])
    def test_rings_of_the_sizes_of_models(self, length: int, slots: int) -> None:
        """In bfloat16, with states in fp32, past the wrap of a ring."""
        numbers = Numbers(torch.bfloat16)
        positions = torch.arange(21, 21 + length, device="cuda")
        given = {
            "q": numbers(1, length, 16, 128), "k": numbers(1, length, 16, 128), "v": numbers(1, length, 32, 128),
            "g": -numbers(1, length, 32, dtype=torch.float32).abs(), "beta": numbers(1, length, 32).sigmoid(),
            "state": numbers(1, 32, 128, 128, dtype=torch.float32), "positions": positions, "normalize": True,
        }  # fmt: skip
        check_ring(torch.ops.etcuda.gated_delta_rule, naive_delta, given, slots, 2e-2)
        given = {
            "x": numbers(1, length, 24, 128), "dt": numbers(1, length, 24) - 2,
            "a": -numbers(24, dtype=torch.float32).abs(), "b": numbers(1, length, 1, 256),
            "c": numbers(1, length, 1, 256), "d": numbers(24), "dt_bias": numbers(24),
            "state": numbers(1, 24, 128, 256, dtype=torch.float32),
            "positions": positions, "dt_min": 0.0, "dt_max": float("inf"),
        }  # fmt: skip
        check_ring(torch.ops.etcuda.selective_scan, naive_scan, given, slots, 2e-2)

    @pytest.mark.parametrize("length", [1, 1000])
    def test_sizes_of_falcon_h1(self, length: int) -> None:
        numbers = Numbers(torch.bfloat16)
        given = {
            "x": numbers(1, length, 24, 128), "dt": numbers(1, length, 24) - 2,
            "a": -numbers(24, dtype=torch.float32).abs(), "b": numbers(1, length, 1, 256),
            "c": numbers(1, length, 1, 256), "d": numbers(24), "dt_bias": numbers(24),
            "state": numbers(1, 24, 128, 256, dtype=torch.float32),
            "positions": torch.arange(5, 5 + length, device="cuda"), "dt_min": 0.0, "dt_max": float("inf"),
        }  # fmt: skip
        close(torch.ops.etcuda.selective_scan(**given), selective_scan_reference(**given), 2e-2)
