"""The native runtime. Importing this module registers ``EtcudaBackend`` with the stock ``executorch.runtime``.

import etcuda.runtime
from executorch.runtime import Runtime
outputs = Runtime.get().load_program("model.pte").load_method("forward").execute(inputs)
"""

from __future__ import annotations

from etcuda.runtime.binding import (
    GraphStats,
    MemoryStats,
    device_memory,
    empty_cache,
    gpu_available,
    gpu_unavailable_reason,
    graph_stats,
    is_registered,
    last_error,
    library_path,
    load,
    memory_stats,
    reset_state,
    set_cuda_graph_memory_limit,
    set_cuda_graphs,
    set_memory_limit,
    set_verify_weights,
    shim_names,
)
from etcuda.runtime.session import Session, SessionState

__all__ = [
    "GraphStats",
    "MemoryStats",
    "Session",
    "SessionState",
    "device_memory",
    "empty_cache",
    "gpu_available",
    "gpu_unavailable_reason",
    "graph_stats",
    "is_registered",
    "last_error",
    "library_path",
    "memory_stats",
    "reset_state",
    "set_cuda_graph_memory_limit",
    "set_cuda_graphs",
    "set_memory_limit",
    "set_verify_weights",
    "shim_names",
]

load()
