"""Precompiled headers save time and change no byte; one that is not as it should be is not used, nor in the way."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Sequence

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch.export import Dim

from etcuda import CudaPartitioner
from etcuda.backend import precompiled
from etcuda.backend.image import build_image, find_compiler
from etcuda.backend.inductor import container
from etcuda.backend.precompiled import PrecompiledHeaders
from etcuda.backend.worker import client
from etcuda.backend.worker.job import JobResult, read_result
from etcuda.errors import CompileError
from tests.exhaustive import only

COMPILER = find_compiler()
SOURCE = """
// A remark.
#include <given.h>
#include <cstdint>

int number() { return GIVEN; }
"""

is_gcc = precompiled.identity_of_gcc(COMPILER) is not None
needs_gcc = pytest.mark.skipif(not is_gcc, reason="the compiler is not GCC, which alone has precompiled headers")


@pytest.fixture
def given(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "include with a space" / "given.h"
    path.parent.mkdir()
    path.write_text("#define GIVEN 17\n")
    return path


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "headers"


def wanted(folder: pathlib.Path | None, given: pathlib.Path, *more: str) -> pathlib.Path | None:
    """The header that ``SOURCE`` is to be compiled with, which is shown to be as good as the files it is made from."""
    flags = [f"-I{given.parent}", *more]
    faster = PrecompiledHeaders(COMPILER, folder).flags(SOURCE, flags)
    objects = []
    for extra in ([], faster):
        source, out = given.parent / "source.cpp", given.parent / "source.o"
        source.write_text(SOURCE)
        subprocess.run([*COMPILER, *flags, *extra, "-c", source.name, "-o", out], cwd=given.parent, check=True)
        objects.append(out.read_bytes())
    assert objects[0] == objects[1]
    return pathlib.Path(faster[faster.index("-include") + 1]) if "-include" in faster else None


@needs_gcc
def test_noted_then_made_then_there(folder: pathlib.Path, given: pathlib.Path) -> None:
    assert wanted(folder, given) is None
    header = wanted(folder, given)
    assert header is not None
    assert header.read_text() == "#include <given.h>\n#include <cstdint>\n"
    made = header.with_suffix(".h.gch").stat()
    assert wanted(folder, given) == header
    assert header.with_suffix(".h.gch").stat().st_mtime_ns == made.st_mtime_ns
    # The compiler takes it, not the text.
    command = [*COMPILER, f"-I{given.parent}", "-H", "-include", header, "-fsyntax-only", given.parent / "source.cpp"]
    assert f"! {header}.gch" in subprocess.run(command, capture_output=True, text=True, check=True).stderr
    # Other flags, another header.
    assert wanted(folder, given, "-O1") is None
    assert wanted(folder, given, "-O1") not in (None, header)
    assert wanted(None, given) is None


@needs_gcc
def test_what_it_was_made_from_has_changed(folder: pathlib.Path, given: pathlib.Path) -> None:
    wanted(folder, given)
    header = wanted(folder, given)
    assert header is not None
    before, times = header.with_suffix(".h.gch").read_bytes(), given.stat()
    given.write_text("#define GIVEN 18\n")
    # Nothing but the content tells.
    os.utime(given, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert wanted(folder, given) == header
    assert header.with_suffix(".h.gch").read_bytes() != before


@needs_gcc
@pytest.mark.parametrize("damage", ["a bit", "half of it", "all of it", "record", "text", "other text"])
def test_a_damaged_header_is_made_anew(damage: str, folder: pathlib.Path, given: pathlib.Path) -> None:
    wanted(folder, given)
    header = wanted(folder, given)
    assert header is not None
    compiled, record = header.with_suffix(".h.gch"), header.with_suffix(".json")
    data = bytearray(compiled.read_bytes())
    if damage == "a bit":
        data[len(data) // 2] ^= 1
        compiled.write_bytes(data)
    elif damage == "half of it":
        compiled.write_bytes(data[: len(data) // 2])
    elif damage == "all of it":
        compiled.unlink()
    elif damage == "record":
        record.write_text(record.read_text()[:-9])
    else:
        header.unlink()
        if damage == "other text":
            header.write_text("#include <cst\n")
        # As if it had never been seen.
        assert wanted(folder, given) is None
    assert wanted(folder, given) == header
    assert precompiled.digest_of(compiled) == json.loads(record.read_text())["sha256"]


@needs_gcc
def test_one_process_at_a_time_makes_a_header(folder: pathlib.Path, given: pathlib.Path) -> None:
    wanted(folder, given)
    # Left by a process that was ended.
    (folder / "made").mkdir()
    (folder / "made" / "header.gch").write_text("half")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert wanted(folder, given) is None
    assert wanted(folder, given) is not None
    assert not (folder / "made").exists()


@needs_gcc
def test_only_so_many_are_kept(folder: pathlib.Path, given: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precompiled, "MOST_COMPILED", 2)
    monkeypatch.setattr(precompiled, "MOST_NOTED", 4)
    for number in range(6):
        wanted(folder, given, f"-DONLY_NOTED={number}")
    headers = []
    for number in range(3):
        wanted(folder, given, f"-DNUMBER={number}")
        headers.append(wanted(folder, given, f"-DNUMBER={number}"))
        if number == 1:
            # Used after the other one was made.
            wanted(folder, given, "-DNUMBER=0")
    assert {path.stem for path in folder.glob("*.json")} == {path.stem for path in (headers[0], headers[2]) if path}
    assert len(list(folder.glob("*.gch"))) == 2
    assert len(list(folder.glob("*.h"))) == 4


@needs_gcc
def test_a_place_that_cannot_be_written_to(tmp_path: pathlib.Path, given: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    assert [wanted(tmp_path / "file" / "headers", given) for _ in range(2)] == [None, None]


@needs_gcc
def test_headers_that_do_not_compile(folder: pathlib.Path, given: pathlib.Path) -> None:
    headers, source = PrecompiledHeaders(COMPILER, folder), "#include <nobody_has_this.h>\n"
    assert not any("-include" in headers.flags(source, []) for _ in range(3))
    assert list(folder.glob("*.gch")) == []


def test_another_compiler_goes_without(tmp_path: pathlib.Path, folder: pathlib.Path, given: pathlib.Path) -> None:
    compiler = tmp_path / "clang"
    for answer in ("""echo '1 "Clang 19.1"'""", "exit 1"):
        compiler.write_text(f"#!/bin/sh\n{answer}\n")
        compiler.chmod(0o755)
        headers = PrecompiledHeaders([str(compiler)], folder)
        assert [headers.flags(SOURCE, []) for _ in range(3)] == [[], [], []]
    assert PrecompiledHeaders([str(tmp_path / "nothing")], folder).flags(SOURCE, []) == []
    assert not folder.exists()


@needs_gcc
def test_a_compiler_that_fails_with_a_header_compiles_without(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, log = tmp_path / "cxx", tmp_path / "log"
    compiler.write_text(f"""#!/bin/sh
        case " $* " in *" -include "*) echo used >> '{log}'; exit 1;; esac
        exec {COMPILER[0]} "$@"
    """)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    source = (
        '#include <cstdint>\nextern "C" __attribute__((visibility("default"))) int32_t AOTInductorX() { return 7; }'
    )

    def build(name: str, source: str = source) -> bytes:
        (tmp_path / name).mkdir()
        return build_image(source, "", {}, cuda=False, isa="x86-64", folder=tmp_path / name, headers=folder).data

    images = [build(str(number)) for number in range(2)]
    assert log.read_text() == "used\n"
    # It is given up: noted again, and made once more.
    assert list(folder.glob("*.h*")) == []
    images += [build(str(number)) for number in range(2, 4)]
    assert log.read_text() == "used\n" * 2
    assert len(set(images)) == 1
    with pytest.raises(CompileError, match=r"(?s)wrapper\.cpp.*'nothing'"):
        build("broken", "#include <cstdint>\nint f() { return nothing; }")


@needs_gcc
@pytest.mark.slow
@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("target", ["host", only(False, "sm_90")])
def test_images_of_programs_have_the_same_bytes(
    target: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"

    def keep_and_read(folder: pathlib.Path) -> JobResult:
        shutil.copytree(folder / "build" / "image", kept)
        return read_result(folder)

    monkeypatch.setattr(client, "read_result", keep_and_read)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.GELU())
    program = torch.export.export(model, (torch.zeros(5, 24),), dynamic_shapes=({0: Dim("batch", max=32)},))
    to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target=target)])

    is_host = target == "host"
    sources = [(kept / f"{name}.cpp").read_text() for name in ("wrapper", *(["kernels"] if is_host else []))]
    # As AOTInductor wrote it.
    assert container._declarations() in sources[0]
    sources[0] = sources[0].replace(container._declarations(), container._interface())
    binaries = {path.stem: path.read_bytes() for path in kept.glob("*.bin")}
    # Where exports of other tests have left what they made.
    headers = client.default_cache_dir() / "headers"
    images = [(kept / "image.so").read_bytes()]
    used: list[list[str]] = []
    make_flags = PrecompiledHeaders.flags

    def flags(self: PrecompiledHeaders, source: str, flags: Sequence[str]) -> list[str]:
        used.append(make_flags(self, source, flags))
        return used[-1]

    monkeypatch.setattr(PrecompiledHeaders, "flags", flags)
    for place in (None, headers, headers, headers):
        used.clear()
        folder = tmp_path / f"{len(images)}"
        folder.mkdir()
        wrapper, kernels = (*sources, "")[:2]
        isa = "x86-64-v3" if is_host else "x86-64"
        made = build_image(wrapper, kernels, binaries, cuda=not is_host, isa=isa, folder=folder, headers=place)
        images.append(made.data)
        if all("-include" in each for each in used):
            break
    assert place is not None
    # With kernels for the host come functions of vectors, which are compiled once for all images.
    assert len(used) in ((2, 3) if is_host else (1,))
    assert all("-include" in each for each in used)
    assert len(set(images)) == 1
    assert list((headers / "objects").glob("*.o"))
