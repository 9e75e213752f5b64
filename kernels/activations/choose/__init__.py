"""Configurations of the activation kernels."""
