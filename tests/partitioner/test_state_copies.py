"""Copies that let a delegate own a method's state: what the program computes stays the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

from etcuda.options import BackendConfig, CompileOptions
from etcuda.partitioner.aliases import mutated_buffers
from etcuda.partitioner.state_copies import copy_state
from tests.partitioner.programs import Calls, export

CONFIG = BackendConfig("host", CompileOptions())
X = torch.tensor([1.1, 2.2, 3.3])


def returned(m: Any, x: torch.Tensor) -> Any:
    m.s.add_(x)
    return m.s


def returned_as_a_view(m: Any, x: torch.Tensor) -> Any:
    m.s.add_(x)
    return m.s[1:], m.s.to(torch.float64)


def returned_before(m: Any, x: torch.Tensor) -> Any:
    old = m.s.clone()
    m.s.add_(x)
    return old


def read_outside(m: Any, x: torch.Tensor) -> Any:
    m.s.add_(x)
    return torch.nonzero(m.s), m.s * 2


def read_outside_before(m: Any, x: torch.Tensor) -> Any:
    old = torch.nonzero(m.s)
    m.s.add_(x)
    return old


def replaced(m: Any, x: torch.Tensor) -> Any:
    m.s.copy_(x)
    return m.s * 2


def cast(m: Any, x: torch.Tensor) -> Any:
    m.s.copy_(x.to(torch.bfloat16))
    return m.s * 2


def spread(m: Any, x: torch.Tensor) -> Any:
    m.s.copy_(x.sum())
    return m.s * 2


def in_part(m: Any, x: torch.Tensor) -> Any:
    m.s[1:].copy_(x[1:].to(torch.float64))
    return m.s


def through_a_view(m: Any, x: torch.Tensor) -> Any:
    m.s.view(3, 1).copy_(x.view(3, 1))
    return x


def filled(m: Any, x: torch.Tensor) -> Any:
    m.s.fill_(3)
    return m.s + x


def emptied(m: Any, x: torch.Tensor) -> Any:
    m.s.zero_()
    return x


def emptied_twice(m: Any, x: torch.Tensor) -> Any:
    m.s.zero_()
    m.t.zero_()
    return torch.ones(2)


def only_added(m: Any, x: torch.Tensor) -> Any:
    m.s.add_(x)
    return x


def swapped(m: Any, x: torch.Tensor) -> Any:
    s = m.s.clone()
    m.s.copy_(m.t)
    m.t.copy_(s)
    return x + m.s


def one_value_for_two(m: Any, x: torch.Tensor) -> Any:
    y = x * 2
    m.s.copy_(y)
    m.t.copy_(y)
    return y


def itself(m: Any, x: torch.Tensor) -> Any:
    m.s.copy_(m.s)
    return x * m.s


EDITED = [
    *(
        returned,
        returned_as_a_view,
        returned_before,
        read_outside,
        read_outside_before,
        replaced,
        cast,
        spread,
        in_part,
    ),
    *(through_a_view, filled, emptied, emptied_twice, only_added, swapped, one_value_for_two, itself),
]


def counted(m: Any, x: torch.Tensor) -> Any:
    m.s.add_(x)
    return m.s * 2


def cached(m: Any, x: torch.Tensor) -> Any:
    m.s[1:2] = x[:1]
    return m.s.sum()


def read(m: Any, x: torch.Tensor) -> Any:
    return torch.nonzero(m.s), m.s * x


def program_of(function: Any) -> ExportedProgram:
    return export(function, X, s=torch.full((3,), 5.0), t=torch.ones(3))


def copied(program: ExportedProgram) -> ExportedProgram:
    return copy_state(program, CONFIG)


@pytest.mark.parametrize("function", EDITED)
def test_the_program_computes_the_same(function: Any) -> None:
    program = copied(program_of(function))
    program.validate()
    module, eager = program.module(), Calls(function, s=torch.full((3,), 5.0), t=torch.ones(3))
    for factor in (1, 2, 3):
        with torch.no_grad():
            expected = copy.deepcopy(torch.utils._pytree.tree_leaves(eager(X * factor)))
        got = torch.utils._pytree.tree_leaves(module(X * factor))
        torch.testing.assert_close(got, expected)
        assert [each.dtype for each in got] == [each.dtype for each in expected]
        torch.testing.assert_close(dict(module.named_buffers()), dict(eager.named_buffers()))


@pytest.mark.parametrize("function", EDITED)
def test_each_new_value_is_a_call_and_goes_nowhere_else(function: Any) -> None:
    program = copied(program_of(function))
    outputs: list[Any] = list(program.graph.output_node().args[0])
    specs = program.graph_signature.output_specs
    values = [value for spec, value in zip(specs, outputs, strict=True) if spec.kind is OutputKind.BUFFER_MUTATION]
    assert values
    for value in values:
        assert isinstance(value, Node)
        assert value.op == "call_function"
        assert outputs.count(value) == 1
        assert all(getattr(user.target, "__name__", "") != "nonzero.default" for user in value.users)
    buffers = program.graph_signature.inputs_to_buffers
    assert not [value for value in outputs if value.name in buffers]
    names = [spec.arg.name for spec in specs]
    assert names == [value.name for value in outputs]


@pytest.mark.parametrize("function", [counted, cached, read])
def test_a_program_that_needs_no_copy_is_left_alone(function: Any) -> None:
    program = program_of(function)
    assert copied(program) is program
    functional = program.run_decompositions({})
    assert copied(functional) is functional


@pytest.mark.parametrize("function", [returned, emptied, swapped])
def test_a_functional_program_is_copied_and_not_changed(function: Any) -> None:
    program = program_of(function).run_decompositions({})
    before = str(program.graph)
    made = copied(program)
    assert made is not program
    assert str(program.graph) == before
    assert all(made.state_dict[name] is value for name, value in program.state_dict.items())


def test_mutated_buffers_are_found_in_both_forms() -> None:
    program = program_of(emptied_twice)
    assert mutated_buffers(program) == mutated_buffers(program.run_decompositions({})) == {"s", "t"}
    assert mutated_buffers(program_of(in_part)) == {"s"}
    assert mutated_buffers(program_of(read)) == set()


def test_a_returned_buffer_that_another_method_may_write_to_is_computed() -> None:
    program = copied(program_of(lambda m, x: (m.s, m.t[1:], x + 1)))
    calls = [node for node in program.graph.nodes if node.target is torch.ops.aten.where.self]
    assert {source.name for call in calls for source in call.all_input_nodes} >= {"b_s", "b_t"}
    assert not [node for node in program.graph.output_node().all_input_nodes if node.op == "placeholder"]
