"""What the native build asks of a compiler."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

from .conftest import ROOT, run, tool


def rules(build: pathlib.Path) -> str:
    return (build / "build.ninja").read_text() + (build / "CMakeFiles" / "rules.ninja").read_text()


def configure(folder: pathlib.Path, *options: str, **environment: str) -> str:
    """Configures the checkout as an install does; the text of the build's rules."""
    done = run(
        *(tool("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"),
        *(f"-DPython3_EXECUTABLE={sys.executable}", *options),
        **environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return rules(folder)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pathlib.Path]:
    """A configured build with a launcher in ``CXX``: its rules, and the file with what the launcher was called with."""
    folder = tmp_path_factory.mktemp("launched")
    log = folder / "calls.txt"
    script = folder / "fake-ccache"
    script.write_text(f"""#!/bin/sh\necho "$@" >> '{log}'\nexec "$@"\n""")
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=os.pathsep)
        return configure(folder / "build", CXX="fake-ccache g++ -O1"), log


def test_a_compiler_with_a_launcher_and_options(launched: tuple[str, pathlib.Path]) -> None:
    found, log = launched
    assert f"{log.with_name('fake-ccache')} g++ -O1 " in " ".join(found.split())
    assert any(call.startswith("g++ -O1 ") for call in log.read_text().splitlines())


def test_warnings_are_errors_in_the_tests_and_not_in_an_install(
    launched: tuple[str, pathlib.Path], native_build: pathlib.Path
) -> None:
    installing, testing = launched[0], rules(native_build)
    assert installing.count("-Wall -Wextra") > 10
    assert "-Werror" not in installing
    assert testing.count("-Wall -Wextra") > installing.count("-Wall -Wextra")
    flags = [line for line in testing.splitlines() if line.strip().startswith("FLAGS = ") and "-Wall -Wextra" in line]
    assert len(flags) > 10
    assert [line for line in flags if "-Werror" not in line] == []


def test_an_option_that_only_gxx_knows_is_asked_for(launched: tuple[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    assert "-fno-gnu-unique" in launched[0]
    # The answer of clang, given here so that the test needs no clang.
    assert "-fno-gnu-unique" not in configure(tmp_path / "build", "-DETCUDA_HAS_NO_GNU_UNIQUE=OFF")
