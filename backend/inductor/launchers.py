"""Compiles the Triton kernels of a graph without launching one, and picks a configuration where there are several."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any
from unittest import mock

from torch._inductor.codegen import common
from torch._inductor.codegen.cpp_wrapper_gpu import CppWrapperGpu
from torch._inductor.codegen.cuda_combined_scheduling import CUDACombinedScheduling
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.runtime.triton_heuristics import CachingAutotuner, NoTritonConfigsError

from etcuda.errors import CompileError
from etcuda.kernels.cuda import native_kernels
from etcuda.target import CudaTarget

Progress = Callable[[str, int, int], None]

# Warps beyond half of an SM's hide no more latency in memory-bound kernels; past that, list order decides.
_ENOUGH_OCCUPANCY = 0.5
# Of a block of a kernel that sorts.
_SORTED_ELEMENTS = 1024


@dataclasses.dataclass(frozen=True)
class KernelResources:
    """What one compiled configuration of a kernel takes: per thread, per thread, bytes per block, warps per block."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    num_warps: int

    def occupancy(self, target: CudaTarget) -> float:
        """Fraction of an SM's threads that can be resident at once."""
        threads = self.num_warps * target.warp_size
        # Registers are handed out in units of 8 per thread.
        by_registers = target.registers_per_sm // (max(self.registers + 7 & ~7, 1) * threads)
        by_threads = target.max_threads_per_sm // threads
        by_shared = target.shared_memory_per_sm // self.shared_bytes if self.shared_bytes else by_threads
        return min(by_registers, by_threads, by_shared) * threads / target.max_threads_per_sm

    def check(self, name: str, target: CudaTarget) -> None:
        """Checks that a block can run.

        Raises:
            CompileError: it wants more than the target has.
        """
        threads = self.num_warps * target.warp_size
        wanted = {
            "bytes of shared memory": (self.shared_bytes, target.shared_memory_per_block),
            "threads": (threads, target.max_threads_per_block),
            "registers": ((self.registers + 7 & ~7) * threads, target.registers_per_sm),
        }
        for what, (got, most) in wanted.items():
            if got > most:
                raise _too_large(name, target, f"at most {most} {what} a block, got {got}")


def choose(candidates: list[KernelResources], target: CudaTarget) -> int:
    """Index of the configuration to use, from the compiled code alone: deterministic, no clock, no device.

    No spills first, then occupancy up to one half, then the order in which the author listed them.
    """
    if not candidates:
        raise RuntimeError("no configuration of the kernel compiled; expected at least one that fits the target.")
    return min(
        range(len(candidates)),
        key=lambda i: (
            candidates[i].spilled_bytes > 0,
            -min(candidates[i].occupancy(target), _ENOUGH_OCCUPANCY),
            i,
        ),
    )


def bound_sort(kernel: CachingAutotuner) -> None:
    """Leaves a kernel that sorts no block of more than 1024 elements, if it has a smaller one.

    A sorting network is unrolled: of 2048 elements of 64 bits it takes LLVM and ptxas 15 s, of 512 half of that, and
    ``choose`` would take the first, which is the small one, all the same.
    """
    if "sort_with_index(" not in kernel.fn.src:
        return
    along: int = math.prod(size for name, size in kernel.size_hints.items() if name.startswith("r"))

    def elements(config: Any) -> int:
        across: int = math.prod(size for name, size in config.kwargs.items() if name in ("XBLOCK", "YBLOCK"))
        return along * across

    most = max(_SORTED_ELEMENTS, min(map(elements, kernel.configs)))
    kernel.configs = [config for config in kernel.configs if elements(config) <= most]


class KernelStore:
    """Collects the compiled kernels of one program, by the name that the generated wrapper gives them."""

    def __init__(self, target: CudaTarget | str, progress: Progress) -> None:
        self._target = target
        self._progress = progress
        self._binaries: dict[str, bytes] = {}
        self._resources: dict[str, KernelResources] = {}

    def resources(self, names: Collection[str]) -> dict[str, KernelResources]:
        """What those kernels that the program refers to take."""
        return {name: found for name, found in self._resources.items() if name in names}

    def binaries(self, names: Collection[str]) -> dict[str, bytes]:
        """The binaries of those kernels that the program refers to."""
        return {name: data for name, data in self._binaries.items() if name in names}

    def register(self) -> None:
        """Makes Inductor's C++ wrapper for CUDA compile its kernels through this store."""
        store = self

        class Wrapper(CppWrapperGpu):
            @staticmethod
            def create(*args: Any, **kwargs: Any) -> Any:
                is_subgraph = args[0] if args else kwargs["is_subgraph"]
                if is_subgraph:
                    return CppWrapperGpu.create(*args, **kwargs)
                return Wrapper()

            def codegen_int_array_var(
                self, int_array: Any, writeline: Any, known_statically: bool = False, graph: Any = None
            ) -> Any:
                # torch 2.11 keys its cache with the id of a short-lived bound method: not reproducible.
                owner = getattr(writeline, "__self__", writeline)
                key = (int_array, id(owner), known_statically, id(graph) if graph else None)
                cache = self.codegen_int_array_var_cache
                if key not in cache:
                    cache[key] = self._codegen_int_array_var_impl(int_array, writeline, known_statically)
                return cache[key]

            def generate_and_run_autotune_block(self) -> None:
                # The definitions only: the calls would launch kernels.
                source = self.kernel_autotune_defs.getvalue() + "\nasync_compile.wait(globals())\ndel async_compile\n"
                with _bounded_registers(), native_kernels():
                    store.compile(defined_kernels(source))

        common.register_backend_for_device("cuda", CUDACombinedScheduling, PythonWrapperCodegen, Wrapper)

    def compile(self, kernels: list[CachingAutotuner]) -> None:
        """Compiles every kernel, picks one configuration each, and keeps its binary.

        Raises:
            CompileError: no configuration of a kernel fits the target.
        """
        assert isinstance(self._target, CudaTarget)
        for kernel in kernels:
            bound_sort(kernel)
        self._fill_cache(kernels)
        for done, kernel in enumerate(kernels):
            self._progress("kernels", done, len(kernels))
            name = kernel.inductor_meta["kernel_name"]
            try:
                kernel.precompile()
            except NoTritonConfigsError as error:
                raise _too_large(name, self._target, f"a configuration that fits, got: {error}") from error
            candidates = [_resources(each) for each in kernel.launchers]
            chosen = choose(candidates, self._target)
            candidates[chosen].check(name, self._target)
            launcher = kernel.launchers[chosen]
            kernel.save_gpu_kernel(0, launcher)  # type: ignore[no-untyped-call]
            binary = launcher.bin.asm["ptx" if self._target.code_kind == "ptx" else "cubin"]
            # The driver takes PTX as a C string.
            data = binary if isinstance(binary, bytes) else binary.encode() + b"\0"
            self._binaries[name] = data
            self._resources[name] = candidates[chosen]
        self._progress("kernels", len(kernels), len(kernels))

    def _fill_cache(self, kernels: list[CachingAutotuner]) -> None:
        # Compiling is one process's work per kernel; children share it through Triton's cache on disk. Fork keeps the
        # hooks. A child that fails is no loss: the parent then compiles that kernel itself and reports the error.
        workers = min(len(os.sched_getaffinity(0)), len(kernels))
        if workers < 2:
            return
        children = []
        for worker in range(workers):
            pid = os.fork()
            if pid == 0:
                status = 1
                with contextlib.suppress(BaseException):
                    for kernel in kernels[worker::workers]:
                        kernel.precompile(warm_cache_only=True)
                    status = 0
                os._exit(status)
            children.append(pid)
        for done, pid in enumerate(children):
            self._progress("kernels (parallel)", done, len(children))
            _, status = os.waitpid(pid, 0)
            if status:
                print(f"a parallel kernel compile ended with status {status}", file=sys.stderr)


def defined_kernels(source: str) -> list[CachingAutotuner]:
    """The kernels that generated code defines, not compiled: Inductor would compile each where it is defined, one after
    another."""
    scope: dict[str, Any] = {}
    with mock.patch.object(CachingAutotuner, "precompile", return_value=None):
        exec(source, scope)
    return [value for value in scope.values() if isinstance(value, CachingAutotuner)]


@contextlib.contextmanager
def _bounded_registers() -> Iterator[None]:
    """Hands the constant argument ``MAX_REGISTERS`` of a kernel, if it is not 0, to Triton's compiler as its bound.

    Inductor passes no such option on.
    """
    create = CachingAutotuner._create_compile_options

    def create_bounded(self: CachingAutotuner, config: Any, meta: dict[str, Any]) -> Any:
        options = create(self, config, meta)
        if most := meta["constants"].get("MAX_REGISTERS", 0):
            options["maxnreg"] = most
        return options

    with mock.patch.object(CachingAutotuner, "_create_compile_options", create_bounded):
        yield


def _too_large(name: str, target: CudaTarget, what: str) -> CompileError:
    gpus = "all GPUs of a portable program" if target.code_kind == "ptx" else target.arch
    return CompileError(
        f"kernel {name}, for {gpus}: expected {what}. Export for one GPU that has more, such as target='sm_90', or "
        "leave the operator to another backend; please report it with the model."
    )


def _resources(launcher: Any) -> KernelResources:
    metadata = launcher.bin.metadata
    return KernelResources(launcher.n_regs, launcher.n_spills or 0, metadata.shared, metadata.num_warps)
