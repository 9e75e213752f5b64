"""Kernels of our own, one folder per operator family. See README.md.

Importing this package imports every family, and each registers its kernels in ``etcuda.kernels.common.registry``.
"""

from __future__ import annotations

import importlib
import pkgutil

if __name__ == "etcuda.kernels":
    for _module in pkgutil.iter_modules(__path__):
        if _module.ispkg:
            importlib.import_module(f"{__name__}.{_module.name}")
else:
    # With the checkout on the import path this folder is also "kernels", a name that transformers looks for and whose
    # version it asks: too old for it to use, and nothing registers a second time.
    __version__ = "0"
