"""Which nodes are claimed, in which partitions, through control flow and sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch.export import Dim, ExportedProgram

from etcuda import CudaPartitioner
from tests.partitioner.programs import edge, export
from tests.partitioner.tagging import X, left, left_over, partition


def test_an_operator_left_over_splits_the_graph() -> None:
    program = edge(lambda x: left_over(x.sin() * 2, 2).cos() + 1, X)
    _, tags = partition(program)
    assert tags["aten_sin_default"] == "etcuda_0"
    assert tags["tests_left_over_default"] is None
    assert tags["aten_cos_default"] == "etcuda_1"


def test_partitions_are_convex_and_as_few_as_can_be() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        a = x.sin()
        b = left_over(a, 2)  # not claimed
        return a.cos().sum() + b.exp().sum()  # the cosine waits for nobody, the sum for the top two

    _, tags = partition(edge(model, X))
    assert tags["aten_cos_default"] == "etcuda_0"
    assert tags["aten_exp_default"] == tags["aten_add_tensor"] == "etcuda_1"


def test_a_table_is_made_where_it_is_used() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        table = torch.arange(2.0).exp()
        return left_over(x.sin(), 2) * table

    _, tags = partition(edge(model, X))
    assert tags["aten_exp_default"] == tags["aten_mul_tensor"] == "etcuda_1"


def test_nothing_is_computed_by_views_alone() -> None:
    result, tags = partition(edge(lambda x: (x.reshape(6, 4), left_over(x, 2).unsqueeze(0)), X))
    assert result.partition_tags == {}
    assert set(tags.values()) == {None}


@pytest.mark.parametrize("predicate", ["shape", "data"])
def test_cond_is_claimed_whole(predicate: str, delegated: list[ExportedProgram]) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        chosen = x.shape[0] > 5 if predicate == "shape" else x.sum() > 0
        return torch.cond(chosen, lambda y: y.sin() + 1, lambda y: y.cos() * 3, (x,))

    program = export(model, X, dynamic=[{0: Dim("n", min=2, max=9)}])
    manager = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    assert left(manager) == {"executorch_call_delegate": 1, "getitem": 1}
    assert torch.ops.higher_order.cond in {node.target for node in delegated[0].graph.nodes}


def test_while_loop_is_claimed_whole(delegated: list[ExportedProgram]) -> None:
    def model(x: torch.Tensor) -> Any:
        from torch._higher_order_ops.while_loop import while_loop

        count = torch.zeros((), dtype=torch.int64)
        return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2), (count, x))[1] + 1

    manager = to_edge_transform_and_lower(export(model, X), partitioner=[CudaPartitioner("host")])
    assert "while_loop" not in left(manager)
    assert len(delegated) == 1


def test_cond_with_a_branch_left_over_is_entered() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: (y.sin() + 1).exp(), lambda y: left_over(y.cos() * 3, 6), (x,))

    program = edge(model, X)
    result, tags = partition(program)
    inner = _branch_tags(program)
    assert tags["cond"] is None
    assert sum(branch.get("aten_sin_default") is not None for branch in inner) == 1
    assert [branch["tests_left_over_default"] for branch in inner if "tests_left_over_default" in branch] == [None]
    used = {tag for branch in (*inner, tags) for tag in branch.values() if tag is not None}
    assert used == set(result.partition_tags)
    assert len(used) == 3


def _branch_tags(program: ExportedProgram) -> list[dict[str, str | None]]:
    branches = [module for module in program.graph_module.children() if isinstance(module, torch.fx.GraphModule)]
    return [{n.name: n.meta.get("delegation_tag") for n in module.graph.nodes} for module in branches]


def test_sizes_travel_inside_tensors(delegated: list[ExportedProgram]) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        wide = (x.sin() + 1).unsqueeze(0).expand(n, -1, -1)
        return (left_over(wide, 2) * 2).reshape(2 * n * n, -1)[:n] + 1

    program = export(model, X, dynamic=[{0: Dim("n", min=2, max=9)}])
    manager = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    assert len(delegated) == 2
    for each in delegated:
        values = [
            n.meta["val"]
            for n in each.graph.nodes
            if n.op == "placeholder" and n.name in each.graph_signature.user_inputs
        ]
        assert all(isinstance(value, torch.Tensor) for value in values)
    x = torch.randn(3, 6)
    first, second = (each.module(check_guards=False) for each in delegated)
    torch.testing.assert_close(second(left_over(first(x)[0], 2))[0], model(x))
    manager.to_executorch()


def test_a_number_that_no_size_gives_is_refused() -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return left_over(x, 2).sum(0).cos().unsqueeze(0).expand(y.shape[0], -1).reshape(-1) + 1

    program = edge(model, X, torch.randn(5), dynamic=[None, {0: Dim("n", min=2, max=9)}])
    symbol = next(node for node in program.graph.nodes if "sym_size" in str(node.target))
    result, tags = partition(program)
    if tags[symbol.name] is None:  # the size of y is taken outside, and no tensor of the partition has it
        assert all(tags[user.name] is None for user in symbol.users)
    assert result.partition_tags
