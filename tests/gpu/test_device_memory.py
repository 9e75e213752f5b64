"""What the runtime says of the GPU's memory is what the driver says."""

from __future__ import annotations

import ctypes

import torch

from etcuda.library import find_library


def test_free_memory_is_the_drivers() -> None:
    # Without the Python binding, which wants ExecuTorch's.
    library = ctypes.CDLL(str(find_library()))
    free, total, in_use = (ctypes.c_uint64() for _ in range(3))
    assert library.etcuda_device_memory(*map(ctypes.byref, (free, total, in_use))) == 0
    driver_free, driver_total = torch.cuda.mem_get_info(0)
    assert total.value == driver_total
    assert in_use.value == 0
    assert abs(free.value - driver_free) < 1 << 30
    held = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    before = free.value
    assert library.etcuda_device_memory(*map(ctypes.byref, (free, total, in_use))) == 0
    assert before - free.value >= held.nbytes - (1 << 29)
