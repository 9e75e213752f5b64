"""The list of passes is checked, and a pass that fails fails the export."""

from __future__ import annotations

import pytest
import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from torch.export import Dim, ExportedProgram

from etcuda import CudaPartitioner
from etcuda.errors import PassError
from etcuda.options import BackendConfig
from etcuda.passes.base import GraphPass, NodeError
from etcuda.passes.manager import PASSES, PassResult, check_order, run_passes
from tests.partitioner.programs import edge

HOST = BackendConfig("host")
X = torch.randn(4, 6)


def nothing(program: ExportedProgram, config: BackendConfig) -> int:
    return 0


def program() -> ExportedProgram:
    return edge(lambda x: x.sin() + 1, X)


def test_the_products_order_is_valid() -> None:
    check_order(PASSES)


def test_every_requirement_matters() -> None:
    for index, each in enumerate(PASSES):
        for name in each.requires:
            shorter = [other for other in PASSES[:index] if other.name != name]
            with pytest.raises(PassError, match=f"pass '{shorter_name(shorter, each, name)}' requires"):
                check_order([*shorter, each])


def shorter_name(shorter: list[GraphPass], last: GraphPass, missing: str) -> str:
    return next(each.name for each in (*shorter, last) if missing in each.requires)


def test_bad_order() -> None:
    first, second = GraphPass("first", nothing), GraphPass("second", nothing, requires=("first",))
    with pytest.raises(PassError, match=r"'second' requires 'first'.*got nothing before it. Move 'first' in front"):
        run_passes(program(), HOST, [second, first])


def test_a_pass_listed_twice() -> None:
    with pytest.raises(PassError, match="'first' is listed twice"):
        check_order([GraphPass("first", nothing), GraphPass("first", nothing)])


def test_results_and_repetition() -> None:
    each = program()
    results = {result.name: result for result in run_passes(each, HOST)}
    assert results["lower_edge_ops"] == PassResult("lower_edge_ops", 3)
    assert run_passes(each, HOST)[0].changed == 0


def test_a_failing_pass_is_named() -> None:
    def breaks(program: ExportedProgram, config: BackendConfig) -> int:
        raise KeyError("stride")

    with pytest.raises(PassError, match="pass 'breaks' failed: KeyError: 'stride'"):
        run_passes(program(), HOST, [GraphPass("breaks", breaks)])


def test_a_failing_node_is_named() -> None:
    def breaks(program: ExportedProgram, config: BackendConfig) -> int:
        node = next(node for node in program.graph.nodes if node.op == "call_function")
        raise NodeError(node, "expected rank 2, got 3")

    with pytest.raises(PassError, match=r"'breaks' failed at node 'aten_sin_default' .*expected rank 2, got 3"):
        run_passes(program(), HOST, [GraphPass("breaks", breaks)])


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"stack_trace": "line 7", "nn_module_stack": {"L0": ("model.norm", "Norm")}}, "It comes from:\nline 7"),
        ({"nn_module_stack": {"L0": ("", "Model"), "L1": ("model.norm", "Norm")}}, "It comes from model.norm."),
        ({"nn_module_stack": {}}, "expected rank 2."),
    ],
)
def test_a_message_says_where_a_node_comes_from(meta: dict[str, object], words: str) -> None:
    def breaks(program: ExportedProgram, config: BackendConfig) -> int:
        node = next(node for node in program.graph.nodes if node.op == "call_function")
        for key in ("stack_trace", "nn_module_stack"):
            node.meta.pop(key, None)
        node.meta.update(meta)
        raise NodeError(node, "expected rank 2")

    with pytest.raises(PassError) as raised:
        run_passes(program(), HOST, [GraphPass("breaks", breaks)])
    assert str(raised.value).endswith(words)


def test_dangling_metadata_is_found() -> None:
    def forgets(program: ExportedProgram, config: BackendConfig) -> int:
        node = next(node for node in program.graph.nodes if node.op == "call_function")
        del node.meta["val"]
        return 1

    with pytest.raises(PassError, match=r"'forgets' failed at node .*expected meta\['val'\], got none"):
        run_passes(program(), HOST, [GraphPass("forgets", forgets)])


def test_a_lost_output_is_found() -> None:
    def loses(program: ExportedProgram, config: BackendConfig) -> int:
        program.graph.output_node().args = ((),)
        return 1

    with pytest.raises(PassError, match=r"expected 1, got 0"):
        run_passes(program(), HOST, [GraphPass("loses", loses)])


def test_a_size_made_fixed_is_found() -> None:
    def narrows(program: ExportedProgram, config: BackendConfig) -> int:
        value = next(node.meta["val"] for node in program.graph.nodes if node.op == "placeholder")
        return int(value.shape[0])

    dynamic = edge(lambda x: x.sin(), X, dynamic=[{0: Dim("n", min=2, max=9)}])
    with pytest.raises(PassError, match=r"'narrows' failed: the sizes of input 'inputs_0' were narrowed: .*'4'"):
        run_passes(dynamic, HOST, [GraphPass("narrows", narrows)])


def test_an_invalid_graph_is_found() -> None:
    def disorders(program: ExportedProgram, config: BackendConfig) -> int:
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        calls[0].append(calls[-1])
        calls[-1].append(calls[0])
        return 1

    with pytest.raises(PassError, match="pass 'disorders' failed: RuntimeError"):
        run_passes(program(), HOST, [GraphPass("disorders", disorders)])


def test_the_signature_follows_the_outputs() -> None:
    each = edge(lambda x: x.t(), X)
    run_passes(each, HOST)
    assert each.graph_signature.user_outputs == tuple(node.name for node in each.graph.output_node().args[0])


def test_symbols_of_no_result_fail_no_pass() -> None:
    """``bincount``, which is left to others, leaves symbols in the memory that all tracing shares."""

    class Counts(torch.nn.Module):
        def forward(self, x: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            counts = torch.bincount(places.reshape(-1), minlength=10)
            return counts, x.clone().index_put_((places,), torch.ones(3, 4), accumulate=True)

    program = torch.export.export(Counts(), (torch.randn(3, 4), torch.tensor([0, 0, 1])))
    config = EdgeCompileConfig(_check_ir_validity=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")], compile_config=config)
    left = [node.target for node in lowered.exported_program().graph.nodes if node.op == "call_function"]
    assert any("executorch_call_delegate" in str(target) for target in left)
