"""Kernels over caches of 8 and 4 bits, in Triton."""
