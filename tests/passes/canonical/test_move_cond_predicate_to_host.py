"""Predicates on shapes are decided on the host."""

from __future__ import annotations

import torch

from tests.passes.canonical.rewriting import N, X, check, rewritten


def test_a_predicate_on_shapes_is_a_number() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        chosen = torch.scalar_tensor(x.shape[0], dtype=torch.int64) * 2 > 10
        return torch.cond(chosen, lambda y: y.sin() + 1, lambda y: y.cos() + 2, (x,))

    program = rewritten(model, X, dynamic=[{0: N}])
    cond = next(node for node in program.graph.nodes if node.target is torch.ops.higher_order.cond)
    assert isinstance(cond.args[0].meta["val"], torch.SymBool)
    for rows in (3, 5, 6, 8):
        check(program, model, torch.randn(rows, 6))


def test_a_predicate_on_data_stays_a_tensor() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: y.sin() + 1, lambda y: y.cos() + 2, (x,))

    program = rewritten(model, X)
    cond = next(node for node in program.graph.nodes if node.target is torch.ops.higher_order.cond)
    assert isinstance(cond.args[0].meta["val"], torch.Tensor)
    check(program, model, X)
    check(program, model, X - 100)
