"""The launch of the kernel. Arguments were checked before."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from etcuda.kernels.common.memory import require_device
from etcuda.kernels.common.pdl import choose_kernel
from etcuda.kernels.sampling.configs import SamplingConfig
from etcuda.kernels.sampling.problem import MAX_REGISTERS
from etcuda.kernels.sampling.reference import FAR
from etcuda.kernels.sampling.triton.draw_token import draw_token_kernel


def draw_token(
    logits: Tensor, settings: Tensor, top_k: Tensor, state: Tensor, allowed: Tensor, config: SamplingConfig
) -> Tensor:
    """The token [1] int64."""
    require_device("draw_token", logits, "logits")
    vocab_size = int(logits.shape[0])
    ctas = config.ctas(vocab_size)
    out = logits.new_empty(1, dtype=torch.int64)
    # Sums of two searches' steps in turn; the greatest numbers, and whose they are, twice.
    partials = logits.new_empty(2 * ctas * config.parts + 4 * ctas, dtype=torch.float32)
    arrived = logits.new_zeros(1, dtype=torch.int32)
    kernel, options = choose_kernel(logits, draw_token_kernel, draw_token_kernel, 0, MAX_REGISTERS)
    kernel[(ctas,)](
        logits.contiguous(), settings.contiguous(), top_k.contiguous(), state.contiguous(), allowed.contiguous(),
        partials, arrived, out, VOCAB_SIZE=vocab_size, CTAS=ctas, BLOCK_CTAS=triton.next_power_of_2(ctas),
        BLOCK=config.block, PARTS=config.parts, FAR=FAR, MAX_REGISTERS=MAX_REGISTERS, num_warps=config.num_warps,
        **options,
    )  # fmt: skip
    return out
