"""The native runtime. Importing this module registers ``EtcudaBackend`` with the stock ``executorch.runtime``.

import etcuda.runtime
from executorch.runtime import Runtime
outputs = Runtime.get().load_program("model.pte").load_method("forward").execute(inputs)
"""

from __future__ import annotations

from etcuda.runtime.binding import (
    MemoryStats,
    empty_cache,
    gpu_available,
    gpu_unavailable_reason,
    is_registered,
    last_error,
    library_path,
    load,
    memory_stats,
    reset_state,
    set_memory_limit,
    set_verify_weights,
    shim_names,
)
from etcuda.runtime.session import Session, SessionState

__all__ = [
    "MemoryStats",
    "Session",
    "SessionState",
    "empty_cache",
    "gpu_available",
    "gpu_unavailable_reason",
    "is_registered",
    "last_error",
    "library_path",
    "memory_stats",
    "reset_state",
    "set_memory_limit",
    "set_verify_weights",
    "shim_names",
]

load()
