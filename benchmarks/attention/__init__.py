"""Attention against its peers. Start with ``python -m benchmarks.attention run``."""
