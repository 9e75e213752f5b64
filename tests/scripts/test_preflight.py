"""The check before the install: the C++ compiler's command."""

from __future__ import annotations

import importlib.util
import pathlib
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def preflight() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("preflight", ROOT / "scripts" / "preflight.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compiler(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The only program on PATH."""
    path = tmp_path / "launcher"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return path


def compiler_problems(preflight: types.ModuleType) -> list[str]:
    return [each for each in preflight.problems() if each.startswith("C++ compiler")]


@pytest.mark.parametrize("command", ["launcher", "launcher g++", "launcher -O1", "{folder}/launcher 'g++'"])
def test_a_compiler_with_words(
    command: str, preflight: types.ModuleType, compiler: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", command.format(folder=compiler.parent))
    assert compiler_problems(preflight) == []


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "g++ is not on PATH; expected g++ 11 or newer"),
        ("ccache g++", "ccache is not on PATH; expected g++ 11 or newer"),
        (
            'g++ "-O1',
            "CXX='g++ \"-O1': expected a command, as in 'g++' or 'ccache g++', got one that a shell could not read",
        ),
    ],
)
def test_no_compiler(
    command: str,
    words: str,
    preflight: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CXX", command)
    (problem,) = compiler_problems(preflight)
    assert words in problem
    assert preflight.main() == 1
    assert f"preflight: {problem}" in capsys.readouterr().err


def test_without_the_variable_it_is_gxx(
    preflight: types.ModuleType, compiler: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert len(compiler_problems(preflight)) == 1
    compiler.rename(compiler.with_name("g++"))
    assert compiler_problems(preflight) == []
