"""Constants that formulas read: made in double precision, in a program once each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Tables(Protocol):
    """Where formulas get their constants from."""

    def get(self, name: str, dtype: torch.dtype, make: Callable[[], Tensor]) -> Any:
        """The constant of a name; ``make`` gives it in float64."""


class EagerTables:
    """Makes each anew, for tests."""

    def get(self, name: str, dtype: torch.dtype, make: Callable[[], Tensor]) -> Any:
        """See ``Tables``."""
        return make().to(dtype)
