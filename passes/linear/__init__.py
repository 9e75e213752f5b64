"""Products with quantised weights: packing, joining, which kernels each gets, and what is fused with them."""
