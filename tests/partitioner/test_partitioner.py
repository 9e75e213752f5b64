"""Which nodes are tagged, what each partition owns, and how partitioners share a graph."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
from executorch.exir.backend.backend_details import PreprocessResult
from executorch.exir.backend.partitioner import PartitionResult
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from etcuda import CudaPartitioner
from etcuda.backend import preprocess
from etcuda.errors import OptionError, TargetError
from etcuda.options import BACKEND_ID, COMPILE_SPEC_KEY, BackendConfig, CompileOptions
from etcuda.passes.manager import run_passes
from etcuda.target import PORTABLE, TARGETS
from tests.partitioner.programs import edge, export

aten = torch.ops.aten
X = torch.randn(4, 6)


def tags_of(program: ExportedProgram) -> dict[str, str | None]:
    return {node.name: node.meta.get("delegation_tag") for node in program.graph.nodes}


def partition(program: ExportedProgram, target: str = "host") -> tuple[PartitionResult, dict[str, str | None]]:
    result = CudaPartitioner(target).partition(program)
    return result, tags_of(program)


@pytest.fixture
def delegated(monkeypatch: pytest.MonkeyPatch) -> list[ExportedProgram]:
    """Full lowering with a backend that runs the passes and compiles nothing; the programs it was handed."""
    seen: list[ExportedProgram] = []

    def prepare(methods: list[tuple[str, ExportedProgram, Any]], *_: Any) -> list[PreprocessResult]:
        for _method, program, specs in methods:
            run_passes(program, BackendConfig.from_bytes(specs[0].value))
            seen.append(program)
        return [PreprocessResult(processed_bytes=b"\1") for _ in methods]

    monkeypatch.setattr(preprocess, "_preprocess_all", prepare)
    return seen


def left(manager: EdgeProgramManager, method: str = "forward") -> collections.Counter[str]:
    """Operators that ExecuTorch's own kernels run."""
    nodes: Iterator[Node] = iter(manager.exported_program(method).graph.nodes)
    names = [str(getattr(node.target, "__name__", node.target)) for node in nodes if node.op == "call_function"]
    return collections.Counter(names)


def test_no_arguments() -> None:
    assert CudaPartitioner().config == BackendConfig(PORTABLE) or torch.cuda.is_available()


def test_the_compile_spec_carries_target_and_options() -> None:
    result = CudaPartitioner("sm_90", {"allow_tf32": True}).partition(edge(lambda x: x.sin() + 1, X))
    (spec,) = result.partition_tags.values()
    assert spec.backend_id == BACKEND_ID
    assert [each.key for each in spec.compile_specs] == [COMPILE_SPEC_KEY]
    config = BackendConfig.from_bytes(spec.compile_specs[0].value)
    assert config == BackendConfig(TARGETS["sm_90"], CompileOptions(allow_tf32=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "sm_91"}, TargetError, "sm_91"),
        ({"target": 90}, TargetError, "got int"),
        ({"options": {"allow_tf23": True}}, OptionError, "allow_tf32"),
        ({"options": {"allow_tf32": "yes"}}, OptionError, "'yes'"),
        ({"options": ["allow_tf32"]}, OptionError, "got list"),
    ],
)
def test_bad_arguments_fail_at_construction(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CudaPartitioner(**arguments)


def test_one_partition_owns_its_weights() -> None:
    program = edge(lambda m, x: torch.relu(x @ m.w) + m.b, X, w=torch.randn(6, 3), b=torch.randn(3))
    result, tags = partition(program)
    assert set(tags.values()) == {"etcuda_0", None}
    assert [name for name, tag in tags.items() if tag is None] == ["inputs_0", "output"]
    assert list(result.partition_tags) == ["etcuda_0"]


def test_an_operator_left_over_splits_the_graph() -> None:
    program = edge(lambda x: torch.topk(x.sin() * 2, 2)[0].cos() + 1, X)
    _, tags = partition(program)
    assert tags["aten_sin_default"] == "etcuda_0"
    assert tags["aten_topk_default"] is None
    assert tags["getitem"] is None
    assert tags["aten_cos_default"] == "etcuda_1"


def test_partitions_are_convex_and_as_few_as_can_be() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        a = x.sin()
        b = torch.topk(a, 2)[0]  # not claimed
        return a.cos().sum() + b.exp().sum()  # the cosine waits for nobody, the sum for the top two

    _, tags = partition(edge(model, X))
    assert tags["aten_cos_default"] == "etcuda_0"
    assert tags["aten_exp_default"] == tags["aten_add_tensor"] == "etcuda_1"


def test_a_table_is_made_where_it_is_used() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        table = torch.arange(2.0).exp()
        return torch.topk(x.sin(), 2)[0] * table

    _, tags = partition(edge(model, X))
    assert tags["aten_exp_default"] == tags["aten_mul_tensor"] == "etcuda_1"


def test_nothing_is_computed_by_views_alone() -> None:
    result, tags = partition(edge(lambda x: (x.reshape(6, 4), torch.topk(x, 2)[0].unsqueeze(0)), X))
    assert result.partition_tags == {}
    assert set(tags.values()) == {None}


def test_a_weight_of_two_partitions_is_stored_by_both(delegated: list[ExportedProgram]) -> None:
    program = export(lambda m, x: torch.topk(x * m.w, 6)[0] * m.w, X, w=torch.randn(6))
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
            y = torch.topk(m.state * x, 6)[0]
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
        y = torch.topk(m.state, 6)[0] if which == "read outside" else x + 1
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


def test_two_methods(delegated: list[ExportedProgram]) -> None:
    ctas = {name: export(lambda m, x: x @ m.w, X, w=torch.ones(6, 6)) for name in ("prefill", "decode")}
    manager = to_edge_transform_and_lower(ctas, partitioner=[CudaPartitioner("host")])
    assert len(delegated) == 2
    assert left(manager, "prefill") == left(manager, "decode") == {"executorch_call_delegate": 1, "getitem": 1}
    manager.to_executorch()


def test_an_operator_kept_whole_is_handed_over_whole(delegated: list[ExportedProgram]) -> None:
    to_edge_transform_and_lower(export(lambda x: torch.nn.functional.silu(x), X), partitioner=[CudaPartitioner("host")])
    assert aten.silu.default in {node.target for node in delegated[0].graph.nodes}


def test_an_operator_kept_whole_never_blocks_an_export(delegated: list[ExportedProgram]) -> None:
    program = export(lambda x: torch.baddbmm(x, x, x), torch.ones(2, 3, 3, dtype=torch.int64))
    manager = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    assert any("bmm" in name for name in left(manager))


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
        return torch.cond(x.sum() > 0, lambda y: (y.sin() + 1).exp(), lambda y: torch.topk(y.cos() * 3, 6)[0], (x,))

    program = edge(model, X)
    result, tags = partition(program)
    inner = _branch_tags(program)
    assert tags["cond"] is None
    assert sum(branch.get("aten_sin_default") is not None for branch in inner) == 1
    assert [branch["aten_topk_default"] for branch in inner if "aten_topk_default" in branch] == [None]
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
        return (torch.topk(wide, 2)[0] * 2).reshape(2 * n * n, -1)[:n] + 1

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
    torch.testing.assert_close(second(torch.topk(first(x)[0], 2)[0])[0], model(x))
    manager.to_executorch()


def test_a_number_that_no_size_gives_is_refused() -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.topk(x, 2)[0].sum(0).cos().unsqueeze(0).expand(y.shape[0], -1).reshape(-1) + 1

    program = edge(model, X, torch.randn(5), dynamic=[None, {0: Dim("n", min=2, max=9)}])
    symbol = next(node for node in program.graph.nodes if "sym_size" in str(node.target))
    result, tags = partition(program)
    if tags[symbol.name] is None:  # the size of y is taken outside, and no tensor of the partition has it
        assert all(tags[user.name] is None for user in symbol.users)
    assert result.partition_tags


def test_tags_of_others_are_left_alone() -> None:
    program = edge(lambda m, x: (x.sin() * m.w).cos() + 1, X, w=torch.ones(6))
    for node in program.graph.nodes:
        if node.name in ("aten_mul_tensor", "b_w"):
            node.meta["delegation_tag"] = "theirs"
    _, tags = partition(program)
    assert tags["aten_mul_tensor"] == tags["b_w"] == "theirs"
    assert tags["aten_sin_default"] == "etcuda_0"
    assert tags["aten_cos_default"] == "etcuda_1"


@pytest.mark.parametrize("first", ["xnnpack", "etcuda"])
def test_with_xnnpack(first: str, delegated: list[ExportedProgram]) -> None:
    xnnpack = pytest.importorskip("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6)).eval()

    class WithErf(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.erf(self.model(x)) * 2

    both = [xnnpack.XnnpackPartitioner(), CudaPartitioner("host")]
    manager = to_edge_transform_and_lower(
        torch.export.export(WithErf(), (X,)), partitioner=both if first == "xnnpack" else both[::-1]
    )
    delegates = left(manager)["executorch_call_delegate"]
    assert (delegates > 1) if first == "xnnpack" else (delegates == 1)
    assert left(manager).keys() <= {
        "executorch_call_delegate",
        "getitem",
        "dim_order_ops._to_dim_order_copy.default",  # of a number, which computes nothing
    }
    # With an older torch, XNNPACK takes less.
    assert any("erf" in str(node.target) for each in delegated for node in each.graph.nodes)
    assert len(delegated) == 1 or first == "xnnpack"
    manager.to_executorch()
