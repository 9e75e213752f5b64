"""What the rules claim of PyTorch's operators compiles: every part of its decomposition is claimed too.

One operator in 24; ``python -m tests.partitioner.op_db`` looks at all of them, which takes minutes.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("target", ["host", "sm_90"])
def test_operators_that_are_claimed_compile(target: str) -> None:
    command = [sys.executable, "-m", "tests.partitioner.op_db", target, "0", "24"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *problems, claimed = done.stdout.strip().splitlines()
    assert problems == []
    assert int(claimed) > 80
