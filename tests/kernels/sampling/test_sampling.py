"""The sampling kernel in Triton's interpreter, how it is cut, what its operator refuses, and its code for a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from etcuda.errors import KernelArgumentError
from etcuda.kernels.sampling.configs import SamplingConfig, choose
from etcuda.kernels.sampling.problem import MAX_CTAS, MAX_VOCAB_SIZE, SamplingProblem, refuse
from tests.kernels.interpreter import BROKEN, run_checks
from tests.kernels.sampling.sampling_checks import SMALL


@pytest.mark.slow
@pytest.mark.skipif(BROKEN, reason="the interpreter of this Triton fails with this NumPy")
def test_kernels_in_the_interpreter() -> None:
    run_checks("sampling/interpreted.py")


@pytest.mark.parametrize("vocab_size", [1, 257, 4096, 4097, 128256, 262144, MAX_VOCAB_SIZE])
def test_every_logit_has_a_thread_and_all_ctas_fit(vocab_size: int) -> None:
    config = choose(SamplingProblem(vocab_size))
    assert refuse(SamplingProblem(vocab_size)) is None
    assert config.ctas(vocab_size) <= MAX_CTAS
    assert config.ctas(vocab_size) * config.block >= vocab_size
    assert config.ctas(vocab_size) * config.num_warps * 32 <= 8192
    assert choose(SamplingProblem(128256)) == SamplingConfig(8192, 8)


def test_what_is_not_served() -> None:
    assert refuse(SamplingProblem(MAX_VOCAB_SIZE + 1)) == f"the number of tokens is 1 to 524288, got {1 + 2**19}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(1, 37)}, r"logits: expected one dimension \[vocab_size\], got \[1, 37\]"),
        ({"logits": torch.zeros(37, dtype=torch.float64)}, "logits: expected bfloat16, float16 or float32, got"),
        ({"settings": torch.zeros(4)}, r"settings: expected shape \[3\], got \[4\]"),
        ({"top_k": torch.zeros(1)}, "top_k: expected torch.int64, got torch.float32"),
        ({"state": torch.zeros(1, dtype=torch.int64)}, r"state: expected shape \[2\], got \[1\]"),
        ({"allowed": torch.zeros(1, dtype=torch.int32)}, r"allowed: expected shape \[2\], got \[1\]"),
        ({"block": 48}, "block: expected a power of two from 1 to 32768, got 48"),
        ({"parts": 1}, "parts: expected a power of two from 2 to 64, got 1"),
        ({"logits": torch.zeros(2**19 + 1)}, "the number of tokens is 1 to 524288"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_refused(change: dict[str, Any], message: str) -> None:
    given = SMALL[0].arguments() | {"block": 256, "parts": 8}
    with pytest.raises(KernelArgumentError, match=f"draw_token: {message}"):
        torch.ops.etcuda.draw_token(**given | change)


def test_ctas_that_are_too_small_are_refused() -> None:
    given = SMALL[0].arguments() | {"logits": torch.zeros(65), "allowed": torch.zeros(3, dtype=torch.int32)}
    with pytest.raises(KernelArgumentError, match="draw_token: block: expected 5 or more, for at most 16 CTAs, got 1"):
        torch.ops.etcuda.draw_token(**given, block=1, parts=8)
