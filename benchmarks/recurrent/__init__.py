"""Recurrent layers: decode steps and prefill, against peers."""
