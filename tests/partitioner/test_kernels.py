"""Calls of our own kernels in a model: what is claimed, what it becomes, and why a call is not."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from etcuda import CudaPartitioner, partition_report
from etcuda.backend.inspect import inspect_program
from etcuda.kernels.common.registry import find, records
from etcuda.options import BackendConfig
from etcuda.partitioner.kept_whole import KEPT_WHOLE, ROUTED
from etcuda.partitioner.rules.kernels import KernelRule
from etcuda.partitioner.rules.table import RULE_OF
from etcuda.passes.manager import run_passes
from tests.partitioner.kernel_calls import Call, KernelCalls, all_calls
from tests.partitioner.programs import edge

aten = torch.ops.aten


def calls_of(op: str) -> list[Call]:
    record = find(op)
    return [(record, sample) for sample in record.samples("cpu")]


def exported(calls: list[Call]) -> ExportedProgram:
    model = KernelCalls(calls)
    with torch.no_grad():
        return torch.export.export(model, model.inputs)


def reasons(calls: list[Call], target: str) -> set[str]:
    """Why calls of kernels are left."""
    report = partition_report(exported(calls), target)
    return {refused.reason for refused in report.refusals if not refused.op.endswith("getitem")}


def test_the_tables_come_from_the_records() -> None:
    assert all(isinstance(RULE_OF[record.overload], KernelRule) for record in records())
    assert aten.scaled_dot_product_attention.default in ROUTED
    assert {*ROUTED, aten.baddbmm.default, aten.silu.default} == set(KEPT_WHOLE)


def test_every_kernel_is_claimed_where_it_can_run() -> None:
    calls = all_calls()
    assert reasons(calls, "sm_90") == set()
    alone = "this call of {} is compiled for sm_90 alone, got sm_80"
    assert reasons(calls, "sm_80") == {
        alone.format(op) for op in ("etcuda::attention_cluster", "etcuda::gate_reorder", "etcuda::reorder_activation")
    }
    none = "{} has no formula that compiles for the host"
    assert reasons(calls, "host") == {none.format(record.op) for record in records() if not record.on_host}


def test_what_the_record_refuses_is_left() -> None:
    (_, sample), *_ = calls_of("etcuda::attention_split")

    class Decode(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor) -> Any:
            return torch.ops.etcuda.attention_split(q, k, k, None, None, None, *list(sample.values())[6:])

    q, k = (torch.zeros(1, 4, length, 16).half() for length in (5, 40))
    refused = {"etcuda::attention_split does not serve the call: L_q is at most 16, got 1000"}
    for most, expected in ((1000, refused), (16, set())):
        shapes = {"q": {2: Dim("length", min=2, max=most)}, "k": None}
        report = partition_report(torch.export.export(Decode(), (q, k), dynamic_shapes=shapes), "sm_90")
        assert {each.reason for each in report.refusals} == expected


def test_on_the_host_a_call_becomes_its_formula() -> None:
    calls = [(record, sample) for record, sample in all_calls() if record.on_host]
    model = KernelCalls(calls)
    program = edge(lambda *tensors: model(*tensors), *model.inputs)
    run_passes(program, BackendConfig("host"))
    modules = [module for module in program.graph_module.modules() if isinstance(module, GraphModule)]
    left = {str(node.target) for module in modules for node in module.graph.nodes if "etcuda" in str(node.target)}
    assert left == set()
    got = program.module(check_guards=False)(*model.inputs)
    expected = model.expected()
    assert len(got) == len(expected) >= len(calls)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_formula_for_any_number_of_rows() -> None:
    rows = Dim("rows", min=2, max=50)

    def model(x: torch.Tensor) -> Any:
        q, scale, _ = torch.ops.etcuda.quantize_activation(x)
        return torch.cond(x.sum() > 0, lambda q, s: q * s[0, 0], lambda q, s: q * s[0, 1], (q, scale))

    program = edge(model, torch.randn(3, 64), dynamic=({0: rows},))
    run_passes(program, BackendConfig("host"))
    for count in (2, 50):
        for sign in (1, -1):
            x = torch.rand(count, 64) * sign
            torch.testing.assert_close(program.module(check_guards=False)(x), model(x))


@pytest.mark.slow
def test_a_program_for_a_gpu_holds_the_kernels() -> None:
    names = ("attention_tiled", "int4_matvec", "quantize_activation", "gate_quantize")
    program = exported([calls_of(f"etcuda::{name}")[0] for name in names])
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target="sm_90")]).to_executorch()
    (delegate,) = inspect_program(bytes(lowered.buffer)).methods[0].delegates
    expected = {"attention_tiled_kernel", "resident_kernel", "quantize_kernel", "gate_quantize_kernel"}
    assert expected <= set(delegate.images[0].kernels)


@pytest.mark.slow
@pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 14),
    reason="ExecuTorch's Python binding cannot execute with this torch",
)
def test_a_program_for_the_host_runs(tmp_path: pathlib.Path) -> None:
    from executorch.runtime import Runtime

    import etcuda.runtime  # noqa: F401  registers the delegate

    model = KernelCalls([calls_of(record.op)[0] for record in records() if record.on_host])
    program = exported(model.calls)
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target="host")]).to_executorch()
    path = tmp_path / "model.pte"
    path.write_bytes(lowered.buffer)
    got = Runtime.get().load_program(path).load_method("forward").execute(model.inputs)
    expected = model.expected()
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        # A value may lie on two sides of a tie of the quantisation.
        assert float((one.double() - other.double()).norm()) <= 5e-3 * float(other.double().norm())
