"""Runs checks of kernels in Triton's interpreter, which must be on before triton is imported: in another process."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy
import triton

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# The interpreter of Triton 3.6 fails with NumPy 2.4: it takes arrays of one element for numbers.
BROKEN = int(triton.__version__.split(".")[1]) < 8 and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0"


def run_checks(name: str) -> None:
    """Every test of a file of this folder; fails if one fails, or if there is none."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(_ROOT)}
    for variable in [variable for variable in environment if variable.startswith("PYTEST_")]:
        del environment[variable]
    checks = _ROOT / "tests" / "kernels" / name
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(checks)]
    done = subprocess.run(command, env=environment, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
