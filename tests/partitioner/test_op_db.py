"""What the rules claim of PyTorch's operators compiles: every part of its decomposition is claimed too."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("target", ["host", "sm_90"])
def test_every_operator_that_is_claimed_compiles(target: str) -> None:
    command = [sys.executable, "-m", "tests.partitioner.op_db", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *problems, claimed = done.stdout.strip().splitlines()
    assert problems == []
    assert int(claimed) > 1000
