"""The kernel in Triton."""
