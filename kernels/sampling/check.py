"""What the operator takes, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.check import expect
from etcuda.kernels.formats.base import DTYPES
from etcuda.kernels.sampling.configs import SamplingConfig
from etcuda.kernels.sampling.problem import MAX_CTAS, MAX_VOCAB_SIZE, problem_of, refuse

OP = "draw_token"


def check_arguments(
    logits: Tensor, settings: Tensor, top_k: Tensor, state: Tensor, allowed: Tensor, config: SamplingConfig
) -> None:
    """Checks tensors and the configuration.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    expect(logits.dim() == 1, OP, "logits", "one dimension [vocab_size]", list(logits.shape))
    expect(isinstance(logits.shape[0], int), OP, "logits", "a fixed number of tokens", list(logits.shape))
    expect(logits.dtype in DTYPES, OP, "logits", "bfloat16, float16 or float32", logits.dtype)
    reason = refuse(problem_of(logits))
    if reason is not None:
        raise KernelArgumentError(f"{OP}: {reason}. Call etcuda.llm.step.draw, which has no such bound.")
    vocab_size = int(logits.shape[0])
    words = -(-vocab_size // 32)
    for name, tensor, size, dtype in (
        ("settings", settings, 3, torch.float32),
        ("top_k", top_k, 1, torch.int64),
        ("state", state, 2, torch.int64),
        ("allowed", allowed, words, torch.int32),
    ):
        expect(list(tensor.shape) == [size], OP, name, f"shape [{size}]", list(tensor.shape))
        expect(tensor.dtype == dtype, OP, name, str(dtype), tensor.dtype)
        expect(tensor.device == logits.device, OP, name, f"the device of logits, {logits.device}", tensor.device)
    most = MAX_VOCAB_SIZE // MAX_CTAS
    for name, value, least, greatest in (("block", config.block, 1, most), ("parts", config.parts, 2, 64)):
        fits = least <= value <= greatest and value & (value - 1) == 0
        expect(fits, OP, name, f"a power of two from {least} to {greatest}", value)
    least = -(-vocab_size // MAX_CTAS)
    expect(config.block >= least, OP, "block", f"{least} or more, for at most {MAX_CTAS} CTAs", config.block)
