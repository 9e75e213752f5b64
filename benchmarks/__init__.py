"""Speed and memory, measured against peers in the same run. Start with ``python -m benchmarks --help``."""
