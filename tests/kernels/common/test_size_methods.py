"""Sizes are plain numbers where they are 1, or where PyTorch analyses a kernel: they have no methods."""

from __future__ import annotations

import ast
import pathlib

import pytest

import etcuda.kernels

ROOT = pathlib.Path(etcuda.kernels.__path__[0])
SIZES = ("num_", "stride_", "cache_length", "length", "out_features", "n")


def methods_of_sizes(source: str) -> list[str]:
    """Calls of a method of a parameter that is a size, in functions of Triton."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef) or "jit" not in "".join(map(ast.unparse, function.decorator_list)):
            continue
        names = {each.arg for each in function.args.args}
        sizes = {each for each in names if each in SIZES or each.startswith(SIZES[:2]) or each.endswith("_stride")}
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                value = call.func.value
                if isinstance(value, ast.Name) and value.id in sizes:
                    found.append(f"{function.name}: {ast.unparse(call)}")
    return found


def test_one_is_found() -> None:
    source = "@triton.jit\ndef kernel(x, out_features):\n    tl.store(x, out_features.to(tl.int64))\n"
    assert methods_of_sizes(source) == ["kernel: out_features.to(tl.int64)"]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("triton/*.py")), ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_kernels_call_none(path: pathlib.Path) -> None:
    assert methods_of_sizes(path.read_text()) == []
