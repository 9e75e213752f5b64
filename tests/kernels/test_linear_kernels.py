"""The kernels of int4 and int8 weights in Triton's interpreter."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy
import pytest
import triton

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# The interpreter of Triton 3.6 fails with NumPy 2.4: it takes arrays of one element for numbers.
_BROKEN = int(triton.__version__.split(".")[1]) < 8 and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0"


@pytest.mark.slow
@pytest.mark.skipif(_BROKEN, reason="the interpreter of this Triton fails with this NumPy")
def test_kernels_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    checks = ROOT / "tests" / "kernels" / "linear_checks.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(checks)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
