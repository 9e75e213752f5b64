"""Memory that a kernel did not store to, made visible."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor


class Poisoned:
    """Tests whose operators get memory full of NaN, or of 77 for integers."""

    @pytest.fixture(autouse=True)
    def poison(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a kernel does not store is not a number."""
        plain = Tensor.new_empty

        def new_empty(tensor: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
            made = plain(tensor, *arguments, **keywords)
            return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(77)

        monkeypatch.setattr(Tensor, "new_empty", new_empty)
