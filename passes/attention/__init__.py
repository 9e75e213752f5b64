"""Attention calls: what they are, and which kernel each gets."""
