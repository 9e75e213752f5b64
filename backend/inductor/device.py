"""A GPU that is not there: the hooks through which Triton and Inductor ask for the device, answered from a target."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.backends
from torch._dynamo import device_interface
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from etcuda.target import CudaTarget


@dataclasses.dataclass(frozen=True)
class DeviceProperties:
    """What ``torch.cuda.get_device_properties`` would return on the target. Sizes in bytes, clocks in kHz."""

    name: str
    major: int
    minor: int
    multi_processor_count: int
    total_memory: int
    max_threads_per_multi_processor: int
    max_threads_per_block: int
    warp_size: int
    regs_per_multiprocessor: int
    shared_memory_per_block_optin: int
    shared_memory_per_multiprocessor: int
    L2_cache_size: int
    clock_rate: int
    shared_memory_per_block: int = 48 << 10
    memory_clock_rate: int = 1
    memory_bus_width: int = 1
    gcnArchName: str = ""
    is_integrated: int = 0
    is_multi_gpu_board: int = 0
    uuid: str = ""

    @classmethod
    def of(cls, target: CudaTarget) -> DeviceProperties:
        """The properties of a target."""
        return cls(
            name=target.name,
            major=target.major,
            minor=target.minor,
            multi_processor_count=target.num_sms,
            total_memory=target.total_memory,
            max_threads_per_multi_processor=target.max_threads_per_sm,
            max_threads_per_block=target.max_threads_per_block,
            warp_size=target.warp_size,
            regs_per_multiprocessor=target.registers_per_sm,
            shared_memory_per_block_optin=target.shared_memory_per_block,
            shared_memory_per_multiprocessor=target.shared_memory_per_sm,
            L2_cache_size=target.l2_bytes,
            clock_rate=target.clock_khz,
        )


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and spilled bytes per thread of the kernel in a cubin, read with Triton's own cuobjdump."""
    tool = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing)
    if match is None:
        raise RuntimeError(
            f"cuobjdump -res-usage printed no resource line; expected REG, STACK and LOCAL in:\n{listing}"
        )
    registers, stack, local = map(int, match.groups())
    return registers, stack + local


def _no_gpu(what: str) -> Callable[..., Any]:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError(f"{what} was asked of the stand-in for a GPU; compiling must not need a device.")

    return refuse


def install(target: CudaTarget) -> None:
    """Makes this process believe in one GPU of the target's kind. Irreversible; for the compile worker alone."""
    properties = DeviceProperties.of(target)
    _install_triton_driver(target)
    _install_device_interface(properties)
    # Inductor and its heuristics ask torch.cuda directly in places. torch.cuda.is_available stays as it is:
    # fake tensors and benchmarking paths look at it.
    torch.cuda.get_device_properties = lambda device=None: properties  # type: ignore[assignment,return-value]
    torch.cuda.get_device_capability = lambda device=None: (target.major, target.minor)
    import torch.utils._triton as triton_queries

    for query in vars(triton_queries).values():
        if hasattr(query, "cache_clear"):
            query.cache_clear()


def _install_triton_driver(target: CudaTarget) -> None:
    class Utils:
        def get_device_properties(self, _device: int = 0) -> dict[str, int]:
            return {
                "max_shared_mem": target.shared_memory_per_block,
                "max_num_regs": target.registers_per_sm,
                "multiprocessor_count": target.num_sms,
                "warpSize": target.warp_size,
                "sm_clock_rate": target.clock_khz,
                "mem_clock_rate": 1,
                "mem_bus_width": 1,
            }

        def load_binary(self, _name: str, kernel: bytes, _shared: int, _device: int) -> tuple[int, int, int, int, int]:
            registers, spilled = resource_usage(kernel)
            return 1, 1, registers, spilled, target.max_threads_per_block

        def unload_module(self, _module: int) -> None:
            return None

        def __getattr__(self, name: str) -> Any:
            return _no_gpu(f"the Triton driver's {name}")

    class Launcher:
        def __init__(self, _source: Any, _metadata: Any) -> None:
            pass

        __call__ = _no_gpu("a kernel launch")

    class Driver(DriverBase):  # type: ignore[misc]
        def __init__(self) -> None:
            self.utils = Utils()
            self.launcher_cls = Launcher

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            from triton.backends.nvidia.driver import ty_to_cpp

            return str(ty_to_cpp(ty))

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", target.compute_capability, target.warp_size)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

        def get_current_device(self) -> int:
            return 0

        def set_current_device(self, _device: int) -> None:
            return None

        def get_current_stream(self, _device: int) -> int:
            return 0

        def get_device_interface(self) -> Any:
            return torch.cuda

        get_benchmarker = _no_gpu("a benchmark")

    backends = triton.backends.backends
    backends["nvidia"] = dataclasses.replace(backends["nvidia"], driver=Driver)


def _install_device_interface(properties: DeviceProperties) -> None:
    class NoContext:
        def __init__(self, _device: Any = None) -> None:
            pass

        def __enter__(self) -> NoContext:
            return self

        def __exit__(self, *_exc: object) -> None:
            return None

    worker_members: dict[str, Any] = {
        "set_device": staticmethod(lambda _device: None),
        "current_device": staticmethod(lambda: 0),
        "get_device_properties": staticmethod(lambda device=None: properties),
    }
    members: dict[str, Any] = {
        "device": NoContext,
        "Worker": type("Worker", (device_interface.CudaInterface.Worker,), worker_members),
        "is_available": staticmethod(lambda: True),
        "device_count": staticmethod(lambda: 1),
        "current_device": staticmethod(lambda: 0),
        "set_device": staticmethod(lambda _device: None),
        "exchange_device": staticmethod(lambda _device: 0),
        "maybe_exchange_device": staticmethod(lambda _device: 0),
        "synchronize": staticmethod(lambda _device=None: None),
        "get_raw_stream": staticmethod(lambda _device: 0),
        "get_device_properties": staticmethod(lambda device=None: properties),
        "get_compute_capability": staticmethod(lambda device=None: properties.major * 10 + properties.minor),
        "is_bf16_supported": staticmethod(lambda including_emulation=False: True),
        "memory_allocated": staticmethod(lambda device=None: 0),
        "is_triton_capable": staticmethod(lambda device=None: True),
        "raise_if_triton_unavailable": staticmethod(lambda device=None: None),
    }
    interface = type("TargetInterface", (device_interface.CudaInterface,), members)
    # Before registering: the first look-up would overwrite ours with the real interface.
    device_interface.get_registered_device_interfaces()
    device_interface.register_interface_for_device("cuda", interface)
    device_interface.register_interface_for_device("cuda:0", interface)
