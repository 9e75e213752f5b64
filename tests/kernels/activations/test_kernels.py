"""The activation kernels in Triton's interpreter."""

from __future__ import annotations

import pytest

from tests.kernels.interpreter import BROKEN, run_checks


@pytest.mark.slow
@pytest.mark.skipif(BROKEN, reason="the interpreter of this Triton fails with this NumPy")
def test_kernels_in_the_interpreter() -> None:
    run_checks("activations/interpreted.py")
