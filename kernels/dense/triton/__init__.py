"""Products of few rows in Triton. Names that end in ``_pdl`` are kernels that may be launched early."""
