"""What the operators compute, in plain PyTorch."""
