"""Random numbers as functions of a state, a tensor of a seed and an offset. See docs/random.md.

They are plain PyTorch operators on ``etcuda::philox_bits``: equal numbers in eager mode, on the host and on a GPU.
"""

from __future__ import annotations

from etcuda.kernels.random.distributions import (
    bernoulli,
    cauchy,
    exponential,
    geometric,
    log_normal,
    multinomial,
    normal,
    randperm,
)
from etcuda.kernels.random.generator import STATE_NAME, Reseed, make_state
from etcuda.kernels.random.uniform import randint, uniform

__all__ = [
    "STATE_NAME",
    "Reseed",
    "bernoulli",
    "cauchy",
    "exponential",
    "geometric",
    "log_normal",
    "make_state",
    "multinomial",
    "normal",
    "randint",
    "randperm",
    "uniform",
]
