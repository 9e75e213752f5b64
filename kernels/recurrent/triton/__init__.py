"""Recurrent layers in Triton: steps of one token, and chunks of 64."""
