"""What test_rotary.py runs in Triton's interpreter."""

from tests.kernels.rotary.rotary_checks import RotaryChecks


class TestInterpreted(RotaryChecks):
    pass
