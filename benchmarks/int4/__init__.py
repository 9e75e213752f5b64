"""int4 and int8 linear layers against their peers. Start with ``python -m benchmarks.int4 run``."""
