"""What is claimed compiles with the shims that there are; what is refused says why."""

from __future__ import annotations

import pytest
import torch
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from etcuda.options import BackendConfig
from etcuda.partitioner.support import refuse
from etcuda.passes.decompositions.apply import apply_decompositions
from etcuda.shims import COMPUTE_SHIMS
from etcuda.target import TARGETS
from tests.partitioner.lowering import library_calls
from tests.partitioner.op_cases import OpCase, cases

HOST = BackendConfig("host")
H200 = BackendConfig(TARGETS["sm_90"])
A100 = BackendConfig(TARGETS["sm_80"])
BY_NAME = {case.name: case for case in cases()}

# What the host leaves to other backends, and a part of the reason that it must give.
REFUSED_ON_HOST = {
    "_cdist_forward": "library kernel",
    "_embedding_bag": "library kernel",
    "_fft_r2c": "torch.complex64",
    "_pdist_forward": "library kernel",
    "argsort": "on the host",
    "bernoulli": "random",
    "bf16 cumsum": "on the host",
    "bincount": "depends on data",
    "bucketize": "on the host",
    "cummax": "on the host",
    "cumprod": "on the host",
    "cumsum": "on the host",
    "cumsum of 70000": "on the host",
    "histc": "library kernel",
    "index.Tensor by mask": "u0",
    "int64 cumsum": "on the host",
    "int64 index_put accumulate": "torch.int64",
    "int64 mm": "got int64",
    "int64 pow.Scalar": "got a tensor",
    "int64 pow.Tensor_Tensor": "got a tensor",
    "int64 scatter_add": "torch.int64",
    "int8 cat": "torch.int8",
    "item": "depends on data",
    "kthvalue": "library kernel",
    "linalg_inv": "library kernel",
    "linalg_qr": "library kernel",
    "logcumsumexp": "on the host",
    "lu_unpack": "library kernel",
    "masked_scatter": "on the host",
    "median.dim": "library kernel",
    "mode": "library kernel",
    "multinomial": "random",
    "native_dropout train": "p=0.5",
    "nonzero": "depends on data",
    "rand": "random",
    "rand_like": "random",
    "randint": "random",
    "randn": "random",
    "randperm": "random",
    "scatter_reduce amax": "got 'amax'",
    "scatter_reduce amin": "got 'amin'",
    "scatter_reduce mean": "got 'mean'",
    "scatter_reduce prod": "got 'prod'",
    "searchsorted": "on the host",
    "sort": "on the host",
    "sort of 3000": "on the host",
    "sort stable": "on the host",
    "topk": "library kernel",
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
    apply_decompositions.run(program, HOST)
    program.graph_module.recompile()
    assert set(library_calls(program)) <= COMPUTE_SHIMS["host"].keys()


@pytest.mark.parametrize("name", REFUSED_ON_HOST)
def test_what_the_host_refuses_has_a_reason(name: str) -> None:
    found = reasons(exported(BY_NAME[name]), HOST)
    assert any(REFUSED_ON_HOST[name] in reason for reason in found), found


@pytest.mark.parametrize("name", ["topk", "median.dim", "scatter_reduce prod", "int64 pow.Scalar"])
def test_a_refused_operator_is_one_that_inductor_leaves_to_a_library(name: str) -> None:
    assert not set(library_calls(exported(BY_NAME[name]))) <= COMPUTE_SHIMS["host"].keys()


@pytest.mark.parametrize(
    ("name", "config", "part"),
    [
        ("bf16 index_put accumulate", A100, "sm_80"),
        ("bf16 scatter_add", A100, "sm_80"),
        ("cumsum of 70000", H200, "takes up to 4096 elements, got 70000"),
        ("digamma", H200, "library kernel"),
        ("int8 index_put accumulate", H200, "torch.int8"),
        ("int64 index_put accumulate", H200, "torch.int64"),
        ("mm fp64", H200, "got float64"),
        ("scatter int64", H200, "torch.int64"),
        ("sort of 3000", H200, "takes up to 512 elements, got 3000"),
    ],
)
def test_what_a_gpu_refuses(name: str, config: BackendConfig, part: str) -> None:
    found = reasons(exported(BY_NAME[name]), config)
    assert any(part in reason for reason in found), found


@pytest.mark.parametrize(
    "name",
    ["bf16 index_put accumulate", "bf16 scatter_add", "bucketize", "cumsum", "int8 cat", "masked_scatter", "sort"],
)
def test_what_a_gpu_claims_beyond_the_host(name: str) -> None:
    assert reasons(exported(BY_NAME[name]), H200) == []
