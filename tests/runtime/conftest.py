"""Native builds of the runtime and programs around the hand-written code image, made once per test run."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
from filelock import FileLock

from etcuda.library import find_library, find_runner

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent


def tool(name: str) -> str:
    """A build tool of this environment, else of the system."""
    beside = pathlib.Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else name


def run(*command: str | pathlib.Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with additional environment variables; the caller looks at its return code."""
    env = {**os.environ, **environment}
    return subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, errors="replace", check=False, env=env
    )


def _build(name: str, *options: str, targets: Sequence[str] = ("all",)) -> pathlib.Path:
    """Configures and builds the checkout with its C++ tests; later runs only build what changed."""
    folder = ROOT / "build" / f"tests-{name}-py{sys.version_info.major}{sys.version_info.minor}"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        for command in (
            (
                *(tool("cmake"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
                *(f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DPython3_EXECUTABLE={sys.executable}"),
                *("-DETCUDA_BUILD_TESTS=ON", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON", *options),
            ),
            (tool("cmake"), "--build", str(folder), "--parallel", "2", "--target", *targets),
        ):
            done = run(*command)
            assert done.returncode == 0, f"{command}\n{done.stdout[-8000:]}{done.stderr[-8000:]}"
    return folder


@pytest.fixture(scope="session")
def native_build() -> pathlib.Path:
    """What tests load and start beside the installed runtime, which was compiled before."""
    options = f"-DETCUDA_TEST_RUNTIME={find_library()}"
    return _build("release", options, targets=("etcuda_test_images", "etcuda_test_programs"))


@pytest.fixture(scope="session")
def optimised_build(native_build: pathlib.Path) -> pathlib.Path:
    """``native_build`` with the runtime and its C++ tests, compiled as for an install, and warnings errors."""
    return _build("release")


@pytest.fixture(scope="session")
def runner() -> pathlib.Path:
    """The installed ``executor_runner``."""
    return find_runner()


@pytest.fixture(scope="session")
def sanitized_build() -> pathlib.Path:
    # Unoptimised: checks are inserted into every statement, and optimising them took three times as long as this.
    options = (
        "-DETCUDA_SANITIZE=address;undefined",
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS_DEBUG=-O0 -DNDEBUG",
    )
    # The runners too, for warnings are errors here.
    names = ("etcuda_unit_tests", "etcuda_cuda_tests", "etcuda_fuzz_blob", "etcuda_runtime")
    names += ("executor_runner", "llm_runner")
    return _build("sanitized", *options, targets=names)


MakeProgram = Callable[..., pathlib.Path]


@pytest.fixture(scope="session")
def program_writer(shared_dir: pathlib.Path) -> Iterator[Callable[[dict[str, object]], None]]:
    """Writes a program in a process of its own, for its stand-in for the exporter has the exporter's name.

    The process starts with the first program and stays: to import the exporter takes longer than to use it.
    """
    started: list[subprocess.Popen[str]] = []
    log = shared_dir / f"make_program-{os.getpid()}.log"

    def write(recipe: dict[str, object]) -> None:
        if not started:
            command = [sys.executable, "-W", "ignore", str(HERE / "make_program.py")]
            with log.open("w") as errors:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
                started.append(subprocess.Popen(command, text=True, bufsize=1, **pipes))  # type: ignore[call-overload]
        (process,) = started
        process.stdin.write(json.dumps(recipe) + "\n")
        assert process.stdout.readline() == "written\n", log.read_text()

    yield write
    for process in started:
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.fixture(scope="session")
def make_program(
    native_build: pathlib.Path, shared_dir: pathlib.Path, program_writer: Callable[[dict[str, object]], None]
) -> MakeProgram:
    """``make_program(**changes)`` is a ``.pte`` (and ``.ptd``) around the fake image; see make_program.py.

    Equal programs are made once per test run.
    """

    def make(**changes: object) -> pathlib.Path:
        image = native_build / "tests" / "runtime" / "images" / "image.so"
        recipe = {"image": str(image), **changes}
        name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
        folder = shared_dir / f"program-{name}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                new = folder.with_suffix(".new")
                new.mkdir(exist_ok=True)
                program_writer({**recipe, "path": str(new / "program.pte")})
                new.rename(folder)
        return folder / "program.pte"

    return make
