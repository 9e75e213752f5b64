"""Caches in 8 and 4 bits on the local GPU: every check of tests/kernels, and sizes of language models."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.registry import find
from etcuda.kernels.quantized_cache.configs import choose
from tests.kernels.quantized_cache.quantized_cache_checks import Case, QuantizedCacheChecks, compare

MODELS = (
    Case("tq4", 256, 32, 16, l_kv=2048, start=1999),
    Case("tq4", 512, 32, 4, l_kv=2048, start=1990, l_q=4),
    Case("tq4", 256, 32, 16, l_kv=700, start=2000, l_q=200, window=500, ring=True),
    Case("tq4", 128, 32, 8, l_kv=1000, start=0, l_q=777),
    Case("fp8", 128, 32, 8, l_kv=1000, start=900),
    Case("int8", 256, 16, 2, l_kv=1000, start=500, l_q=300),
)


class TestOnGpu(QuantizedCacheChecks):
    @pytest.mark.parametrize("case", MODELS, ids=str)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_sizes_of_language_models(self, case: Case, dtype: torch.dtype) -> None:
        arguments = dataclasses.replace(case, dtype=dtype).arguments()
        problem = find("etcuda::quantized_attention").problem_of(arguments)
        compare(arguments | vars(choose(problem, LocalDevice.current())))
