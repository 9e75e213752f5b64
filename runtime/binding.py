"""The C interface of the runtime library (``runtime/api.h``) through ctypes."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import pathlib

from etcuda.errors import RuntimeUnavailableError
from etcuda.library import find_cublaslt, find_cudnn, find_library

_DEVICE_TYPES = {"cpu": 0, "cuda": 1}


class _Stats(ctypes.Structure):
    _fields_ = (
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("allocated", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64),
        ("peak", ctypes.c_uint64),
        ("calls", ctypes.c_uint64),
        ("graphs", ctypes.c_uint64),
    )


class _GraphStats(ctypes.Structure):
    _fields_ = (
        ("live", ctypes.c_uint64),
        ("captures", ctypes.c_uint64),
        ("replays", ctypes.c_uint64),
        ("refusals", ctypes.c_uint64),
    )


@dataclasses.dataclass(frozen=True)
class MemoryStats:
    """Memory of one device, in bytes.

    Attributes:
        device: ``"cpu"`` or ``"cuda:0"`` and so on.
        allocated: in use by tensors, weights and state.
        reserved: in use or kept for reuse.
        peak: most bytes in use at one time.
        calls: allocations asked of the system or the driver.
        graphs: what CUDA graphs hold of what is in use.
    """

    device: str
    allocated: int
    reserved: int
    peak: int
    calls: int
    graphs: int


@dataclasses.dataclass(frozen=True)
class GraphStats:
    """CUDA graphs of this process.

    Attributes:
        live: graphs that are kept.
        captures: graphs made so far.
        replays: calls that launched one.
        refusals: captures and launches that failed; the call then ran without.
    """

    live: int
    captures: int
    replays: int
    refusals: int


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """Loads and declares the library, which registers the backend. Idempotent.

    Raises:
        RuntimeUnavailableError: the library is missing or does not load.
    """
    # Brings in libexecutorch, so that the library finds the very registry that the Python runtime uses.
    try:
        import executorch.runtime  # noqa: F401
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"executorch.runtime cannot be imported ({error}). Install executorch 1.5 with the torch it was built for."
        ) from error
    path = find_library()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeUnavailableError(
            f"{path} does not load ({error}). Install etcuda again, with the executorch that is installed now."
        ) from error
    library.etcuda_gpu_unavailable_reason.restype = ctypes.c_char_p
    library.etcuda_shim_names.restype = ctypes.POINTER(ctypes.c_char_p)
    library.etcuda_shim_names.argtypes = (ctypes.POINTER(ctypes.c_size_t),)
    library.etcuda_memory_stats.restype = ctypes.c_size_t
    library.etcuda_memory_stats.argtypes = (ctypes.POINTER(_Stats), ctypes.c_size_t)
    library.etcuda_device_memory.argtypes = (ctypes.POINTER(ctypes.c_uint64),) * 3
    library.etcuda_set_memory_limit.argtypes = (ctypes.c_int32, ctypes.c_int32, ctypes.c_uint64)
    library.etcuda_reset_state.restype = ctypes.c_int64
    library.etcuda_last_error.restype = ctypes.c_size_t
    library.etcuda_last_error.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
    library.etcuda_set_verify_weights.argtypes = (ctypes.c_int,)
    library.etcuda_set_verify_weights.restype = None
    library.etcuda_set_cuda_graphs.argtypes = (ctypes.c_int,)
    library.etcuda_set_cuda_graphs.restype = None
    library.etcuda_set_cuda_graph_memory_limit.argtypes = (ctypes.c_uint64,)
    library.etcuda_set_cuda_graph_memory_limit.restype = None
    library.etcuda_graph_stats.argtypes = (ctypes.POINTER(_GraphStats),)
    library.etcuda_graph_stats.restype = None
    library.etcuda_set_cublaslt_path.argtypes = (ctypes.c_char_p,)
    library.etcuda_set_cublaslt_path.restype = None
    cublaslt = find_cublaslt()
    if cublaslt is not None:
        library.etcuda_set_cublaslt_path(os.fsencode(cublaslt))
    library.etcuda_set_cudnn_path.argtypes = (ctypes.c_char_p,)
    library.etcuda_set_cudnn_path.restype = None
    cudnn = find_cudnn()
    if cudnn is not None:
        library.etcuda_set_cudnn_path(os.fsencode(cudnn))
    return library


def library_path() -> pathlib.Path:
    """The native library that is, or would be, loaded."""
    return find_library()


def is_registered() -> bool:
    """Whether ExecuTorch's ``EtcudaBackend`` is this library."""
    return bool(load().etcuda_is_registered())


def gpu_available() -> bool:
    """Whether programs compiled for a GPU can run here."""
    return bool(load().etcuda_gpu_available())


def gpu_unavailable_reason() -> str | None:
    """Why ``gpu_available()`` is false; None if it is true."""
    reason: bytes = load().etcuda_gpu_unavailable_reason()
    return reason.decode(errors="replace") or None


def shim_names() -> list[str]:
    """Names of the functions that compiled code may call, sorted."""
    count = ctypes.c_size_t()
    names = load().etcuda_shim_names(ctypes.byref(count))
    return [names[i].decode() for i in range(count.value)]


def memory_stats() -> list[MemoryStats]:
    """Memory in use, one entry per device that was used."""
    library = load()
    count = library.etcuda_memory_stats(None, 0)
    entries = (_Stats * count)()
    library.etcuda_memory_stats(entries, count)
    return [
        MemoryStats(
            device=f"cuda:{entry.device_index}" if entry.device_type else "cpu",
            allocated=entry.allocated,
            reserved=entry.reserved,
            peak=entry.peak,
            calls=entry.calls,
            graphs=entry.graphs,
        )
        for entry in entries
    ]


def device_memory() -> tuple[int, int, int]:
    """Bytes of the first GPU: free, what is kept for reuse among them; all; and those that programs use.

    Raises:
        RuntimeError: there is no GPU, or the driver failed.
    """
    found = [ctypes.c_uint64() for _ in range(3)]
    _checked(load().etcuda_device_memory(*map(ctypes.byref, found)), "device_memory")
    free, total, in_use = (each.value for each in found)
    return free, total, in_use


def last_error() -> str:
    """The sentence behind the failure of this thread's last call: etcuda's own, or ExecuTorch's where ExecuTorch
    refused the call; empty if the call succeeded. Calls are loading and executing a method, and the functions of this
    module that change something."""
    library = load()
    length = library.etcuda_last_error(None, 0)
    text = ctypes.create_string_buffer(length + 1)
    library.etcuda_last_error(text, length + 1)
    return text.value.decode(errors="replace")


def _checked(status: int, what: str) -> int:
    if status < 0:
        raise RuntimeError(f"{what} failed: {last_error()}")
    return status


def empty_cache() -> None:
    """Returns memory that is kept for reuse to the system and the driver.

    Raises:
        RuntimeError: the driver failed.
    """
    _checked(load().etcuda_empty_cache(), "empty_cache")


def set_memory_limit(device: str, nbytes: int) -> None:
    """Bounds what the runtime reserves on a device; 0 removes the bound.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:<index>"``.
        nbytes: the bound in bytes.

    Raises:
        ValueError: the device is none of these, or the bound is negative.
    """
    kind, _, index = device.partition(":")
    if kind not in _DEVICE_TYPES or (index and not index.isdigit()) or nbytes < 0:
        raise ValueError(f"expected 'cpu', 'cuda' or 'cuda:<index>' and a bound >= 0, got {device!r} and {nbytes}.")
    _checked(load().etcuda_set_memory_limit(_DEVICE_TYPES[kind], int(index or 0), nbytes), "set_memory_limit")


def set_verify_weights(enabled: bool) -> None:
    """Whether the bytes of weights are compared with their digests when a method is loaded, from now on, in the whole
    process. They are by default; the environment variable ``ETCUDA_VERIFY_WEIGHTS=0`` says otherwise.

    Raises:
        TypeError: neither True nor False.
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"set_verify_weights: expected True or False, got {enabled!r}.")
    load().etcuda_set_verify_weights(int(enabled))


def set_cuda_graphs(enabled: bool) -> None:
    """Whether a call on a GPU that is repeated is captured in a CUDA graph and launched as one, from now on, in the
    whole process. It is by default; the environment variable ``ETCUDA_CUDA_GRAPHS=0`` says otherwise.

    Raises:
        TypeError: neither True nor False.
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"set_cuda_graphs: expected True or False, got {enabled!r}.")
    load().etcuda_set_cuda_graphs(int(enabled))


def set_cuda_graph_memory_limit(nbytes: int) -> None:
    """Bounds the device memory that CUDA graphs captured from now on may hold, on each device; 0 removes the bound.

    Args:
        nbytes: the bound in bytes.

    Raises:
        ValueError: the bound is no integer from 0 to 2**63 - 1.
    """
    if not isinstance(nbytes, int) or isinstance(nbytes, bool) or not 0 <= nbytes < 2**63:
        raise ValueError(f"set_cuda_graph_memory_limit: expected an integer from 0 to 2**63 - 1, got {nbytes!r}.")
    load().etcuda_set_cuda_graph_memory_limit(nbytes)


def graph_stats() -> GraphStats:
    """How many CUDA graphs there are, and how often they were of use."""
    stats = _GraphStats()
    load().etcuda_graph_stats(ctypes.byref(stats))
    return GraphStats(live=stats.live, captures=stats.captures, replays=stats.replays, refusals=stats.refusals)


def reset_state() -> int:
    """Restores the initial content of all mutable buffers of all loaded programs, such as KV caches. Sessions keep
    theirs, see ``Session.reset``.

    No method may be executing. Returns how many buffers there are.

    Raises:
        RuntimeError: the driver failed.
    """
    return _checked(load().etcuda_reset_state(), "reset_state")
