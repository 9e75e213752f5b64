"""What an export does where its short way is not possible."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from etcuda.errors import FoldError, PassError
from etcuda.llm import export as exporting


def test_layers_that_cannot_be_put_back_are_lowered_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def lower(methods: Any, constants: Any, options: Any, folds: bool) -> str:
        tried.append(folds)
        if folds:
            raise FoldError("expected layers alike")
        return "lowered"

    monkeypatch.setattr(exporting, "_lower_once", lower)
    with caplog.at_level(logging.WARNING):
        assert exporting._lower({}, {}, exporting.ExportOptions()) == "lowered"
    assert tried == [True, False]
    assert "layers are lowered one by one, which takes longer: expected layers alike" in caplog.text


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def lower(methods: Any, constants: Any, options: Any, folds: bool) -> str:
        raise PassError("expected a graph")

    monkeypatch.setattr(exporting, "_lower_once", lower)
    with pytest.raises(PassError, match="expected a graph"):
        exporting._lower({}, {}, exporting.ExportOptions())
