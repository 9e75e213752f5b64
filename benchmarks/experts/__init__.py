"""Mixtures of experts on a GPU: one token to many, against PyTorch's grouped products."""
