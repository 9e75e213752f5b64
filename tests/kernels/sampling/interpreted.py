"""The sampling kernel in Triton's interpreter: run by test_sampling.py in a process of its own."""

from tests.kernels.sampling.sampling_checks import SamplingChecks


class TestInterpreted(SamplingChecks):
    pass
