"""Kernels of our own, one folder per operator family.

Importing this package imports every family, and each family registers its kernels in ``etcuda.kernels.registry``. A new
family is a new folder with an ``__init__.py`` that calls ``register``; nothing else changes.
"""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    if _module.ispkg:
        importlib.import_module(f"{__name__}.{_module.name}")
