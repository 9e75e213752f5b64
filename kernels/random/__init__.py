"""Random numbers from a seed and an offset, which are a tensor: Philox, and distributions in plain PyTorch."""

from __future__ import annotations

from etcuda.kernels.random import op as _op  # noqa: F401  defines operators
