"""What test_experts.py runs in Triton's interpreter."""

from tests.kernels.experts.experts_checks import ExpertsChecks
from tests.kernels.experts.routing_checks import RoutingChecks


class TestInterpreted(ExpertsChecks):
    pass


class TestRoutingInterpreted(RoutingChecks):
    pass
