"""Packages that serving needs: nothing here imports them."""

from __future__ import annotations

import importlib.util

from etcuda.errors import OptionError

_NEEDED = ("ray", "starlette", "uvicorn")


def require_serve(command: str) -> None:
    """Checks that the packages of the extra are there.

    Raises:
        OptionError: one is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(
            f"{command}: expected the packages {', '.join(_NEEDED)}, got none of the name {', '.join(missing)}. "
            "Run: pip install 'etcuda[llm,serve]'"
        )
