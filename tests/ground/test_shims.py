"""The table of shims."""

from __future__ import annotations

from etcuda.shims import COMPUTE_SHIMS, compute_shim


def test_shims() -> None:
    assert compute_shim("cuda", "mm_out") is COMPUTE_SHIMS["cuda"]["aoti_torch_cuda_mm_out"]
    assert compute_shim("cuda", "convolution") is None
    assert compute_shim("host", "convolution") is not None
