"""The sampling kernel in Triton."""
