"""The products in Triton."""
