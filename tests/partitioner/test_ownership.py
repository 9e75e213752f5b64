"""Which partition owns a weight or a buffer, and which are left to the program or to other partitioners."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch.export import ExportedProgram

from etcuda import CudaPartitioner
from tests.partitioner.programs import edge, export
from tests.partitioner.tagging import X, left_over, partition


def test_one_partition_owns_its_weights() -> None:
    program = edge(lambda m, x: torch.relu(x @ m.w) + m.b, X, w=torch.randn(6, 3), b=torch.randn(3))
    result, tags = partition(program)
    assert set(tags.values()) == {"etcuda_0", None}
    assert [name for name, tag in tags.items() if tag is None] == ["inputs_0", "output"]
    assert list(result.partition_tags) == ["etcuda_0"]


def test_a_weight_of_two_partitions_is_stored_by_both(delegated: list[ExportedProgram]) -> None:
    program = export(lambda m, x: left_over(x * m.w, 6) * m.w, X, w=torch.randn(6))
    manager = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    assert [list(each.graph_signature.inputs_to_buffers.values()) for each in delegated] == [["w"], ["w"]]
    manager.to_executorch()


def test_a_buffer_of_one_partition_is_its_state(delegated: list[ExportedProgram]) -> None:
    def model(m: Any, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        m.cache.index_copy_(0, at, x)
        return m.cache.sum(0)

    program = export(model, X[:2], torch.tensor([1, 3]), cache=torch.zeros(8, 6))
    manager = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    (inner,) = delegated
    assert inner.graph_signature.buffers_to_mutate.keys() <= {node.name for node in inner.graph.nodes}
    assert list(inner.graph_signature.buffers_to_mutate.values()) == ["cache"]
    assert manager.exported_program().graph_signature.buffers_to_mutate == {}
    assert list(manager.exported_program().graph_signature.inputs_to_buffers) == []


@pytest.mark.parametrize("which", ["read by two partitions", "returned"])
def test_a_buffer_that_no_partition_can_own_stays_in_the_program(which: str, delegated: list[ExportedProgram]) -> None:
    def model(m: Any, x: torch.Tensor) -> Any:
        if which == "read by two partitions":
            y = left_over(m.state * x, 6)
            m.state.copy_(y.exp())
            return y
        m.state.add_(x)
        return m.state

    if which == "returned":
        program = edge(model, X, state=torch.zeros(4, 6))
        output = program.graph.output_node()
        mutated, _ = output.args[0]
        output.args = ((mutated, mutated),)
        program.graph_signature.output_specs[1].arg.name = mutated.name
        _, tags = partition(program)
        assert tags["b_state"] is None
        return
    manager = to_edge_transform_and_lower(
        export(model, X, state=torch.zeros(4, 6)), partitioner=[CudaPartitioner("host")]
    )
    assert all(each.graph_signature.buffers_to_mutate == {} for each in delegated)
    assert list(manager.exported_program().graph_signature.buffers_to_mutate.values()) == ["state"]
    manager.to_executorch()


@pytest.mark.parametrize("which", ["read outside", "returned"])
def test_a_buffer_that_others_need_a_copy_of_is_owned(which: str, delegated: list[ExportedProgram]) -> None:
    def model(m: Any, x: torch.Tensor) -> Any:
        y = left_over(m.state, 6) if which == "read outside" else x + 1
        m.state.add_(x)
        return y if which == "read outside" else m.state

    program = export(model, X, state=torch.zeros(4, 6))
    manager = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    (inner,) = delegated
    assert list(inner.graph_signature.buffers_to_mutate.values()) == ["state"]
    assert manager.exported_program().graph_signature.buffers_to_mutate == {}
    manager.to_executorch()


def test_a_delegate_always_has_a_result(delegated: list[ExportedProgram]) -> None:
    """ExecuTorch drops one without."""

    def model(m: Any, x: torch.Tensor) -> None:
        m.small.zero_()
        m.large.zero_()

    program = export(model, X, small=torch.ones(3), large=torch.ones(9))
    manager = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    (inner,) = delegated
    assert list(inner.graph_signature.buffers_to_mutate.values()) == ["large"]
    assert len(inner.graph_signature.user_outputs) == 1
    executed = manager.to_executorch().exported_program()
    assert any("call_delegate" in str(node.target) for node in executed.graph.nodes)


def test_tags_of_others_are_left_alone() -> None:
    program = edge(lambda m, x: (x.sin() * m.w).cos() + 1, X, w=torch.ones(6))
    for node in program.graph.nodes:
        if node.name in ("aten_mul_tensor", "b_w"):
            node.meta["delegation_tag"] = "theirs"
    _, tags = partition(program)
    assert tags["aten_mul_tensor"] == tags["b_w"] == "theirs"
    assert tags["aten_sin_default"] == "etcuda_0"
    assert tags["aten_cos_default"] == "etcuda_1"
