"""Repetitions that are taken out of a program before ExecuTorch's stages, and put back behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

import etcuda.backend.preprocess as preprocess
from etcuda import CudaPartitioner, Int4CoalescedConfig, quantize_weights
from etcuda.errors import FoldError
from etcuda.passes.repeats import unfold as unfolding
from etcuda.passes.repeats.fold import flattened, fold
from etcuda.passes.repeats.regions import is_number, signature
from tests.passes.repeats.repeated_models import Branching, Cached, Layer, Stack, Tanh

COUNT = 7


class _Captured(Exception):
    def __init__(self, programs: list[ExportedProgram]) -> None:
        super().__init__()
        self.programs = programs


@pytest.fixture
def delegated(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExportedProgram]:
    """``delegated(program, folds)`` is the program that the backend runs its passes on."""

    def capture(jobs: Any) -> None:
        raise _Captured([program for _, program, _ in jobs])

    monkeypatch.setattr(preprocess, "_shared_state", capture)

    def lower(program: ExportedProgram, folds: bool) -> ExportedProgram:
        with pytest.raises(_Captured) as captured:
            to_edge_transform_and_lower(
                program,
                partitioner=[CudaPartitioner(target="host", alone=True, folds=folds)],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
        (made,) = captured.value.programs
        return made

    return lower


def described(program: ExportedProgram) -> dict[str, list[object]]:
    """All that a program is, but for the names of nodes and of constants that stages have made."""
    signature_ = program.graph_signature
    named = {spec.arg.name: spec for spec in signature_.input_specs}
    tables = {**program.state_dict, **program.constants}
    inputs: list[object] = []
    calls: list[object] = []
    names: dict[Any, str] = {}
    for node in program.graph.nodes:
        value = signature(node.meta["val"]) if "val" in node.meta else None
        if node.op == "placeholder":
            name = named[node.name].target or node.name
            made = "lifted" in name and tables[name].numel() == 1
            names[node] = f"the number {tables[name].item()}" if made else name
            inputs.append((str(named[node.name].kind), names[node], str(value)))
        elif is_number(node) or node.op == "get_attr":
            names[node] = str(value)
        else:
            names[node] = f"n{len(calls)}"
            arguments = torch.fx.map_arg((node.args, node.kwargs), lambda each: names[each])
            calls.append((str(node.target), str(arguments), value))
    writes = [(spec.kind, spec.target) for spec in signature_.output_specs]
    weights = [(name, value.data_ptr()) for name, value in tables.items() if "lifted" not in name]
    return {"inputs": sorted(inputs), "calls": calls, "writes": writes, "weights": sorted(weights)}


def stack(make: Callable[[], nn.Module], count: int = COUNT) -> Stack:
    return Stack(*(make() for _ in range(count))).eval()


def two_kinds() -> Stack:
    return Stack(*(each for _ in range(COUNT) for each in (Layer(), Layer(), Tanh()))).eval()


def quantized() -> Stack:
    model = stack(lambda: Layer(32, 64, dtype=torch.bfloat16))
    model.first, model.last = nn.Linear(4, 32), nn.Linear(32, 3)
    model.to(torch.bfloat16)
    quantize_weights(model.layers, Int4CoalescedConfig(group_size=32))
    return model


X, POSITION = torch.randn(2, 4), torch.tensor([1, 0])
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], Any]] = {
    "layers": (lambda: stack(Layer), (X,), None),
    "dynamic": (lambda: stack(Layer), (X,), ({0: Dim("rows", min=2, max=9)},)),
    "two kinds": (two_kinds, (X,), None),
    "state": (lambda: stack(Cached), (X, POSITION), None),
    "branches": (lambda: stack(Branching), (X,), None),
    "int4": (quantized, (X.to(torch.bfloat16),), None),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_put_back_is_what_was_taken_out(case: str, delegated: Callable[..., ExportedProgram]) -> None:
    make, args, shapes = CASES[case]
    program = export(make(), args, dynamic_shapes=shapes)
    left, folded = fold(program) or (None, None)
    assert left is not None
    assert folded is not None
    assert folded.count == COUNT - 3
    assert len(left.graph.nodes) < 0.7 * len(program.graph.nodes)
    assert described(delegated(program, True)) == described(delegated(program, False))


def test_a_program_is_not_changed(delegated: Callable[..., ExportedProgram]) -> None:
    program = export(stack(Cached), (X, POSITION))
    before, names = str(program.graph), list(program.state_dict)
    delegated(program, True)
    assert (str(program.graph), list(program.state_dict)) == (before, names)


class Reading(nn.Module):
    """Reads what every layer returns."""

    def __init__(self, stack: Stack, all_of_it: bool) -> None:
        super().__init__()
        self.stack, self.all = stack, all_of_it

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        x = self.stack.first(x)
        hidden = []
        for layer in self.stack.layers:
            hidden.append(x)
            x = layer(x)
        return (x, *hidden) if self.all else x + hidden[COUNT // 2]


def alternately_shared() -> Stack:
    model = stack(Layer)
    for index in range(1, COUNT, 2):
        model.layers[index].up.weight = model.layers[0].up.weight
    return model


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "few": lambda: stack(Layer, 4),
    "another constant": lambda: Stack(*(Layer(scale=0.5 if index != 3 else 0.25) for index in range(COUNT))),
    "another width": lambda: Stack(*(Layer(hidden=12 + 4 * (index % 3 == 1)) for index in range(4))),
    "returned": lambda: Reading(stack(Layer), True),
    "read behind": lambda: Reading(stack(Layer), False),
    "shared by some": alternately_shared,
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_alike_stays(case: str) -> None:
    assert fold(export(REFUSED[case]().eval(), (X,))) is None


def test_weights_that_all_share_are_kept() -> None:
    model = stack(Layer)
    for layer in model.layers[1:]:
        layer.up.weight = model.layers[0].up.weight
    found = fold(export(model, (X,)))
    assert found is not None
    names = {name for names in found[1].slots for name in names}
    assert "layers.3.down.weight" in names
    assert not any("up.weight" in name for name in names)


def test_what_no_longer_looks_alike_is_said(
    delegated: Callable[..., ExportedProgram], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfolding, "runs", lambda program: iter(()))
    program = export(stack(Layer), (X,))
    with pytest.raises(FoldError, match=r"expected the 2 first repetitions and the last one of 7 .*folds=False"):
        to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target="host", alone=True)])


def test_a_weight_that_became_something_else_is_said() -> None:
    model = quantized()
    left, folded = fold(export(model, (X.to(torch.bfloat16),))) or (None, None)
    assert left is not None
    assert folded is not None
    name = next(name for name in folded.tensors if name.endswith("up.weight"))
    changed = dataclasses.replace(folded, tensors={**folded.tensors, name: torch.zeros(2)})
    with pytest.raises(FoldError, match=r"original1: expected one of the 1 tensors that .*up.weight .*folds=False"):
        flattened(changed, left.run_decompositions({}))


def test_calls_in_another_order_are_put_back_too() -> None:
    program = export(stack(Layer), (X,))
    left, folded = fold(program) or (None, None)
    assert left is not None
    assert folded is not None
    lowered = left.run_decompositions({})
    plain = unfolding.unfold(lowered, flattened(folded, lowered))
    first = next(node for node in lowered.graph.nodes if node.op == "call_function")
    for node in list(lowered.graph.nodes):
        if node.op == "call_function" and all(each.op == "placeholder" for each in node.all_input_nodes):
            first.prepend(node)
    lowered.graph.lint()
    found = unfolding.unfold(lowered, flattened(folded, lowered))
    wanted = program.run_decompositions({})
    x = torch.randn(2, 4)
    torch.testing.assert_close(plain.module()(x), wanted.module()(x), rtol=0, atol=0)
    torch.testing.assert_close(found.module()(x), wanted.module()(x), rtol=0, atol=0)
