"""Private objects of PyTorch, Inductor and ExecuTorch are what ``etcuda.torch_private`` takes them for.

One test, or more, a function: each fails when a release changes what the function rests on.
"""

from __future__ import annotations

import copy
import gc
import inspect
import operator
import pathlib
import pickle
from typing import Any

import pytest
import sympy
import torch
from torch._functorch.aot_autograd import aot_export_module
from torch.export import Dim, export
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule

from etcuda import torch_private
from etcuda.torch_private import (
    Lowering,
    behind_edge,
    bounds,
    build_expression,
    expression,
    fake_mode_of,
    forget_pending_symbols,
    has_device_function,
    hint,
    input_spec,
    is_core,
    is_fake,
    is_gone,
    keep_no_stack_traces,
    lowering_of,
    make_graph_code_when_called,
    on_fake_tensors,
    part_of_program,
    restored_sizes,
    storage_key,
    weak_storage,
)

aten = torch.ops.aten


def program(low: int | None = 2, high: int | None = 9, x: torch.Tensor | None = None) -> torch.export.ExportedProgram:
    """y = x + 1 with a dynamic first size."""

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0] * 3) + 1

    shape = Dim.DYNAMIC if low is None else Dim("n", min=low, max=high)
    return torch.export.export(Model(), (torch.zeros(4, 3) if x is None else x,), dynamic_shapes=({0: shape},))


def fake(low: int | None = 2, high: int | None = 9) -> torch.Tensor:
    """The fake tensor [n, 3] of a program's input, n = 4 in the example."""
    (value,) = (node.meta["val"] for node in program(low, high).graph.nodes if node.op == "placeholder")
    assert isinstance(value, torch.Tensor)
    return value


def test_every_function_has_a_test_here() -> None:
    here = inspect.getsource(inspect.getmodule(test_every_function_has_a_test_here))  # type: ignore[arg-type]
    own = [
        name for name, value in vars(torch_private).items()
        if callable(value) and getattr(value, "__module__", "") == torch_private.__name__ and not name.startswith("_")
    ]  # fmt: skip
    assert len(own) >= 14
    assert [name for name in own if f"def test_{name.lower()}" not in here] == []


# Symbolic numbers


def test_expression() -> None:
    size = fake().shape[0]
    symbol = expression(size)
    assert isinstance(symbol, sympy.Symbol)
    assert expression(size * 3 + 1) == 3 * symbol + 1
    assert expression(size > 5) == sympy.Gt(symbol, 5)
    assert expression(torch.sym_float(size)).free_symbols == {symbol}  # type: ignore[union-attr]
    assert [expression(value) for value in (7, 0.5, True, None, "7")] == [7, 0.5, True, None, None]


def test_hint() -> None:
    size = fake().shape[0]
    assert (hint(size), hint(size * 3 + 1), hint(7)) == (4, 13, 7)
    assert type(hint(size)) is int
    assert (hint(size > 3), hint(size > 4)) == (True, False)  # type: ignore[arg-type]
    assert type(hint(size > 3)) is bool  # type: ignore[arg-type]


def test_bounds() -> None:
    size = fake(2, 9).shape[0]
    assert (bounds(size), bounds(size * 3), bounds(7)) == ((2, 9), (6, 27), (7, 7))
    least, most = bounds(fake(None, None).shape[0])
    assert least in (0, 2)
    assert most is None


def test_example_sizes() -> None:
    assert list(torch_private.example_sizes([fake(), 3, torch.zeros(2)]).values()) == [4]


def test_build_expression() -> None:
    size = fake().shape[0]
    symbol = expression(size)
    graph = Graph()
    n = graph.placeholder("n")
    last = build_expression(expression((size * 3 + 1) // 2), {symbol: n})
    graph.output(last)
    assert {node.op for node in graph.nodes} == {"placeholder", "call_function", "output"}
    run = GraphModule(torch.nn.Module(), graph)
    assert [run(value) for value in (1, 4, 7)] == [2, 6, 11]


# Fake tensors


def test_is_fake() -> None:
    assert is_fake(fake())
    assert not is_fake(torch.zeros(4, 3))
    assert not is_fake(None)


def test_fake_mode_of() -> None:
    value: Any = fake()
    assert fake_mode_of([None, 7, value]) is value.fake_mode
    assert fake_mode_of([torch.zeros(2), 7]) is None
    with fake_mode_of([value]):  # type: ignore[union-attr]
        assert is_fake(torch.empty(3))


def test_on_fake_tensors() -> None:
    value = fake()
    with on_fake_tensors(fake_mode_of([value])):
        made = aten.arange.default(value.shape[0])
        # Implemented in C++: without the Python dispatcher its sizes would be those of the example.
        flat = aten.flatten.using_ints(value, 0, 1)
    assert is_fake(made)
    assert isinstance(made.shape[0], torch.SymInt)
    assert expression(flat.shape[0]) == 3 * expression(value.shape[0])
    assert bounds(value.shape[0]) == (2, 9)


def test_on_fake_tensors_without_a_mode_computes() -> None:
    with on_fake_tensors(None):
        assert torch.equal(torch.ones(2) + 1, torch.tensor([2.0, 2.0]))


def test_storage_key() -> None:
    real, value = torch.zeros(4, 3), fake()
    for each in (real, value):
        assert storage_key(each) == storage_key(each[1:].t())
    assert storage_key(real) != storage_key(real.clone())
    assert storage_key(value) != storage_key(fake())


def test_weak_storage() -> None:
    tensor = torch.zeros(4, 3)
    keys = {weak_storage(tensor): "found"}
    assert keys[weak_storage(tensor[1:])] == "found"
    assert weak_storage(torch.zeros(4, 3)) not in keys
    # A new tensor in the memory of one that is gone is another one as long as the key lives.
    for _ in range(20):
        del tensor
        gc.collect()
        tensor = torch.zeros(4, 3)
        assert weak_storage(tensor) not in keys


def test_is_gone() -> None:
    tensor = torch.zeros(4, 3)
    view, key = tensor[1:], weak_storage(tensor)
    del tensor
    gc.collect()
    assert not is_gone(key)
    del view
    gc.collect()
    assert is_gone(key)


# Programs and operators


def test_input_spec() -> None:
    spec = input_spec(["x", "y"])
    before = program()
    (entry,) = (entry for entry in before.module_call_graph if entry.fqn == "")
    assert entry.signature is not None
    assert input_spec(["x"]) == entry.signature.in_spec
    assert type(spec) is type(entry.signature.in_spec)
    assert spec != entry.signature.in_spec
    assert spec.num_leaves == 2


def test_behind_edge() -> None:
    from executorch.exir.dialects._ops import ops

    edge = ops.edge.aten.add.Tensor
    assert edge is not aten.add.Tensor
    assert behind_edge(edge) is aten.add.Tensor
    assert behind_edge(aten.add.Tensor) is aten.add.Tensor
    assert behind_edge(operator.getitem) is operator.getitem
    assert behind_edge("placeholder") == "placeholder"


# Inductor


@pytest.mark.parametrize(
    ("op", "lowering"),
    [
        (aten.sin.default, Lowering.GENERATED),
        (aten.cumsum.default, Lowering.GENERATED),
        (aten.embedding.default, Lowering.GENERATED),
        (aten.gelu.default, Lowering.DECOMPOSED),
        (aten.linear.default, Lowering.DECOMPOSED),
        (aten.nonzero.default, Lowering.FALLBACK),
        (aten._embedding_bag.default, Lowering.FALLBACK),
        (aten._fft_c2r.default, Lowering.NONE),
        # There is no operator of its name without an overload.
        (aten.histogram.bins_tensor, Lowering.NONE),
    ],
)
def test_lowering_of(op: torch._ops.OpOverload, lowering: Lowering) -> None:
    assert lowering_of(op) is lowering


def test_lowering_members_are_what_the_tables_hold() -> None:
    from torch._inductor import lowering
    from torch._inductor.decomposition import select_decomp_table

    assert len(lowering.lowerings) > 500
    assert len(select_decomp_table()) > 100
    marked = [each for each in lowering.lowerings.values() if getattr(each, "_is_fallback_handler", False)]
    assert 50 < len(marked) < len(lowering.lowerings)
    found = {
        lowering_of(op) for op in (aten.sin.default, aten.gelu.default, aten.nonzero.default, aten._fft_c2r.default)
    }
    assert found == set(Lowering)


def test_has_device_function() -> None:
    assert not has_device_function(aten.digamma.default)
    assert has_device_function(aten.erf.default)
    assert has_device_function(aten.add.Tensor)


@pytest.mark.parametrize(("version", "generated"), [("2.11.0+cu130", False), ("2.14.1", True), ("2.15.0a0", True)])
def test_generates_scans(version: str, generated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert torch_private.generates_scans() is generated


def test_quantized_operators() -> None:
    namespace = torch_private.quantized_operators()
    x = torch.tensor([0.26, -3.0, 9.0])
    stored = namespace.quantize_per_tensor.default(x, 0.5, 1, -8, 7, torch.int8)
    assert stored.tolist() == [2, -5, 7]
    assert namespace.dequantize_per_tensor.default(stored, 0.5, 1, -8, 7, torch.int8).tolist() == [0.5, -3.0, 3.0]


def test_is_core() -> None:
    import etcuda.kernels  # noqa: F401  defines the operator below

    assert is_core(aten.mm.default)
    assert not is_core(aten.cumprod.default)
    assert is_core(torch.ops.etcuda.quantize_activation.default)


def test_restored_sizes() -> None:
    value = fake()
    size = value.shape[0]
    assert isinstance(size, torch.SymInt)
    assert expression(size) == sympy.Symbol(str(size), positive=True, integer=True)
    with restored_sizes([value]):
        assert size * 2 == 8  # fixes it
        assert expression(size) == 4
    assert str(expression(size)) == str(size) != "4"
    assert bounds(size) == (2, 9)
    with restored_sizes([torch.zeros(2)]):
        pass


def test_forget_pending_symbols() -> None:
    value = fake()
    environment = value.fake_mode.shape_env  # type: ignore[attr-defined]
    environment.create_unbacked_symint()
    assert environment.pending_fresh_unbacked_symbols
    forget_pending_symbols([value])
    assert environment.pending_fresh_unbacked_symbols == []


def test_part_of_program(tmp_path: pathlib.Path) -> None:
    class Whole(torch.nn.Module):
        def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            return x * 2 + state

    rows = Dim("rows", min=2, max=9)
    whole = export(Whole(), (torch.ones(3, 4), torch.zeros(4)), dynamic_shapes=({0: rows}, None))
    x, state = (node.meta["val"] for node in whole.graph.nodes if node.op == "placeholder")
    graph = Graph()
    inputs = [graph.placeholder(name) for name in ("a", "b")]
    new = graph.call_function(torch.ops.aten.add.Tensor, (inputs[1], 1))
    result = graph.call_function(torch.ops.aten.mul.Tensor, (inputs[0], new))
    for node, value in ((inputs[0], x), (inputs[1], state), (new, state), (result, x)):
        node.meta["val"] = value
    graph.output((new, result))
    signature = ExportGraphSignature(
        [InputSpec(InputKind.USER_INPUT, TensorArgument(name=node.name), None) for node in inputs],
        [
            OutputSpec(OutputKind.USER_INPUT_MUTATION, TensorArgument(name=new.name), "b"),
            OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=result.name), None),
        ],
    )
    part = part_of_program(whole, GraphModule({}, graph), signature)
    torch.export.save(part, tmp_path / "part.pt2")
    module = torch.export.load(tmp_path / "part.pt2").module(check_guards=False)
    memory = torch.zeros(4)
    for number in (1, 2):
        (found,) = module(torch.full((5, 4), 3.0), memory)
        assert torch.equal(found, torch.full((5, 4), 3.0 * number))
        assert torch.equal(memory, torch.full((4,), float(number)))


def doubled() -> GraphModule:
    graph = Graph()
    graph.output(graph.call_function(operator.mul, (graph.placeholder("x"), 2)))
    return GraphModule({}, graph)


def test_make_graph_code_when_called() -> None:
    real = GraphModule.recompile
    made: list[GraphModule] = []
    restore = make_graph_code_when_called()
    try:
        module = doubled()
        assert "_code" not in vars(module)
        next(node for node in module.graph.nodes if node.op == "call_function").args = (3, 5)
        module.recompile()
        copied = copy.deepcopy(module)
        assert "_code" not in vars(module)
        assert "_code" not in vars(copied)
        assert module(1) == copied.forward(1) == 15
        outer = GraphModule(torch.nn.ModuleDict({"inner": doubled()}), one_call("inner"))
        inner: Any = outer.inner
        assert outer(4) == 8
        next(node for node in inner.graph.nodes if node.op == "call_function").args = (3, 3)
        # As always, recompiling the outer one is enough.
        outer.recompile()
        assert inner(4) == outer(4) == 9
        # What pickles a module needs its code.
        assert pickle.loads(pickle.dumps(doubled()))(4) == 8
        made = [doubled(), doubled(), doubled()]
    finally:
        restore()
    assert GraphModule.recompile is real
    assert made[0](21) == 42
    assert "mul" in made[1].code
    assert "mul" in str(made[2])
    assert type(made[1]).forward(made[1], 2) == 4
    assert inspect.signature(doubled().forward) == inspect.signature(made[2].forward)
    assert "_code" in vars(doubled())


def one_call(name: str) -> Graph:
    graph = Graph()
    graph.output(graph.call_module(name, (graph.placeholder("x"),)))
    return graph


def test_keep_no_stack_traces() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x.sin(),)

    def has_traces() -> bool:
        made, _ = aot_export_module(Model(), (torch.ones(2),), trace_joint=False)
        return any(node.stack_trace for node in made.graph.nodes)

    restore = keep_no_stack_traces()
    assert not has_traces() or not hasattr(torch.fx.config, "do_not_emit_stack_traces")
    restore()
    assert has_traces()
