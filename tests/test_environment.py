"""The README's table of environment variables has every variable that the sources read, and no other."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = (
    "etcuda",
    "partitioner",
    "passes",
    "kernels",
    "backend",
    "llm",
    "serve",
    "runtime",
    "scripts",
    "benchmarks",
    "examples",
    "tests",
)
# Not ours, and the stand-ins for a driver, for cuBLASLt and for cuDNN, whose variables the tests of the runtime set.
LEFT_OUT = ("runtime/third_party", "runtime/generated", "tests/runtime/fakes")
CODE = {
    "CXX",
    "ETCUDA_RUNTIME_LIBRARY",
    "ETCUDA_CUBLASLT",
    "ETCUDA_CUDNN",
    "ETCUDA_CACHE_DIR",
    "XDG_CACHE_HOME",
    "PYTHONPATH",
}


def table() -> dict[str, str]:
    """The table's rows: name and meaning."""
    section = (ROOT / "README.md").read_text().split("\n## Environment variables\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", section, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a variable stands twice"
    assert len(rows) == len(re.findall(r"^\|", section, re.MULTILINE)) - 2, (
        "a row is not of the form | `NAME` | by | meaning |"
    )
    return dict(rows)


def read_by_python(source: str) -> set[str]:
    """Names of the variables that a module reads. A name must be a string, or a constant of the module."""
    tree = ast.parse(source)
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    keys: list[ast.expr] = []
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="os", names=names):
                assert not {"environ", "getenv"} & {each.name for each in names}, "expected os.environ, written out"
            case ast.Call(func=ast.Attribute(value=value, attr="get" | "setdefault" | "pop"), args=[key, *_]):
                keys += [key] if is_environment(value) else []
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr="getenv"), args=[key, *_]):
                keys.append(key)
            case ast.Subscript(value=value, slice=key, ctx=ast.Load()):
                keys += [key] if is_environment(value) else []
            case ast.Compare(left=key, ops=[ast.In() | ast.NotIn()], comparators=[value]):
                keys += [key] if is_environment(value) else []
    return {name_of(key, constants) for key in keys}


def is_environment(node: ast.expr) -> bool:
    return ast.unparse(node) == "os.environ"


def name_of(key: ast.expr, constants: dict[str, object]) -> str:
    value = key.value if isinstance(key, ast.Constant) else constants.get(getattr(key, "id", ""))
    assert isinstance(value, str), f"expected the name of a variable, got {ast.unparse(key)}"
    return value


def read_by_cpp(source: str) -> set[str]:
    """Names of the variables that C++ or CMake reads; the name must be a literal."""
    calls = len(re.findall(r"\bgetenv\s*\(", source))
    names = re.findall(r"\bgetenv\s*\(\s*\"(\w+)\"\s*\)", source)
    assert len(names) == calls, "expected every getenv to have a literal"
    return {*names, *re.findall(r"\$ENV\{(\w+)\}", source)}


def sources() -> list[pathlib.Path]:
    found = [ROOT / "CMakeLists.txt"]
    for folder in FOLDERS:
        for pattern in ("*.py", "*.cpp", "*.h", "*.cu", "*.cuh", "CMakeLists.txt"):
            found += sorted((ROOT / folder).rglob(pattern))
    left_out = tuple(ROOT / each for each in LEFT_OUT)
    return [path for path in found if not any(path.is_relative_to(folder) for folder in left_out)]


def test_the_table_has_what_is_read_and_no_more() -> None:
    read: dict[str, list[str]] = {}
    for path in sources():
        if path == pathlib.Path(__file__):
            continue
        names = (read_by_python if path.suffix == ".py" else read_by_cpp)(path.read_text())
        for name in names:
            read.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert len(sources()) > 100
    rows = table()
    assert {name: paths for name, paths in read.items() if name not in rows} == {}
    assert set(rows) - set(read) == set()


def test_what_loads_code_is_marked() -> None:
    rows = table()
    assert set(rows) >= CODE
    assert {name for name in CODE if not rows[name].startswith("*code*")} == set()


def test_every_way_to_read_is_seen() -> None:
    source = """
import os
NAME = "G"
os.environ.get("A"); os.environ["B"]; os.getenv("C", "x"); "D" in os.environ; os.environ.setdefault("E", "x")
os.environ.pop("F", None); os.environ.get(NAME); os.environ["WRITTEN"] = "x"; {**os.environ, "PASSED_ON": "x"}
"""
    assert read_by_python(source) == set("ABCDEFG")
    assert read_by_cpp('std::getenv("A"); getenv( "B" ); // $ENV{C}') == set("ABC")


@pytest.mark.parametrize("source", ["os.environ[x]", "os.getenv(f'{x}')", "from os import environ"])
def test_a_read_whose_name_is_not_known_is_an_error(source: str) -> None:
    with pytest.raises(AssertionError, match="expected"):
        read_by_python(source)
    with pytest.raises(AssertionError, match="literal"):
        read_by_cpp("std::getenv(name)")
