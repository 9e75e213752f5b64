"""Mixtures of experts: which kernels they get."""
