"""Whole language models with random weights: export, decode and prefill, against torch.compile in the same run."""
