"""Shared by the tests of quantised products."""

from __future__ import annotations

import pytest

from etcuda.kernels.linear.choose import table


@pytest.fixture
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables in the repository change."""
    monkeypatch.setattr(table, "load", lambda bits, arch: None)
