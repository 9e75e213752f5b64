"""The convolution kernel in Triton's interpreter, its reference, its tiles, and what its operator refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from etcuda.errors import KernelArgumentError
from etcuda.kernels.convolution.configs import CONFIGS, ConvolutionConfig, choose
from etcuda.kernels.convolution.problem import ConvolutionProblem, refuse
from etcuda.target import TARGETS
from tests.kernels.convolution.convolution_checks import CASES, Case, check
from tests.kernels.interpreter import BROKEN, run_checks

LAST_STAGE = ConvolutionProblem(1, 7, 7, 512, 7, 7, 512, 9)
FIRST_STAGE = ConvolutionProblem(1, 56, 56, 64, 56, 56, 64, 9)


def on_cpu(case: Case) -> dict[str, Any]:
    given = case.arguments()
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in given.items()}


@pytest.mark.slow
@pytest.mark.skipif(BROKEN, reason="the interpreter of this Triton fails with this NumPy")
def test_kernels_in_the_interpreter() -> None:
    run_checks("convolution/interpreted.py")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference(case: Case) -> None:
    check(on_cpu(case))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_tiles_that_fit(arch: str) -> None:
    target = TARGETS[arch]
    for itemsize in (2, 4):
        for problem in (LAST_STAGE, FIRST_STAGE, dataclasses.replace(FIRST_STAGE, batch=64)):
            config = choose(dataclasses.replace(problem, itemsize=itemsize), target)
            assert config in CONFIGS
            assert config.shared_bytes(itemsize) <= target.shared_memory_per_block
            config.check()


def test_tiles_for_few_pixels_and_for_many() -> None:
    few = choose(LAST_STAGE, TARGETS["sm_90"])
    many = choose(dataclasses.replace(FIRST_STAGE, batch=64), TARGETS["sm_90"])
    assert few.block_m * few.block_n < many.block_m * many.block_n


def test_what_is_not_served() -> None:
    empty = dataclasses.replace(LAST_STAGE, out_height=0)
    assert refuse(empty) == "a result has at least one pixel, got 0 x 7"
    large = dataclasses.replace(LAST_STAGE, height=1 << 20, width=1 << 10)
    assert refuse(large) == f"an image has at most 2147483647 numbers, got {512 << 30}"


def zeros(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": zeros(1, 16, 5, 6, dtype=torch.float64)}, r"x: expected bfloat16, float16 or float32, got torch"),
        ({"x": zeros(16, 5, 6)}, r"x: expected 4 dimensions, got \[16, 5, 6\]"),
        ({"x": zeros(1, 16, 5, 6)}, r"x: expected a dense tensor with channels last, got strides"),
        (
            {"x": zeros(1, 2, 2, 16).permute(0, 3, 1, 2), "padding": [0, 0]},
            r"a result has at least one pixel, got 0 x 0\. Pad the images",
        ),
        ({"weight": zeros(16, 3, 3)}, r"weight: expected 4 dimensions, got \[16, 3, 3\]"),
        ({"weight": zeros(16, 3, 3, 16, dtype=torch.float32)}, r"weight: expected the dtype of x, torch.float16, got"),
        ({"weight": zeros(16, 3, 3, 16).to("meta")}, r"weight: expected the device of x, cpu, got meta"),
        ({"weight": zeros(16, 0, 3, 16)}, r"weight: expected fixed sizes of 1 or more, got \[16, 0, 3, 16\]"),
        ({"weight": zeros(16, 3, 3, 8)}, r"weight: expected its last size times groups to be 16, got 8"),
        ({"weight": zeros(16, 3, 16, 3).transpose(2, 3)}, r"weight: expected a contiguous tensor, got strides"),
        ({"groups": 3}, r"groups: expected a divisor of the 16 output channels, got 3"),
        ({"stride": [0, 1]}, r"stride: expected 2 numbers of 1 or more, got \[0, 1\]"),
        ({"padding": [1]}, r"padding: expected 2 numbers of 0 or more, got \[1\]"),
        ({"dilation": [1, 0]}, r"dilation: expected 2 numbers of 1 or more, got \[1, 0\]"),
        ({"bias": zeros(1, 16)}, r"bias: expected one dimension \[O\], got \[1, 16\]"),
        ({"bias": zeros(8)}, r"bias: expected its length to be 16, got 8"),
        ({"bias": zeros(32)[::2]}, r"bias: expected a contiguous tensor, got strides \(2,\)"),
        ({"residual": zeros(16, 5, 6)}, r"residual: expected 4 dimensions, got \[16, 5, 6\]"),
        ({"residual": zeros(1, 16, 5, 5)}, r"residual: expected its width to be 6, got 5"),
        ({"residual": zeros(1, 16, 5, 6)}, r"residual: expected a dense tensor with channels last, got strides"),
        ({"block_m": 8}, r"block_m: expected a power of two of 16 or more, got 8"),
        ({"block_k": 48}, r"block_k: expected a power of two of 16 or more, got 48"),
        ({"num_stages": 0}, r"num_stages: expected a number of 1 or more, got 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_arguments_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelArgumentError, match=f"convolution: {message}"):
        torch.ops.etcuda.convolution(**on_cpu(Case()) | changes)


def test_a_tile_is_the_operators_trailing_arguments() -> None:
    assert ConvolutionConfig(16, 32, 64, 3, 4).to_args() == (16, 32, 64, 3, 4)
