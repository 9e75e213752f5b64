"""The delegate in the stock Python runtime: state, weights inside and outside of the program, errors."""

from __future__ import annotations

import pathlib
import sys

import pytest
import torch

import etcuda.runtime
from etcuda.library import find_library

from .conftest import MakeProgram, run

runtime = pytest.importorskip("executorch.runtime")

ONES = torch.ones(3)


def _load(path: pathlib.Path, data: pathlib.Path | None = None):  # type: ignore[no-untyped-def]
    return runtime.Runtime.get().load_program(path, data_path=data)


def _run(method, x: torch.Tensor) -> list[float]:  # type: ignore[no-untyped-def]
    result: list[float] = method.execute([x])[0].tolist()
    return result


def test_registered() -> None:
    assert etcuda.runtime.is_registered()
    assert "EtcudaBackend" in runtime.Runtime.get().backend_registry.registered_backend_names


def test_state_persists_and_resets(make_program: MakeProgram) -> None:
    program = _load(make_program(state=[10, 20, 30, 40, 50, 60, 70, 80]))
    method = program.load_method("forward")
    assert _run(method, ONES) == [11, 42, 93]
    assert _run(method, torch.ones(1)) == [12]
    assert etcuda.runtime.reset_state() >= 1
    assert _run(method, ONES) == [11, 42, 93]


@pytest.mark.parametrize("external", [None, "weights"])
def test_methods_share_state_and_programs_do_not(make_program: MakeProgram, external: str | None) -> None:
    path = make_program(methods=["prefill", "decode"], external=external)
    data = path.parent / "weights.ptd" if external else None
    assert data is None or data.is_file()
    program, other = _load(path, data), _load(path, data)
    prefill, decode = program.load_method("prefill"), program.load_method("decode")
    assert _run(prefill, ONES) == [1, 2, 3]
    assert _run(decode, ONES) == [2, 4, 6]
    assert _run(prefill, ONES) == [3, 6, 9]
    assert _run(other.load_method("decode"), ONES) == [1, 2, 3]


def test_missing_and_wrong_ptd(make_program: MakeProgram) -> None:
    path = make_program(external="weights")
    with pytest.raises(RuntimeError):
        _load(path).load_method("forward")
    assert "data_path" in etcuda.runtime.last_error()
    assert "layer.weight" in etcuda.runtime.last_error()
    other = make_program(external="others", weight=[9, 9, 9, 9, 9, 9, 9, 9])
    with pytest.raises(RuntimeError):
        _load(path, other.parent / "others.ptd").load_method("forward")
    assert "exported together with this program" in etcuda.runtime.last_error()


def test_damaged_image(make_program: MakeProgram) -> None:
    program = _load(make_program(damage=True))
    with pytest.raises(RuntimeError):
        program.load_method("forward")
    assert "the code image for host is damaged" in etcuda.runtime.last_error()


def test_gpu_program_without_a_gpu(make_program: MakeProgram) -> None:
    if etcuda.runtime.gpu_available():
        pytest.skip("there is a GPU here")
    program = _load(make_program(device=1))
    with pytest.raises(RuntimeError):
        program.load_method("forward")
    assert 'target="host"' in etcuda.runtime.last_error()


def test_wrong_inputs(make_program: MakeProgram) -> None:
    method = _load(make_program()).load_method("forward")
    for wrong in (torch.ones(3, dtype=torch.int32), torch.ones(2, 2), torch.ones(9)):
        with pytest.raises(RuntimeError):
            method.execute([wrong])
    with pytest.raises(RuntimeError):
        method.execute([])
    etcuda.runtime.reset_state()
    assert _run(method, ONES) == [1, 2, 3]


def test_out_of_memory_and_on(make_program: MakeProgram) -> None:
    method = _load(make_program()).load_method("forward")
    before = etcuda.runtime.memory_stats()[0].allocated
    etcuda.runtime.set_memory_limit("cpu", 1 << 20)
    try:
        with pytest.raises(RuntimeError):
            method.execute([torch.tensor([-103.0, 0])])
        assert "out of memory on the host" in etcuda.runtime.last_error()
    finally:
        etcuda.runtime.set_memory_limit("cpu", 0)
    assert etcuda.runtime.memory_stats()[0].allocated == before
    etcuda.runtime.reset_state()
    assert _run(method, ONES) == [1, 2, 3]


CYCLES = """
import resource, sys
import etcuda.runtime
from executorch.runtime import Runtime
import torch

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def mapped():
    with open("/proc/self/maps") as file:
        return sum("etcuda_image" in line for line in file)

def cycle():
    method = Runtime.get().load_program(sys.argv[1]).load_method("forward")
    assert method.execute([torch.ones(3)])[0].tolist() == [1, 2, 3]

for _ in range(20):
    cycle()
before = resident()
for _ in range(int(sys.argv[2])):
    cycle()
grown = resident() - before
assert mapped() == 0, mapped()
assert etcuda.runtime.memory_stats()[0].allocated == 0
print("grown", grown)
"""


def test_two_hundred_cycles_stay_flat(make_program: MakeProgram) -> None:
    done = run(sys.executable, "-W", "ignore", "-c", CYCLES, make_program(), "200")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 2 << 20


@pytest.mark.slow
def test_stock_runtime_sanitized(make_program: MakeProgram, sanitized_build: pathlib.Path) -> None:
    # The C++ library stands beside the sanitizer, which looks for its functions when the process starts.
    libraries = [run("g++", f"-print-file-name={name}").stdout.strip() for name in ("libasan.so", "libstdc++.so.6")]
    done = run(
        *(sys.executable, "-W", "ignore", "-c", CYCLES, make_program(), "20"),
        LD_PRELOAD=" ".join(libraries),
        # The interpreter itself does not free everything.
        ASAN_OPTIONS="detect_leaks=0",
        UBSAN_OPTIONS="halt_on_error=1",
        ETCUDA_RUNTIME_LIBRARY=str(sanitized_build / "runtime" / "lib" / "libetcuda_runtime.so"),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "ERROR: AddressSanitizer" not in done.stderr


def test_library_path_override(tmp_path: pathlib.Path) -> None:
    code = "import etcuda.runtime"
    done = run(sys.executable, "-W", "ignore", "-c", code, ETCUDA_RUNTIME_LIBRARY=str(tmp_path / "none.so"))
    assert done.returncode != 0
    assert "RuntimeUnavailableError" in done.stderr
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"nothing")
    done = run(sys.executable, "-W", "ignore", "-c", code, ETCUDA_RUNTIME_LIBRARY=str(broken))
    assert "does not load" in done.stderr
    assert find_library().is_file()
