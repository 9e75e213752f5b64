"""Native builds of the runtime and programs around the hand-written code image, made once per test run."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest
from filelock import FileLock

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


def _build(name: str, *options: str) -> pathlib.Path:
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
            (tool("cmake"), "--build", str(folder), "--parallel", "2"),
        ):
            done = run(*command)
            assert done.returncode == 0, f"{command}\n{done.stdout[-8000:]}{done.stderr[-8000:]}"
    return folder


@pytest.fixture(scope="session")
def native_build() -> pathlib.Path:
    return _build("release")


@pytest.fixture(scope="session")
def sanitized_build() -> pathlib.Path:
    return _build("sanitized", "-DETCUDA_SANITIZE=address;undefined", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")


MakeProgram = Callable[..., pathlib.Path]


@pytest.fixture(scope="session")
def make_program(native_build: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> MakeProgram:
    """``make_program(**changes)`` is a ``.pte`` (and ``.ptd``) around the fake image; see make_program.py.

    Equal programs are made once: it takes seconds.
    """
    made: dict[str, pathlib.Path] = {}

    def make(**changes: object) -> pathlib.Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            path = tmp_path_factory.mktemp("program") / "program.pte"
            image = native_build / "tests" / "runtime" / "images" / "image.so"
            recipe = {"image": str(image), "path": str(path), **changes}
            # Its stand-in for the exporter has the exporter's name, so it gets a process of its own.
            done = run(sys.executable, "-W", "ignore", HERE / "make_program.py", json.dumps(recipe))
            assert done.returncode == 0, done.stderr
            made[key] = path
        return made[key]

    return make
