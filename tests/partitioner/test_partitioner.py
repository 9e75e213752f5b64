"""The partitioner in ExecuTorch's lowering: its arguments, operators kept whole, other partitioners beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch.export import ExportedProgram

from etcuda import CudaPartitioner
from etcuda.errors import OptionError, TargetError
from etcuda.options import BACKEND_ID, COMPILE_SPEC_KEY, BackendConfig, CompileOptions
from etcuda.target import PORTABLE, TARGETS
from tests.partitioner.programs import edge, export
from tests.partitioner.tagging import X, left

aten = torch.ops.aten


def test_no_arguments() -> None:
    assert CudaPartitioner().config == BackendConfig(PORTABLE) or torch.cuda.is_available()


def test_the_compile_spec_carries_target_and_options() -> None:
    result = CudaPartitioner("sm_90", {"allow_tf32": True}).partition(edge(lambda x: x.sin() + 1, X))
    (spec,) = result.partition_tags.values()
    assert spec.backend_id == BACKEND_ID
    assert [each.key for each in spec.compile_specs] == [COMPILE_SPEC_KEY]
    config = BackendConfig.from_bytes(spec.compile_specs[0].value)
    assert config == BackendConfig(TARGETS["sm_90"], CompileOptions(allow_tf32=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "sm_91"}, TargetError, "sm_91"),
        ({"target": 90}, TargetError, "got int"),
        ({"options": {"allow_tf23": True}}, OptionError, "allow_tf32"),
        ({"options": {"allow_tf32": "yes"}}, OptionError, "'yes'"),
        ({"options": ["allow_tf32"]}, OptionError, "got list"),
    ],
)
def test_bad_arguments_fail_at_construction(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CudaPartitioner(**arguments)


def test_two_methods(delegated: list[ExportedProgram]) -> None:
    methods = {name: export(lambda m, x: x @ m.w, X, w=torch.ones(6, 6)) for name in ("prefill", "decode")}
    manager = to_edge_transform_and_lower(methods, partitioner=[CudaPartitioner("host")])
    assert len(delegated) == 2
    assert left(manager, "prefill") == left(manager, "decode") == {"executorch_call_delegate": 1, "getitem": 1}
    manager.to_executorch()


def test_an_operator_kept_whole_is_handed_over_whole(delegated: list[ExportedProgram]) -> None:
    to_edge_transform_and_lower(export(lambda x: torch.nn.functional.silu(x), X), partitioner=[CudaPartitioner("host")])
    assert aten.silu.default in {node.target for node in delegated[0].graph.nodes}


def test_an_operator_kept_whole_never_blocks_an_export(delegated: list[ExportedProgram]) -> None:
    program = export(lambda x: torch.baddbmm(x, x, x), torch.ones(2, 3, 3, dtype=torch.int64))
    manager = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    assert any("bmm" in name for name in left(manager))


@pytest.mark.parametrize("first", ["xnnpack", "etcuda"])
def test_with_xnnpack(first: str, delegated: list[ExportedProgram]) -> None:
    xnnpack = pytest.importorskip("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6)).eval()

    class WithErf(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.erf(self.model(x)) * 2

    both = [xnnpack.XnnpackPartitioner(), CudaPartitioner("host")]
    manager = to_edge_transform_and_lower(
        torch.export.export(WithErf(), (X,)), partitioner=both if first == "xnnpack" else both[::-1]
    )
    delegates = left(manager)["executorch_call_delegate"]
    assert (delegates > 1) if first == "xnnpack" else (delegates == 1)
    assert left(manager).keys() <= {
        "executorch_call_delegate",
        "getitem",
        "dim_order_ops._to_dim_order_copy.default",  # of a number, which computes nothing
    }
    # With an older torch, XNNPACK takes less.
    assert any("erf" in str(node.target) for each in delegated for node in each.graph.nodes)
    assert len(delegated) == 1 or first == "xnnpack"
    manager.to_executorch()
