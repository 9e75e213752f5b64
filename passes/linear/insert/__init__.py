"""Kernels put into a graph, by the number of tokens."""
