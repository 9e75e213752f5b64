"""Shared by the tests of the partitioner."""

from __future__ import annotations

from typing import Any

import pytest
from executorch.exir.backend.backend_details import PreprocessResult
from torch.export import ExportedProgram

from etcuda.backend import preprocess
from etcuda.options import BackendConfig
from etcuda.passes.graph.copy_graph import copy_graph
from etcuda.passes.manager import run_passes


@pytest.fixture
def delegated(monkeypatch: pytest.MonkeyPatch) -> list[ExportedProgram]:
    """Full lowering with a backend that runs the passes and compiles nothing; the programs it was handed."""
    seen: list[ExportedProgram] = []

    def prepare(methods: list[tuple[str, ExportedProgram, Any]], *_: Any) -> list[PreprocessResult]:
        for _method, handed, specs in methods:
            # As the backend does: the graph is still the program's own.
            program = copy_graph(handed)
            run_passes(program, BackendConfig.from_bytes(specs[0].value))
            seen.append(program)
        return [PreprocessResult(processed_bytes=b"\1") for _ in methods]

    monkeypatch.setattr(preprocess, "_preprocess_all", prepare)
    return seen
