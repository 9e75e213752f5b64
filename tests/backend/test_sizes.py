"""Sizes that depend on each other: what an export describes, and what a call is refused."""

from __future__ import annotations

import io
import operator
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, ModularIndexing, PythonMod

import etcuda.runtime
from etcuda import CudaPartitioner, save_program
from etcuda.backend import preprocess
from etcuda.backend.schema.generated import delegate_generated as schema
from etcuda.backend.sizes import SizeTable
from etcuda.backend.values import DelegateValues, describe_values

runtime = pytest.importorskip("executorch.runtime")

A, B, C = (sympy.Symbol(name, integer=True, nonnegative=True) for name in "abc")


Op = schema.SizeOp
OPERATORS: dict[int, Callable[[int, int], int]] = {
    Op.add: operator.add,
    Op.subtract: operator.sub,
    Op.multiply: operator.mul,
    Op.floor_divide: operator.floordiv,
    Op.exact_divide: operator.floordiv,
    Op.modulo: operator.mod,
    Op.minimum: min,
    Op.maximum: max,
    Op.equal: operator.eq,
    Op.less: operator.lt,
    Op.less_equal: operator.le,
}


def evaluate(record: schema.SizeT, inputs: list[list[int]], sizes: list[int]) -> int:
    """The schema's machine, in Python."""
    stack: list[int] = []
    for step in record.steps:
        if step.op == Op.constant:
            stack.append(step.value)
        elif step.op == Op.input:
            stack.append(inputs[step.value][step.dim])
        elif step.op == Op.size:
            stack.append(sizes[step.value])
        elif step.op == Op.logical_not:
            stack.append(int(not stack.pop()))
        else:
            b, a = stack.pop(), stack.pop()
            assert step.op != Op.exact_divide or a % b == 0
            stack.append(int(OPERATORS[step.op](a, b)))
    (result,) = stack
    return result


def run(table: SizeTable, inputs: list[list[int]]) -> list[int]:
    sizes: list[int] = []
    for record in table.records:
        sizes.append(evaluate(record, inputs, sizes))
    return sizes


EXPRESSIONS = [
    2 * A + 3,
    A * B,
    A**3,
    FloorDiv(A - 3, 2) + 1,
    Mod(A, 8),
    PythonMod(A - 9, 4),
    Max(A, B, 4),
    Min(A, B),
    ModularIndexing(A, 2, 3),
    -A + 5,
]
CONDITIONS = [
    sympy.Eq(Mod(A, 2), 0),
    sympy.Ne(A, B),
    A < B,
    A <= B,
    2 * A > B,
    A >= 2 * B,
    sympy.And(A < 5, sympy.Or(B < 3, sympy.Not(sympy.Eq(A, 2)))),
]


@pytest.mark.parametrize("expression", [*EXPRESSIONS, *CONDITIONS], ids=str)
def test_expressions_are_computed(expression: Any) -> None:
    for a, b in ((0, 0), (1, 7), (6, 2), (9, 9), (12, 5)):
        table = SizeTable([[A, 4], [B]])
        expected = expression.subs({A: a, B: b})
        inputs = [[a, 4], [b]]
        if expression in CONDITIONS:
            record = table.condition(expression)
            assert record is not None
            assert evaluate(record, inputs, run(table, inputs)) == int(bool(expected))
        else:
            position = table.position(expression)
            assert run(table, inputs)[position] == int(expected)
            assert table.records[position].text == str(expression)


def test_symbols_are_solved_from_linear_terms() -> None:
    table = SizeTable([[2 * A + 1], [A + 3 * B], [FloorDiv(C, 2)]])
    inputs = [[9], [10], [3]]
    sizes = run(table, inputs)
    assert [sizes[table.position(each)] for each in (A, B, 2 * A + 1, A + 3 * B)] == [4, 2, 9, 10]
    # Half of something that nothing else says: a size of its own.
    assert sizes[table.position(FloorDiv(C, 2))] == 3
    assert table.position(C) == -1
    assert table.condition(sympy.Eq(Mod(C, 2), 0)) is None
    assert table.position(sympy.Symbol("unknown")) == -1


def test_programs_that_the_runtime_would_not_read_are_not_written() -> None:
    table = SizeTable([[A]])
    long = sum(FloorDiv(A, n) for n in range(2, 200))
    assert table.position(long) == -1
    deep: Any = A
    for n in range(20):
        deep = FloorDiv(n + 100, FloorDiv(n + 50, deep + 1) + 1)
    assert table.position(deep) == -1
    assert table.position(sympy.Rational(1, 2) * A) == -1


class Related(nn.Module):
    """Each relation that torch.export states in a way of its own."""

    def forward(
        self,
        even: Tensor,
        longer: Tensor,
        shorter: Tensor,
        empty: Tensor,
        eights: Tensor,
        wave: Tensor,
        windows: Tensor,
    ) -> tuple[Tensor, ...]:
        pairs = even.reshape(-1, 2).sum(1)
        shifted = (longer[1:] * shorter).sum()
        if eights.shape[0] % 8 == 0:
            eights = eights * 2
        framed = torch.nn.functional.avg_pool1d(wave, 3, 2) + windows
        return pairs, shifted, empty * 2, empty.sum(), eights + 1, framed


def related_inputs(**sizes: int) -> dict[str, Tensor]:
    default = {"even": 10, "longer": 7, "shorter": 6, "empty": 3, "eights": 16, "wave": 15, "windows": 7}
    made = {name: torch.arange(size, dtype=torch.float32) for name, size in {**default, **sizes}.items()}
    return {name: value.reshape(1, 1, -1) if name in ("wave", "windows") else value for name, value in made.items()}


def related_program() -> ExportedProgram:
    d, e, n = Dim("d", min=2, max=2000), Dim("e", min=1, max=2000), Dim("n", min=0, max=8)
    auto = Dim.AUTO(max=1000)
    shapes = {"even": {0: 2 * d}, "longer": {0: e + 1}, "shorter": {0: e}, "empty": {0: n}}
    shapes |= {"eights": {0: auto}, "wave": {2: auto}, "windows": {2: auto}}
    return torch.export.export(Related(), tuple(related_inputs().values()), dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def related(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("sizes") / "related.pte"
    partitioner = CudaPartitioner("host", options={"progress": False})
    save_program(to_edge_transform_and_lower(related_program(), partitioner=[partitioner]).to_executorch(), path)
    return path


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"even": 7}, "input 0 (even): dimension 0 has size 7, expected one that is 2*"),
        ({"even": 2}, "input 0 (even): dimension 0 has size 2, the model was exported for [4..4000]"),
        ({"longer": 4, "shorter": 1000}, "input 1 (longer): dimension 0 has size 4, expected 1001"),
        ({"longer": 1000, "shorter": 3}, "input 1 (longer): dimension 0 has size 1000, expected 4"),
        # torch.export's own guard, though e was declared from 1.
        ({"longer": 2, "shorter": 1}, "expected s"),
        ({"longer": 6}, "input 1 (longer): dimension 0 has size 6, expected 7"),
        ({"eights": 12}, "8), 0), as the model was exported"),
        ({"windows": 6}, "as the model was exported"),
        ({"wave": 17}, " = 17 in dimension 2 of input 5 (wave)"),
    ],
)
def test_a_call_with_sizes_that_do_not_fit_is_refused(related: pathlib.Path, sizes: dict[str, int], words: str) -> None:
    method = runtime.Runtime.get().load_program(related).load_method("forward")
    with pytest.raises(RuntimeError):
        method.execute(list(related_inputs(**sizes).values()))
    assert words in etcuda.runtime.last_error()


@pytest.mark.parametrize(
    "sizes",
    [{}, {"even": 4, "longer": 3, "shorter": 2}, {"empty": 0}, {"empty": 1, "eights": 8, "wave": 29, "windows": 14}],
)
def test_a_call_with_sizes_that_fit_is_right(related: pathlib.Path, sizes: dict[str, int]) -> None:
    method = runtime.Runtime.get().load_program(related).load_method("forward")
    inputs = related_inputs(**sizes)
    expected = Related()(**inputs)
    for got, want in zip(method.execute(list(inputs.values())), expected, strict=True):
        torch.testing.assert_close(got, want)


class _DescribedError(Exception):
    """Ends an export once its values are described."""


@pytest.fixture
def describe(monkeypatch: pytest.MonkeyPatch) -> Callable[[ExportedProgram], DelegateValues]:
    def capture(jobs: list[Any]) -> None:
        (job,) = jobs
        raise _DescribedError(describe_values(preprocess._prepare(*job, {}).program))

    monkeypatch.setattr(preprocess, "_preprocess_all", capture)

    def lower(program: ExportedProgram) -> DelegateValues:
        with pytest.raises(_DescribedError) as caught:
            to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
        values: DelegateValues = caught.value.args[0]
        return values

    return lower


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "dim", "least"),
    [
        (lambda x: x * 2, Dim("n", max=8), 0),
        (lambda x: x * 2, Dim("n", min=1, max=8), 1),
        (lambda x: x * 2, Dim("n", min=3, max=8), 3),
        # Nothing says whether 2 was declared.
        (lambda x: x * 2, Dim.AUTO(max=8), 1),
        (lambda x: x.sum(0), Dim("n", min=0, max=8), 0),
        (lambda x: x.amax(0), Dim("n", min=0, max=8), 1),
        (lambda x: x[0] + 1, Dim("n", min=0, max=8), 1),
        (lambda x: x[1] + 1, Dim("n", min=0, max=8), 2),
        (lambda x: x[1] + 1, Dim.AUTO(max=8), 2),
    ],
)
def test_sizes_0_and_1_are_taken_where_they_were_declared_and_run(
    describe: Callable[[ExportedProgram], DelegateValues], function: Any, dim: Any, least: int
) -> None:
    program = torch.export.export(Calls(function), (torch.ones(4, 3),), dynamic_shapes=({0: dim},))
    values = describe(program)
    assert (values.inputs[0].dims[0].min, values.inputs[0].dims[0].max) == (least, 8)


def test_a_loaded_program_has_its_guards(describe: Callable[[ExportedProgram], DelegateValues]) -> None:
    def twice_if_eights(x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] % 8 == 0 else x

    program = torch.export.export(Calls(twice_if_eights), (torch.ones(16, 3),), dynamic_shapes=({0: Dim.AUTO(max=64)},))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    for each in (program, torch.export.load(stored)):
        (condition,) = describe(each).conditions
        values = [evaluate(condition, [[n, 3]], [n]) for n in (8, 12, 16)]
        assert values == [1, 0, 1]


def test_a_program_that_was_lowered_to_edge_by_hand_has_its_sizes() -> None:
    from executorch.exir import to_edge

    shapes = ({0: 2 * Dim("d", max=50)},)
    program = torch.export.export(Calls(lambda x: x.reshape(-1, 2) + 1), (torch.ones(8),), dynamic_shapes=shapes)
    values = describe_values(to_edge(program).exported_program())
    assert values.sizes[values.inputs[0].dims[0].size].text.startswith("2*")
