"""Kernels in CUDA C++, for what Triton cannot say: compiled by NVRTC, and launched like Triton's.

Such a kernel has a stand-in written in Triton, with the same arguments, that holds one line of text:
``Native.mark``. When Triton compiles the stand-in inside of ``native_kernels``, the PTX that it makes is replaced by
that of the CUDA source; what launches it, here or in a program compiled ahead of time, need not know. See README.md.
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
        defines: macros in capital letters; ``BLOCK_M`` and ``TYPE``, 0 for bfloat16 and 1 for float16, are also what
            products.cuh is made for.
    """

    source: str
    arch: str
    threads: int
    shared: int
    defines: tuple[tuple[str, int], ...]

    @property
    def mark(self) -> str:
        """The line of assembly that stands for the kernel in Triton's PTX: a constant argument of the stand-in, which
        copies a word so that it is not left out. It says it all, since the process that compiles need not be the one
        that asked, and names the sources' digest, since caches of compiled kernels know the stand-in alone."""
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
    """Triton's hook: without arguments what its cache has to distinguish, with them a change of the stages."""

    def __call__(self, *args: Any) -> tuple[str, str] | None:
        if not args:
            return "etcuda native", _digest_of_sources()
        stages: dict[str, Any] = args[1]
        make = stages["ptx"]

        def make_ptx(source: Any, metadata: dict[str, Any]) -> str:
            return _replaced(make(source, metadata), metadata)

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


def _replaced(ptx: str, metadata: dict[str, Any]) -> str:
    native = Native.find(ptx)
    if native is None:
        return ptx
    entry, version = _ENTRY.search(ptx), _VERSION.search(ptx)
    assert entry is not None
    assert version is not None
    made = native.ptx(entry[1])
    other = _ENTRY.search(made)
    assert other is not None
    if _kinds(entry[2]) != _kinds(other[2]):
        raise KernelArgumentError(
            f"{native.source}: expected the arguments of its stand-in, {_kinds(entry[2])}, got {_kinds(other[2])}. "
            "Both must have the same."
        )
    metadata["shared"] = native.shared
    metadata["num_warps"] = native.threads // 32
    # Nothing newer than Triton's own assembler knows is in it.
    return _VERSION.sub(version[0], made, count=1)


def _kinds(arguments: str) -> list[str]:
    """The types of a kernel's arguments, pointers and integers of 64 bits alike."""
    return [re.sub(r"[us](\d+)", r"b\1", kind) for kind in re.findall(r"\.param \.(\w\d+)", arguments)]


@functools.lru_cache(maxsize=256)
def _compile(native: Native, name: str) -> str:
    source = _ROOT / native.source
    headers = {path.name: path.read_text() for folder in (_FOLDER, source.parent) for path in folder.glob("*.cuh")}
    defined = dict(native.defines)
    headers["products.cuh"] = _products(
        defined.get("BLOCK_M", 8), "f16" if defined.get("TYPE", 1) else "bf16", bool(defined.get("HALF_SUMS", 0))
    )
    options = [f"--gpu-architecture={native.arch.replace('sm', 'compute')}", "--std=c++17", f"-DNAME={name}"]
    options += [f"-D{key}={value}" for key, value in (*native.defines, ("SHARED_BYTES", native.shared))]
    request = {
        "source": source.read_text(), "name": native.source, "headers": headers, "options": options,
    }  # fmt: skip
    # In a process of its own: in a child forked from one that has loaded much, NVRTC was seen to crash.
    made = subprocess.run(
        [sys.executable, str(_FOLDER / "nvrtc.py")], input=json.dumps(request), capture_output=True, text=True
    )
    if made.returncode != 0:
        raise KernelArgumentError(
            f"{native.source}: expected NVRTC to compile it, got exit status {made.returncode}:\n{made.stderr[-4000:]}"
        )
    return made.stdout


def _products(block_m: int, kind: str, half_sums: bool) -> str:
    """A product of a warpgroup: 64 rows by 16 columns in registers, times 16 by ``block_m`` in shared memory, added to
    sums in float32, or with ``half_sums`` in float16, of which a register has two.

    Written out since an instruction lists its registers.
    """
    count, sums_in, register, letter = (
        (block_m // 4, "f16", "u32", "r") if half_sums else (block_m // 2, "f32", "float", "f")
    )
    sums = ", ".join(f"%{i}" for i in range(count))
    outs = ", ".join(f'"+{letter}"(d[{i}])' for i in range(count))
    a = ", ".join(f"%{count + i}" for i in range(4))
    ins = ", ".join(f'"r"(a[{i}])' for i in range(4))
    shape = f"m64n{block_m}k16.{sums_in}.{kind}.{kind}"
    text = f"wgmma.mma_async.sync.aligned.{shape} {{{sums}}}, {{{a}}}, %{count + 4}, 1, 1, 1, 0;"
    return f"""#pragma once
#include "ptx.cuh"
__device__ __forceinline__ void product({register} (&d)[{count}], const u32 (&a)[4], u64 b) {{
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
