"""Imports go one way: the contracts in pyproject.toml hold, and each of them fails when it is broken."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("importlinter", reason="import-linter is not installed")

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("backend", "kernels", "llm", "partitioner", "passes", "runtime", "serve")
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


def lint(checkout: pathlib.Path, *arguments: str, path: str | None = None) -> tuple[int, str]:
    """Exit status and output of ``lint-imports`` in a checkout."""
    environment = os.environ | ({} if path is None else {"PYTHONPATH": os.pathsep.join([path, *sys.path])})
    done = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--no-logo", *arguments],
        cwd=checkout, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the Python sources and of the contracts, laid out as here: links in etcuda/ to folders beside it."""

    def keep_python(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if not name.endswith(".py") and not os.path.isdir(os.path.join(folder, name))}

    for folder in ("etcuda", *FOLDERS):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, symlinks=True,
            ignore=lambda path, names: keep_python(path, names) | ({"third_party"} & set(names)),
        )  # fmt: skip
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert {path.name for path in (tmp_path / "etcuda").iterdir() if path.is_symlink()} == set(FOLDERS)
    return tmp_path


def test_the_contracts_hold() -> None:
    status, output = lint(ROOT)
    assert status == 0, output
    assert "6 kept, 0 broken" in output


BREACHES = {
    "folders": [
        ("kernels/common/device.py", "from etcuda.options import CompileOptions\nimport etcuda.passes.base"),
        ("passes/graph/meta.py", "from etcuda.partitioner.levels import partitions"),
        ("partitioner/report.py", "import etcuda.backend.blob"),
        ("backend/blob.py", "import etcuda.cli"),
        ("etcuda/torch_private.py", "from etcuda.kernels.formats import base"),
        ("etcuda/new_module.py", ""),
    ],
    "runtime": [("runtime/binding.py", "import etcuda.kernels"), ("etcuda/runner.py", "import etcuda.backend.blob")],
    "export": [("backend/preprocess.py", "import etcuda.runtime")],
    "kernels": [
        ("kernels/formats/base.py", "import etcuda.kernels.attention.problem"),
        ("kernels/common/device.py", "import etcuda.kernels.linear.problem"),
        ("kernels/activations/problem.py", "import etcuda.kernels.linear.problem"),
        ("kernels/attention/problem.py", "import etcuda.kernels.activations.problem"),
    ],
    "passes": [
        ("passes/graph/meta.py", "from etcuda.passes.recognize.rows import same_rows"),
        ("passes/recognize/rows.py", "import etcuda.passes.linear.call"),
        ("passes/attention/call.py", "import etcuda.passes.linear.call"),
        ("passes/new_module.py", ""),
    ],
    "circles": [
        (
            "passes/attention/check.py",
            "if TYPE_CHECKING:\n    from etcuda.passes.attention.route import route_attention",
        ),
        ("partitioner/report.py", "def late():\n    from etcuda.partitioner.partitioner import CudaPartitioner"),
    ],
}


@pytest.mark.parametrize(
    ("contract", "file", "line"),
    [(contract, file, line) for contract, rows in BREACHES.items() for file, line in rows],
    ids=[f"{contract}: {file}" for contract, rows in BREACHES.items() for file, _ in rows],
)
def test_a_breach_fails(contract: str, file: str, line: str, checkout: pathlib.Path) -> None:
    assert lint(checkout, "--contract", contract)[0] == 0
    path = checkout / file
    path.write_text((path.read_text() if path.exists() else "") + f"\n{line}\n")
    status, output = lint(checkout, "--contract", contract)
    assert status == 1
    assert "0 kept, 1 broken" in output
    assert path.stem in output


def test_the_checkout_is_checked_and_not_what_is_installed(checkout: pathlib.Path, tmp_path: pathlib.Path) -> None:
    installed = tmp_path / "site"
    shutil.copytree(checkout / "etcuda", installed / "etcuda", symlinks=False)
    (installed / "etcuda" / "target.py").write_text("import etcuda.backend.blob\n")
    assert lint(checkout, "--contract", "folders", path=str(installed))[0] == 0
    (checkout / "etcuda" / "target.py").write_text("import etcuda.backend.blob\n")
    assert lint(checkout, "--contract", "folders", path=str(installed))[0] == 1
