"""Reordering of activations in CUDA C++."""
