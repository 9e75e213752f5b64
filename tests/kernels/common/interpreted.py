"""What test_registry.py runs in Triton's interpreter."""

from tests.kernels.common.registry_checks import RecordChecks


class TestInterpreted(RecordChecks):
    pass
