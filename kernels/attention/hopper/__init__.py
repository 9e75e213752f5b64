"""Attention of few query rows in CUDA C++ for Hopper."""
