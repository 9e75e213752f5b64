"""What test_convolution.py runs in Triton's interpreter."""

from tests.kernels.convolution.convolution_checks import ConvolutionChecks


class TestInterpreted(ConvolutionChecks):
    pass
