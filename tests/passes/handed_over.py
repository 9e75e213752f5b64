"""The program that ExecuTorch hands to the backend, without a backend that compiles it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from executorch.exir import to_edge_transform_and_lower
from torch.export import ExportedProgram

from etcuda.backend import preprocess
from etcuda.partitioner.partitioner import CudaPartitioner


class _CapturedError(Exception):
    """Ends an export where the backend is called; the argument is what it was given."""


def _capture(jobs: list[tuple[str, ExportedProgram, Any]]) -> Any:
    raise _CapturedError(jobs)


def handed_over(program: ExportedProgram, partitioner: CudaPartitioner) -> ExportedProgram:
    """The one program that the backend gets, before the passes."""
    with mock.patch.object(preprocess, "_preprocess_all", _capture), pytest.raises(_CapturedError) as caught:
        to_edge_transform_and_lower(program, partitioner=[partitioner])
    ((_, edge, _),) = caught.value.args[0]
    return preprocess.copy_graph(edge)
