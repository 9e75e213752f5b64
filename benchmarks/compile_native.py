"""Compiles the C++ of ``benchmarks/native`` against the installed executorch and etcuda."""

from __future__ import annotations

import pathlib
import subprocess

_SOURCES = pathlib.Path(__file__).resolve().parent / "native"


def compile_native(source: str, output: pathlib.Path, shared: bool = False) -> int:
    """Compiles one source file of ``benchmarks/native`` to a program or a shared library.

    Returns:
        g++'s exit status; its messages go to the terminal.
    """
    import executorch

    import etcuda.runtime

    root = pathlib.Path(next(iter(executorch.__path__)))
    library = etcuda.runtime.library_path()
    output.parent.mkdir(parents=True, exist_ok=True)
    portable = root / "include" / "executorch" / "runtime" / "core" / "portable_type" / "c10"
    kind = ["-shared", "-fPIC"] if shared else []
    command = [
        "g++", "-std=c++17", "-O2", *kind, "-DC10_USING_CUSTOM_GENERATED_MACROS", str(_SOURCES / source),
        "-o", str(output), f"-isystem{root / 'include'}", f"-isystem{portable}", f"-L{root / 'lib'}",
        "-Wl,--no-as-needed", str(library), "-lexecutorch", "-lexecutorch_kernels_optimized",
        f"-Wl,-rpath,{root / 'lib'}", f"-Wl,-rpath,{library.parent}",
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode
