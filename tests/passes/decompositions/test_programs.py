"""Formulas in a compiled program for the host, through ExecuTorch's runtime."""

from __future__ import annotations

import pathlib

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor

from etcuda import CudaPartitioner, save_program
from tests.partitioner.programs import export
from tests.partitioner.tagging import left
from tests.passes.decompositions.cases import Case, spatial_cases
from tests.passes.decompositions.formulas import cast, results
from tests.passes.decompositions.quantized_cases import quantized_cases

# Two of each family: what they have in common costs the compiler time once.
NAMES = (
    "avg_pool2d 7 3 3 True False",
    "max_pool3d 4 2 1 2 True",
    "adaptive_avg_pool3d (3, 2, 5)",
    "adaptive_max_pool2d (2, 3)",
    "grid_sample 3d bilinear reflection False",
    "antialiased bilinear False {'size': (8, 31)}",
    "quantize channel",
    "token",
    "dequantize channel None",
    "_int_mm 33 1300 24",
)


def chosen() -> list[Case]:
    return [case for case in (*spatial_cases(), *quantized_cases()) if case.name in NAMES]


@pytest.mark.slow
def test_matches_eager(tmp_path: pathlib.Path) -> None:
    from executorch.runtime import Runtime

    import etcuda.runtime  # noqa: F401  registers the delegate

    cases, exact_names = chosen(), {each.name for each in quantized_cases()}
    assert len(cases) == len(NAMES)

    def call(inputs: list[tuple[Tensor, ...]]) -> list[list[Tensor]]:
        return [results(case.call, *given) for case, given in zip(cases, inputs, strict=True)]

    inputs = [tuple(value.clone() for value in case.inputs) for case in cases]
    lowered = to_edge_transform_and_lower(export(call, inputs), partitioner=[CudaPartitioner("host")])
    assert {name for name in left(lowered) if name != "getitem"} == {"executorch_call_delegate"}
    assert left(lowered)["executorch_call_delegate"] == 1
    save_program(lowered.to_executorch(), tmp_path / "m.pte")
    got = iter(Runtime.get().load_program(tmp_path / "m.pte").load_method("forward").execute([*sum(inputs, ())]))
    for case in cases:
        exact = case.name in exact_names
        for wanted in results(case.call, *(case.inputs if exact else cast(case.inputs, torch.float64))):
            given = next(got)
            assert given.shape == wanted.shape, case.name
            tolerance = 3e-5 if wanted.is_floating_point() and not exact else 0.0
            torch.testing.assert_close(given.to(wanted.dtype), wanted, rtol=tolerance, atol=tolerance, msg=case.name)
