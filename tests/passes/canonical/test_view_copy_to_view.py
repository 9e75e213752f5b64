"""Copies become views, and the numbers stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from etcuda.passes.graph.edge_ops import VIEW_OF_COPY
from etcuda.passes.manager import run_passes
from tests.partitioner.programs import edge
from tests.passes.canonical.rewriting import HOST, N, X, rewritten, targets

aten = torch.ops.aten


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x.permute(1, 0).reshape(-1) + 1,
        lambda x: x.unsqueeze(1).expand(-1, 3, -1).reshape(-1, 6) * 2,
        lambda x: (x[:, ::2].sum(), x[0].exp(), x.squeeze(0) + 1),
        lambda x: [part * 2 for part in x.split([1, 5], 1)],
        lambda x: [part * 2 for part in x.chunk(2, 1)],
        lambda x: x.diagonal().exp() + x.unbind(1)[2].sum(),
        lambda x: x.t().contiguous().view(3, -1).t() + 1,
        lambda x: x.unfold(1, 2, 2).sum(-1),
    ],
)
@pytest.mark.parametrize("x", [X, torch.randn(5, 6), torch.randn(3, 6).t().contiguous().t()])
def test_views_keep_the_numbers(model: Callable[..., Any], x: torch.Tensor) -> None:
    program = rewritten(model, x, dynamic=[{0: N}])
    assert not targets(program) & VIEW_OF_COPY.keys()
    got = program.module(check_guards=False)(x)
    torch.testing.assert_close(list(got) if isinstance(got, tuple | list) else got, _listed(model(x)))


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def test_an_empty_tensor() -> None:
    program = rewritten(lambda x: x.permute(1, 0).reshape(3, -1) + 1, torch.randn(0, 6))
    assert program.module(check_guards=False)(torch.randn(0, 6)).shape == (3, 0)


def test_a_copy_that_is_written_to_stays_a_copy() -> None:
    program = edge(lambda x: x.t() * 2 + x.reshape(3, 8).sum(), X)
    view = next(node for node in program.graph.nodes if "permute_copy" in str(node.target))
    with program.graph.inserting_after(view):
        write = program.graph.call_function(aten.sin_.default, (view,))
    write.meta = dict(view.meta)
    run_passes(program, HOST)
    assert {aten.permute_copy.default, aten.view_copy.default} <= targets(program)
    assert torch.equal(program.module(check_guards=False)(X), X.t().sin() * 2 + X.sum())
