"""Quantised products: packing, fusing, and which kernel each gets."""
