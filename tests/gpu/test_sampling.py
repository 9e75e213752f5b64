"""The sampling kernel on the local GPU, with CTAs that wait for one another."""

from tests.kernels.sampling.sampling_checks import SamplingChecks


class TestOnGpu(SamplingChecks):
    pass
