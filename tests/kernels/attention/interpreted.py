"""What test_attention.py runs in Triton's interpreter."""

from tests.kernels.attention.attention_checks import AttentionChecks


class TestInterpreted(AttentionChecks):
    pass
