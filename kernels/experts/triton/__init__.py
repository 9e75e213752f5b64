"""Mixtures of experts in Triton. Names that end in ``_pdl`` are kernels that may be launched early."""
