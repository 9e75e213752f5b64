"""What test_dense.py runs in Triton's interpreter."""

from tests.kernels.dense.dense_checks import DenseChecks


class TestInterpreted(DenseChecks):
    pass
