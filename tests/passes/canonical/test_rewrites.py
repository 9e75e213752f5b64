"""Each pass keeps the numbers: rewritten programs against eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim, ExportedProgram

from etcuda.errors import PassError
from etcuda.options import BackendConfig
from etcuda.passes.canonical.record_output_layout import OUTPUT_DIM_ORDERS, dim_order
from etcuda.passes.graph.edge_ops import VIEW_OF_COPY
from etcuda.passes.manager import run_passes
from tests.partitioner.programs import edge

aten = torch.ops.aten
HOST = BackendConfig("host")
X = torch.randn(4, 6)
N = Dim("n", min=2, max=9)


def rewritten(function: Callable[..., Any], *inputs: Any, **keywords: Any) -> ExportedProgram:
    program = edge(function, *inputs, **keywords)
    run_passes(program, HOST)
    return program


def targets(program: ExportedProgram) -> set[Any]:
    modules = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return {node.target for module in modules for node in module.graph.nodes if node.op == "call_function"}


def outputs(program: ExportedProgram) -> list[torch.fx.Node]:
    return list(program.graph.output_node().args[0])  # type: ignore[arg-type]


def check(program: ExportedProgram, function: Callable[..., Any], *inputs: Any) -> None:
    got = program.module(check_guards=False)(*inputs)
    expected = function(*inputs)
    torch.testing.assert_close(got, expected if isinstance(got, tuple) else (expected,)[0])


# lower_edge_ops


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


# view_copy_to_view


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


# contiguous_outputs


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


@pytest.mark.parametrize(
    ("tensor", "order"),
    [
        (torch.zeros(2, 3, 4, 5), (0, 1, 2, 3)),
        (torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), (0, 2, 3, 1)),
        (torch.zeros(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d), (0, 2, 3, 4, 1)),
        (torch.zeros(3, 4).t(), (1, 0)),
        (torch.zeros(1, 1, 1, 1).to(memory_format=torch.channels_last), (0, 1, 2, 3)),
        (torch.zeros(()), ()),
    ],
)
def test_dim_order(tensor: torch.Tensor, order: tuple[int, ...]) -> None:
    assert dim_order(tensor) == order


# inline_scalar_constants


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


# bind_symbolic_inputs


def test_a_number_that_does_not_follow_from_a_size_is_named() -> None:
    program = edge(lambda x, n: x.expand(n, -1).sum(0) + n, torch.randn(1, 4), 3, dynamic=[None, Dim.DYNAMIC])
    with pytest.raises(PassError, match=r"'bind_symbolic_inputs' failed at node .*expected a number that follows"):
        run_passes(program, HOST)


# remove_dead_code


def test_dead_code_goes() -> None:
    program = edge(lambda x: x.sin() + 1, X)
    output = program.graph.output_node()
    with program.graph.inserting_before(output):
        dead = program.graph.call_function(aten.cos.default, (output.args[0][0],))  # type: ignore[index,misc]
    dead.meta = dict(output.args[0][0].meta)  # type: ignore[index,union-attr,misc]
    run_passes(program, HOST)
    assert aten.cos.default not in targets(program)


# move_cond_predicate_to_host


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
