"""Constants of one element become literals, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.passes.canonical.rewriting import N, X, check, rewritten, targets

aten = torch.ops.aten


def test_numbers_become_literals() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.shape[0] > 5, lambda z: z * 3 + 1, lambda z: z - 2, (x * 0.1,))

    program = rewritten(model, X, dynamic=[{0: N}])
    modules = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    attributes = [n for m in modules for n in m.graph.nodes if n.op == "get_attr" and "tensor" in str(n.target)]
    constants = [n for n in program.graph.nodes if n.op == "placeholder" and n.users and "constant" in n.name]
    assert attributes == constants == []
    check(program, model, X)


@pytest.mark.parametrize("value", [True, -7, 2**40, 0.1, float("inf")])
def test_literals_are_exact(value: float) -> None:
    program = rewritten(lambda m, x: x * m.c, X.double(), c=torch.tensor(value))
    assert aten.full.default in targets(program)
    expected = X.double() * torch.tensor(value)
    torch.testing.assert_close(program.module(check_guards=False)(X.double()), expected, rtol=0, atol=0)


def test_state_and_tables_stay() -> None:
    def model(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.count.add_(1)
        return x * m.table + m.count

    program = rewritten(model, X, count=torch.zeros(()), table=torch.ones(6))
    used = {n.name for n in program.graph.nodes if n.op == "placeholder" and n.users}
    assert {"b_count", "b_table"} <= used
