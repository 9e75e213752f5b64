"""The tree stays readable: small files, small folders."""

from __future__ import annotations

import pathlib
import statistics

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = (
    "etcuda",
    "partitioner",
    "passes",
    "kernels",
    "backend",
    "llm",
    "serve",
    "runtime",
    "benchmarks",
    "examples",
    "tests",
)
_SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh"}
_NOT_OURS = ("third_party", "generated")
MOST_LINES, MOST_FILES, MEDIAN_LINES = 400, 15, 150


def code() -> list[pathlib.Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in _SUFFIXES]
    return [path for path in found if not any(part in _NOT_OURS for part in path.parts)]


def test_no_file_is_long() -> None:
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in code()}
    assert len(lines) > 300
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
    assert statistics.median(lines.values()) < MEDIAN_LINES


@pytest.mark.parametrize("top", ["kernels", "passes"])
def test_no_folder_is_full(top: str) -> None:
    folders = [path for path in (ROOT / top).rglob("*") if path.is_dir() and path.name != "__pycache__"]
    counts = {path.relative_to(ROOT).as_posix(): sum(each.is_file() for each in path.iterdir()) for path in folders}
    assert {name: count for name, count in counts.items() if count > MOST_FILES} == {}
