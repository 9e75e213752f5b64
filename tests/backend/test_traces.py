"""What PyTorch asks of branches of ``cond`` is read off their graphs, and only where these say it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from etcuda.backend.inductor import traces
from etcuda.backend.inductor.traces import branches_are_traced_once, is_functional, returns_new_tensors

calls = 0


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    """An operator whose shapes cannot be found without ``calls`` being raised."""
    with torch.library._scoped_library("etcuda_test", "DEF") as library:
        library.define("counted(Tensor x) -> Tensor")

        def fake(x: Tensor) -> Tensor:
            global calls
            calls += 1
            return x.new_empty(x.shape)

        library.impl("counted", lambda x: x.clone(), "CompositeExplicitAutograd")
        torch.library.register_fake("etcuda_test::counted", fake, lib=library)
        yield


def graph(function: Callable[..., object], *inputs: Tensor) -> GraphModule:
    made: GraphModule = make_fx(function)(*(inputs or (torch.ones(4, 6), torch.ones(4, 6))))
    return made


@pytest.mark.parametrize(
    ("function", "makes", "functional"),
    [
        (lambda x, y: x + y, True, True),
        (lambda x, y: ((x @ y.T).view(2, 8), y.sin().T), True, True),
        (lambda x, y: x.max(1), True, True),
        (lambda x, y: x, False, False),
        (lambda x, y: (x + y, y.view(24)), False, False),
        (lambda x, y: (lambda z: (z, z.T))(x + y), False, False),
        (lambda x, y: (lambda z: (z[0], z[0]))(x.max(1)), False, False),
        # Writes to what it was given, or to something of its own.
        (lambda x, y: x.add_(y) * 2, True, False),
        (lambda x, y: x.clone().add_(y), True, False),
        (lambda x, y: x.add_(y), False, False),
        # May return what it is given.
        (lambda x, y: torch.ops.aten.contiguous.default(x), False, False),
    ],
)
def test_what_a_graph_returns_and_writes(function: Callable[..., object], makes: bool, functional: bool) -> None:
    found = graph(function)
    assert returns_new_tensors(found) == makes
    assert is_functional(found) == functional
    assert not is_functional(function)


class Nested(torch.nn.Module):
    """Branches in branches, for sizes that are not known."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor]:
        counted = torch.ops.etcuda_test.counted
        few = lambda x, y: counted(x).sin() + y  # noqa: E731
        some = lambda x, y: (counted(x) * y).view(-1, 2, 4).flatten(1)  # noqa: E731
        many = lambda x, y: counted(counted(x) - y)  # noqa: E731
        beyond = lambda x, y: torch.cond(x.shape[0] <= 16, some, many, (x, y))  # noqa: E731
        x = torch.cond(x.shape[0] <= 4, few, beyond, (x, y))
        return (torch.cond(x.shape[0] <= 8, few, beyond, (x.relu(), y)),)


def traced() -> tuple[str, list[object], int]:
    """All graphs that ``Nested`` becomes on its way to Inductor, the shapes in them, and how often ``counted`` ran."""
    inputs = torch.ones(6, 8), torch.ones(6, 8)
    rows = Dim("rows", min=2, max=64)
    program = torch.export.export(Nested(), inputs, dynamic_shapes=({0: rows}, {0: rows}))
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    before = calls
    with torch.no_grad():
        module, _ = aot_export_module(program.module(check_guards=False), values, trace_joint=False)
    graphs = [each for each in module.modules() if isinstance(each, GraphModule)]
    shapes = [(each.shape, each.stride(), each.dtype) for one in graphs for each in tensors(one)]
    return "\n".join(re.sub(r"\s+#.*", "", one.code) for one in graphs), shapes, calls - before


def tensors(module: GraphModule) -> list[Tensor]:
    return [val for node in module.graph.nodes if isinstance(val := node.meta.get("val"), Tensor)]


def test_the_graph_is_the_same_and_made_with_less() -> None:
    code, shapes, before = traced()
    table = dict(torch.ops.higher_order.cond.python_key_table)
    with branches_are_traced_once():
        same_code, same_shapes, after = traced()
    assert same_code == code
    assert [str(each) for each in same_shapes] == [str(each) for each in shapes]
    assert "etcuda_test.counted" in code
    # Once for the outputs of the graph, once for the graph: all four operators, and those of ``beyond`` twice.
    assert after == 2 * 8
    assert before > 2 * after
    assert torch.ops.higher_order.cond.python_key_table == table


@pytest.mark.parametrize(
    "bad", [lambda x, y: x.view(-1, 8), lambda x, y: x.add_(y).clone()], ids=["returns an operand", "writes to one"]
)
def test_a_branch_that_is_not_functional_is_still_found(bad: Callable[..., Tensor]) -> None:
    branches = [graph(each, torch.ones(6, 8), torch.ones(6, 8)) for each in (lambda x, y: x + y, bad)]

    class Model(torch.nn.Module):
        def forward(self, pred: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
            return (torch.ops.higher_order.cond(pred, *branches, (x.sin(), y.sin())),)

    def export() -> str:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            inputs = torch.tensor(True), torch.ones(6, 8), torch.ones(6, 8)
            try:
                return str(aot_export_module(Model(), inputs, trace_joint=False)[0].code)
            except Exception as error:
                return f"{type(error).__name__}: {error}"

    before = export()
    with branches_are_traced_once():
        assert export() == before


def test_shapes_follow_the_operands_and_the_graph() -> None:
    inputs = torch.ones(4, 6), torch.ones(4, 6)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(each) for each in inputs]
        branch = make_fx(lambda x, y: (torch.ops.etcuda_test.counted(x), x + y))(*fakes)
        run = traces._Shapes().of(branch)
        assert run is not branch
        before = calls
        (first, _), (again, _) = run(*fakes), run(*fakes)
        assert calls == before + 1
        shapes = traces._Shapes()
        shapes.learn(branch)
        assert [each.shape for each in shapes.of(branch)(*fakes)] == [(4, 6)] * 2
        assert calls == before + 1
        assert first is not again
        assert first.shape == again.shape == (4, 6)
        other = [torch.empty(5, 6), torch.empty(5, 6)]
        assert [run(*other)[0].shape for _ in range(2)] == [(5, 6)] * 2
        assert calls == before + 2
        transposed = [torch.empty(6, 4).T, torch.empty(6, 4).T]
        assert [each.stride() for each in run(*transposed)] == [(6, 1), (1, 4)]
        # The graph is changed in place, as Inductor's passes do it.
        (add,) = branch.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
        add.target = torch.ops.aten.mm.default
        add.args = (add.args[0], branch.graph.find_nodes(op="placeholder")[1])
        branch.recompile()
        square = [torch.empty(5, 6), torch.empty(6, 7)]
        assert run(*square)[1].shape == (5, 7)
        assert isinstance(first, FakeTensor)
