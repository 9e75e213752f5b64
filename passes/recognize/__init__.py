"""Proofs about a graph, which change nothing: in doubt, None."""
