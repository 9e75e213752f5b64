"""What is claimed compiles with the shims that there are; what is refused says why."""

from __future__ import annotations

import pytest
import torch
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from etcuda.options import BackendConfig
from etcuda.partitioner.support import refuse
from etcuda.passes.manager import run_passes
from etcuda.shims import COMPUTE_SHIMS
from etcuda.target import TARGETS
from tests.partitioner.lowering import library_calls
from tests.partitioner.op_cases import OpCase, cases

HOST = BackendConfig("host")
H200 = BackendConfig(TARGETS["sm_90"])
BY_NAME = {case.name: case for case in cases()}

# What the host leaves to other backends, and a part of the reason that it must give.
REFUSED_ON_HOST = {
    "_cdist_forward": "library kernel",
    "_fft_r2c": "torch.complex64",
    "_pdist_forward": "library kernel",
    "bernoulli": "random",
    "bincount": "depends on data",
    "index.Tensor by mask": "u0",
    "int64 mm": "got int64",
    "int64 pow.Scalar": "got a tensor",
    "int64 pow.Tensor_Tensor": "got a tensor",
    "item": "depends on data",
    "linalg_inv": "library kernel",
    "linalg_qr": "library kernel",
    "lu_unpack": "library kernel",
    "multinomial": "random",
    "native_dropout train": "p=0.5",
    "nonzero": "depends on data",
    "rand": "random",
    "rand_like": "random",
    "randint": "random",
    "randn": "random",
    "randperm": "random",
    "view as int16": "changes the width",
}


def exported(*chosen: OpCase) -> ExportedProgram:
    class AllOf(torch.nn.Module):
        def forward(self, inputs: list[tuple[torch.Tensor, ...]]) -> list[object]:
            return [case.call(*values) for case, values in zip(chosen, inputs, strict=True)]

    # Clones, because an input that occurs twice would be one placeholder.
    inputs = [tuple(value.clone() for value in case.inputs) for case in chosen]
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        return torch.export.export(AllOf(), (inputs,)).run_decompositions()


def reasons(program: ExportedProgram, config: BackendConfig) -> list[str]:
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return [refusal.reason for node in calls if (refusal := refuse(node, config)) is not None]


def test_many_operators_are_covered() -> None:
    claimed = BY_NAME.keys() - REFUSED_ON_HOST.keys()
    assert len(claimed) >= 200
    assert REFUSED_ON_HOST.keys() <= BY_NAME.keys()


@pytest.mark.parametrize("part", range(4))
def test_what_the_host_claims_needs_no_other_shims(part: int) -> None:
    claimed = [case for case in cases() if case.name not in REFUSED_ON_HOST][part::4]
    program = exported(*claimed)
    assert reasons(program, HOST) == []
    run_passes(program, HOST)
    assert set(library_calls(program)) <= COMPUTE_SHIMS["host"].keys()


@pytest.mark.parametrize("name", REFUSED_ON_HOST)
def test_what_the_host_refuses_has_a_reason(name: str) -> None:
    found = reasons(exported(BY_NAME[name]), HOST)
    assert any(REFUSED_ON_HOST[name] in reason for reason in found), found


@pytest.mark.parametrize("name", ["int64 pow.Scalar"])
def test_a_refused_operator_is_one_that_inductor_leaves_to_a_library(name: str) -> None:
    assert not set(library_calls(exported(BY_NAME[name]))) <= COMPUTE_SHIMS["host"].keys()


@pytest.mark.parametrize(
    ("name", "config", "part"),
    [
        ("digamma", H200, "library kernel"),
        ("mm fp64", H200, "got float64"),
    ],
)
def test_what_a_gpu_refuses(name: str, config: BackendConfig, part: str) -> None:
    found = reasons(exported(BY_NAME[name]), config)
    assert any(part in reason for reason in found), found
