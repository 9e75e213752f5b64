"""From generated C++ and kernel binaries to a code image: one shared object that asks the runtime for everything.

The contract is in docs/blob.md.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence

import torch

from etcuda.backend.inductor.container import split_container
from etcuda.backend.kept_objects import KeptObjects
from etcuda.backend.precompiled import PrecompiledHeaders
from etcuda.errors import CompileError

IMAGE_ABI = 1
# Stands in an image for the digest of the description that it will be delivered with; see docs/blob.md.
DESCRIPTION_MARK = hashlib.sha256(b"etcuda: the description of this image").digest()

# Names that the runtime provides. Anything else undefined must come from libstdc++, libm or libc.
_IMPORT = re.compile(r"^(?:aoti_torch_\w+|cu[A-Z]\w+|cuda[A-Z]\w+)$")
_CONSTANT_FUNCTION = re.compile(r"^aoti_torch_(?:dtype|device_type|layout|memory_format)_\w+$")
# Vector functions of the SLEEF library, which torch links and an image does not: Sleef_<function><f8|d4>_<accuracy>.
_VECTOR_MATH = re.compile(r"^Sleef_(?P<function>\w+?)(?P<lanes>f8|d4)(?:_\w+)?$")
_BINARY_MATH = frozenset({"pow", "fmod", "atan2", "hypot", "nextafter", "copysign", "fmin", "fmax"})

_DEFINES = ("TORCH_INDUCTOR_CPP_WRAPPER", "STANDALONE_TORCH_HEADER", "C10_USING_CUSTOM_GENERATED_MACROS")
_COMMON_FLAGS = (
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    # Unique symbols would keep dlclose from unloading the image.
    "-fno-gnu-unique",
    "-fno-plt",
    "-DNDEBUG",
    "-g0",
    "-w",
)
# Inductor's own floating point flags for generated kernels.
_KERNEL_FLAGS = (
    "-O3",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fexcess-precision=fast",
    "-fno-tree-loop-vectorize",
)
# What clang has in the place of flags of GCC: it marks no symbol unique, and sums have the precision of their dtype.
_FLAGS_OF_CLANG = {
    "-fno-gnu-unique": (),
    "-fexcess-precision=fast": (),
    "-fno-tree-loop-vectorize": ("-fno-vectorize",),
}
_ISA_FLAGS = {
    "x86-64": (),
    "x86-64-v3": ("-march=x86-64-v3", "-DCPU_CAPABILITY_AVX2"),
    "x86-64-v4": ("-march=x86-64-v4", "-DCPU_CAPABILITY_AVX2"),
}


@dataclasses.dataclass(frozen=True)
class CodeImage:
    """A code image: the ELF bytes and the names that the runtime must provide, sorted."""

    data: bytes
    imports: tuple[str, ...]


def find_compiler() -> list[str]:
    """The words of the C++ compiler's command: those of ``$CXX``, such as ``ccache g++``, else ``g++``.

    Raises:
        CompileError: there is none, or ``$CXX`` is not a command.
    """
    wanted = os.environ.get("CXX", "").strip() or "g++"
    try:
        words = shlex.split(wanted)
    except ValueError as error:
        raise CompileError(
            f"C++ compiler: CXX={wanted!r}: expected a command, as in 'g++' or 'ccache g++', got one that a shell "
            f"could not read ({error}). Correct or unset CXX."
        ) from error
    found = shutil.which(words[0])
    if found is None:
        raise CompileError(
            f"C++ compiler {words[0]!r}: expected an executable on PATH, found none. "
            "Exporting compiles the generated host code; install g++ (version 11 or newer), or set CXX to a compiler's "
            "command, such as 'g++-12' or 'ccache g++'."
        )
    return [found, *words[1:]]


def build_image(
    wrapper: str,
    kernels: str,
    binaries: Mapping[str, bytes],
    *,
    cuda: bool,
    isa: str,
    folder: pathlib.Path,
    headers: pathlib.Path | None = None,
) -> CodeImage:
    """Compiles and links one image in ``folder``, which must be empty and writable.

    Args:
        wrapper: AOTInductor's wrapper source.
        kernels: AOTInductor's kernel source (host) or an empty string.
        binaries: GPU kernels by name; embedded as ``__<name>_start``.
        cuda: whether the wrapper is for a GPU.
        isa: least processor level of the machine that runs the image.
        folder: where sources and objects go. Its path does not reach the output.
        headers: where precompiled headers, and objects that all images share, are kept; ``None`` goes without. They
            change no byte of the image.

    Raises:
        CompileError: the compiler or linker failed; the message ends with what they printed.
    """
    compiler = find_compiler()
    precompiled = PrecompiledHeaders(compiler, headers)
    common: Sequence[str] = _COMMON_FLAGS
    of_kernels: Sequence[str] = _KERNEL_FLAGS
    if precompiled.is_clang:
        common, of_kernels = _in_words_of_clang(common), _in_words_of_clang(of_kernels)
    flags = [*common, *(f"-D{name}" for name in _DEFINES), *_ISA_FLAGS[isa], *_path_flags(cuda)]
    if precompiled.is_clang:
        flags += ["-idirafter", str(pathlib.Path(__file__).parent / "include" / "clang")]
    model, container = split_container(wrapper)
    sources = [_Source("wrapper", model, (*flags, "-O1"))]
    if kernels.strip():
        sources.append(_Source("kernels", kernels, (*flags, *of_kernels)))
    kept = KeptObjects(precompiled.identity, headers and headers / "objects")
    objects = []
    if container is not None:
        shared = _Source("container", container, (*flags, "-O1"))
        if kept.fetch(shared.text, shared.flags, folder / "container.o"):
            objects.append(folder / "container.o")
        else:
            sources.append(dataclasses.replace(shared, is_shared=True))
    objects += _compile_all(compiler, sources, folder, precompiled)
    objects.sort()
    for source in sources:
        if source.is_shared:
            kept.keep(source.text, source.flags, folder / f"{source.name}.o", folder / f"{source.name}.d")
    undefined = _undefined_symbols(objects)
    vector_math = sorted(name for name in undefined if _VECTOR_MATH.match(name))
    if vector_math:
        objects.append(_vector_math(vector_math, (*flags, "-O2"), compiler, folder, precompiled, headers))
    wanted = sorted(name for name in undefined if _IMPORT.match(name))
    constants = {name: _constant_value(name) for name in wanted if _CONSTANT_FUNCTION.match(name)}
    imports = tuple(name for name in wanted if name not in constants)
    for name, data in binaries.items():
        (folder / f"{name}.bin").write_bytes(data)
    (folder / "glue.S").write_text(_glue_source(imports, constants, sorted(binaries)))
    (folder / "exports.map").write_text("{ global: etcuda_image_*; AOTInductor*; local: *; };\n")
    link = [
        *compiler, "-shared", "-o", "image.so", *(path.name for path in objects), "glue.S",
        "-Wl,--version-script=exports.map", "-Wl,-z,defs", "-Wl,-z,now", "-Wl,-z,noexecstack", "-Wl,--build-id=none",
        "-Wl,--gc-sections", "-Wl,-s", "-Wl,-soname,etcuda_image", "-lm",
    ]  # fmt: skip
    _run_all([link], folder)
    return CodeImage((folder / "image.so").read_bytes(), imports)


@dataclasses.dataclass(frozen=True)
class _Source:
    name: str
    text: str
    flags: tuple[str, ...]
    is_shared: bool = False  # with other images: compiled once, so that headers made for it would not pay

    def command(self, compiler: Sequence[str], folder: pathlib.Path, faster: Sequence[str] = ()) -> list[str]:
        # A path that reaches the output through __FILE__ is the same wherever the folder is.
        where = f"-ffile-prefix-map={folder}=/image"
        needed = ["-MD", "-MF", f"{self.name}.d"] if self.is_shared else []
        return [*compiler, *self.flags, *faster, where, *needed, "-c", f"{self.name}.cpp", "-o", f"{self.name}.o"]


def _compile_all(
    compiler: Sequence[str], sources: Sequence[_Source], folder: pathlib.Path, precompiled: PrecompiledHeaders
) -> list[pathlib.Path]:
    for source in sources:
        (folder / f"{source.name}.cpp").write_text(source.text)
    faster = [[] if source.is_shared else precompiled.flags(source.text, source.flags) for source in sources]
    try:
        _run_all(
            [source.command(compiler, folder, extra) for source, extra in zip(sources, faster, strict=True)], folder
        )
    except CompileError:
        # Without what is not needed: either the compiler is content now, or this is the error to report.
        _run_all([source.command(compiler, folder) for source in sources], folder)
        for extra in faster:
            precompiled.discard(extra)
    return [folder / f"{source.name}.o" for source in sources]


def _vector_math(
    names: Sequence[str],
    flags: tuple[str, ...],
    compiler: Sequence[str],
    folder: pathlib.Path,
    precompiled: PrecompiledHeaders,
    headers: pathlib.Path | None,
) -> pathlib.Path:
    """The object with these functions, in ``folder``; models want the same few, so objects are kept."""
    source = _Source("vector_math", _vector_math_source(names), flags, is_shared=True)
    kept, made = KeptObjects(precompiled.identity, headers and headers / "vector_math"), folder / "vector_math.o"
    if not kept.fetch(source.text, source.flags, made):
        _compile_all(compiler, [source], folder, precompiled)
        kept.keep(source.text, source.flags, made, folder / "vector_math.d")
    return made


def _in_words_of_clang(flags: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for flag in flags for word in _FLAGS_OF_CLANG.get(flag, (flag,)))


def _path_flags(cuda: bool) -> list[str]:
    torch_root = pathlib.Path(torch.__file__).parent
    # Paths that may reach the output through __FILE__ are mapped to fixed ones, so that it is reproducible.
    flags = [f"-ffile-prefix-map={torch_root}=/torch"]
    flags += [f"-I{torch_root / 'include'}", f"-I{torch_root / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    if cuda:
        include = pathlib.Path(__file__).parent / "include"
        flags += ["-DUSE_CUDA", f"-I{include}", f"-ffile-prefix-map={include}=/cuda"]
    return flags


def _run_all(commands: Sequence[Sequence[str]], folder: pathlib.Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    running = [
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    failures = []
    for command, process in zip(commands, running, strict=True):
        output, _ = process.communicate()
        if process.returncode:
            failures.append(f"`{' '.join(command)}` ended with {process.returncode}:\n{output[-4000:]}")
    if failures:
        raise CompileError("the C++ compiler failed on generated code. " + "\n".join(failures))


def _undefined_symbols(objects: Sequence[pathlib.Path]) -> set[str]:
    listing = subprocess.run(
        ["nm", "--undefined-only", "--format=posix", *objects], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[0] for line in listing.splitlines() if len(line.split()) >= 2}


def _constant_value(name: str) -> int:
    library = ctypes.CDLL(str(pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    function = getattr(library, name)
    function.restype = ctypes.c_int32
    return int(function())


def _vector_math_source(names: Sequence[str]) -> str:
    lines = ["#include <cmath>", "#include <immintrin.h>"]
    for name in names:
        match = _VECTOR_MATH.match(name)
        assert match is not None
        function, lanes = match["function"], match["lanes"]
        vector, scalar, count = ("__m256", "float", 8) if lanes == "f8" else ("__m256d", "double", 4)
        binary = function in _BINARY_MATH
        parameters = f"{vector} a, {vector} b" if binary else f"{vector} a"
        call = f"std::{function}(x[i], y[i])" if binary else f"std::{function}(x[i])"
        lines += [
            f'extern "C" {vector} {name}({parameters}) {{',
            f"  alignas(32) {scalar} x[{count}]; __builtin_memcpy(x, &a, 32);",
            f"  alignas(32) {scalar} y[{count}]; __builtin_memcpy(y, &b, 32);" if binary else "",
            f"  for (int i = 0; i < {count}; ++i) x[i] = {call};",
            "  __builtin_memcpy(&a, x, 32);",
            "  return a;",
            "}",
        ]
    return "\n".join(lines) + "\n"


def _glue_source(imports: Sequence[str], constants: Mapping[str, int], binaries: Sequence[str]) -> str:
    lines = ['.section .note.GNU-stack,"",@progbits', ".text"]
    for index, name in enumerate(imports):
        lines += [f".globl {name}", f".hidden {name}", f".type {name}, @function"]
        lines += [f"{name}: jmp *.Lslots+{8 * index}(%rip)"]
    for name, value in constants.items():
        lines += [
            f".globl {name}",
            f".hidden {name}",
            f".type {name}, @function",
            f"{name}: movl ${value}, %eax",
            "ret",
        ]
    # A destructor of a thread's variable would pin the image in memory until the thread ends. AOTInductor's only such
    # variable is the last error's text.
    lines += [".globl __cxa_thread_atexit", ".hidden __cxa_thread_atexit", ".type __cxa_thread_atexit, @function"]
    lines += ["__cxa_thread_atexit: xorl %eax, %eax", "ret"]
    # A call before the runtime has filled the slots fails like any shim: with a non-zero code.
    lines += ["etcuda_unbound: movl $1, %eax", "ret"]
    lines += [
        '.section .data.rel.local,"aw"',
        ".balign 16",
        ".globl etcuda_image_slots",
        "etcuda_image_slots:",
        ".Lslots:",
    ]
    lines += [".quad etcuda_unbound"] * len(imports) + [".quad 0"]
    lines += [".globl etcuda_image_imports", "etcuda_image_imports:"]
    lines += [f".quad .Lname{index}" for index in range(len(imports))] + [".quad 0"]
    lines += [".section .rodata", ".balign 4", ".globl etcuda_image_abi", f"etcuda_image_abi: .long {IMAGE_ABI}"]
    mark = ", ".join(map(str, DESCRIPTION_MARK))
    lines += [".globl etcuda_image_description", f"etcuda_image_description: .byte {mark}"]
    lines += [f'.Lname{index}: .asciz "{name}"' for index, name in enumerate(imports)]
    # AOTInductor's runtime refers to constants linked into the image; there are none.
    for symbol in ("_binary_constants_bin_start", "_binary_constants_bin_end"):
        lines += [f".globl {symbol}", f".hidden {symbol}", f"{symbol}:"]
    for name in binaries:
        for symbol in (f"__{name}_start", f"__{name}_end"):
            lines += [f".globl {symbol}", f".hidden {symbol}"]
        lines += [".balign 64", f"__{name}_start:", f'.incbin "{name}.bin"', f"__{name}_end:", ".byte 0"]
    return "\n".join(lines) + "\n"
