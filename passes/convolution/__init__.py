"""Convolutions on the GPU: norms folded into weights, what follows fused, channels innermost from one to the next."""
