"""Kernels that wait for all that they read are launched early where the GPU can."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from etcuda.kernels.common.registry import find, records
from etcuda.options import BackendConfig
from etcuda.passes.canonical.launch_early import launch_early
from etcuda.target import resolve_target
from tests.partitioner.programs import export


def test_operators_that_may_end_with_the_argument() -> None:
    for record in records():
        if record.launched_early:
            assert record.overload._schema.arguments[-1].name == "pdl"


@pytest.mark.parametrize(("target", "pdl"), [("sm_80", 0), ("sm_90", 1), ("host", 0)])
def test_the_argument_is_set(target: str, pdl: int) -> None:
    record = find("etcuda::gated_delta_layer")
    sample = record.samples("cpu")[0]
    tensors = {key: value for key, value in sample.items() if isinstance(value, torch.Tensor)}
    fixed = {key: value for key, value in sample.items() if key not in tensors}

    def model(*given: torch.Tensor) -> Any:
        return record.overload(**dict(zip(tensors, given, strict=True)), **fixed)

    program = export(model, *tensors.values())
    launch_early.run(program, BackendConfig(resolve_target(target)))
    (call,) = [node for node in program.graph.nodes if node.target is record.overload]
    assert call.args[-1] == pdl
