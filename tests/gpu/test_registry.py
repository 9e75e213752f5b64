"""Every kernel that is registered, on the local GPU."""

from tests.kernels.common.registry_checks import RecordChecks


class TestOnGpu(RecordChecks):
    pass
