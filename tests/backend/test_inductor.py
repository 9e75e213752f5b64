from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from etcuda.backend.inductor.launchers import KernelResources, KernelStore, bound_sort, choose, defined_kernels
from etcuda.target import TARGETS
from tests.exhaustive import only

H200 = TARGETS["sm_90"]


def test_occupancy_is_limited_by_each_resource() -> None:
    assert KernelResources(32, 0, 0, 8).occupancy(H200) == 1.0
    assert KernelResources(128, 0, 0, 8).occupancy(H200) == 0.25
    assert KernelResources(32, 0, 114 << 10, 8).occupancy(H200) == 0.25
    # 33 registers are handed out as 40.
    assert KernelResources(33, 0, 0, 32).occupancy(H200) == 0.5
    assert KernelResources(255, 0, 0, 32).occupancy(H200) == 0.0


def test_choice_prefers_no_spills_then_occupancy_then_order() -> None:
    spilling = KernelResources(64, 16, 0, 4)
    crowded = KernelResources(255, 0, 0, 8)
    good = KernelResources(64, 0, 0, 4)
    roomy = KernelResources(16, 0, 0, 4)
    assert choose([spilling, crowded, good], H200) == 2
    # Beyond half of an SM, more occupancy does not outweigh the author's order.
    assert choose([good, roomy], H200) == 0
    assert choose([spilling], H200) == 0
    with pytest.raises(RuntimeError, match="no configuration"):
        choose([], H200)


def test_a_kernel_that_sorts_is_not_compiled_for_large_blocks() -> None:
    def blocks(source: str, along: int, *sizes: int) -> list[int]:
        configs = [SimpleNamespace(kwargs={"XBLOCK": size}) for size in sizes]
        kernel: Any = SimpleNamespace(
            fn=SimpleNamespace(src=source), size_hints={"x": 64, "r0_": along}, configs=configs
        )
        bound_sort(kernel)
        return [config.kwargs["XBLOCK"] for config in kernel.configs]

    source = "tmp3, tmp4, = triton_helpers.sort_with_index(tmp1, tmp2, None, 1, stable=True, descending=False)"
    assert blocks(source, 512, 1, 8) == [1]
    assert blocks(source, 8, 1, 8, 32, 128) == [1, 8, 32, 128]
    assert blocks(source, 256, 8, 16) == [8]
    assert blocks("tmp3 = triton_helpers.max2(tmp1, 1)", 512, 1, 8) == [1, 8]


def test_kernels_are_not_compiled_where_they_are_defined() -> None:
    source = (
        "from torch._inductor.runtime.triton_heuristics import CachingAutotuner\n"
        "kernel = CachingAutotuner.__new__(CachingAutotuner)\n"
        "kernel.precompile(warm_cache_only=False)\n"
    )
    (kernel,) = defined_kernels(source)
    with pytest.raises(AttributeError):
        kernel.precompile()


def test_kernels_are_compiled_by_processes_beside_this_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def precompile(self, warm_cache_only: bool) -> None:
            assert warm_cache_only
            (tmp_path / self.name).write_text(str(os.getpid()))

    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1})
    kernels: list[Any] = [Kernel(name) for name in "abc"]
    KernelStore(H200, lambda *progress: None)._fill_cache(kernels)
    by = [(tmp_path / kernel.name).read_text() for kernel in kernels]
    assert by[0] == by[2] != by[1]
    assert str(os.getpid()) not in by


DEVICE_SCRIPT = """
import sys
from etcuda.backend.inductor import device
from etcuda.target import TARGETS
import torch, triton, triton.language as tl

target = TARGETS[sys.argv[1]]
device.install(target)
from torch._dynamo.device_interface import get_interface_for_device
interface = get_interface_for_device("cuda")
assert interface.device_count() == 1 and interface.get_compute_capability() == target.compute_capability
assert torch.cuda.get_device_properties(0).multi_processor_count == target.num_sms
assert triton.runtime.driver.active.get_current_target().arch == target.compute_capability

@triton.jit
def add(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n) + 1, mask=i < n)

source = triton.compiler.ASTSource(add, {"x": "*fp32", "y": "*fp32", "n": "i32", "BLOCK": "constexpr"}, {(3,): 256})
kernel = triton.compile(source, target=triton.runtime.driver.active.get_current_target())
registers, spilled = device.resource_usage(kernel.asm["cubin"])
assert 0 < registers < 64 and spilled == 0, (registers, spilled)
try:
    triton.runtime.driver.active.utils.launch()
except RuntimeError as error:
    assert "must not need a device" in str(error), error
else:
    raise SystemExit("a launch without a GPU was not refused")
print("fine")
"""


@pytest.mark.parametrize("arch", [only(False, "sm_80"), "sm_90", "sm_120"])
def test_device_stand_in(arch: str, tmp_path: pathlib.Path) -> None:
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    script = tmp_path / "stand_in.py"
    script.write_text(DEVICE_SCRIPT)
    environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, script, arch], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("fine"), done.stdout + done.stderr


def test_resource_usage_refuses_what_is_no_cubin() -> None:
    from etcuda.backend.inductor.device import resource_usage

    with pytest.raises((RuntimeError, subprocess.CalledProcessError)):
        resource_usage(b"not a cubin")


def test_assembly_that_is_given_nothing_is_taken_to_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    from etcuda.backend.inductor.assembly import assembly_without_operands_writes_nothing

    name, result = "tt.elementwise_inline_asm", wrap.Intermediate(7)
    waits = wrap.Op(name, None, [], result)
    stores = wrap.Op(name, None, [wrap.Param(0)], result)
    other = wrap.Op("tt.get_program_id", None, [], result)
    parse = lambda module: {"kernel": {result: [waits, stores, other]}}  # noqa: E731
    monkeypatch.setattr(wrap, "ttir_to_functions", parse)
    with assembly_without_operands_writes_nothing():
        found = wrap.ttir_to_functions(None)["kernel"][result]
    assert [each.is_pure for each in found] == [True, False, False]
    assert wrap.ttir_to_functions is parse


def test_a_kernel_is_analysed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import sympy
    import torch
    import triton
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    from etcuda.backend.inductor.accesses import each_kernel_analysed_once

    name = next(each for each in ("identify_accessed_tensors", "identify_mutated_tensors") if hasattr(wrap, each))
    calls: list[str] = []

    def analyse(kernel: object, kwargs: dict[str, object], tma_descriptor_metadata: dict[str, object]) -> list[str]:
        calls.append(str(kwargs))
        return ["y"]

    def body(x, y, n, BLOCK):  # type: ignore[no-untyped-def]
        pass

    monkeypatch.setattr(wrap, name, analyse)
    kernel, other = triton.jit(body), triton.jit(body)
    tensor, half = torch.empty(3), torch.empty(3, dtype=torch.float16)
    options = [triton.Config({"BLOCK": block}) for block in (16, 32)]
    with each_kernel_analysed_once():
        once = getattr(wrap, name)

        def asked(kernel: object, block: object = 16, **changes: object) -> int:
            before = len(calls)
            found = once(kernel, {"x": tensor, "y": tensor, "n": sympy.Symbol("s0"), "BLOCK": block} | changes, {})
            assert found == ["y"]
            found.append("changed by who asked")
            return len(calls) - before

        assert asked(kernel) == 1
        # Another tensor, or another symbol, of the same kind.
        assert asked(kernel, x=torch.zeros(5), n=sympy.Symbol("s1")) == 0
        for change in ({"x": half}, {"n": 16}, {"n": 1}, {"n": True}, {"block": 32}):
            assert (asked(kernel, **change), asked(kernel, **change)) == (1, 0), change
        assert asked(other) == 1
        # A launch with options wraps the kernel anew each time.
        assert asked(triton.autotune(options[:1], key=[])(kernel)) == 0
        assert asked(triton.autotune(options[1:], key=[])(kernel)) == 0
        # Not known what counts: each time.
        assert [asked(kernel, n=[1]) for _ in range(2)] == [1, 1]
    assert getattr(wrap, name) is analyse


def test_a_kernel_bounds_its_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    from etcuda.backend.inductor.launchers import _bounded_registers

    def plain(self: object, config: object, meta: object) -> dict[str, int]:
        return {"num_warps": 4}

    monkeypatch.setattr(CachingAutotuner, "_create_compile_options", plain)
    kernel = object.__new__(CachingAutotuner)
    with _bounded_registers():
        found = [
            kernel._create_compile_options(None, {"constants": constants})
            for constants in ({"MAX_REGISTERS": 168}, {"MAX_REGISTERS": 0}, {})
        ]
    assert found == [{"num_warps": 4, "maxnreg": 168}, {"num_warps": 4}, {"num_warps": 4}]
    assert CachingAutotuner._create_compile_options is plain


def test_every_carried_value_of_a_loop_has_an_output() -> None:
    from types import SimpleNamespace

    from etcuda.backend.inductor.loops import all_carried

    first, third = (SimpleNamespace(indices=[(list, index)]) for index in (0, 2))
    loop = SimpleNamespace(get_name=lambda: "buf3", outputs=[third, first], carried_inputs=["a", "b", "c", "d"])
    found = all_carried(loop)
    assert found[0] is first
    assert found[2] is third
    assert [found[index].get_name() for index in (1, 3)] == ["buf3_carried1", "buf3_carried3"]
