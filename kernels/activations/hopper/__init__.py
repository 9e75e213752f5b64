"""Reordering of activations for the int4 product on Hopper, in CUDA C++."""
