"""Shared by the tests of the passes."""

from __future__ import annotations

import pytest

from etcuda.kernels.attention import table


@pytest.fixture
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was measured: the tables in the repository change."""
    monkeypatch.setattr(table, "load", lambda arch: None)
