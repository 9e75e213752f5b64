"""Kernels in CUDA C++, for what Triton cannot say: compiled by NVRTC, and launched like Triton's.

Such a kernel has a stand-in in Triton, with the same arguments, which holds one line of text: ``Native.mark``. When
Triton compiles the stand-in inside ``native_kernels``, the PTX of the CUDA source replaces the PTX that Triton makes of
the stand-in. Inductor, Triton's launcher and the runtime treat the result as any kernel of Triton's. See README.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from triton import knobs

from etcuda.errors import KernelArgumentError

# Dtypes as ptx.cuh counts them.
DTYPE_CODES = {"bfloat16": 0, "float16": 1, "float32": 2}
_FOLDER = pathlib.Path(__file__).resolve().parent
_ROOT = _FOLDER.parent
_MARK = "mov.u32 $0, $1; // etcuda native "
_ENTRY = re.compile(r"\.visible \.entry (\w+)\(([^)]*)\)")
_VERSION = re.compile(r"^\.version [\d.]+$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Native:
    """A kernel in CUDA C++.

    Attributes:
        source: its file, below the folder of kernels.
        arch: what it is compiled for, such as "sm_90a".
        threads: of a block.
        shared: bytes of shared memory of a block.
        defines: macros in capital letters. A kernel with ``MMA_DTYPE``, 0 for bfloat16 and 1 for float16, also gets
            wgmma.cuh, for that dtype, multiples of 16 up to ``BLOCK_M``, and ``F16_ACCUMULATE``.
    """

    source: str
    arch: str
    threads: int
    shared: int
    defines: tuple[tuple[str, int], ...]

    @property
    def mark(self) -> str:
        """The line of assembly that stands for the kernel in Triton's PTX: a constant argument of the stand-in.

        It copies a word, so that the compiler does not remove it. Its comment holds the whole record, because another
        process may compile the stand-in than the one that launched it, and the digest of all sources, because caches of
        compiled kernels know the stand-in alone.
        """
        # No capital letters: PyTorch's analysis takes a D in a constant text for a property of an argument.
        defines = " ".join(f"{key.lower()}={value}" for key, value in self.defines)
        return f"{_MARK}{_digest_of_sources()} {self.source} {self.arch} {self.threads} {self.shared} {defines}"

    @classmethod
    def find(cls, ptx: str) -> Native | None:
        """The kernel whose mark is in a text, if there is one."""
        found = re.search(re.escape(_MARK.partition("; ")[2]) + r"\w+ (\S+) (\w+) (\d+) (\d+) ?(.*)", ptx)
        if found is None:
            return None
        source, arch, threads, shared, defines = found.groups()
        pairs = (each.partition("=")[::2] for each in defines.split())
        return cls(source, arch, int(threads), int(shared), tuple((key.upper(), int(value)) for key, value in pairs))

    def ptx(self, name: str) -> str:
        """PTX of the kernel under a name.

        Raises:
            KernelArgumentError: NVRTC does not compile it; says what it printed.
        """
        return _compile(self, name)


class _Stages:
    """Triton's hook. Called without arguments, it returns what Triton's cache has to tell apart; with them, it
    changes the stages of a compilation."""

    def __call__(self, *args: Any) -> tuple[str, str] | None:
        if not args:
            return "etcuda native", _digest_of_sources()
        stages: dict[str, Any] = args[1]
        make = stages["ptx"]

        def make_ptx(source: Any, metadata: dict[str, Any]) -> str:
            return _replace(make(source, metadata), metadata)

        stages["ptx"] = make_ptx
        return None


@contextlib.contextmanager
def native_kernels() -> Iterator[None]:
    """Lets Triton compile stand-ins of native kernels."""
    before = knobs.runtime.add_stages_inspection_hook
    knobs.runtime.add_stages_inspection_hook = _STAGES
    try:
        yield
    finally:
        knobs.runtime.add_stages_inspection_hook = before


_STAGES = _Stages()


def _replace(ptx: str, metadata: dict[str, Any]) -> str:
    """The PTX of the native kernel whose mark is in ``ptx``, or ``ptx`` itself without a mark."""
    native = Native.find(ptx)
    if native is None:
        return ptx
    entry, version = _ENTRY.search(ptx), _VERSION.search(ptx)
    assert entry is not None
    assert version is not None
    made = native.ptx(entry[1])
    made_entry = _ENTRY.search(made)
    assert made_entry is not None
    expected, got = _argument_types(entry[2]), _argument_types(made_entry[2])
    if got != expected:
        raise KernelArgumentError(
            f"{native.source}: expected the arguments of its stand-in, {expected}, got {got}. Both must have the same."
        )
    metadata["shared"] = native.shared
    metadata["num_warps"] = native.threads // 32
    # The version may be older than NVRTC's: the PTX uses nothing newer.
    return _VERSION.sub(version[0], made, count=1)


def _argument_types(arguments: str) -> list[str]:
    """The types of a kernel's arguments; pointers and integers of 64 bits are the same."""
    return [re.sub(r"[us](\d+)", r"b\1", each) for each in re.findall(r"\.param \.(\w\d+)", arguments)]


@functools.lru_cache(maxsize=256)
def _compile(native: Native, name: str) -> str:
    # In a process of its own: in a child forked from one that has loaded much, NVRTC was seen to crash.
    done = subprocess.run(
        [sys.executable, str(_FOLDER / "nvrtc.py")], input=json.dumps(nvrtc_request(native, name)),
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise KernelArgumentError(
            f"{native.source}: expected NVRTC to compile it, got exit status {done.returncode}:\n{done.stderr[-4000:]}"
        )
    return done.stdout


def nvrtc_request(native: Native, name: str) -> dict[str, Any]:
    """What ``nvrtc.py`` reads to compile a kernel under a name: its source, all headers, and the options."""
    source = _ROOT / native.source
    headers = {path.name: path.read_text() for folder in (_FOLDER, source.parent) for path in folder.glob("*.cuh")}
    defines = dict(native.defines)
    if "MMA_DTYPE" in defines:
        operand = "f16" if defines["MMA_DTYPE"] else "bf16"
        # Narrower ones too, for tiles that are not full; what a kernel does not call is not compiled.
        sizes = range(16, defines["BLOCK_M"] + 1, 16)
        products = [_wgmma(size, operand, bool(defines["F16_ACCUMULATE"])) for size in sizes]
        headers["wgmma.cuh"] = "\n".join(['#pragma once\n#include "ptx.cuh"', *products])
    macros = {"NAME": name, **defines, "SHARED_BYTES": native.shared}
    options = [f"--gpu-architecture={native.arch.replace('sm', 'compute')}", "--std=c++17"]
    options += [f"-D{key}={value}" for key, value in macros.items()]
    return {"source": source.read_text(), "name": native.source, "headers": headers, "options": options}


def _wgmma(block_m: int, operand: str, f16_accumulate: bool) -> str:
    """The product of a warpgroup: 64 rows by 16 columns in registers, times 16 columns by ``block_m``
    in shared memory, added to sums in float32, or in float16, of which a register holds two.

    Python writes it because the instruction lists its registers.
    """
    count, accumulator, register, letter = (
        (block_m // 4, "f16", "u32", "r") if f16_accumulate else (block_m // 2, "f32", "float", "f")
    )
    sums = ", ".join(f"%{i}" for i in range(count))
    outs = ", ".join(f'"+{letter}"(d[{i}])' for i in range(count))
    a = ", ".join(f"%{count + i}" for i in range(4))
    ins = ", ".join(f'"r"(a[{i}])' for i in range(4))
    shape = f"m64n{block_m}k16.{accumulator}.{operand}.{operand}"
    text = f"wgmma.mma_async.sync.aligned.{shape} {{{sums}}}, {{{a}}}, %{count + 4}, 1, 1, 1, 0;"
    return f"""__device__ __forceinline__ void wgmma({register} (&d)[{count}], const u32 (&a)[4], u64 b) {{
  asm volatile("{text}"
               : {outs}
               : {ins}, "l"(b));
}}
"""


@functools.cache
def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted([*_ROOT.glob("**/*.cu"), *_ROOT.glob("**/*.cuh"), pathlib.Path(__file__)]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
