"""Calls of ``etcuda.attention``: sinks, soft caps and rings reach the kernels, or the formula where none serves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.export import ExportedProgram

from etcuda import partition_report
from etcuda.options import BackendConfig, CompileOptions
from etcuda.partitioner.partitioner import CudaPartitioner
from etcuda.passes.manager import run_passes
from tests.partitioner.programs import export
from tests.passes.attention.attention_routing import (
    H200,
    LENGTH,
    SPLIT,
    TILED,
    calls,
    m_of,
    masking,
    modules,
    n_of,
    only_call,
    routed,
    run,
    tensors,
)
from tests.passes.handed_over import handed_over

pytestmark = pytest.mark.usefixtures("no_table")
ATTENTION = torch.ops.etcuda.attention.default


def capped(q: Any, k: Any, v: Any, sinks: Any) -> Any:
    return ATTENTION(q, k, v, n_of(k) <= m_of(q), None, sinks, 0.25, 0, 2.0, False)


def ringed(q: Any, k: Any, v: Any, sinks: Any, positions: Any) -> Any:
    return ATTENTION(q, k, v, None, positions, sinks, 0.25, 11, 0.0, True)


SINKS = torch.tensor([0.5, -1.0, 3.0, 0.0], dtype=torch.bfloat16)


def test_a_soft_cap_and_sinks_of_any_number_of_rows() -> None:
    program = routed(export(capped, *tensors(24, 24), SINKS, dynamic=(*[{2: LENGTH}] * 3, None)))
    found = calls(program)
    assert [node.target for node in found] == [SPLIT, TILED]
    for node in found:
        assert masking(node) == (False, False, False, 1, 0)
        assert (node.args[9], set(node.kwargs)) == (2.0, {"sinks"})
    for length in (2, 60):
        inputs = (*tensors(length, length), SINKS)
        torch.testing.assert_close(run(program, *inputs), capped(*inputs), atol=2e-2, rtol=2e-2)


def test_a_ring() -> None:
    inputs = (*tensors(5, 15), SINKS, torch.arange(31, 36))
    program = routed(export(ringed, *inputs))
    node = only_call(program)
    assert masking(node) == (False, False, True, 3, 11)
    assert node.kwargs["ring"] is True
    torch.testing.assert_close(run(program, *inputs), ringed(*inputs), atol=2e-2, rtol=2e-2)


def formula(program: ExportedProgram, config: BackendConfig, target: str) -> ExportedProgram:
    edge = handed_over(program, CudaPartitioner(target=target))
    run_passes(edge, config)
    assert not calls(edge)
    assert ATTENTION not in {node.target for module in modules(edge) for node in module.graph.nodes}
    return edge


def test_the_formula_on_the_host_and_of_what_no_kernel_serves() -> None:
    inputs = [each.float() if each.is_floating_point() else each for each in (*tensors(5, 15), SINKS)]
    positions = torch.arange(31, 36)
    program = export(ringed, *inputs, positions)
    on_host = formula(program, BackendConfig("host", CompileOptions()), "host")
    torch.testing.assert_close(run(on_host, *inputs, positions), ringed(*inputs, positions))
    halves, without = (*tensors(5, 15), SINKS), CompileOptions(attention_kernels=False)
    off = formula(export(ringed, *halves, positions), BackendConfig(H200, without), "sm_90")
    torch.testing.assert_close(run(off, *halves, positions), ringed(*halves, positions), atol=2e-2, rtol=2e-2)
    in_fp32 = routed(export(capped, *inputs))
    assert not calls(in_fp32)
    torch.testing.assert_close(run(in_fp32, *inputs), capped(*inputs))


def test_what_is_not_claimed() -> None:
    doubles = [each.double() for each in (*tensors(5, 15), SINKS)]
    report = partition_report(export(capped, *doubles), "sm_90")
    (reason,) = (refused.reason for refused in report.refusals if "attention" in refused.op)
    assert reason == "attention takes one of bfloat16, float16, float32, got float64"
