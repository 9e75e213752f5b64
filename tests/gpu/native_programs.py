"""Compiles the C++ programs of ``tests/gpu/native`` against the installed executorch and the runtime."""

from __future__ import annotations

import pathlib
import subprocess

_HERE = pathlib.Path(__file__).resolve().parent


def compile_program(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The program of ``native/<name>.cpp``, in ``folder``.

    Raises:
        AssertionError: it does not compile; the message holds what g++ printed.
    """
    import executorch

    from etcuda.library import find_library

    root = pathlib.Path(next(iter(executorch.__path__)))
    library = find_library()
    runtime = _HERE.parent.parent / "runtime"
    output = folder / name
    portable = root / "include" / "executorch" / "runtime" / "core" / "portable_type" / "c10"
    command = [
        "g++", "-std=c++17", "-O1", "-w", "-DC10_USING_CUSTOM_GENERATED_MACROS", _HERE / "native" / f"{name}.cpp",
        "-o", output, f"-I{runtime}", f"-I{runtime / 'include'}", f"-isystem{root / 'include'}",
        f"-isystem{portable}", f"-L{root / 'lib'}", "-Wl,--no-as-needed", library, "-lexecutorch",
        "-lexecutorch_kernels_optimized", "-ldl", f"-Wl,-rpath,{root / 'lib'}", f"-Wl,-rpath,{library.parent}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output
