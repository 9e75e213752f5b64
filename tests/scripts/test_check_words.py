"""The check of words finds what it should, and nothing in the project."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from types import ModuleType

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "check_words.py"


@pytest.fixture(scope="module")
def check_words() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_words", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_project_has_none(check_words: ModuleType) -> None:
    assert check_words.problems() == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("kernels/linear/x.py", "def matvec_rounded(x): ..."),
        ("kernels/linear/hopper/x.cuh", "struct Turn {};"),
        ("runtime/cuda/x.cpp", "launch_overlapped(driver);"),
        ("passes/linear/x.py", "def f(kind: type[GroupFormat]) -> None: ..."),
        ("kernels/activations/README.md", "The kernel puts activations in order."),
    ],
)
def test_a_retired_word_is_found(check_words: ModuleType, file: str, line: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"\n{line}\n")
    (problem,) = check_words.problems(tmp_path)
    assert problem.startswith(f"{file}:2: ")
    assert "; say " in problem
