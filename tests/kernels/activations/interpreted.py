"""What test_kernels.py runs in Triton's interpreter."""

from tests.kernels.activations.activation_checks import ActivationChecks


class TestInterpreted(ActivationChecks):
    pass
