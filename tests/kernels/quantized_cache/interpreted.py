"""What test_quantized_cache.py runs in Triton's interpreter."""

from tests.kernels.quantized_cache.quantized_cache_checks import QuantizedCacheChecks


class TestInterpreted(QuantizedCacheChecks):
    pass
