from __future__ import annotations

import ctypes
import math
import os
import pathlib
import re
import shlex
import shutil

import pytest
import torch

from etcuda import shims
from etcuda.backend import image as image_module
from etcuda.backend.image import build_image, find_compiler
from etcuda.backend.precompiled import identity_of_gcc
from etcuda.errors import CompileError

WRAPPER = """
#include <cstdint>
extern "C" {
int32_t aoti_torch_get_dim(void*, int64_t*);
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_device_type_cuda();
extern const unsigned char __kernel_a_start[];
extern const unsigned char __kernel_a_end[];
}
static const int32_t at_load = aoti_torch_dtype_bfloat16();  // before the slots are written
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT int32_t AOTInductorTestLoad() { return at_load; }
EXPORT int32_t AOTInductorTestDevice() { return aoti_torch_device_type_cuda(); }
EXPORT int32_t AOTInductorTestCall(int64_t* out) { return aoti_torch_get_dim(nullptr, out); }
EXPORT int64_t AOTInductorTestSize() { return __kernel_a_end - __kernel_a_start; }
EXPORT int32_t AOTInductorTestByte() { return __kernel_a_start[1]; }
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("image")
    built = build_image(WRAPPER, "", {"kernel_a": b"\7\11\13"}, cuda=False, isa="x86-64", folder=folder)
    assert built.imports == ("aoti_torch_get_dim",)
    path = folder / "test.so"
    path.write_bytes(built.data)
    return ctypes.CDLL(str(path))


def test_import_table(image: ctypes.CDLL) -> None:
    assert ctypes.c_uint32.in_dll(image, "etcuda_image_abi").value == 1
    names = (ctypes.c_char_p * 2).in_dll(image, "etcuda_image_imports")
    assert list(names) == [b"aoti_torch_get_dim", None]


def test_a_call_fails_until_its_slot_is_written_and_then_reaches_it(image: ctypes.CDLL) -> None:
    out = ctypes.c_int64(0)
    image.AOTInductorTestCall.argtypes = [ctypes.POINTER(ctypes.c_int64)]
    assert image.AOTInductorTestCall(ctypes.byref(out)) == 1
    assert out.value == 0

    @ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64))
    def get_dim(_tensor: object, result: object) -> int:
        result[0] = 42  # type: ignore[index]
        return 0

    slots = (ctypes.c_void_p * 2).in_dll(image, "etcuda_image_slots")
    slots[0] = ctypes.cast(get_dim, ctypes.c_void_p)
    assert image.AOTInductorTestCall(ctypes.byref(out)) == 0
    assert out.value == 42


def test_constant_functions_work_while_loading(image: ctypes.CDLL) -> None:
    assert image.AOTInductorTestLoad() == 15
    assert image.AOTInductorTestDevice() == 1


def test_kernels_are_embedded(image: ctypes.CDLL) -> None:
    image.AOTInductorTestSize.restype = ctypes.c_int64
    assert image.AOTInductorTestSize() == 3
    assert image.AOTInductorTestByte() == 9


def test_an_unknown_undefined_symbol_fails_the_link(tmp_path: pathlib.Path) -> None:
    source = 'extern "C" int nobody_has_this(); '
    source += 'extern "C" __attribute__((visibility("default"))) int AOTInductorX() { return nobody_has_this(); }'
    with pytest.raises(CompileError, match="nobody_has_this"):
        build_image(source, "", {}, cuda=False, isa="x86-64", folder=tmp_path)


def test_a_broken_source_shows_the_compiler_s_words(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CompileError, match=r"(?s)wrapper\.cpp.*error"):
        build_image("this is not C++", "", {}, cuda=False, isa="x86-64", folder=tmp_path)


@pytest.fixture
def launcher(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Puts ``fake-ccache`` on PATH, which runs its arguments; the file with what it was called with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "calls.txt"
    script = folder / "fake-ccache"
    script.write_text(f"""#!/bin/sh\necho "$@" >> '{log}'\nexec "$@"\n""")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return log


def test_the_compiler_may_have_a_launcher_and_options(
    launcher: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "fake-ccache g++ -DFROM_CXX='a b'")
    assert find_compiler() == [str(tmp_path / "bin" / "fake-ccache"), "g++", "-DFROM_CXX=a b"]
    build = tmp_path / "build"
    build.mkdir()
    source = "#ifndef FROM_CXX\n#error no option\n#endif\n"
    assert build_image(source, source, {}, cuda=False, isa="x86-64", folder=build).data.startswith(b"\x7fELF")
    calls = launcher.read_text().splitlines()
    # The compiler is asked for what it is, which names precompiled headers; then two sources and the link.
    assert len(calls) == 4
    assert all(call.startswith("g++ -DFROM_CXX=a b ") for call in calls)


# Asks and refuses as clang does; what it takes, the other compiler compiles.
CLANG = r"""#!/bin/sh
for word in "$@"; do
  case "$word" in
    -E) echo '14 "Debian Clang 14.0.6"'; exit 0;;
    -fno-vectorize) echo used >> '{log}'; continue;;
    -fno-gnu-unique|-fno-tree-*|-fexcess-*|--param*) echo "clang: error: unknown argument: '$word'" >&2; exit 1;;
  esac
done
for word; do shift; [ "$word" = -fno-vectorize ] || set -- "$@" "$word"; done
exec {compiler} "$@"
"""


def test_clang_gets_words_that_it_knows(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, compiler, build = tmp_path / "log", tmp_path / "clang++", tmp_path / "build"
    compiler.write_text(CLANG.format(log=log, compiler=shlex.join(find_compiler())))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    build.mkdir()
    kernels = '#include <omp.h>\nextern "C" __attribute__((visibility("default"))) int AOTInductorX() { return 7; }'
    built = build_image("", kernels, {}, cuda=False, isa="x86-64", folder=build, headers=tmp_path / "headers")
    path = tmp_path / "image.so"
    path.write_bytes(built.data)
    assert ctypes.CDLL(str(path)).AOTInductorX() == 7
    assert log.read_text() == "used\n"
    # What is kept between exports is GCC's.
    assert not (tmp_path / "headers").exists()
    # A clang without OpenMP finds a header that declares nothing.
    assert "omp_" not in (pathlib.Path(image_module.__file__).parent / "include" / "clang" / "omp.h").read_text()


def test_the_compiler_without_the_variable_is_gxx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert find_compiler() == [shutil.which("g++")]
    monkeypatch.setenv("CXX", "  ")
    assert find_compiler() == [shutil.which("g++")]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "no-launcher g++",
            r"C\+\+ compiler 'no-launcher': expected an executable on PATH, found none.*'ccache g\+\+'",
        ),
        ("g++ 'a", r"CXX=\"g\+\+ 'a\": expected a command, .* a shell could not read \(No closing quotation\)"),
    ],
)
def test_what_is_no_compiler(command: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", command)
    with pytest.raises(CompileError, match=message):
        find_compiler()


FUNCTIONS = ("exp", "tanh", "erf", "log1p", "lgamma", "expm1", "pow", "atan2", "fmod", "hypot")


def test_vector_math_matches_libm(tmp_path: pathlib.Path) -> None:
    from etcuda.backend.image import _BINARY_MATH

    lines = ["#include <immintrin.h>"]
    for name in FUNCTIONS:
        binary = name in _BINARY_MATH
        for lanes, vector, scalar, load, store in (
            ("f8", "__m256", "float", "_mm256_loadu_ps", "_mm256_storeu_ps"),
            ("d4", "__m256d", "double", "_mm256_loadu_pd", "_mm256_storeu_pd"),
        ):
            parameters = f"{vector}, {vector}" if binary else vector
            second = f", {load}(b)" if binary else ""
            lines += [
                f'extern "C" {vector} Sleef_{name}{lanes}_u10({parameters});',
                'extern "C" __attribute__((visibility("default")))',
                f"void AOTInductor_{name}{lanes}(const {scalar}* a, const {scalar}* b, {scalar}* c)",
                f"{{ {store}(c, Sleef_{name}{lanes}_u10({load}(a){second})); }}",
            ]
    made = [tmp_path / "first", tmp_path / "again"]
    for folder in made:
        folder.mkdir()
        built = build_image(
            "\n".join(lines), "", {}, cuda=False, isa="x86-64-v3", folder=folder, headers=tmp_path / "headers"
        )
    # The functions are compiled for the first image that wants them, and are in both.
    assert (made[0] / "vector_math.cpp").exists()
    assert identity_of_gcc(find_compiler()) is None or not (made[1] / "vector_math.cpp").exists()
    path = tmp_path / "math.so"
    path.write_bytes(built.data)
    library = ctypes.CDLL(str(path))
    for name in FUNCTIONS:
        for lanes, dtype in (("f8", torch.float32), ("d4", torch.float64)):
            a, b = torch.rand(8, dtype=dtype) + 0.5, torch.rand(8, dtype=dtype) + 0.5
            out = torch.full((8,), math.nan, dtype=dtype)
            getattr(library, f"AOTInductor_{name}{lanes}")(*(ctypes.c_void_p(each.data_ptr()) for each in (a, b, out)))
            count = int(lanes[1])
            expected = [
                getattr(math, name)(*pair[: 2 if name in _BINARY_MATH else 1])
                for pair in zip(a.tolist(), b.tolist(), strict=True)
            ]
            torch.testing.assert_close(out[:count], torch.tensor(expected, dtype=dtype)[:count])


def test_the_runtime_has_every_shim_that_the_exporter_may_use() -> None:
    runtime = pytest.importorskip("etcuda.runtime")
    have = set(runtime.shim_names())
    constant = re.compile(r"aoti_torch_(dtype|device_type|layout)_")
    for side in ("host", "cuda"):
        wanted = {name for name in shims.runtime_symbols(side) if not constant.match(name)}  # type: ignore[arg-type]
        assert wanted - have == set()
