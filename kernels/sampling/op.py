"""The operator ``etcuda::draw_token``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.common.memory import needs_reference
from etcuda.kernels.sampling import launch
from etcuda.kernels.sampling.check import check_arguments
from etcuda.kernels.sampling.configs import SamplingConfig
from etcuda.kernels.sampling.reference import draw_token_reference


@triton_op("etcuda::draw_token", mutates_args=())
def draw_token(
    logits: Tensor, settings: Tensor, top_k: Tensor, state: Tensor, allowed: Tensor, block: int, parts: int
) -> Tensor:
    """One token, by the race ``argmax(logits / temperature + gumbel)`` of those that the filters leave.

    The filters are ``top_k``, then ``top_p``, then ``min_p``. Tokens that are as likely as the last one that stays,
    stay too. The arithmetic is that of fp32, and the same numbers give the same token.

    Args:
        logits: [vocab_size] bfloat16, float16 or float32.
        settings: [3] float32: temperature (0 takes the likeliest, of equal ones the first), top_p (1 for all), min_p (0
            for all).
        top_k: [1] int64; 0 for all.
        state: [2] int64, the seed and the offset of the random numbers, see ``etcuda::philox_bits``.
        allowed: [ceil(vocab_size / 32)] int32, a bit a token, the lowest first: those that may be drawn.
        block: this and ``parts`` as of ``SamplingConfig``.
        parts: thresholds that are tried at a time.

    Returns:
        [1] int64.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    config = SamplingConfig(block, parts)
    check_arguments(logits, settings, top_k, state, allowed, config)
    if needs_reference(logits):
        return draw_token_reference(logits, settings, top_k, state, allowed)
    return launch.draw_token(logits, settings, top_k, state, allowed, config)


def fake_draw_token(
    logits: Tensor, settings: Tensor, top_k: Tensor, state: Tensor, allowed: Tensor, block: int, parts: int
) -> Tensor:
    """Checks the arguments; returns a fake result."""
    check_arguments(logits, settings, top_k, state, allowed, SamplingConfig(block, parts))
    return logits.new_empty(1, dtype=torch.int64)


draw_token.register_fake(fake_draw_token)
