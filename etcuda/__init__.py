"""etcuda: a CUDA backend for ExecuTorch.

``CudaPartitioner`` is all that an export needs; ``import etcuda.runtime`` registers the delegate that runs the result.
Names are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etcuda.backend.save import save_program as save_program
    from etcuda.errors import EtcudaError as EtcudaError
    from etcuda.kernels.weights.config import Int4CoalescedConfig as Int4CoalescedConfig
    from etcuda.kernels.weights.config import Int8CoalescedConfig as Int8CoalescedConfig
    from etcuda.kernels.weights.config import quantize_weights as quantize_weights
    from etcuda.kernels.weights.convert import convert_model as convert_model
    from etcuda.kernels.weights.gguf import read_gguf as read_gguf
    from etcuda.kernels.weights.gguf_load import load_gguf as load_gguf
    from etcuda.kernels.weights.int4_tensor import Int4CoalescedTensor as Int4CoalescedTensor
    from etcuda.kernels.weights.int8_tensor import Int8CoalescedTensor as Int8CoalescedTensor
    from etcuda.kernels.weights.save import load_weights as load_weights
    from etcuda.kernels.weights.save import save_weights as save_weights
    from etcuda.options import CompileOptions as CompileOptions
    from etcuda.partitioner.partitioner import CudaPartitioner as CudaPartitioner
    from etcuda.partitioner.preview import partition_report as partition_report
    from etcuda.target import CudaTarget as CudaTarget

__version__ = "0.1.0"

_EXPORTS = {
    "CompileOptions": "etcuda.options",
    "CudaPartitioner": "etcuda.partitioner.partitioner",
    "CudaTarget": "etcuda.target",
    "EtcudaError": "etcuda.errors",
    "Int4CoalescedConfig": "etcuda.kernels.weights.config",
    "Int4CoalescedTensor": "etcuda.kernels.weights.int4_tensor",
    "Int8CoalescedConfig": "etcuda.kernels.weights.config",
    "Int8CoalescedTensor": "etcuda.kernels.weights.int8_tensor",
    "convert_model": "etcuda.kernels.weights.convert",
    "load_gguf": "etcuda.kernels.weights.gguf_load",
    "load_weights": "etcuda.kernels.weights.save",
    "partition_report": "etcuda.partitioner.preview",
    "quantize_weights": "etcuda.kernels.weights.config",
    "read_gguf": "etcuda.kernels.weights.gguf",
    "save_program": "etcuda.backend.save",
    "save_weights": "etcuda.kernels.weights.save",
}

__all__ = [
    "CompileOptions",
    "CudaPartitioner",
    "CudaTarget",
    "EtcudaError",
    "Int4CoalescedConfig",
    "Int4CoalescedTensor",
    "Int8CoalescedConfig",
    "Int8CoalescedTensor",
    "convert_model",
    "load_gguf",
    "load_weights",
    "partition_report",
    "quantize_weights",
    "read_gguf",
    "save_program",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'etcuda' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
