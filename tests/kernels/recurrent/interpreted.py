"""What test_recurrent.py runs in Triton's interpreter."""

from tests.kernels.recurrent.recurrent_checks import RecurrentChecks


class TestInterpreted(RecurrentChecks):
    pass
