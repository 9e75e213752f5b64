"""Examples, importable from a checkout as ``examples``."""
