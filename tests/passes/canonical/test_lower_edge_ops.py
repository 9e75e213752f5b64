"""Edge operators become ATen operators, and the numbers stay."""

from __future__ import annotations

import pytest
import torch

from etcuda.errors import PassError
from etcuda.passes.manager import run_passes
from tests.partitioner.programs import edge
from tests.passes.canonical.rewriting import HOST, N, X, check, rewritten, targets


def test_no_edge_operator_is_left_in_control_flow_either() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        y = x.half().float().clone()
        return torch.cond(x.shape[0] > 5, lambda z: z.sin().half().float(), lambda z: z.cos() + 2, (y,))

    program = rewritten(model, X, dynamic=[{0: N}])
    assert all(
        isinstance(target, torch._ops.OpOverload | torch._ops.HigherOrderOperator) or target.__module__ == "_operator"
        for target in targets(program)
    )
    check(program, model, X)
    check(program, model, torch.randn(7, 6))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_dim_order_becomes_a_memory_format(memory_format: torch.memory_format) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.float64, memory_format=memory_format) + 1

    x = torch.randn(2, 3, 5, 4)
    program = rewritten(model, x)
    check(program, model, x)
    result = program.module(check_guards=False)(x)
    assert result.is_contiguous(memory_format=memory_format)


def test_an_unknown_dim_order_is_named() -> None:
    program = edge(lambda x: x.double(), torch.randn(2, 3, 5))
    node = next(node for node in program.graph.nodes if "dim_order" in str(node.target))
    node.kwargs = {**node.kwargs, "dim_order": [2, 1, 0]}
    with pytest.raises(PassError, match=r"'lower_edge_ops' failed at node .*got \(2, 1, 0\)"):
        run_passes(program, HOST)
