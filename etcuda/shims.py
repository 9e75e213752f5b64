"""The runtime's shims: the one list of functions that generated code may call, per target."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

Side = Literal["host", "cuda"]

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32})


@dataclasses.dataclass(frozen=True)
class ComputeShim:
    """A shim that computes.

    Attributes:
        name: its C symbol.
        dtypes: element types that it takes.
    """

    name: str
    dtypes: frozenset[torch.dtype]


def _products(device: str, dtypes: frozenset[torch.dtype]) -> dict[str, ComputeShim]:
    names = (f"aoti_torch_{device}_{op}_out" for op in ("mm", "addmm", "bmm", "baddbmm"))
    return {name: ComputeShim(name, dtypes) for name in names}


_HOST_DTYPES = _FLOATS | {torch.float64}

_NUMBERS = _HOST_DTYPES | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}

# Sorts, scans, binary search and reductions through indices, as the passes call them.
_ORDER = (
    "cummax",
    "cummin",
    "cumprod",
    "cumsum",
    "logcumsumexp",
    "scatter_reduce_two_out",
    "searchsorted_Tensor",
    "sort_stable",
)

COMPUTE_SHIMS: dict[Side, dict[str, ComputeShim]] = {
    "host": _products("cpu", _HOST_DTYPES)
    | {"aoti_torch_cpu_convolution": ComputeShim("aoti_torch_cpu_convolution", _HOST_DTYPES)}
    | {f"aoti_torch_cpu_{op}": ComputeShim(f"aoti_torch_cpu_{op}", _NUMBERS) for op in _ORDER},
    "cuda": _products("cuda", _FLOATS)
    | {"aoti_torch_cuda_fused_convolution": ComputeShim("aoti_torch_cuda_fused_convolution", _FLOATS)},
}

# What generated code calls besides computing: handles, shapes, memory, streams.
SUPPORT_SHIMS: frozenset[str] = frozenset(
    f"aoti_torch_{name}"
    for name in (
        "_reinterpret_tensor",
        "assign_tensors_out",
        "check",
        "clone",
        "clone_preserve_strides",
        "cpu_view_dtype",
        "create_cuda_stream_guard",
        "create_tensor_from_blob",
        "create_tensor_from_blob_v2",
        "cuda_view_dtype",
        "delete_cuda_stream_guard",
        "delete_tensor_object",
        "device_type_cpu",
        "device_type_cuda",
        "dtype_bfloat16",
        "dtype_bool",
        "dtype_float16",
        "dtype_float32",
        "dtype_float64",
        "dtype_int16",
        "dtype_int32",
        "dtype_int64",
        "dtype_int8",
        "dtype_uint8",
        "empty_strided",
        "empty_strided_pinned",
        "get_data_ptr",
        "get_device_type",
        "get_dim",
        "get_dtype",
        "get_numel",
        "get_sizes",
        "get_storage_offset",
        "get_storage_size",
        "get_strides",
        "grad_mode_is_enabled",
        "grad_mode_set_enabled",
        "is_defined",
        "item_bool",
        "item_float32",
        "item_float64",
        "item_int32",
        "item_int64",
        "layout_strided",
        "new_tensor_handle",
        "warn",
    )
)


def compute_shim(side: Side, op: str) -> ComputeShim | None:
    """The shim of ``side`` for an operator of AOTInductor's C interface (``"mm_out"``), or ``None``."""
    device = "cpu" if side == "host" else "cuda"
    return COMPUTE_SHIMS[side].get(f"aoti_torch_{device}_{op}")


# The CUDA entry points of generated code; the runtime implements them over the driver that it opens itself.
CUDA_SYMBOLS: frozenset[str] = frozenset(
    (
        "cuFuncSetAttribute",
        "cuGetErrorString",
        "cuLaunchKernel",
        "cuModuleGetFunction",
        "cuModuleLoadData",
        "cuModuleUnload",
        "cudaEventCreate",
        "cudaEventCreateWithFlags",
        "cudaEventDestroy",
        "cudaEventQuery",
        "cudaEventRecord",
        "cudaEventSynchronize",
        "cudaFree",
        "cudaGetDevice",
        "cudaGetErrorString",
        "cudaGetLastError",
        "cudaMalloc",
        "cudaMemcpy",
        "cudaMemcpyAsync",
        "cudaPointerGetAttributes",
        "cudaSetDevice",
        "cudaStreamCreateWithFlags",
        "cudaStreamDestroy",
        "cudaStreamSynchronize",
    )
)


def runtime_symbols(side: Side) -> frozenset[str]:
    """Every name that generated code for ``side`` may import from the runtime."""
    return SUPPORT_SHIMS | COMPUTE_SHIMS[side].keys() | (CUDA_SYMBOLS if side == "cuda" else frozenset())
