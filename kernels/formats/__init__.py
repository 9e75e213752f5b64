"""Weight formats, one file each, and the registry of them. See README.md."""

from __future__ import annotations

import importlib
import pkgutil

# Each file registers its format when it is imported: a further format is a further file.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
