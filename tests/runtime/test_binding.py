"""The Python binding's small functions."""

from __future__ import annotations

import pathlib

import pytest

import etcuda.runtime
from etcuda import shims


def test_every_function_that_the_exporter_uses_is_there() -> None:
    names = set(etcuda.runtime.shim_names())
    computing = {name for side in shims.COMPUTE_SHIMS.values() for name in side}
    # Functions that only return a constant are part of every image.
    constant = ("aoti_torch_dtype_", "aoti_torch_device_type_", "aoti_torch_layout_")
    support = {name for name in shims.SUPPORT_SHIMS if not name.startswith(constant)}
    missing = (computing | support | shims.CUDA_SYMBOLS) - names
    assert not missing


def test_names_are_sorted_and_unique() -> None:
    names = etcuda.runtime.shim_names()
    assert names == sorted(set(names))


def test_memory() -> None:
    etcuda.runtime.empty_cache()
    host = next(stats for stats in etcuda.runtime.memory_stats() if stats.device == "cpu")
    assert host.reserved >= host.allocated
    assert host.peak >= host.allocated


@pytest.mark.parametrize(("device", "nbytes"), [("tpu", 1), ("cuda:x", 1), ("cpu", -1)])
def test_memory_limit_of_something_else(device: str, nbytes: int) -> None:
    with pytest.raises(ValueError, match="expected 'cpu'"):
        etcuda.runtime.set_memory_limit(device, nbytes)


def test_cuda_graph_settings() -> None:
    before = etcuda.runtime.graph_stats()
    etcuda.runtime.set_cuda_graph_memory_limit(1 << 30)
    etcuda.runtime.set_cuda_graph_memory_limit(0)
    etcuda.runtime.set_cuda_graphs(False)
    etcuda.runtime.set_cuda_graphs(True)
    assert etcuda.runtime.graph_stats() == before
    assert all(stats.graphs <= stats.allocated for stats in etcuda.runtime.memory_stats())


def test_set_cuda_graphs_takes_a_bool() -> None:
    with pytest.raises(TypeError, match="expected True or False, got 'no'"):
        etcuda.runtime.set_cuda_graphs("no")  # type: ignore[arg-type]


@pytest.mark.parametrize("nbytes", [-1, 2**63, True, 1.5])
def test_cuda_graph_memory_limit_is_a_number_of_bytes(nbytes: int) -> None:
    with pytest.raises(ValueError, match="expected an integer from 0"):
        etcuda.runtime.set_cuda_graph_memory_limit(nbytes)


def test_gpu_or_a_reason() -> None:
    reason = etcuda.runtime.gpu_unavailable_reason()
    assert (reason is None) == etcuda.runtime.gpu_available()


def test_library_path() -> None:
    assert isinstance(etcuda.runtime.library_path(), pathlib.Path)
    assert etcuda.runtime.library_path().name == "libetcuda_runtime.so"
