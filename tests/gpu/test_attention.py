"""The attention kernels on the local GPU: every check of tests/kernels, and the accuracy of PyTorch's own kernel."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from etcuda.kernels.attention import table
from etcuda.kernels.attention.op import attention_split, attention_tiled
from etcuda.kernels.attention.problem import FULL, UPPER_LEFT, AttentionProblem
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.attention.select import choose
from etcuda.kernels.attention.shapes import split_problems, tiled_problems
from etcuda.kernels.attention.tune import call_kernel, make_inputs
from etcuda.kernels.common.device import LocalDevice
from tests.kernels.attention.attention_checks import AttentionChecks

# Longer ones take the reference in double precision too long.
PROBLEMS = [p for _, p in (*split_problems(), *tiled_problems()) if p.l_q * p.l_kv <= 1 << 22 and p.batch == 1]


MASKS: dict[str, tuple[int, int, str]] = {
    "causal": (UPPER_LEFT, 0, ""),
    "window": (UPPER_LEFT, 100, ""),
    "bool": (FULL, 0, "bool"),
    "float": (FULL, 0, "float"),
    "float by head": (FULL, 0, "by head"),
}


class TestOnGpu(AttentionChecks):
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize(
        "problem", PROBLEMS, ids=lambda p: f"{p.num_kv_heads}x{p.head_dim}-{p.l_q}-{p.l_kv}-{p.window}"
    )
    def test_what_export_picks_is_as_accurate_as_pytorch(self, problem: AttentionProblem, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        problem = AttentionProblem(**{**vars(problem), "dtype": dtype})
        q, (k,), (v,) = make_inputs(problem)
        choice = choose(problem, LocalDevice.current())
        expected = attention_reference(q.double(), k.double(), v.double(), causal=problem.causal, window=problem.window)

        def error(got: torch.Tensor) -> float:
            return float((got.double() - expected).norm() / expected.norm())

        ours = error(call_kernel(choice.kernel, problem, choice.config, q, k, v))
        assert ours < 1e-2
        if problem.head_dim <= 256 and not problem.window and problem.causal in (FULL, UPPER_LEFT):
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
                flash = torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=problem.causal == UPPER_LEFT, enable_gqa=True
                )
            assert ours <= 1.1 * error(flash)

    def test_the_table_of_this_gpu_is_used(self) -> None:
        device = LocalDevice.current()
        if table.load(device.arch) is None:
            pytest.skip(f"no table for {device.arch}")
        assert "measured on" in choose(split_problems()[0][1], device).source

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("l_q", [1, 9, 700])
    @pytest.mark.parametrize("kind", MASKS)
    def test_masks_are_as_accurate_as_pytorch(self, kind: str, l_q: int, dtype: torch.dtype) -> None:
        """PyTorch's flash kernel takes no mask; its memory-efficient one takes every kind."""
        torch.manual_seed(0)
        causal, window, tensor = MASKS[kind]
        problem = AttentionProblem(2, 6, 2, 128, l_q, 700, dtype, causal, window, has_mask=tensor != "")
        q, (k,), (v,) = make_inputs(problem)
        mask = None
        if tensor:
            shape = (2, 6, l_q, 700) if tensor == "by head" else (l_q, 700)
            mask = torch.randn(shape, device="cuda", dtype=dtype)
            mask = mask > -0.5 if tensor == "bool" else mask
        choice = choose(problem, LocalDevice.current())
        operator = {"split": attention_split, "tiled": attention_tiled}[choice.kernel]
        wide = mask if mask is None or mask.dtype == torch.bool else mask.double()
        expected = attention_reference(q.double(), k.double(), v.double(), wide, causal=causal, window=window)
        scale = problem.head_dim**-0.5
        got = operator(q, k, v, mask, None, None, scale, causal, window, 0.0, *dataclasses.astuple(choice.config))
        dense = mask
        if causal:
            dense = torch.ones(l_q, 700, dtype=torch.bool, device="cuda").tril()
            dense = dense.triu(1 - window) if window else dense
        k, v = (x.repeat_interleave(3, 1) for x in (k, v))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION):
            other = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)

        def error(result: torch.Tensor) -> float:
            return float((result.double() - expected).norm() / expected.norm())

        assert error(got) <= 1.1 * error(other)
