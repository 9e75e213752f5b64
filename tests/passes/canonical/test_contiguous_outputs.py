"""Every output owns its bytes, in the order that ExecuTorch planned."""

from __future__ import annotations

from typing import Any

import torch

from etcuda.passes.canonical.record_output_layout import OUTPUT_DIM_ORDERS
from tests.passes.canonical.rewriting import X, outputs, rewritten, targets

aten = torch.ops.aten


def model_of_aliases(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = x.sin()
    return x, x.t(), y, y.t(), y, y.reshape(-1)[3:]


def test_outputs_own_their_bytes() -> None:
    program = rewritten(model_of_aliases, X)
    clones = [node.target is aten.clone.default for node in outputs(program)]
    assert clones == [True, True, False, True, True, True]
    got = program.module(check_guards=False)(X)
    torch.testing.assert_close(list(got), [value.contiguous() for value in model_of_aliases(X)])
    assert len({value.untyped_storage().data_ptr() for value in got}) == len(got)


def test_outputs_lie_as_executorch_planned() -> None:
    def model(x: torch.Tensor) -> Any:
        return x.permute(0, 3, 1, 2) + 1, x.expand(3, -1, -1, -1), x.to(memory_format=torch.channels_last) * 2

    x = torch.randn(1, 3, 5, 4)
    program = rewritten(model, x)
    orders = program.graph.output_node().meta[OUTPUT_DIM_ORDERS]
    assert orders[2] == (0, 2, 3, 1)
    got = program.module(check_guards=False)(x)
    torch.testing.assert_close(got, tuple(model(x)))
    for value, order in zip(got, orders, strict=True):
        assert value.permute(order).is_contiguous()


def test_results_of_one_operator_are_not_copied() -> None:
    program = rewritten(lambda x: torch.max(x, 1), X)
    assert aten.clone.default not in targets(program)


def test_a_new_value_of_a_buffer_that_is_returned_is_copied() -> None:
    def model(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.state.add_(x)
        return m.state

    program = rewritten(model, X, state=torch.zeros(4, 6))
    mutated, returned = outputs(program)
    assert mutated is not returned
    assert returned.target is aten.clone.default


def test_a_constant_that_is_returned_is_copied() -> None:
    program = rewritten(lambda m, x: (m.w, x + 1), X, w=torch.ones(3))
    assert outputs(program)[0].target is aten.clone.default
