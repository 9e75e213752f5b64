"""Products with unquantised weights: joining, which of them get our kernel, and the norms in front of them."""
